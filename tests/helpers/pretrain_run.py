"""`tandem pretrain` at toy size with all its real parts: in this process, as a child, or on several ranks.

`python -m tests.helpers.pretrain_run JOBS` runs a JSON list of command lines (config, overrides) one after another in
one process, since starting one costs more than a toy run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.distributed import shutdown
from engine.pretrain import PretrainSummary
from launchers.training.train import load_run, train
from tests.helpers.warm import REPOSITORY, Child, rank_variables

CONFIGS = REPOSITORY / "configs" / "pretrain"
STREET = CONFIGS / "slidr_street.yaml"

SMALL = (
    "data.image_size=[48,96]",
    "data.augment.min_pairs=20",
    "data.voxel.kind=cartesian",
    "data.voxel.size=[0.5,0.5,0.5]",
    "data.num_workers=0",
    "method.backbone.preset=res16unet_tiny",
    "engine.device=cpu",
    "engine.precision=fp32",
    "engine.timeout_min=2",
    "schedule.warmup_steps=0",
    "checkpoint.every_steps=0",
    "checkpoint.every_min=0",
    "monitor.log_every=1",
    "monitor.picture_every=0",
    "monitor.tensorboard=false",
    "monitor.progress=false",
)
"""What makes a run of any config small and quiet."""

UNCACHED = ("method.teacher.cache=false", "method.teacher.weights=random", "data.augment.image.enabled=true")
"""For the street config: the image network in every step, its weights of no importance, images augmented."""


def arguments(run_dir: Path | str, shards: str, *overrides: str, config: Path = STREET) -> list[str]:
    """Command line behind `tandem pretrain`."""
    given = {override.partition("=")[0] for override in overrides}
    small = [override for override in SMALL if override.partition("=")[0] not in given]
    return [str(config), f"run_dir={run_dir}", f"data.shards={shards}", *small, *overrides]


def pretrain_here(run_dir: Path | str, shards: str, *overrides: str, config: Path = STREET) -> PretrainSummary:
    """Run in this process, which keeps its process group."""
    path, *rest = arguments(run_dir, shards, *overrides, config=config)
    return train(load_run(path, rest))


def spawn_ranks(jobs: Sequence[Sequence[str]], *, world_size: int) -> list[Child]:
    """The jobs on ranks that talk through gloo; see `tests.helpers.toy_run.finish`."""
    return [Child("tests.helpers.pretrain_run", json.dumps(jobs), env=rank) for rank in rank_variables(world_size)]


def main() -> None:
    torch.set_num_threads(1)
    try:
        for path, *overrides in json.loads(sys.argv[1]):
            train(load_run(path, overrides))
    finally:
        shutdown()


if __name__ == "__main__":
    main()
