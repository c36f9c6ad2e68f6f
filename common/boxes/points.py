"""Which points lie in which box. Boxes as in `common.boxes.overlap`.

Letters: N points, K boxes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_AT_A_TIME = 1 << 18
"""Points times boxes that are looked at together on a CPU. A GPU gets 64 times as many."""


def points_in_boxes(points: Float[Tensor, "N 3"], boxes: Float[Tensor, "K 7"]) -> Bool[Tensor, "N K"]:
    """Which points lie inside which box or on its faces.

    Where a value of a point or of a box is not finite, or a size is negative, the point is not inside.
    """
    parts = list(_inside(points, boxes))
    return torch.cat(parts) if parts else torch.zeros((0, len(boxes)), dtype=torch.bool, device=points.device)


def first_box_of_points(points: Float[Tensor, "N 3"], boxes: Float[Tensor, "K 7"]) -> Int[Tensor, " N"]:
    """Lowest index of a box that each point lies in, as `points_in_boxes` says; -1 where it lies in none."""
    first = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    if len(boxes) == 0:
        return first
    start = 0
    for inside in _inside(points, boxes):
        found, box = inside.to(torch.uint8).max(dim=1)
        first[start : start + len(inside)] = torch.where(found > 0, box, -1)
        start += len(inside)
    return first


def _inside(points: Float[Tensor, "N 3"], boxes: Float[Tensor, "K 7"]) -> Iterator[Bool[Tensor, "n K"]]:
    """`points_in_boxes` of some points at a time."""
    at_a_time = _AT_A_TIME if points.device.type == "cpu" else 64 * _AT_A_TIME
    half = torch.where(boxes.isfinite().all(dim=1, keepdim=True), boxes[:, 3:6] / 2, -1)
    c, s = boxes[:, 6].cos(), boxes[:, 6].sin()
    for some in points.split(max(1, at_a_time // max(1, len(boxes)))) if len(points) else ():
        x, y, z = (some[:, None, axis] - boxes[None, :, axis] for axis in range(3))
        along, across = (x * c + y * s).abs() <= half[:, 0], (y * c - x * s).abs() <= half[:, 1]
        yield along & across & (z.abs() <= half[:, 2])
