"""Layers that several 3D networks share: BatchNorm for few rows, and a layer on each point alone.

Letters: M rows, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def normalize(
    norm: nn.BatchNorm1d | nn.BatchNorm2d, features: Float[Tensor, "M C *cells"]
) -> Float[Tensor, "M C *cells"]:
    """BatchNorm over voxels, points or cells of a map.

    A batch whose voxels all fall into one cell of a coarse stage (or that is empty) has no variance there, and
    training-mode BatchNorm raises. Such a stage is normalised with the running statistics, which stay as they are. A
    norm converted to a synchronised one counts the voxels of all ranks itself and must be called by every rank.
    """
    few = features.numel() < 2 * features.shape[1]
    if norm.training and few and type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return F.batch_norm(
            features, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
        )
    normalized: Tensor = norm(features)
    return normalized


class PointLayer(nn.Module):
    """Linear layer, BatchNorm over all rows, ReLU. A batch of one row is normalised with the running statistics."""

    def __init__(
        self, in_features: int, out_features: int, *, bn_momentum: float, bn_eps: float = 1e-5, bias: bool = False
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.norm = nn.BatchNorm1d(out_features, eps=bn_eps, momentum=bn_momentum)

    def forward(self, points: Float[Tensor, "M C_in"]) -> Float[Tensor, "M C_out"]:
        """New features of each row."""
        return F.relu(normalize(self.norm, self.linear(points)))
