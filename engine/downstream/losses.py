"""What segmentation heads are trained with: cross-entropy, class-balanced by option, plus Lovász-softmax.

Letters: K classes, N rows (voxels or points).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from common.lovasz import lovasz_softmax
from common.ranges import at_least, below, between


@dataclass(frozen=True, kw_only=True)
class SegmentationLossConfig:
    """Loss of linear probe and fine-tuning.

    Attributes:
        class_balance: cross-entropy weight of a class is its frequency to the power of minus this: 0 all alike, 1
            inverse frequency.
        lovasz_weight: weight of the Lovász-softmax term beside the cross-entropy; 0 leaves it out.
    """

    class_balance: float = 0.0
    lovasz_weight: float = 1.0

    def __post_init__(self) -> None:
        between(self, "0: plain, 1: inverse frequency", class_balance=(0, 1))
        at_least(self, lovasz_weight=0)
        below(self, lovasz_weight=math.inf)


def class_weights(counts: Int[Tensor, " K"], class_balance: float) -> Float[Tensor, " K"]:
    """Cross-entropy weight of each class from its number of labelled rows.

    The weights average to 1 over the rows, so that the loss keeps its scale (and a tuned rate its meaning) whatever
    the balance. Classes without a row get 0: there is nothing to learn them from.
    """
    present = counts > 0
    weights = torch.where(present, counts.clamp_min(1).double() ** -class_balance, 0.0)
    mean = (weights * counts).sum() / counts.sum().clamp_min(1)
    return (weights / mean.clamp_min(torch.finfo(torch.float64).tiny)).float()


def segmentation_loss(
    logits: Float[Tensor, "N K"],
    labels: Int[Tensor, " N"],
    weights: Float[Tensor, " K"] | None,
    config: SegmentationLossConfig,
    ignore_label: int,
) -> Float[Tensor, ""]:
    """Cross-entropy + weighted Lovász-softmax over the labelled rows; 0 (with gradient) where there are none.

    Args:
        logits: scores.
        labels: class of each row, or the ignore label.
        weights: cross-entropy weight of each class (`class_weights`), None for all alike.
        config: how the two terms are mixed.
        ignore_label: rows with this label do not count.
    """
    keep = labels != ignore_label
    logits, labels = logits[keep], labels[keep].long()
    if labels.numel() == 0:
        return logits.sum() * 0.0
    # The sum of row losses is divided by the number of rows, not by the sum of their weights: a batch of common
    # classes only must not be blown up to the size of a batch with rare ones.
    loss = F.cross_entropy(logits, labels, weight=weights, reduction="sum") / labels.numel()
    if config.lovasz_weight > 0.0:
        loss = loss + config.lovasz_weight * lovasz_softmax(logits.softmax(1), labels)
    return loss
