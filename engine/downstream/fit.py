"""Training on drawn samples, whatever is trained: the recipe, warm-up and cosine, clipping, a stop at divergence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.ranges import at_least, below, positive
from engine.downstream.common import Reader, Samples, Truth, check_rates, check_seeds
from engine.eager_optim import SGD
from engine.errors import DivergenceError
from engine.interfaces import BatchT
from engine.optim import adamw, momentum_of
from engine.schedule import ScheduleConfig, lr_scale, momentum_at


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the recipes of all protocols that train on drawn samples have in common.

    Attributes:
        lrs: learning rates of the evaluated network to try, for each initialisation separately.
        optimizer: "adamw" or "sgd".
        momentum, dampening: of SGD.
        weight_decay: of AdamW relative to the learning rate, of SGD an L2 term.
        steps: updates.
        schedule: "cosine": linear warm-up, then a half cosine to 0; "onecycle": torch's of that name in its default
            form (`ONE_CYCLE`), with AdamW's first beta, or SGD's momentum, moved against the rate.
        epochs: passes over the labelled samples instead of `steps`; null: `steps`.
        warmup_share: of "cosine": share of the updates that the warm-up takes; 0: none.
        batch_size: samples per update (at most as many as are labelled), each with all of its images.
        augment: mirror, rotate (...) the training samples, as the reader's settings say.
        clip_norm: largest gradient norm; null: any.
        seeds: one run each: draw of labelled samples, new layers, order, augmentations; a random network is drawn
            again, too.
        tune_seeds: draws that learning rates are compared on (shared by all initialisations; the mean decides).
    """

    lrs: tuple[float, ...]
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    dampening: float = 0.1
    weight_decay: float = 0.01
    steps: int
    schedule: Literal["cosine", "onecycle"] = "cosine"
    epochs: int | None = None
    warmup_share: float = 0.1
    batch_size: int
    augment: bool = True
    clip_norm: float | None = 10.0
    seeds: tuple[int, ...]
    tune_seeds: tuple[int, ...] = (1000,)

    def __post_init__(self) -> None:
        check_rates(self, "lrs")
        check_seeds(self, "seeds", "tune_seeds")
        positive(self, "steps", "batch_size", "clip_norm")
        at_least(self, weight_decay=0, momentum=0, dampening=0)
        below(self, momentum=1, dampening=1, warmup_share=1)
        at_least(self, "null: use steps", epochs=1)
        at_least(self, warmup_share=0)

    def updates(self, num_samples: int) -> int:
        """Updates of a run on so many labelled samples."""
        return self.steps if self.epochs is None else self.epochs * -(-num_samples // self.batch_size)

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over groups that state their rates."""
        if self.optimizer == "adamw":
            return adamw(groups, weight_decay=self.weight_decay)
        return SGD(groups, momentum=self.momentum, dampening=self.dampening, weight_decay=self.weight_decay)


ONE_CYCLE = ScheduleConfig(
    kind="onecycle", rise_share=0.3, start_lr_scale=1 / 25, final_lr_scale=1 / 2500, momentum_range=(0.95, 0.85)
)
"""Shape of the one-cycle schedule. Source: Bhat et al., AdaBins (CVPR 2021), released code: torch's OneCycleLR with its
own defaults, but 100 times less at the end than at the beginning."""


def learning_rate_factor(step: int, steps: int, warmup_share: float = 0.1) -> float:
    """Linear warm-up over a share of the updates (at least one, but for a share of 0), then a half cosine towards 0."""
    warm = max(1, int(steps * warmup_share)) if warmup_share > 0 else 0
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def training_stream(
    read: Reader[BatchT], indices: Int[np.ndarray, " n"], config: TrainingConfig, *, truth: Truth, seed: int
) -> Iterator[BatchT]:
    """Endless batches: each labelled sample once an epoch, in an order that depends on (seed, epoch) alone."""
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch]).permutation(indices).tolist()
        yield from read(
            Samples(order, truth=truth, batch_size=config.batch_size, augment=config.augment, seed=seed, epoch=epoch)
        )


def train_updates(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    stream: Iterator[BatchT],
    loss_of: Callable[[BatchT], Float[Tensor, ""]],
    config: TrainingConfig,
    *,
    num_samples: int,
    what: str,
    device: torch.device | str,
    on_step: Callable[[int], None],
) -> None:
    """Train in place.

    Args:
        network: what the optimizer holds.
        optimizer: its rates are the peaks.
        stream: endless batches.
        loss_of: loss of a batch on the device.
        config: number of updates, schedule and limit of the gradient.
        num_samples: labelled samples, which `config.epochs` counts.
        what: task and rate, for messages.
        device: where batches go.
        on_step: called with the number of samples after each update.

    Raises:
        DivergenceError: the loss is not finite.
    """
    steps = config.updates(num_samples)
    cycles = config.schedule == "onecycle"
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            lr_scale(step, steps, ONE_CYCLE) if cycles else learning_rate_factor(step, steps, config.warmup_share)
        ),
    )
    for step in range(steps):
        batch = next(stream).to(device)
        loss = loss_of(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergenceError(
                f"{what}: loss {value} in update {step + 1} of {steps}, {', '.join(batch.keys[:3])}; try smaller rates"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        with momentum_of(optimizer.param_groups, momentum_at(step, steps, ONE_CYCLE) if cycles else None):
            optimizer.step()
        schedule.step()
        on_step(batch.num_samples)
