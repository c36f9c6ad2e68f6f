"""Regions of interest: frames, grids, pooled points, proposals, against slow references."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from models.detection.refinement import decode_in_roi, encode_in_roi, proposals
from models.detection.roi import (
    corners,
    from_roi_frame,
    global_boxes,
    grid_points,
    local_boxes,
    points_of_rois,
    propose,
    to_roi_frame,
)
from tests.reference import detection_roi as slow


def random_boxes(number: int, seed: int = 0, *, spread_m: float = 4.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(number, 7, generator=generator, dtype=torch.float64)
    low = torch.tensor([-spread_m, -spread_m, -1, 1, 0.5, 1, -4], dtype=torch.float64)
    high = torch.tensor([spread_m, spread_m, 1, 5, 2, 2, 4], dtype=torch.float64)
    return low + values * (high - low)


def test_the_frame_of_a_roi_by_hand() -> None:
    """A RoI at (1, 2, 3) that heads to +y: what lies 2 m ahead of it has x = 2 there."""
    roi = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.0, math.pi / 2]])
    points = torch.tensor([[[1.0, 4.0, 3.0], [0.0, 2.0, 3.5], [1.0, 2.0, 3.0]]])
    expected = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(to_roi_frame(points, roi), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(from_roi_frame(expected, roi), points, atol=1e-6, rtol=0)


def test_corners_by_hand() -> None:
    box = torch.tensor([[1.0, 0.0, 0.0, 4.0, 2.0, 1.0, math.pi / 2]])
    expected = {(x, y, z) for x in (0.0, 2.0) for y in (-2.0, 2.0) for z in (-0.5, 0.5)}
    assert {tuple(round(v, 5) + 0.0 for v in corner) for corner in corners(box)[0].tolist()} == expected


def test_grid_points_against_loops() -> None:
    rois = random_boxes(5)
    expected = torch.tensor([slow.grid_of(roi, 3) for roi in rois.tolist()], dtype=torch.float64)
    torch.testing.assert_close(grid_points(rois, 3), expected)
    assert grid_points(rois[:0], 6).shape == (0, 216, 3)


@pytest.mark.parametrize("seed", range(4))
def test_codes_in_the_frame_of_a_roi_give_the_box_back_up_to_half_turns(seed: int) -> None:
    rois, boxes = random_boxes(50, seed), random_boxes(50, seed + 100)
    local = local_boxes(boxes, rois)
    assert (local[:, 6].abs() <= math.pi / 2 + 1e-12).all()
    for found in (global_boxes(local, rois), decode_in_roi(encode_in_roi(boxes, rois), rois)):
        torch.testing.assert_close(found[:, :6], boxes[:, :6])
        halves = (found[:, 6] - boxes[:, 6]) / math.pi
        torch.testing.assert_close(halves, halves.round(), atol=1e-9, rtol=0)


def test_headings_fold_to_a_quarter_turn_either_way() -> None:
    """Differences of heading, degrees, and what the second stage should learn."""
    folds = {0: 0, 80: 80, 89.9: 89.9, 90: 90, 90.1: -89.9, 180: 0, 200: 20, 269.9: 89.9, 270.1: -89.9, 350: -10}
    folds |= {-80: -80, -89.9: -89.9, -90.1: 89.9, -180: 0, 720: 0, 1000: -80}
    degree = math.pi / 180
    rois = torch.zeros(len(folds), 7, dtype=torch.float64)
    rois[:, 3:6], rois[:, 6] = 1, 0.3
    boxes = rois.clone()
    boxes[:, 6] += degree * torch.tensor(list(folds), dtype=torch.float64)
    expected = degree * torch.tensor(list(folds.values()), dtype=torch.float64)
    torch.testing.assert_close(local_boxes(boxes, rois)[:, 6], expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(encode_in_roi(boxes, rois)[:, 6], expected, atol=1e-9, rtol=0)


def test_a_code_by_hand() -> None:
    """Twice as long, 3 m ahead (diagonal of 3 x 4: 5), 1 m up (height 2)."""
    roi = torch.tensor([[10.0, 0.0, 0.0, 3.0, 4.0, 2.0, math.pi / 2]])
    box = torch.tensor([[10.0, 3.0, 1.0, 6.0, 4.0, 2.0, math.pi / 2 + 0.1]])
    expected = torch.tensor([[0.6, 0.0, 0.5, math.log(2), 0.0, 0.0, 0.1]])
    torch.testing.assert_close(encode_in_roi(box, roi), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_pooled_points_against_loops(limit: int) -> None:
    generator = torch.Generator().manual_seed(1)
    points = 8 * torch.rand(200, 3, generator=generator, dtype=torch.float64) - 4
    points[:, 2] /= 4
    rois = torch.cat([random_boxes(12), random_boxes(1) + 100])
    counts, roi_counts = torch.tensor([120, 0, 80]), torch.tensor([6, 3, 4])
    roi, point = points_of_rois(points, counts, rois, roi_counts, limit)
    assert (roi.diff() >= 0).all()
    spans = [((0, 120), (0, 6)), ((120, 120), (6, 9)), ((120, 200), (9, 13))]
    for (p0, p1), (r0, r1) in spans:
        expected = slow.pooled_points(points[p0:p1].tolist(), rois[r0:r1].tolist(), limit)
        for number, rows in enumerate(expected, start=r0):
            mine = point[roi == number]
            assert mine.tolist() == [p0 + row for row, *_ in rows]
            local = to_roi_frame(points[mine, None], rois[number].expand(len(mine), 7))[:, 0]
            torch.testing.assert_close(local, torch.tensor([place for _, *place in rows]).double().view(-1, 3))


def test_proposals_are_the_best_of_each_sample_by_falling_score() -> None:
    boxes = torch.tensor([[x, 0.0, 0.0, 4.0, 2.0, 1.0, 0.0] for x in (0.0, 0.1, 9.0, 0.0, 20.0, 5.0)])
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.5, 0.0], [9.0, 0.0], [4.0, 0.0]])
    sample = torch.tensor([0, 0, 0, 1, 1, 1])
    boxes[4, 3] = torch.inf  # a box of diverged weights
    chosen = proposals(max_iou=0.5, before=10, after=5)
    found = propose(boxes, logits, sample, 3, chosen)
    assert found.boxes[:, 0].tolist() == pytest.approx([0.1, 9.0, 5.0, 0.0])
    assert found.classes.tolist() == [0, 1, 0, 0]
    assert found.sample.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 1.0, 4.0, 0.5]).sigmoid())
    assert found.counts(3).tolist() == [2, 2, 0]
    one = propose(boxes, logits, sample, 3, dataclasses.replace(chosen, num_after=1))
    assert one.boxes[:, 0].tolist() == pytest.approx([0.1, 5.0])
    assert len(propose(boxes[:0], logits[:0], sample[:0], 2, chosen).boxes) == 0
