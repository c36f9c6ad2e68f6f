"""A plan as a whole: sizes, settings and measurements, and the times that follow (`arithmetic` has the formulas)."""

from __future__ import annotations

from dataclasses import dataclass

from launchers.planning import arithmetic, storage
from launchers.planning.arithmetic import Data, Model, PlannedRun

DAY_S = 86_400.0
GPU_HOURS_PER_FAILURE = 50_000.0
"""GPU-hours between unexpected interruptions: 419 in 54 days of 16,384 GPUs (Llama 3, Grattafiori et al. 2024, section
3.3.4) are one in 50,700. A cluster's own figure is better."""
RESTART_S = 300.0
"""Assumed from a failure to the first new update, with the queue; `python -m benchmarks.survival` has the parts of it
that are ours."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """A measured update, scaled to the samples a process has here.

    Attributes:
        seconds: an update without what more processes add.
        source: where it was measured.
        data_wait_share: of it, waiting for data; None if not known.
        teacher_share: of it, in the frozen teacher's forward pass; None if not known, 0 where its features are cached.
    """

    seconds: float
    source: str
    data_wait_share: float | None = None
    teacher_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known of a run before it runs.

    Attributes:
        step: measured update; None leaves times and rates out.
        write_bytes_per_s: of the file system, for checkpoints; None if not known.
        network_bytes_per_s: of each process, for collectives; None if not known.
        restart_s: from a failure to the first new update.
    """

    model: Model
    data: Data
    run: PlannedRun
    step: StepTime | None = None
    write_bytes_per_s: float | None = None
    network_bytes_per_s: float | None = None
    gpu_hours_per_failure: float = GPU_HOURS_PER_FAILURE
    restart_s: float = RESTART_S

    @property
    def steps_per_epoch(self) -> float:
        """Updates of an epoch; not whole, since an update may span two."""
        return self.data.samples / self.run.global_batch

    @property
    def network_s(self) -> float | None:
        """Seconds an update that the collectives take at full bandwidth."""
        if self.network_bytes_per_s is None:
            return None
        return arithmetic.traffic(self.model, self.run).total / self.network_bytes_per_s

    @property
    def step_s(self) -> float | None:
        """Seconds an update, if nothing of the communication is hidden behind computing."""
        return None if self.step is None else self.step.seconds + (self.network_s or 0.0)

    @property
    def samples_per_s(self) -> float | None:
        """Of all processes."""
        return None if self.step_s is None else self.run.global_batch / self.step_s

    @property
    def checkpoint_s(self) -> float | None:
        """Seconds to write and hash a checkpoint, the files one after another."""
        if self.write_bytes_per_s is None:
            return None
        return storage.checkpoint(self.model, self.run).total / self.write_bytes_per_s

    @property
    def between_failures_s(self) -> float:
        """Mean time between failures of the whole job."""
        return self.gpu_hours_per_failure * 3600 / self.run.world_size

    @property
    def train_s(self) -> float | None:
        """Seconds of the whole run without failures."""
        return None if self.step_s is None else self.step_s * self.run.num_steps
