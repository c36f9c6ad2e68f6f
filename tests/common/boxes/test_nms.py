"""Suppression against the slow one, and its rules for ties, limits and odd boxes."""

import math

import numpy as np
import pytest
import torch

from common.boxes import nms
from common.boxes.nms import rotated_nms
from tests.common.boxes.test_overlap import CAR, along, box, random_boxes
from tests.reference import boxes as reference


@pytest.mark.parametrize("rows", [4, 256], ids=["blocks", "one_block"])
@pytest.mark.parametrize("max_iou", [0.01, 0.2, 0.7])
def test_against_the_slow_one(max_iou: float, rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nms, "_ROWS", rows)
    boxes = random_boxes(90, 1, spread=2.5)
    boxes[60:] = boxes[:30] + torch.from_numpy(np.random.default_rng(2).normal(size=(30, 7)) * 0.02)
    scores = torch.from_numpy(np.random.default_rng(0).integers(0, 12, 90) / 12)  # many ties
    expected = reference.nms(boxes.numpy(), scores.numpy(), max_iou)
    assert 5 < len(expected) < 90
    assert rotated_nms(boxes, scores, max_iou).tolist() == expected
    assert rotated_nms(boxes, scores, max_iou, num_after=4).tolist() == expected[:4]
    best = scores.sort(descending=True, stable=True).indices[:30]
    fewer = [int(best[row]) for row in reference.nms(boxes[best].numpy(), scores[best].numpy(), max_iou)]
    assert rotated_nms(boxes, scores, max_iou, num_before=30).tolist() == fewer


def test_chain_drops_every_second():
    """Each overlaps its neighbours by .6: what was dropped drops nothing."""
    boxes = torch.cat([along(CAR, 0.4, float(i)) for i in range(5)])
    assert rotated_nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), 0.5).tolist() == [0, 2, 4]
    assert rotated_nms(boxes, torch.tensor([0.5, 0.9, 0.7, 0.8, 0.6]), 0.5).tolist() == [1, 3]


def test_overlap_of_exactly_the_limit_is_kept():
    """Edges of 4 x 2 and 2 x 2 m: IoU .5 in binary."""
    boxes = torch.cat([box(0, 0, 0, 4, 2, 1, 0), box(1, 0, 0, 2, 2, 1, 0)])
    assert rotated_nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0, 1]
    assert rotated_nms(boxes, torch.tensor([0.9, 0.8]), 0.4999).tolist() == [0]


def test_of_equal_scores_the_first_is_kept_and_no_number_comes_last():
    boxes = box(*CAR).repeat(3, 1)
    assert rotated_nms(boxes, torch.tensor([0.5, 0.5, 0.5]), 0.1).tolist() == [0]
    assert rotated_nms(boxes, torch.tensor([math.nan, 0.1, 0.5]), 0.1).tolist() == [2]
    far = torch.cat([along(CAR, 0.0, 100.0 * i) for i in range(3)])
    assert rotated_nms(far, torch.tensor([math.nan, 0.1, 0.5]), 0.1).tolist() == [2, 1, 0]


def test_odd_boxes_are_kept():
    boxes = box(*CAR).repeat(4, 1)
    boxes[0, 0], boxes[2, 3] = math.nan, 0.0
    assert rotated_nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.1).tolist() == [0, 1, 2]
    none = rotated_nms(torch.zeros((0, 7)), torch.zeros(0), 0.1)
    assert (none.shape, none.dtype) == ((0,), torch.int64)
