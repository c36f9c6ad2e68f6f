"""What a run is made of: composes the dataclasses that live beside each part, and checks what concerns several.

`PRETRAIN_CHOICES` says which sections can be one of several dataclasses, chosen by their `name`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.load import ConfigError
from data.loader import DataConfig
from engine.checkpoint import CheckpointConfig
from engine.deepspeed_config import EngineConfig
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
