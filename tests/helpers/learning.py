"""What tests of methods do with a built objective: train it on one batch, and compare ranks with one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from data.sample import Batch
from models.methods.base import LossTerms, Objective

LossAndGradients = tuple[Tensor, Mapping[str, Tensor | None]]


def learn_by_heart(model: Objective, batch: Batch, *, steps: int, lr: float) -> tuple[LossTerms, LossTerms]:
    """Train on the same batch again and again (AdamW): terms before the first and in the last step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    first = terms = model(batch)
    for _ in range(steps):
        terms = model(batch)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    return first, terms


def assert_mean_of_ranks(
    ranks: Sequence[LossAndGradients],
    alone: LossAndGradients,
    *,
    loss: tuple[float, float] = (1e-10, 1e-12),
    gradient: tuple[float, float] = (1e-8, 1e-12),
) -> None:
    """Data-parallel training takes the mean over ranks of losses and of gradients: that of one process with all.

    Args:
        ranks: of each rank.
        alone: of one process with the global batch.
        loss: relative and absolute tolerance.
        gradient: relative and absolute tolerance.
    """
    torch.testing.assert_close(sum(part[0] for part in ranks) / len(ranks), alone[0], rtol=loss[0], atol=loss[1])
    for name, expected in alone[1].items():
        mean = sum(part[1][name] for part in ranks) / len(ranks)
        torch.testing.assert_close(mean, expected, rtol=gradient[0], atol=gradient[1], msg=name)
