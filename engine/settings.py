"""Settings of a run, apart from its data and method."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.checkpoint import CheckpointConfig
from engine.deepspeed_config import EngineConfig
from engine.monitor import MonitorConfig
from engine.optim import OptimConfig
from engine.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Settings of a run that the engine reads.

    Attributes:
        seed: of the random generators inside the objective (drop-out, sampling); each rank derives its own.
        engine: how a step runs.
        optim: optimizer.
        schedule: length and learning rate.
        checkpoint: when checkpoints are written.
        monitor: what is logged.
    """

    seed: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
