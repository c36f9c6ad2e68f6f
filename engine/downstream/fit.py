"""The updates of a downstream training run, whatever is trained: warm-up and cosine, clipping, a stop at divergence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from engine.downstream.common import Reader, Truth
from engine.errors import DivergenceError
from engine.interfaces import BatchLike

BatchT = TypeVar("BatchT", bound=BatchLike)


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first tenth (at least one update), then a half cosine towards 0."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def training_stream(
    read: Reader[BatchT], indices: Int[np.ndarray, " n"], *, truth: Truth, batch_size: int, augment: bool, seed: int
) -> Iterator[BatchT]:
    """Endless batches: each labelled sample once an epoch, in an order that depends on (seed, epoch) alone."""
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch]).permutation(indices).tolist()
        yield from read(order, truth=truth, batch_size=batch_size, augment=augment, seed=seed, epoch=epoch)


def train_updates(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    stream: Iterator[BatchT],
    loss_of: Callable[[BatchT], Float[Tensor, ""]],
    *,
    steps: int,
    clip_norm: float,
    what: str,
    device: torch.device | str,
    on_step: Callable[[int], None] | None,
) -> None:
    """Train in place.

    Args:
        network: what the optimizer holds.
        optimizer: its rates are the peaks.
        stream: endless batches.
        loss_of: loss of a batch on the device.
        steps: updates.
        clip_norm: largest norm of the gradient.
        what: task and rate, for messages.
        device: where batches go.
        on_step: told the number of samples after each update.

    Raises:
        DivergenceError: the loss is not finite.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    for step in range(steps):
        batch: Any = next(stream).to(device)
        loss = loss_of(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergenceError(
                f"{what}: loss {value} in update {step + 1} of {steps}, {', '.join(batch.keys[:3])}; try smaller rates"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(batch.num_samples)
