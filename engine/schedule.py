"""Learning rate and momentum as pure functions of the step, and how many steps a budget is.

Steps count updates, from 0. Nothing here has state, so a resumed run needs only its step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from common.ranges import above, at_least, below, expect, share

_POLY_POWER = 0.9


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long a run is and how its learning rate moves.

    Attributes:
        kind: "cosine" falls along half a cosine to `final_lr_scale`, "exponential" by the same share in each update;
            "poly" by (1 - progress)^0.9; "constant" stays; "onecycle" rises along half a cosine, then falls along
            another; "steps" falls at once at some points of the run.
        steps: updates of the whole run; where null, `epochs` decides.
        epochs: passes over the data, rounded up to whole updates.
        warmup_steps: updates over which the rate rises linearly to its peak.
        final_lr_scale: share of the peak rate at the end; for "exponential" above 0.
        rise_share: of "onecycle": share of the updates in which the rate rises.
        start_lr_scale: of "onecycle": share of the peak rate at the beginning.
        momentum_range: of "onecycle": momentum of SGD, or first beta of AdamW, where the rate is lowest and where it is
            highest; in between it follows the rate's cosines. null: as the optimizer's settings say.
        drop_at: of "steps": shares of the run, rising, after which the rate is multiplied by `drop_scale` once more.
        drop_scale: see there.
    """

    kind: Literal["constant", "cosine", "exponential", "onecycle", "poly", "steps"] = "cosine"
    steps: int | None = None
    epochs: int = 50
    warmup_steps: int = 0
    final_lr_scale: float = 0.0
    rise_share: float = 0.4
    start_lr_scale: float = 0.1
    momentum_range: tuple[float, float] | None = None
    drop_at: tuple[float, ...] = ()
    drop_scale: float = 0.1

    def __post_init__(self) -> None:
        at_least(self, "null: use epochs", steps=1)
        at_least(self, epochs=1, warmup_steps=0)
        if self.steps is not None:
            below(self, "steps", warmup_steps=self.steps)
        share(self, "final_lr_scale", "rise_share", "start_lr_scale")
        if self.momentum_range is not None:
            at_least(self, momentum_range=0)
            below(self, momentum_range=1)
        cycles = self.kind == "onecycle"
        expect(self, "warmup_steps", not (cycles and self.warmup_steps), "0: a onecycle schedule rises by itself")
        expect(self, "momentum_range", cycles or self.momentum_range is None, "null: only onecycle moves the momentum")
        share(self, "drop_at", "drop_scale")
        expect(self, "drop_at", list(self.drop_at) == sorted(self.drop_at), "rising shares")
        expect(self, "drop_at", bool(self.drop_at) == (self.kind == "steps"), "shares of the run for steps alone")
        if self.kind == "exponential":
            above(self, final_lr_scale=0)


def total_steps(config: ScheduleConfig, *, samples_per_epoch: int, global_batch_size: int) -> int:
    """Updates of the whole run: `steps`, or the fewest that show every sample (of all ranks) `epochs` times.

    Raises:
        ValueError: the warm-up is as long as the run, or there is no data.
    """
    if samples_per_epoch < 1:
        raise ValueError("the batch source has no samples; check data.shards and data.split")
    steps = config.steps
    if steps is None:
        steps = -(-config.epochs * samples_per_epoch // global_batch_size)  # rounded up
    if config.warmup_steps >= steps:
        raise ValueError(
            f"schedule.warmup_steps={config.warmup_steps}, expected fewer than the {steps} updates of the run "
            f"({config.epochs} epochs of {samples_per_epoch} samples, {global_batch_size} an update)"
        )
    return steps


def lr_scale(step: int, num_steps: int, config: ScheduleConfig) -> float:
    """Share of the peak learning rate that update number `step` (from 0) uses.

        s < warmup:  (s + 1) / warmup
        cosine:      f + (1 - f) (1 + cos(pi (s - warmup) / (num_steps - warmup))) / 2
        exponential: f ^ ((s - warmup) / (num_steps - warmup))
        poly:        f + (1 - f) (1 - (s - warmup) / (num_steps - warmup))^0.9
        steps:       drop_scale ^ (number of the drop_at that are at most s / num_steps)
        onecycle:    half a cosine from `start_lr_scale` to 1 over the first floor(rise_share num_steps) updates, then
                     half a cosine from 1 to f

    Source: of the cosine: SGDR, Loshchilov & Hutter 2017, eq. 5, one period; per update instead of per epoch. Of
    onecycle: Smith & Topin 2017 in the form of released code: OpenPCDet (adam_onecycle). Of poly: Chen et al.,
    "DeepLab" (TPAMI 2018), section 4.1.
    """
    if config.kind == "onecycle":
        return _cycled(step, num_steps, config, (config.start_lr_scale, 1.0, config.final_lr_scale))
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    if config.kind == "steps":
        return float(config.drop_scale ** sum(step >= at * num_steps for at in config.drop_at))
    progress = (step - config.warmup_steps) / (num_steps - config.warmup_steps)
    if config.kind == "exponential":
        return float(config.final_lr_scale**progress)
    if config.kind == "poly":
        return config.final_lr_scale + (1 - config.final_lr_scale) * float((1 - progress) ** _POLY_POWER)
    return config.final_lr_scale + (1 - config.final_lr_scale) * (1 + math.cos(math.pi * progress)) / 2


def momentum_at(step: int, num_steps: int, config: ScheduleConfig) -> float | None:
    """Momentum, or first beta, of update number `step`; None where the optimizer's own stays.

    It mirrors the rate of a onecycle schedule: least where that is highest. Source: as of `lr_scale`.
    """
    if config.momentum_range is None:
        return None
    ends, peak = config.momentum_range
    return _cycled(step, num_steps, config, (ends, peak, ends))


def _cycled(step: int, num_steps: int, config: ScheduleConfig, values: tuple[float, float, float]) -> float:
    """Half a cosine from the first value to the second, then half a cosine to the third."""
    peak_step = int(config.rise_share * num_steps)
    rising = step < peak_step
    start, end = values[:2] if rising else values[1:]
    progress = step / peak_step if rising else (step - peak_step) / (num_steps - peak_step)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def lr_table(config: ScheduleConfig, num_steps: int, peak_lr: float, *, rows: int = 11) -> str:
    """The schedule as text: step and learning rate, evenly spaced, first and last update included."""
    count = min(rows, num_steps)
    steps = sorted({round(i * (num_steps - 1) / max(count - 1, 1)) for i in range(count)})
    lines = [f"{step:>8d}  {peak_lr * lr_scale(step, num_steps, config):.4g}" for step in steps]
    return "\n".join(["    step  lr", *lines])
