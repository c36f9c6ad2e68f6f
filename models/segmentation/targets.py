"""What networks that segment points learn from labelled objects. Letters: N points, F points of objects."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def offset_targets(
    points: Float[Tensor, "N 3"], sample: Int[Tensor, " N"], classes: Int[Tensor, " N"], objects: Int[Tensor, " N"]
) -> tuple[Int[Tensor, " F"], Float[Tensor, "F 3"]]:
    """From each point of an object to the middle of the box along the axes around the object's points.

    Args:
        points: places in metres.
        sample: of each point.
        classes: of each point: points of one number and two classes are two objects.
        objects: of each point, 0 for none.

    Returns:
        The points of objects, and the offset of each.
    """
    rows = torch.nonzero(objects > 0)[:, 0]
    keys = torch.stack([sample[rows], classes[rows], objects[rows]], dim=1)
    ids, of_row = torch.unique(keys, dim=0, return_inverse=True)
    at, index = points[rows], of_row[:, None].expand(-1, 3)
    limits = [
        points.new_zeros(len(ids), 3).scatter_reduce(0, index, at, reduce=end, include_self=False)
        for end in ("amin", "amax")
    ]
    return rows, ((limits[0] + limits[1]) / 2)[of_row] - at
