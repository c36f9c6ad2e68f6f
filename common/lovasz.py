"""The Lovász-softmax loss: what segmentation is trained with beside or instead of cross-entropy.

Letters: K classes, N rows (voxels or points).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def lovasz_softmax(probabilities: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Convex surrogate of 1 - mean IoU, over the classes that occur among the labels.

    Source: Berman et al., "The Lovász-Softmax loss", CVPR 2018, Algorithm 1 and eq. 9 ("present" classes).

    For each class c: m = |1[y = c] - p_c| sorted falling; J_k = 1 - |rest of c after the first k| / |c or first k|;
    loss_c = sum_k m_k (J_k - J_{k-1}). All classes are sorted and summed as columns of one matrix.

    Args:
        probabilities: softmax outputs.
        labels: class of each row; no ignore label among them.
    """
    if labels.numel() == 0:
        return probabilities.sum() * 0.0
    foreground = F.one_hot(labels, probabilities.shape[1]).to(probabilities.dtype)
    errors, order = (foreground - probabilities).abs().sort(dim=0, descending=True)
    truth = foreground.gather(0, order)
    total = truth.sum(0)
    jaccard = 1.0 - (total - truth.cumsum(0)) / (total + (1.0 - truth).cumsum(0))
    steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    per_class = (errors * steps).sum(0)
    return per_class[total > 0].mean()
