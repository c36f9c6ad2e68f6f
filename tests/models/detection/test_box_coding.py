"""Codes of boxes: there and back, by hand, and the half of the circle at all headings."""

from __future__ import annotations

import math

import pytest
import torch

from models.detection.box_coding import decode, encode, heading_bin, turned_into_bin


def test_codes_by_hand() -> None:
    """An anchor of 4 x 3 x 2 m has a diagonal of 5 m."""
    anchor = torch.tensor([[1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 0.5]])
    box = torch.tensor([[2.0, -3.0, 4.0, 8.0, 3.0, 1.0, 2.0]])
    expected = torch.tensor([[0.2, -1.0, 0.5, math.log(2), 0.0, -math.log(2), 1.5]])
    torch.testing.assert_close(encode(box, anchor), expected)


def test_there_and_back() -> None:
    g = torch.Generator().manual_seed(0)
    boxes, anchors = (torch.randn(500, 7, generator=g, dtype=torch.float64) * 5 for _ in range(2))
    boxes[:, 3:6], anchors[:, 3:6] = boxes[:, 3:6].abs() + 1e-3, anchors[:, 3:6].abs() + 1e-3
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes)
    bins = heading_bin(boxes[:, 6])
    # The codes' heading may be off by half a turn; with the bin the box points the right way again.
    for turn in (0.0, math.pi, -3 * math.pi):
        back = turned_into_bin(decode(encode(boxes, anchors), anchors)[:, 6] + turn, bins)
        torch.testing.assert_close(torch.sin(back - boxes[:, 6]), torch.zeros_like(back), atol=1e-9, rtol=0)
        assert (torch.cos(back - boxes[:, 6]) > 0.99).all()


@pytest.mark.parametrize("turns", [-4, -1, 0, 1, 7])
def test_bins_are_halves_of_the_circle(turns: int) -> None:
    degrees = torch.arange(0.5, 360, 1.0, dtype=torch.float64)  # none on a border
    headings = degrees.deg2rad() + turns * 2 * math.pi
    assert torch.equal(heading_bin(headings), ((degrees < 45) | (degrees > 225)).long())
    back = turned_into_bin(headings + math.pi, heading_bin(headings))
    torch.testing.assert_close(torch.cos(back - headings), torch.ones_like(back))
    assert ((back > math.radians(44.9)) & (back < math.radians(405))).all()


def test_borders_lie_in_one_of_the_bins() -> None:
    border = torch.tensor([0.78539, 0.78539 + math.pi, 0.78539 - 1e-9, -1e30, 1e30])
    assert set(heading_bin(border).tolist()) <= {0, 1}


def test_boxes_without_size_have_finite_codes() -> None:
    anchor = torch.tensor([[0.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0]])
    assert encode(torch.zeros(1, 7), anchor).isfinite().all()
    assert encode(anchor, torch.zeros(1, 7)).isfinite().all()
    assert decode(encode(torch.empty(0, 7), torch.empty(0, 7)), torch.empty(0, 7)).shape == (0, 7)
