"""Non-maximum suppression by the overlap of footprints. Boxes as in `common.boxes.overlap`."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from common.boxes.overlap import bev_iou_of_pairs, near_pairs

_ROWS = 256
"""Boxes that are decided together: few enough that most of those dropped are never compared with lower ones."""


def rotated_nms(
    boxes: Float[Tensor, "K 7"],
    scores: Float[Tensor, " K"],
    max_iou: float,
    *,
    num_before: int | None = None,
    num_after: int | None = None,
) -> Int[Tensor, " R"]:
    """Boxes that are kept, by falling score: each drops all lower ones whose footprint's IoU with it exceeds `max_iou`.

    Of equal scores the lower index comes first; a score that is not a number comes last. A box that overlaps nothing
    (see `common.boxes.overlap`: values that are not finite, no area) is kept.

    Args:
        boxes: in one frame, of one sample.
        scores: of the boxes.
        max_iou: largest IoU of two kept boxes.
        num_before: only so many highest scores are looked at; None: all.
        num_after: at most so many are kept; None: all.
    """
    order = scores.nan_to_num(nan=-torch.inf).sort(descending=True, stable=True).indices[:num_before]
    ordered = boxes[order]
    kept = order.new_zeros(0)
    waiting = torch.arange(len(order), device=order.device)
    while len(waiting) and (num_after is None or len(kept) < num_after):
        rows, waiting = waiting[:_ROWS], waiting[_ROWS:]
        rows = rows[_kept_of(ordered[rows], max_iou)]
        waiting = waiting[~_dropped_by(ordered[rows], ordered[waiting], max_iou)]
        kept = torch.cat([kept, rows])
    return order[kept[:num_after]]


def _dropped_by(higher: Float[Tensor, "K 7"], lower: Float[Tensor, "L 7"], max_iou: float) -> Bool[Tensor, " L"]:
    dropped = torch.zeros(len(lower), dtype=torch.bool, device=lower.device)
    for i, j in near_pairs(higher, lower):
        dropped[j[bev_iou_of_pairs(higher[i], lower[j]) > max_iou]] = True
    return dropped


def _kept_of(boxes: Float[Tensor, "K 7"], max_iou: float) -> Int[Tensor, " R"]:
    """Rows that are kept among a few boxes in order."""
    drops: dict[int, list[int]] = {}
    for i, j in near_pairs(boxes, boxes):
        i, j = i[i < j], j[i < j]
        over = bev_iou_of_pairs(boxes[i], boxes[j]) > max_iou
        for higher, lower in zip(i[over].tolist(), j[over].tolist(), strict=True):
            drops.setdefault(higher, []).append(lower)
    dropped: set[int] = set()
    for row in range(len(boxes)):
        if row not in dropped:
            dropped.update(drops.get(row, ()))
    kept = [row for row in range(len(boxes)) if row not in dropped]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)
