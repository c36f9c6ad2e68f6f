"""Where jobs go: SLURM (`slurm_queue`), processes on this machine, or this process; all by the same call.

`submit(works, ...)` queues an array and returns an id for each element. On SLURM it returns at once and the order is
kept by dependencies; the other two come back when the work is done, and leave out what depends on something failed.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.interrupt import wait_on
from configs.schema import ResourcesConfig, SlurmConfig
from engine.distributed import free_port
from launchers.cli import TRY_AGAIN
from launchers.cluster.work import LAUNCH_VARIABLES, FollowJob, PretrainJob, Work

_NO_LIMIT_MIN = 60 * 24 * 365
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class After:
    """What a job waits for.

    Attributes:
        succeeded: ids that must have succeeded; if one fails, the job is cancelled.
        ended: ids that must have ended in whatever way.
    """

    succeeded: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()


AT_ONCE = After()
"""Wait for nothing."""


@dataclass(kw_only=True)
class Queue:
    """Takes jobs.

    Attributes:
        logs: folder of their output.
        cluster: name for jobs.json; None without SLURM.
        failed: ids of jobs that are known to have failed, or were left out, when `submit` comes back.
    """

    logs: Path
    cluster: str | None = None
    failed: set[str] = field(default_factory=set)

    def submit(self, works: Sequence[Work], *, name: str, after: After = AT_ONCE) -> list[str]:
        """Queue an array, at least one element; an id for each."""
        raise NotImplementedError


def frozen_python(code: Path) -> str:
    """Command that starts Python with the frozen code first on its path."""
    return shlex.join(["env", f"--chdir={code}", sys.executable])


@contextmanager
def own_variables_only(hide: AbstractSet[str] = frozenset()) -> Iterator[None]:
    """Hide what a surrounding job or launcher has set: the new job would take it for its own."""
    names = [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_")) and name != "SLURM_CONF"]
    names += [name for name in (*hide, *LAUNCH_VARIABLES) if name in os.environ]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


@dataclass(kw_only=True)
class LocalQueue(Queue):
    """Processes on this machine, started by submitit; comes back when they are done.

    Attributes:
        config: processes and GPUs of a run, and how many runs at a time.
        code: folder of the frozen code.
    """

    config: SlurmConfig
    code: Path

    def submit(self, works: Sequence[Work], *, name: str, after: After = AT_ONCE) -> list[str]:
        """Run the works, `array_parallelism` at a time; Ctrl-C asks them to stop and write a checkpoint."""
        if self.failed.intersection(after.succeeded):
            print(f"{name}: left out, what it depends on has failed")
            left_out = [f"left-out-{len(self.failed) + number}" for number in range(len(works))]
            self.failed.update(left_out)
            return left_out
        ids: list[str] = []
        running: list[tuple[Work, Any]] = []
        try:
            for work in works:
                while len(running) >= self.config.array_parallelism:
                    running = self._still_running(running)
                job = self._start(work)
                print(f"{work.name}: started, output in {job.paths.stdout}")
                running.append((work, job))
                ids.append(str(job.job_id))
            while running:
                running = self._still_running(running)
        except KeyboardInterrupt:
            wait_on()
            print("stopping: what trains writes a checkpoint first", file=sys.stderr)
            for _, job in running:
                job._process.send_signal(signal.SIGTERM)  # submitit hands it on to the job's processes
            while running:
                running = self._still_running(running)
            print("stopped; the same command continues from here", file=sys.stderr)
            sys.exit(TRY_AGAIN)
        return ids

    def _start(self, work: Work) -> Any:
        import submitit

        asked: ResourcesConfig = self.config.evaluate
        if isinstance(work, PretrainJob):
            asked, work = self.config, replace(work, local_port=free_port())
        # submitit gives a job the first GPUs, and none to one that asks for none. Here: the choice made outside, if
        # there is one; else all, for a run that asks for none.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        prefix = "" if asked.gpus_per_node else "env -u CUDA_VISIBLE_DEVICES "
        if visible is not None:
            prefix = f"env CUDA_VISIBLE_DEVICES={shlex.quote(visible)} "
        executor = submitit.LocalExecutor(folder=self.logs, python=prefix + frozen_python(self.code))
        executor.update_parameters(
            nodes=1, tasks_per_node=asked.tasks, gpus_per_node=asked.gpus_per_node, timeout_min=_NO_LIMIT_MIN
        )
        with own_variables_only(), _sigint_ignored():
            return executor.submit(work)

    def _still_running(self, running: Sequence[tuple[Work, Any]]) -> list[tuple[Work, Any]]:
        time.sleep(_POLL_S)
        still_running = []
        for work, job in running:
            if not job.done():
                still_running.append((work, job))
                continue
            good = _succeeded(job)
            print(f"{work.name}: {'done' if good else f'failed or stopped; see {job.paths.stderr}'}")
            if not good:
                self.failed.add(str(job.job_id))
        return still_running


def _succeeded(job: Any) -> bool:
    """Whether all processes of a job that is over came to their end (one that leaves with a code writes no result)."""
    from submitit.core.utils import pickle_load

    results = [job.task(number).paths.result_pickle for number in range(job.num_tasks)]
    return all(path.exists() and pickle_load(path)[0] == "success" for path in results)


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Children started here do not die of the terminal's Ctrl-C, which reaches them too; they get SIGTERM."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class DebugQueue(Queue):
    """This process, one work after another; what fails raises here, where a debugger sees it. Logs to the terminal."""

    def submit(self, works: Sequence[Work], *, name: str, after: After = AT_ONCE) -> list[str]:
        """Run the works here."""
        for work in works:
            print(f"{name}: {work.name} in this process")
            if isinstance(work, PretrainJob):
                if (code := work.train()) != 0:
                    sys.exit(code)
            elif isinstance(work, FollowJob):
                work.work()
        return [f"here-{number}" for number in range(len(works))]
