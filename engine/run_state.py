"""What a training run is made of: what is the same in all updates, and what changes from one to the next."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import metric_names as names
from engine.distributed import World
from engine.monitor import Window
from engine.optim import optimizer_name, peak_lr
from engine.schedule import total_steps
from engine.settings import PretrainSettings
from engine.zero import Update

logger = logging.getLogger("tandem.pretrain")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is the same in all updates of a run.

    Attributes:
        num_steps: updates of the whole run.
        peak_lr: largest learning rate.
        accumulation_steps: micro-batches a rank in an update.
        global_batch_size: samples per update.
        parallelism: how the run is spread over processes, and what its optimizer state depends on; part of checkpoints.
    """

    num_steps: int
    peak_lr: float
    accumulation_steps: int
    global_batch_size: int
    parallelism: Mapping[str, Any]

    @classmethod
    def of(cls, settings: PretrainSettings, samples_per_epoch: int, micro_batch_size: int, world: World) -> Plan:
        """The plan of a run on these processes."""
        steps = settings.engine.accumulation_steps
        batch = micro_batch_size * world.world_size * steps
        return cls(
            num_steps=total_steps(settings.schedule, samples_per_epoch=samples_per_epoch, global_batch_size=batch),
            peak_lr=peak_lr(settings.optim, batch),
            accumulation_steps=steps,
            global_batch_size=batch,
            parallelism={
                "world_size": world.world_size,
                "micro_batch_size": micro_batch_size,
                "accumulation_steps": steps,
                "zero_stage": settings.engine.zero_stage,
                "precision": settings.engine.precision,
                "optimizer": optimizer_name(settings.optim),
            },
        )


@dataclass(kw_only=True)
class RunState:
    """What changes from update to update.

    Attributes:
        step: updates done.
        skipped: of these, updates that were skipped.
        nonfinite_in_a_row: skipped updates up to now that are a sign of divergence.
        warned_trivial: whether `_warn_if_trivial` has warned.
        window: scalars since the last log line; this rank's, so it is part of the rank's state.
        loss: mean of the last applied update; NaN before one, and in checkpoints of versions before 0.3.
    """

    step: int = 0
    skipped: int = 0
    nonfinite_in_a_row: int = 0
    warned_trivial: bool = False
    window: Window = field(default_factory=Window)
    loss: float = math.nan

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RunState:
        """As a checkpoint's state.json has it; the window is `_load_rank`'s."""
        loss = state.get("loss")
        return cls(
            step=int(state["step"]),
            skipped=int(state["skipped"]),
            nonfinite_in_a_row=int(state["nonfinite_in_a_row"]),
            warned_trivial=bool(state["warned_trivial"]),
            loss=math.nan if loss is None else float(loss),
        )

    def state(self) -> dict[str, Any]:
        """For state.json, which has the step already."""
        counts = {name: getattr(self, name) for name in ("skipped", "nonfinite_in_a_row", "warned_trivial")}
        return {**counts, "loss": self.loss if math.isfinite(self.loss) else None}  # JSON has no NaN

    def apply(self, scalars: Mapping[str, float], update: Update) -> None:
        """Count an update that changed the weights."""
        self.nonfinite_in_a_row = 0
        self.loss = scalars[names.LOSS]
        self.window.add({**scalars, names.GRAD_NORM: update.grad_norm})

    def skip(self, what: str, update: Update, keys: Sequence[str], spoilt: Sequence[str]) -> None:
        """Count an update that was skipped, and say so: of which samples here, and which buffers they spoilt here."""
        self.skipped += 1
        # fp16 looking for its loss scale overflows by design; that alone is no sign of divergence.
        self.nonfinite_in_a_row += 0 if update.scale_overflow else 1
        logger.warning(
            "step %d: %s not finite on some rank, update skipped (%d so far); batch here: %s%s",
            self.step,
            what,
            self.skipped,
            ", ".join(keys),
            f"; not finite here: {', '.join(spoilt)}" if spoilt else "",
        )
