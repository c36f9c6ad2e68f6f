"""Losses of detection heads, entry by entry, and the count of objects that they are divided by.

Letters: R rows, C classes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from models.contrast.losses import world_size

BETA = 1 / 9
"""Where SECOND's smooth L1 turns from a square into a line."""

_LEAST_SCORE = 1e-4
"""Scores of heat maps are kept this far from 0 and 1 in the loss, as in CenterPoint's released code."""


def focal_loss(
    logits: Float[Tensor, "*rows C"], truth: Bool[Tensor, "*rows C"], *, alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, "*rows C"]:
    """Binary cross-entropy that confident right answers hardly count in.

        p_t = p where true, else 1 - p;  a_t = alpha where true, else 1 - alpha
        loss = - a_t (1 - p_t)^gamma ln p_t

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, eq. 5.
    """
    target = truth.to(logits.dtype)
    score = logits.sigmoid()
    wrong = torch.where(truth, 1 - score, score)
    weight = torch.where(truth, alpha, 1 - alpha) * wrong**gamma
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def heatmap_focal_loss(logits: Float[Tensor, "..."], heat: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Sum over a heat map: focal loss whose negatives count less the nearer they lie to an object's centre.

        - (1 - p)^2 ln p where heat is 1, else - (1 - heat)^4 p^2 ln(1 - p)

    Source: Law and Deng, "CornerNet", ECCV 2018, eq. 1; CenterPoint (Yin et al., CVPR 2021), section 3.
    """
    score = logits.sigmoid().clamp(min=_LEAST_SCORE, max=1 - _LEAST_SCORE)
    at_centre = heat == 1
    centre = (1 - score) ** 2 * score.log()
    around = (1 - heat) ** 4 * score**2 * (1 - score).log()
    return -torch.where(at_centre, centre, around).sum()


def mean_over_ranks(count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """A count's mean over all ranks, at least 1 over all of them; every rank must call.

    A sum divided by it, in the mean over ranks that data-parallel training takes, is the sum over all ranks divided by
    the count over all of them: what one process with all samples computes.
    """
    total = count.detach().clone()
    ranks = world_size()
    if ranks > 1:
        dist.all_reduce(total)
    return total.clamp(min=1) / ranks
