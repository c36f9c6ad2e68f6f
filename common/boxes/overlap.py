"""Overlap of upright, rotated boxes in the ground plane and in space.

A box is x, y, z of its centre, length along the heading, width, height (metres), heading from +x counter-clockwise
about z (radians), in any frame whose z points up. Overlaps are exact: one rectangle is clipped by the other.

Letters: K, L boxes.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def bev_corners(boxes: Float[Tensor, "K 7"]) -> Float[Tensor, "K 4 2"]:
    """Corners of the footprints, counter-clockwise."""
    raise NotImplementedError


def bev_intersection(a: Float[Tensor, "K 7"], b: Float[Tensor, "L 7"]) -> Float[Tensor, "K L"]:
    """Area that two footprints share, m^2."""
    raise NotImplementedError


def bev_iou(a: Float[Tensor, "K 7"], b: Float[Tensor, "L 7"]) -> Float[Tensor, "K L"]:
    """Intersection over union of footprints; 0 where both have no area."""
    raise NotImplementedError


def iou_3d(a: Float[Tensor, "K 7"], b: Float[Tensor, "L 7"]) -> Float[Tensor, "K L"]:
    """Intersection over union of volumes; 0 where both have none."""
    raise NotImplementedError


def iou_3d_of_pairs(a: Float[Tensor, "K 7"], b: Float[Tensor, "K 7"]) -> Float[Tensor, " K"]:
    """`iou_3d` of each box with the one in the same row."""
    raise NotImplementedError


def axis_aligned_bev_iou(a: Float[Tensor, "K 7"], b: Float[Tensor, "L 7"]) -> Float[Tensor, "K L"]:
    """IoU of footprints turned to the nearer axis, as anchors are assigned by (length and width swapped where the
    heading is nearer to +-y than to +-x).
    """  # noqa: D205
    raise NotImplementedError
