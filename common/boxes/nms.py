"""Non-maximum suppression by the overlap of footprints. Boxes as in `common.boxes.overlap`."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def rotated_nms(
    boxes: Float[Tensor, "K 7"],
    scores: Float[Tensor, " K"],
    max_iou: float,
    *,
    num_before: int | None = None,
    num_after: int | None = None,
) -> Int[Tensor, " R"]:
    """Boxes that are kept, by falling score: each drops all lower ones whose footprint's IoU with it exceeds `max_iou`.

    Of equal scores the lower index comes first.

    Args:
        boxes: in one frame, of one sample.
        scores: of the boxes.
        max_iou: largest IoU of two kept boxes.
        num_before: only so many highest scores are looked at; None: all.
        num_after: at most so many are kept; None: all.
    """
    raise NotImplementedError
