"""What a run is made of: composes the dataclasses that live beside each part, and checks what concerns several.

`PRETRAIN_CHOICES` says which sections can be one of several dataclasses, chosen by their `name`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from configs.load import ConfigError
from data.augment import PointAugmentConfig
from data.fractions import FractionConfig
from data.loader import DataConfig
from engine.checkpoint import CheckpointConfig
from engine.deepspeed_config import EngineConfig
from engine.downstream.evaluate import ProtocolsConfig
from engine.monitor import MonitorConfig
from engine.optim import OptimConfig
from engine.schedule import ScheduleConfig
from models.methods import METHODS
from models.methods.base import MethodConfig
from models.methods.slidr import SlidrConfig

PRETRAIN_CHOICES = {"method": METHODS}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pre-training run.

    Attributes:
        run_dir: folder of checkpoints, logs and pictures; a run found there is continued.
        seed: of initial weights, order of samples and augmentations.
        data: shards, batches, augmentation, voxels.
        method: what is learnt; `method.name` chooses.
        engine: ZeRO stage, precision, accumulation.
        optim: optimizer and its rate.
        schedule: length of the run and course of the rate.
        checkpoint: when to write, how many to keep.
        monitor: what to log, how often.
    """

    run_dir: str
    seed: int = 0
    data: DataConfig
    method: MethodConfig = field(default_factory=SlidrConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        """Check what concerns several sections."""
        backbone = getattr(self.method, "backbone", None)
        width = self.data.voxel.num_features
        if backbone is not None and backbone.in_channels != width:
            raise ConfigError(
                f"method.backbone.in_channels: got {backbone.in_channels}, expected {width}: "
                f"data.voxel.features={self.data.voxel.features!r} makes {width} channels a voxel"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateDataConfig:
    """The labelled set that is evaluated on.

    Attributes:
        shards: folder of a prepared set; None for the set that the network was pre-trained on.
        train_split: labels to learn from; learning rates are tuned on part of it.
        test_split: what the final numbers are measured on.
        limit_train: use at most so many train sweeps, evenly spread; None for all.
        limit_test: the same for the test split.
        num_workers: processes that read sweeps ahead in long passes; 0: none.
    """

    shards: str | None = None
    train_split: str = "train"
    test_split: str = "val"
    limit_train: int | None = None
    limit_test: int | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, least in (("limit_train", 2), ("limit_test", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ProtocolsConfig):
    """One downstream evaluation (with the fields of `ProtocolsConfig`).

    Attributes:
        data: the labelled set. Voxels are those that the network was pre-trained with.
        fraction: which train sweeps fine-tuning may use with their labels; each seed of `finetune.seeds` is added to
            `fraction.seed`, so that it draws its own where the choice is random.
        augment: of the labelled sweeps in fine-tuning.
        random: measure random initialisation beside it, under the same budget.
        results: file that the results are added to; None for results.json in the run's folder.
        device: where networks run; "auto": a GPU if there is one.
    """

    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    fraction: FractionConfig = field(default_factory=FractionConfig)
    augment: PointAugmentConfig = field(default_factory=PointAugmentConfig)
    random: bool = True
    results: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
