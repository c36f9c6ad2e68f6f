"""Which box each anchor has to find.

Letters: A anchors, K boxes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from common.boxes.overlap import axis_aligned_bev_iou

BACKGROUND, IGNORED = -1, -2
"""In place of a box: an anchor that must find none, and one that no loss counts."""


def assign(
    anchors: Float[Tensor, "A 7"], boxes: Float[Tensor, "K 7"], *, matched_iou: float, unmatched_iou: float
) -> Int[Tensor, " A"]:
    """The box of each anchor, `BACKGROUND` or `IGNORED`, all of one class and one sample.

    Overlap is that of footprints turned to the nearer axis. An anchor takes the box that it overlaps most (the first of
    equals) if that is at least `matched_iou`, or if no anchor overlaps some box more than this one does: so that every
    box which any anchor touches is found by one. Such an anchor too takes the box that *it* overlaps most, which may be
    another one. Of the others, those below `unmatched_iou` are background.

    Source: SECOND (Yan et al., 2018), section 3.4; OpenPCDet's released code for the details.
    """
    if len(boxes) == 0:
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    iou = axis_aligned_bev_iou(anchors, boxes)
    best, box = iou.amax(dim=1), iou.argmax(dim=1)
    best_of_box = iou.amax(dim=0)
    is_best = ((iou == best_of_box) & (best_of_box > 0)).any(dim=1)
    other = torch.where(best < unmatched_iou, BACKGROUND, IGNORED)
    return torch.where((best >= matched_iou) | is_best, box, other)
