"""Points in boxes against a loop and the converters' own."""

import math

import numpy as np
import pytest
import torch

from common.boxes import points as module
from common.boxes.points import first_box_of_points, points_in_boxes
from data.convert.box_labels import points_in_box
from tests.common.boxes.test_overlap import box, random_boxes
from tests.reference import boxes as reference


@pytest.mark.parametrize("at_a_time", [1, 1 << 18], ids=["one_by_one", "together"])
def test_against_a_loop(at_a_time: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_AT_A_TIME", at_a_time)
    boxes = random_boxes(15, 0, spread=2.0)
    points = torch.from_numpy(np.random.default_rng(1).normal(size=(200, 3)) * (3, 3, 1))
    expected = np.array([[reference.inside(point, one) for one in boxes.numpy()] for point in points.numpy()])
    assert 100 < expected.sum() < expected.size / 2
    assert np.array_equal(points_in_boxes(points, boxes).numpy(), expected)
    first = [row.argmax() if row.any() else -1 for row in expected]
    assert first_box_of_points(points, boxes).tolist() == first
    assert -1 in first
    for k, one in enumerate(boxes.numpy()):
        assert np.array_equal(points_in_box(points.numpy(), one[:3], one[3:6], float(one[6])), expected[:, k])


def test_faces_count_and_the_heading_turns_length():
    boxes = torch.cat([box(1, 1, 1, 4, 2, 2, 0), box(1, 1, 1, 4, 2, 2, math.pi / 2)])
    points = torch.tensor([[3, 1, 1], [3, 2, 2], [1.5, 2.5, 1], [1, 1, 2.001], [3.001, 1, 1]], dtype=torch.float64)
    inside = [[True, False], [True, False], [False, True], [False, False], [False, False]]
    assert points_in_boxes(points, boxes).tolist() == inside
    assert first_box_of_points(points, boxes).tolist() == [0, 0, 1, -1, -1]


def test_what_is_no_point_or_no_box_holds_nothing():
    boxes = box(0, 0, 0, 4, 2, 2, 0).repeat(4, 1)
    boxes[0, 2], boxes[1, 3], boxes[2, 6] = math.nan, -4.0, math.inf
    points = torch.tensor([[0, 0, 0], [math.nan, 0, 0], [math.inf, 0, 0]], dtype=torch.float64)
    assert points_in_boxes(points, boxes).tolist() == [[False, False, False, True], [False] * 4, [False] * 4]
    flat = box(0, 0, 0, 4, 2, 0, 0)
    assert points_in_boxes(points[:1], flat).item()


def test_none():
    points, boxes = torch.rand(3, 3), torch.rand(2, 7)
    assert points_in_boxes(points[:0], boxes).shape == (0, 2)
    assert points_in_boxes(points, boxes[:0]).shape == (3, 0)
    assert first_box_of_points(points, boxes[:0]).tolist() == [-1, -1, -1]
    assert first_box_of_points(points[:0], boxes).shape == (0,)
