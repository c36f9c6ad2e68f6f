"""Targets of anchors and of heat maps against plain loops, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.detection.targets_anchors import BACKGROUND, IGNORED, assign
from models.detection.targets_centres import heat_map, places, radii
from models.lidar.base import BirdEyeGrid
from tests.reference import detection_targets as slow

GRID = BirdEyeGrid(low_m=(-4.0, -6.0), cell_m=(0.5, 0.75), size=(16, 12))


def row_of_anchors(number: int, size: tuple[float, float, float], heading: float = 0.0) -> Tensor:
    """One metre apart along x, from 0."""
    return torch.tensor([[float(i), 0.0, 0.0, *size, heading] for i in range(number)])


def random_boxes(number: int, seed: int) -> Tensor:
    """Places and sizes on a coarse lattice, so that equal overlaps come about; a few far outside."""
    g = torch.Generator().manual_seed(seed)
    place = torch.randint(-10, 11, (number, 3), generator=g) / 2
    size = torch.randint(1, 9, (number, 3), generator=g) / 2
    heading = torch.randint(-8, 9, (number, 1), generator=g) * (math.pi / 8) + 0.05
    boxes = torch.cat([place, size, heading], dim=1)
    boxes[::7, 0] += 500
    return boxes


# ---- anchors


@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_loops(seed: int) -> None:
    g = torch.Generator().manual_seed(100 + seed)
    x, y = torch.meshgrid(torch.arange(-5, 6.0), torch.arange(-5, 6.0), indexing="xy")
    size = torch.tensor([2.0, 1.0, 1.5])
    anchors = torch.stack(
        [
            torch.cat([torch.stack([x, y, 0 * x], -1).view(-1, 3), size.expand(121, 3), torch.full((121, 1), r)], 1)
            for r in (0.0, 1.57)
        ],
        dim=1,
    ).view(-1, 7)
    boxes = random_boxes(int(torch.randint(1, 12, (), generator=g)), seed)
    boxes = torch.cat([boxes, boxes[:2]])  # the same box twice: the first one takes the anchors
    for matched, unmatched in ((0.6, 0.45), (0.5, 0.35), (0.25, 0.25)):
        expected = slow.assigned(anchors.double().tolist(), boxes.double().tolist(), matched, unmatched)
        got = assign(anchors, boxes, matched_iou=matched, unmatched_iou=unmatched)
        assert got.tolist() == expected
    assert {BACKGROUND, IGNORED} <= set(expected) | {IGNORED}


def test_thresholds_and_the_best_anchor() -> None:
    """Anchors of 2 x 1 m; a box shifted by s metres along x overlaps them by (2 - s) / (2 + s)."""
    anchors = row_of_anchors(4, (2.0, 1.0, 1.0))
    box = torch.tensor([[0.0, 0.0, 9.0, 2.0, 1.0, 1.0, 0.0]])  # height does not matter
    # Overlaps 1, 1/3, 0, 0.
    assert assign(anchors, box, matched_iou=0.5, unmatched_iou=0.3).tolist() == [0, IGNORED, BACKGROUND, BACKGROUND]
    assert assign(anchors, box, matched_iou=0.3, unmatched_iou=0.3).tolist() == [0, 0, BACKGROUND, BACKGROUND]
    assert assign(anchors, box, matched_iou=0.5, unmatched_iou=0.34).tolist() == [0] + [BACKGROUND] * 3
    # Between two anchors, 0.6 each: both are its best; no overlap is enough, yet they have to find it.
    box[0, 0] = 1.5
    assert assign(anchors, box, matched_iou=0.9, unmatched_iou=0.8).tolist() == [BACKGROUND, 0, 0, BACKGROUND]


def test_the_best_anchor_of_a_box_may_have_to_find_another_one() -> None:
    """The second box touches one anchor only, and that one overlaps the first box more."""
    anchors = row_of_anchors(1, (2.0, 1.0, 1.0))
    boxes = torch.tensor([[0.0, 0, 0, 2, 1, 1, 0], [1.5, 0, 0, 2, 1, 1, 0]])
    assert assign(anchors, boxes, matched_iou=0.9, unmatched_iou=0.1).tolist() == [0]


def test_headings_count_by_the_nearer_axis() -> None:
    anchors = torch.cat([row_of_anchors(1, (4.0, 1.0, 1.0), heading) for heading in (0.0, 1.57)])
    for heading, expected in (
        (0.7, [0, BACKGROUND]),
        (0.9, [BACKGROUND, 0]),
        (math.pi, [0, BACKGROUND]),
        (-1.5, [BACKGROUND, 0]),
    ):
        box = torch.tensor([[0.0, 0, 0, 4, 1, 1, heading]])
        assert assign(anchors, box, matched_iou=0.6, unmatched_iou=0.45).tolist() == expected


def test_without_boxes_or_far_from_them_all_is_background() -> None:
    anchors = row_of_anchors(3, (2.0, 1.0, 1.0))
    for boxes in (torch.empty(0, 7), torch.tensor([[900.0, 0, 0, 2, 1, 1, 0]]), torch.zeros(1, 7)):
        assert assign(anchors, boxes, matched_iou=0.6, unmatched_iou=0.45).tolist() == [BACKGROUND] * 3


# ---- heat maps


@pytest.mark.parametrize("seed", range(4))
def test_heat_equals_loops(seed: int) -> None:
    boxes = random_boxes(9, seed)
    boxes[:, :2] += torch.tensor([0.13, 0.21])
    planes = torch.tensor([0, 1, 1, 2, 0, 1, 2, 2, 1])
    place = places(boxes, GRID)
    reach = radii(boxes, GRID, min_overlap=0.1, min_radius=1)
    heat = heat_map(place.long(), reach, planes, 4, GRID.size)
    for plane in range(4):
        own = boxes[planes == plane].double().tolist()
        expected, cells = slow.heat_map(own, GRID.low_m, GRID.cell_m, GRID.size, 0.1, 1)
        torch.testing.assert_close(heat[plane].double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-7)
        got = torch.cat([place.long().float(), place - place.long()], dim=1)[planes == plane]
        torch.testing.assert_close(got, torch.tensor(cells).view(-1, 4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("min_overlap", [0.1, 0.5, 0.7])
def test_radii_equal_loops(min_overlap: float) -> None:
    g = torch.Generator().manual_seed(0)
    boxes = torch.rand(300, 7, generator=g) * 12
    boxes[0, 3:6] = 0  # no size at all
    expected = [slow.radius(b[3] / 0.5, b[4] / 0.75, min_overlap, 2) for b in boxes.double().tolist()]
    assert radii(boxes, GRID, min_overlap=min_overlap, min_radius=2).tolist() == expected


def test_a_heat_map_by_hand() -> None:
    """Radius 1: sigma is half a cell, so that neighbours have exp(-2), corners exp(-4)."""
    heat = heat_map(torch.tensor([[0, 0], [2, 0]]), torch.tensor([1, 1]), torch.tensor([0, 0]), 1, (4, 2))[0]
    side, corner = math.exp(-2), math.exp(-4)
    torch.testing.assert_close(heat, torch.tensor([[1, side, 1, side], [side, corner, side, corner]]))


def test_centres_keep_their_cell_and_those_outside_go_to_the_rim() -> None:
    """Cells of 0.5 x 0.75 m from (-4, -6); the far ends keep half a cell."""
    boxes = torch.zeros(3, 7)
    boxes[:, :2] = torch.tensor([[-3.3, -5.9], [99.0, -99.0], [-4.0, 3.0]])
    expected = torch.tensor([[1.4, 0.1 / 0.75], [15.5, 0.0], [0.0, 11.5]])
    torch.testing.assert_close(places(boxes, GRID), expected, rtol=1e-5, atol=1e-5)
    assert heat_map(torch.empty(0, 2).long(), torch.empty(0).long(), torch.empty(0).long(), 2, (3, 4)).eq(0).all()
