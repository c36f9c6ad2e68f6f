"""Layers on each point alone, shared by the networks that have a point branch.

Letters: M rows, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.lidar.res16unet import normalize


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
