"""Run jobs of the toy objective through the real engine: in this process, or as `python -m tests.helpers.toy_run`.

A job is a JSON object: run_dir, settings (nested dicts of PretrainSettings), source and objective (keyword arguments),
follower (the objective with a momentum copy and a queue), step_sleep_s (to be interrupted in).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from common.run_files import list_checkpoints, step_of
from engine.checkpoint import CheckpointConfig, load_weights
from engine.deepspeed_config import EngineConfig
from engine.distributed import init_distributed, shutdown
from engine.monitor import MonitorConfig
from engine.optim import OptimConfig
from engine.pretrain import PretrainSummary, pretrain
from engine.schedule import ScheduleConfig
from engine.settings import PretrainSettings
from engine.tower_optim import TowerOptimConfig
from tests.helpers.toy_follower import ToyFollower
from tests.helpers.toy_objective import ToyBatch, ToyObjective, ToySource
from tests.helpers.warm import Child, rank_variables

PARTS = {
    "engine": EngineConfig,
    "optim": OptimConfig,
    "schedule": ScheduleConfig,
    "checkpoint": CheckpointConfig,
    "monitor": MonitorConfig,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "engine": {"device": "cpu", "zero3_persistent_numel": 0, "timeout_min": 2.0},
    "optim": {"lr": 0.1},
    "schedule": {"steps": 8},
    "checkpoint": {"every_steps": 0, "every_min": 0.0, "keep": 3},
    "monitor": {"log_every": 1, "picture_every": 0, "tensorboard": False, "progress": False},
}


def settings(**overrides: dict[str, Any]) -> PretrainSettings:
    values = {n: DEFAULTS[n] | overrides.get(n, {}) for n in PARTS}
    towers = values["optim"].get("towers", {})
    values["optim"] = values["optim"] | {"towers": {name: TowerOptimConfig(**own) for name, own in towers.items()}}
    return PretrainSettings(**{n: cls(**values[n]) for n, cls in PARTS.items()})


class SlowSource(ToySource):
    """Batches take a while, so that a test has time to interrupt."""

    sleep_s = 0.0

    def batches(self, start: int) -> Iterator[ToyBatch]:
        for batch in super().batches(start):
            time.sleep(self.sleep_s)
            yield batch


def run_toy(job: dict[str, Any]) -> PretrainSummary:
    world = init_distributed("cpu")
    source = SlowSource(rank=world.rank, world_size=world.world_size, **decode_source(job.get("source", {})))
    source.sleep_s = job.get("step_sleep_s", 0.0)
    torch.set_num_threads(1)
    return pretrain(
        (ToyFollower if job.get("follower") else ToyObjective)(**job.get("objective", {})),
        source,
        settings(**job.get("settings", {})),
        job["run_dir"],
        micro_batch_size=source.micro_batch_size,
        fingerprint=job.get("fingerprint", {"method": {"name": "toy", "width": 16}}),
        resolved_config=job.get("settings", {}),
    )


def decode_source(source: dict[str, Any]) -> dict[str, Any]:
    return source | {"trouble": {int(k): v for k, v in source.get("trouble", {}).items()}}


def spawn(jobs: list[dict[str, Any]], *, world_size: int = 1) -> list[Child]:
    """Real processes, one a rank, that run the jobs one after another."""
    return [Child("tests.helpers.toy_run", json.dumps(jobs), env=rank) for rank in rank_variables(world_size)]


def finish(processes: Sequence[Child], *, timeout_s: float = 120.0) -> list[str]:
    """Outputs of processes that all have to succeed."""
    outputs = [p.communicate(timeout=timeout_s)[0] for p in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def metrics(run_dir: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path | str) -> list[float]:
    """Golden record of a run: the loss of each update (log_every=1)."""
    return [line["train/loss"] for line in metrics(run_dir)]


def stop_at(whole: Path, cut: Path, step: int) -> Path:
    """A copy of a run as if it had been killed behind the checkpoint of a step."""
    shutil.copytree(whole, cut)
    for checkpoint in list_checkpoints(cut):
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)
    return cut


def weights(run_dir: Path | str) -> dict[str, torch.Tensor]:
    return load_weights(Path(run_dir))


def main() -> None:
    for job in json.loads(sys.argv[1]):
        summary = run_toy(job)
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(summary).items()}
        sys.stdout.write(json.dumps(plain) + "\n")
    shutdown()


if __name__ == "__main__":
    main()
