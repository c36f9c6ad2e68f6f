"""Ranks of the toy run that can be killed, stopped and left hanging; each leaves with the exit code of `tandem`.

`python -m tests.helpers.survival_run JOB`: as `tests.helpers.toy_run`, for one job. More keys of a job: hang (rank and
batch number whose reading never ends), fail (rank and batch number whose reading raises a ShardError), clock (rank and
seconds that its clock is wrong by).
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.storage.shard import ShardError
from engine.distributed import init_distributed
from launchers.cli import guarded
from tests.helpers import toy_run
from tests.helpers.toy_objective import ToyBatch
from tests.helpers.toy_run import metrics, run_toy
from tests.helpers.warm import Child, rank_variables


class Ranks:
    """The processes of one attempt at a run."""

    def __init__(self, job: dict[str, Any], *, world_size: int = 2) -> None:
        self.run_dir = Path(job["run_dir"])
        ranks = rank_variables(world_size)
        self.processes = [Child("tests.helpers.survival_run", json.dumps(job), env=rank) for rank in ranks]

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()

    def wait_for_step(self, step: int, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (self.run_dir / "metrics.jsonl").exists() and any(m["step"] >= step for m in metrics(self.run_dir)):
                return
            for process in self.processes:
                assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        raise AssertionError(f"step {step} was not reached in {timeout_s} s")

    def send(self, rank: int, what: signal.Signals) -> None:
        self.processes[rank].send_signal(what)

    def end(self, *ranks: int, timeout_s: float = 200.0) -> list[tuple[int, str]]:
        """Exit codes and outputs of these ranks (all without arguments)."""
        chosen = [self.processes[rank] for rank in ranks] or self.processes
        outputs = [process.communicate(timeout=timeout_s)[0] for process in chosen]
        return [(process.returncode, output) for process, output in zip(chosen, outputs, strict=True)]


def _trouble(job: dict[str, Any]) -> None:
    rank = init_distributed("cpu").rank
    wrong_rank, shift_s = job.get("clock", (-1, 0))
    if rank == wrong_rank:
        right = time.time
        time.time = lambda: right() + shift_s
    plain = toy_run.SlowSource.batches

    def batches(self: toy_run.SlowSource, start: int) -> Iterator[ToyBatch]:
        for number, batch in enumerate(plain(self, start), start):
            if job.get("hang") == [rank, number]:
                time.sleep(3600)
            if job.get("fail") == [rank, number]:
                raise ShardError("too many damaged samples, says the test")
            yield batch

    toy_run.SlowSource.batches = batches  # type: ignore[method-assign]


def _main(argv: list[str]) -> int:
    job = json.loads(argv[0])
    _trouble(job)
    return 0 if run_toy(job).status == "finished" else 75


if __name__ == "__main__":
    sys.exit(guarded(_main, sys.argv[1:]))
