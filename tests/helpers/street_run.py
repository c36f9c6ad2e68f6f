"""Every method's street config at the size of `tests.helpers.street_set`: as its users run it, only smaller."""

from __future__ import annotations

import dataclasses
from functools import cache

import torch

from configs.schema import PretrainConfig
from data.loading.evaluation import load_batch
from data.sample import Batch
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from launchers.training.stages import method_without_weights
from launchers.training.train import load_run
from models.methods.base import Objective
from tests.helpers.pretrain_run import CONFIGS

SMALL = (
    "data.image_size=[64,128]",
    "data.augment.min_pairs=20",
    "data.num_workers=0",
    "data.micro_batch_size=2",
    "engine.device=cpu",
    "engine.precision=fp32",
    "engine.timeout_min=2",
    "schedule.warmup_steps=0",
    "checkpoint.every_steps=0",
    "checkpoint.every_min=0",
    "checkpoint.keep_every=0",
    "monitor.log_every=1",
    "monitor.picture_every=0",
    "monitor.tensorboard=false",
    "monitor.progress=false",
    "evaluate.configs=[]",
    "evaluate.every=0",
)


def street_config(name: str, shards: str, *overrides: str) -> PretrainConfig:
    """The street run of a method; a second stage starts from random weights in place of the first stage's."""
    given = {override.partition("=")[0] for override in overrides}
    small = [override for override in SMALL if override.partition("=")[0] not in given]
    path = str(CONFIGS / f"{name}_street.yaml")
    config = load_run(path, [f"data.shards={shards}", *small, *overrides])
    return dataclasses.replace(config, method=method_without_weights(config), first=None)


def street_objective(config: PretrainConfig) -> Objective:
    """The method, always with the same weights, in training mode."""
    torch.manual_seed(0)
    objective = config.method.build()
    return objective.train()


@cache
def street_batch(name: str, shards: str, samples: tuple[int, ...] = (0, 1)) -> Batch:
    """Augmented as in training, with what the method wants."""
    config = street_config(name, shards)
    return load_batch(
        SampleReader(load_manifest(shards)), list(samples), config.data, config.method.batch_spec(), augmented=True
    )
