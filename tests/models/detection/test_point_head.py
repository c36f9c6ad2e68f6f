"""Labels, codes and losses of single points."""

from __future__ import annotations

import math

import pytest
import torch

from models.detection.point_head import (
    PointBranch,
    PointLabels,
    decode_point_box,
    encode_point_box,
    label_points,
    point_box_loss,
    point_class_loss,
)
from tests.models.detection.test_roi import random_boxes
from tests.models.detection.test_roi_targets import truth_of
from tests.reference import detection_roi as slow

SIZES = torch.tensor([[3.0, 4.0, 2.0], [0.8, 0.6, 1.7]])


def test_labels_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    points = 6 * torch.rand(300, 3, generator=generator, dtype=torch.float64) - 3
    points[:, 2] /= 3
    boxes = random_boxes(8, spread_m=3)
    sample, true_sample = [0] * 150 + [1] * 50 + [2] * 100, [0] * 5 + [2] * 3
    truth = truth_of(boxes, [0] * 8, true_sample)
    found = label_points(points, torch.tensor(sample), truth, 3, 0.4)
    for number, (rows, true) in enumerate((((0, 150), (0, 5)), ((150, 200), (5, 5)), ((200, 300), (5, 8)))):
        expected = slow.point_labels(points[slice(*rows)].tolist(), boxes[slice(*true)].tolist(), 0.4)
        boxes_expected = [box + true[0] if box >= 0 else -1 for box, _ in expected]
        assert found.box[slice(*rows)].tolist() == boxes_expected, number
        assert found.ignored[slice(*rows)].tolist() == [ignored for _, ignored in expected]
    assert found.ignored.any()
    assert (found.box[:150] >= 0).any()


def test_a_code_by_hand() -> None:
    """The mean footprint's diagonal is 5 m."""
    box = torch.tensor([[2.0, 1.0, 0.0, 6.0, 4.0, 2.0, math.pi / 2]])
    point = torch.tensor([[1.0, 1.0, 1.0]])
    expected = torch.tensor([[0.2, 0.0, -0.5, math.log(2), 0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(encode_point_box(box, point, SIZES[:1]), expected, atol=1e-6, rtol=0)


def test_codes_give_the_box_back() -> None:
    boxes, points = random_boxes(60), random_boxes(60, 1)[:, :3]
    sizes = SIZES.double()[torch.arange(60) % 2]
    found = decode_point_box(encode_point_box(boxes, points, sizes), points, sizes)
    torch.testing.assert_close(found[:, :6], boxes[:, :6])
    turns = (found[:, 6] - boxes[:, 6]) / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), atol=1e-9, rtol=0)


def test_class_loss_by_hand() -> None:
    """At logits of 0 a point in a box costs 0.25 * 0.25 * ln 2 for its class, 0.75 * 0.25 * ln 2 for each other one."""
    truth = truth_of(torch.ones(2, 7), [1, 0], [0, 0])
    labels = PointLabels(box=torch.tensor([0, -1, -1, 1]), ignored=torch.tensor([False, False, True, False]))
    unit = math.log(2) / 4
    two = point_class_loss(torch.zeros(4, 2), labels, truth)
    assert two.item() == pytest.approx(unit * (2 * (0.25 + 0.75) + 2 * 0.75) / 2)
    one = point_class_loss(torch.zeros(4, 1), labels, truth)
    assert one.item() == pytest.approx(unit * (2 * 0.25 + 0.75) / 2)


def test_box_loss_by_hand() -> None:
    """Two points in boxes; one code is right, the other wrong by 1 in one place: 1 - 1 / 18."""
    boxes = torch.tensor([[0.0, 0.0, 0.0, 3.0, 4.0, 2.0, 0.0], [9.0, 0.0, 0.0, 0.8, 0.6, 1.7, 0.5]])
    truth = truth_of(boxes, [0, 1], [0, 0])
    points = torch.tensor([[0.5, 0.0, 0.0], [50.0, 0.0, 0.0], [9.0, 0.1, 0.0]])
    labels = PointLabels(box=torch.tensor([0, -1, 1]), ignored=torch.zeros(3, dtype=torch.bool))
    codes = torch.full((3, 8), 7.0)
    codes[[0, 2]] = encode_point_box(boxes, points[[0, 2]], SIZES)
    codes[2, 3] += 1
    codes.requires_grad_()
    loss = point_box_loss(codes, points, labels, truth, SIZES)
    assert loss.item() == pytest.approx((1 - 1 / 18) / 2, abs=1e-5)
    loss.backward()
    assert not codes.grad[1].any()


def test_without_points_or_boxes_losses_are_defined() -> None:
    truth = truth_of(torch.zeros(0, 7), [], [])
    branch, box = PointBranch(4, (3, 3), 2), PointBranch(4, (3, 3), 8)
    for number in (0, 3):
        points, features = torch.zeros(number, 3), torch.ones(number, 4)
        labels = label_points(points, torch.zeros(number, dtype=torch.long), truth, 1, 0.2)
        assert not labels.ignored.any()
        for part in (branch, box):
            part.zero_grad()
        class_loss = point_class_loss(branch(features), labels, truth)
        box_loss = point_box_loss(box(features), points, labels, truth, SIZES)
        assert (class_loss > 0) == (number > 0)
        assert box_loss == 0
        (class_loss + box_loss).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for part in (branch, box) for p in part.parameters())
