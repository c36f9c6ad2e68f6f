"""Which points lie in which box. Boxes as in `common.boxes.overlap`.

Letters: N points, K boxes.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def points_in_boxes(points: Float[Tensor, "N 3"], boxes: Float[Tensor, "K 7"]) -> Bool[Tensor, "N K"]:
    """Which points lie inside which box or on its faces."""
    raise NotImplementedError
