"""`tandem finetune` of the toy detector with all its real parts: in this process, as a child, or on several ranks.

`python -m tests.helpers.finetune_run JOBS` as `tests.helpers.pretrain_run`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from configs.detection import FinetuneConfig
from engine.distributed import shutdown
from engine.pretrain import PretrainSummary
from launchers.finetuning.run import train_run
from launchers.training.train import load_any_run
from tests.helpers.toy_detector import known
from tests.helpers.warm import Child, rank_variables

SMALL = {
    "model": {"name": "toy"},
    "data": {
        "voxel": {"kind": "cartesian", "size": [2.0, 2.0, 2.0]},
        "augment": {"image": {"enabled": False}},
        "micro_batch_size": 2,
        "num_workers": 0,
    },
    "engine": {"device": "cpu", "timeout_min": 2},
    "optim": {"name": "adamw", "lr": 0.01, "betas": [0.95, 0.99], "weight_decay": 0.01},
    "schedule": {"kind": "onecycle", "steps": 8, "momentum_range": [0.95, 0.85], "final_lr_scale": 1e-5},
    "checkpoint": {"every_steps": 0, "every_min": 0},
    "judge": {"benchmarks": ["toy"], "batch_size": 2},
    "monitor": {"log_every": 1, "picture_every": 0, "tensorboard": False, "progress": False},
}


def write_config(path: Path) -> Path:
    path.write_text(yaml.safe_dump(SMALL))
    return path


def arguments(run_dir: Path | str, shards: str, *overrides: str) -> list[str]:
    """Command line behind `tandem finetune`."""
    config = write_config(Path(run_dir).parent / "toy_detector.yaml")
    return [str(config), f"run_dir={run_dir}", f"data.shards={shards}", *overrides]


def finetune_here(run_dir: Path | str, shards: str, *overrides: str) -> PretrainSummary:
    with known():
        path, *rest = arguments(run_dir, shards, *overrides)
        return train_run(load_any_run(path, rest, kind=FinetuneConfig))


def spawn_ranks(jobs: Sequence[Sequence[str]], *, world_size: int = 1) -> list[Child]:
    """The jobs on ranks that talk through gloo; see `tests.helpers.toy_run.finish`."""
    ranks = rank_variables(world_size) if world_size > 1 else [None]
    return [Child("tests.helpers.finetune_run", json.dumps(jobs), env=rank) for rank in ranks]


def main() -> None:
    torch.set_num_threads(1)
    try:
        with known():
            for path, *overrides in json.loads(sys.argv[1]):
                train_run(load_any_run(path, overrides, kind=FinetuneConfig))
    finally:
        shutdown()


if __name__ == "__main__":
    main()
