"""Losses of second stages by hand and against a slow reference; random choices; detections."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from common.ranges import RangeError
from models.detection.refinement import (
    RefinementBranches,
    RefinementConfig,
    corner_loss,
    detections,
    drawing,
    refinement_losses,
)
from models.detection.roi_targets import RoiTargets
from models.detection.suppression import SuppressionConfig
from tests.models.detection.test_roi import random_boxes
from tests.models.detection.test_roi_targets import proposals_of
from tests.reference.detection_roi import corner_distance

CONFIG = RefinementConfig()


def _turned(box: list[float], heading: float) -> torch.Tensor:
    return torch.tensor([[*box[:6], box[6] + heading]], dtype=torch.float64)


def test_corner_loss_by_hand() -> None:
    """0.6 m aside: every corner 0.6^2 / 2; 3 m aside: 3 - 1/2; turned round: 0."""
    box = [1.0, 2.0, 3.0, 4.0, 2.0, 1.5, 0.7]
    true = torch.tensor([box], dtype=torch.float64)
    assert corner_loss(_turned(box, math.pi), true).item() == pytest.approx(0, abs=1e-12)
    for aside, expected in ((0.6, 0.18), (3.0, 2.5)):
        moved = true.clone()
        moved[0, 2] += aside
        assert corner_loss(moved, true).item() == pytest.approx(expected)
    longer = true.clone()
    longer[0, 3] += 1  # each corner half a metre off
    assert corner_loss(longer, true).item() == pytest.approx(0.125)


def test_corner_loss_against_loops_and_its_gradient_at_0() -> None:
    boxes, true = random_boxes(40, 1), random_boxes(40, 2)
    expected = [corner_distance(a, b) for a, b in zip(boxes.tolist(), true.tolist(), strict=True)]
    torch.testing.assert_close(corner_loss(boxes, true), torch.tensor(expected, dtype=torch.float64))
    same = true.clone().requires_grad_()
    corner_loss(same, true).sum().backward()
    assert not same.grad.any(), "not NaN"


def test_losses_by_hand() -> None:
    """Three RoIs: one right (IoU 0.8), one half right (0.5: only its score), one wrong (0)."""
    rois = torch.tensor([[0.0, 0.0, 0.0, 4.0, 3.0, 2.0, 0.0]]).repeat(3, 1)
    true = rois.clone()
    true[0, 2] = 0.2  # code of z: 0.2 / 2 = 0.1, below 1 / 9: 0.1^2 / 2 * 9 = 0.045
    targets = RoiTargets(boxes=true, ious=torch.tensor([0.8, 0.5, 0.0]))
    logits, codes = torch.zeros(3, requires_grad=True), torch.zeros(3, 7, requires_grad=True)
    losses = refinement_losses(logits, codes, rois, targets, CONFIG)
    assert losses["roi_score"].item() == pytest.approx(math.log(2))
    assert losses["roi_box"].item() == pytest.approx(0.045)
    assert losses["roi_corner"].item() == pytest.approx(0.2**2 / 2)
    torch.stack(list(losses.values())).sum().backward()
    # Of cross-entropy: (score - target) / 3; targets are 1, 0.5, 0.
    torch.testing.assert_close(logits.grad, torch.tensor([-0.5, 0.0, 0.5]) / 3)
    assert codes.grad[0].any()
    assert not codes.grad[1:].any()

    weighted = dataclasses.replace(CONFIG, score_weight=2.0, box_weight=3.0, corner_weight=4.0)
    for name, factor in zip(losses, (2, 3, 4), strict=True):
        again = refinement_losses(logits, codes, rois, targets, weighted)
        assert again[name].item() == pytest.approx(factor * losses[name].item())


@pytest.mark.parametrize("number", [0, 2])
def test_without_rois_or_without_foreground_losses_are_0_and_gradients_there(number: int) -> None:
    targets = RoiTargets(boxes=torch.ones(number, 7), ious=torch.zeros(number))
    logits, codes = torch.zeros(number, requires_grad=True), torch.zeros(number, 7, requires_grad=True)
    losses = refinement_losses(logits, codes, torch.ones(number, 7), targets, CONFIG)
    assert losses["roi_box"] == losses["roi_corner"] == 0
    assert losses["roi_score"].item() == pytest.approx(math.log(2) if number else 0)
    torch.stack(list(losses.values())).sum().backward()
    assert codes.grad is not None
    assert not codes.grad.any()
    assert logits.grad is not None


def test_branches_begin_with_boxes_as_they_are() -> None:
    torch.manual_seed(0)
    branches = RefinementBranches(8, (6, 5), 0.3).eval()
    logits, codes = branches(torch.randn(4, 8))
    assert logits.shape == (4,)
    assert codes.abs().max() < 1, "before the last layer is reset"
    branches.reset_box()
    assert branches(torch.randn(4, 8))[1].abs().max() < 0.5
    nothing = branches.train()(torch.zeros(0, 8))
    (nothing[0].sum() + nothing[1].sum()).backward()
    assert all(p.grad is not None for p in branches.parameters())


def test_random_choices_are_torchs_own_in_training_and_fixed_otherwise() -> None:
    layer = torch.nn.Linear(1, 1)
    assert drawing(layer.train()) is None
    state = torch.get_rng_state()
    first, second = (torch.rand(3, generator=drawing(layer.eval())) for _ in range(2))
    torch.testing.assert_close(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_detections_keep_classes_and_fall_by_score() -> None:
    boxes = random_boxes(6).float()
    boxes[:, :2] = torch.tensor([[0, 0], [50, 0], [0, 0], [0, 50], [0, 90], [0, 10]])
    boxes[2] = boxes[0]  # dropped by the other, whatever its class
    rois = proposals_of(boxes, [0, 1, 1, 2, 0, 0], [0, 0, 0, 0, 1, 1])
    logits = torch.tensor([3.0, 1.0, 2.0, -5.0, 0.0, 4.0])
    found = detections(boxes, logits, rois, 3, SuppressionConfig(max_iou=0.1))
    torch.testing.assert_close(found.boxes, boxes[[0, 1, 5, 4]])
    assert found.classes.tolist() == [0, 1, 0, 0]
    assert found.sample.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 1.0, 4.0, 0.0]).sigmoid())
    assert found.velocities_mps.isnan().all()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(RangeError, match=r"dropout: got 1\.0, expected below 1"):
        RefinementConfig(dropout=1.0)
    with pytest.raises(RangeError, match="score_weight, box_weight, corner_weight"):
        RefinementConfig(score_weight=-1.0)
