"""Losses of detection heads by hand."""

from __future__ import annotations

import math

import pytest
import torch

from models.detection.losses import focal_loss, heatmap_focal_loss, mean_over_ranks


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([[logit(0.8), logit(0.1)], [logit(0.3), logit(0.5)]])
    truth = torch.tensor([[True, False], [False, True]])
    expected = torch.tensor(
        [
            [-0.25 * 0.2**2 * math.log(0.8), -0.75 * 0.1**2 * math.log(0.9)],
            [-0.75 * 0.3**2 * math.log(0.7), -0.25 * 0.5**2 * math.log(0.5)],
        ]
    )
    torch.testing.assert_close(focal_loss(logits, truth), expected)


def test_focal_loss_is_finite_for_any_logit() -> None:
    logits = torch.tensor([[-1e4, 1e4, 80.0, -80.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([[True, False, False, True]]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_heat_map_loss_by_hand() -> None:
    logits = torch.tensor([logit(0.8), logit(0.3), logit(0.1)])
    heat = torch.tensor([1.0, 0.5, 0.0])
    expected = -(0.2**2 * math.log(0.8) + 0.5**4 * 0.3**2 * math.log(0.7) + 0.1**2 * math.log(0.9))
    assert float(heatmap_focal_loss(logits, heat)) == pytest.approx(expected, rel=1e-5)


def test_heat_map_loss_keeps_away_from_0_and_1() -> None:
    """A centre missed with all certainty costs (1 - 1e-4)^2 ln 1e4."""
    loss = heatmap_focal_loss(torch.tensor([-1e4]), torch.tensor([1.0]))
    assert float(loss) == pytest.approx((1 - 1e-4) ** 2 * math.log(1e4), rel=1e-4)


def test_counts_are_at_least_one() -> None:
    assert float(mean_over_ranks(torch.tensor(0.0))) == 1
    assert float(mean_over_ranks(torch.tensor(7.0))) == 7
