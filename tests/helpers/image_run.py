"""A run's folder of a method that has an image network only, without training: random weights."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from configs.dump import dump
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from data.loading.loader import DataConfig
from data.views.augment import NO_AUGMENTATION
from engine.checkpoint import save_checkpoint
from engine.distributed import World
from models.image.resnet_encoder import ResNetEncoderConfig
from models.methods.base import Objective
from models.methods.moco import MocoConfig


def image_run_config(run_dir: Path, shards: str) -> PretrainConfig:
    """Settings of the toy run."""
    return PretrainConfig(
        run_dir=str(run_dir),
        data=DataConfig(shards=shards, image_size=(48, 96), augment=NO_AUGMENTATION),
        method=MocoConfig(image_backbone=ResNetEncoderConfig(preset="resnet10_tiny"), queue_size=16, embedding_dim=8),
    )


def write_image_run(run_dir: Path, shards: str) -> Objective:
    """Writes the folder; returns the objective whose weights are in it."""
    config = image_run_config(run_dir, shards)
    torch.manual_seed(3)
    objective = config.method.build().eval()
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump(config, choices=PRETRAIN_CHOICES))
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "time": 0.0, "train/loss": 4.0}\n')
    save_checkpoint(
        run_dir,
        12,
        weights=objective.state_dict(),
        rank_state={"rng": torch.zeros(1)},
        state={"num_steps": 50, "skipped": 0},
        config=yaml.safe_load(dump(config, choices=PRETRAIN_CHOICES)),
        world=World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu")),
        keep=3,
    )
    return objective
