"""Boxes as what an anchor head predicts: differences to anchors, and the half of the circle that a heading lies in.

Boxes and anchors as in `common.boxes.overlap`. With a for the anchor's values and d = sqrt(length_a^2 + width_a^2):

    (x - x_a) / d,  (y - y_a) / d,  (z - z_a) / height_a,  ln(length / length_a), ln(width / width_a),
    ln(height / height_a),  heading - heading_a

The loss sees the heading's difference through its sine, which cannot tell a box from one turned by pi; two bins of half
a circle can.

Source: Yan, Mao, Li, "SECOND", Sensors 2018, section 3.3; the bins' origin and the least size are those of OpenPCDet's
released code.

Letters: K boxes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BIN_ORIGIN = 0.78539
"""Heading at which the first bin begins. Rounded as released, so that released heads sort headings as they did."""

_MIN_SIZE_M = 1e-5


def encode(boxes: Float[Tensor, "K 7"], anchors: Float[Tensor, "K 7"]) -> Float[Tensor, "K 7"]:
    """Codes of boxes against the anchors in the same rows. Sizes below 10 micrometres count as that."""
    size, size_a = boxes[:, 3:6].clamp(min=_MIN_SIZE_M), anchors[:, 3:6].clamp(min=_MIN_SIZE_M)
    place = (boxes[:, :3] - anchors[:, :3]) / _units(size_a)
    return torch.cat([place, (size / size_a).log(), boxes[:, 6:] - anchors[:, 6:]], dim=1)


def decode(codes: Float[Tensor, "K 7"], anchors: Float[Tensor, "K 7"]) -> Float[Tensor, "K 7"]:
    """The boxes of codes, up to the heading's half circle; headings are not brought into any range."""
    size_a = anchors[:, 3:6].clamp(min=_MIN_SIZE_M)
    place = anchors[:, :3] + codes[:, :3] * _units(size_a)
    return torch.cat([place, codes[:, 3:6].exp() * size_a, codes[:, 6:] + anchors[:, 6:]], dim=1)


def _units(size_a: Float[Tensor, "K 3"]) -> Float[Tensor, "K 3"]:
    """Lengths that places are measured in."""
    diagonal = size_a[:, :2].norm(dim=1)
    return torch.stack([diagonal, diagonal, size_a[:, 2]], dim=1)


def heading_bin(headings: Float[Tensor, " K"]) -> Int[Tensor, " K"]:
    """0 for headings from 45 to 225 degrees (exclusive), else 1."""
    turned = torch.remainder(headings - _BIN_ORIGIN, 2 * math.pi)
    # The remainder of a tiny negative number rounds up to the whole circle.
    return (turned / math.pi).floor().long().clamp(max=1)


def turned_into_bin(headings: Float[Tensor, " K"], bins: Int[Tensor, " K"]) -> Float[Tensor, " K"]:
    """The same headings or those turned by pi, whichever lies in the bin; from 45 to 405 degrees."""
    half = torch.remainder(headings - _BIN_ORIGIN, math.pi)
    return half + _BIN_ORIGIN + math.pi * bins.to(headings.dtype)
