"""A run's folder as `tandem pretrain` leaves it, without training: tiny networks with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from configs.dump import dump
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from data.batch_spec import VoxelConfig
from data.loading.loader import DataConfig
from data.views.augment import NO_AUGMENTATION
from engine.checkpoint import save_checkpoint
from engine.distributed import World
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import Objective
from models.methods.slidr import SlidrConfig
from tests.helpers.image_networks import teacher_config

STEP = 12
QUICK = (
    "linear_probe.steps=5",
    "linear_probe.lrs=[0.01,0.03]",
    "knn.bank_size=100",
    "finetune.steps=2",
    "finetune.lrs=[0.001,0.01]",
    "finetune.seeds=[0,1]",
    "fraction={kind: random, count: 1}",
    "calibration_sweeps=2",
    "voxels_per_sweep=50",
    "tune_sweeps=1",
    "device=cpu",
)
"""Settings under which `tandem evaluate` takes seconds."""
STREET_PROTOCOLS = Path(__file__).parents[2] / "configs" / "downstream" / "street.yaml"


def run_config(run_dir: Path, shards: str) -> PretrainConfig:
    """Settings of the toy run."""
    return PretrainConfig(
        run_dir=str(run_dir),
        data=DataConfig(
            shards=shards,
            image_size=(48, 96),
            augment=NO_AUGMENTATION,
            voxel=VoxelConfig(kind="cartesian", size=(0.5, 0.5, 0.5)),
        ),
        method=SlidrConfig(
            backbone=Res16UNetConfig(preset="res16unet_tiny", backend="torch"),
            teacher=teacher_config(name="efficientnet_lite0", weights="random"),
            embedding_dim=16,
        ),
    )


def write_toy_run(
    run_dir: Path,
    shards: str,
    *,
    step: int = STEP,
    records: PretrainConfig | None = None,
    config: PretrainConfig | None = None,
) -> Objective:
    """Writes the folder; returns the objective whose weights are in it.

    `records`: config that its files state, in place of that of the networks. `config`: of other networks.
    """
    config = config or run_config(run_dir, shards)
    torch.manual_seed(3)
    objective = config.method.build().eval()
    text = dump(records or config, choices=PRETRAIN_CHOICES)
    resolved = yaml.safe_load(text)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(text)
    lines = [{"step": s, "time": 0.0, "train/loss": 5.0 - 0.1 * s, "train/skipped": 1.0} for s in (1, step)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_checkpoint(
        run_dir,
        step,
        weights=objective.state_dict(),
        rank_state={"rng": torch.zeros(1)},
        state={"num_steps": 50, "skipped": 1},
        config=resolved,
        world=World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu")),
        keep=3,
    )
    return objective
