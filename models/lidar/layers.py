"""Layers that several 3D networks share: BatchNorm with what follows it, for few rows too, and a layer on each point.

Letters: M rows, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.lidar.native.normalization import NormSettings, norm_act_rows, works_on

_Features = Float[Tensor, "M C *cells"]


def norm_act(
    norm: nn.BatchNorm1d | nn.BatchNorm2d, features: _Features, *, residual: _Features | None = None, relu: bool = True
) -> _Features:
    """BatchNorm over voxels, points or cells of a map, then a residual added, then ReLU: relu(norm(x) + residual).

    A batch whose voxels all fall into one cell of a coarse stage (or that is empty) has no variance there, and
    training-mode BatchNorm raises. Such a stage is normalised with the running statistics, which stay as they are. A
    norm converted to a synchronised one counts the voxels of all ranks itself and must be called by every rank.

    On the CPU rows and maps with channels last, of float32 or bfloat16, go through one native operation, but for norms
    that `leave_to_torch` has marked.
    """
    if _native(norm, features, residual):
        return _norm_act_native(norm, features, residual, relu)
    few = features.numel() < 2 * features.shape[1]
    out: Tensor
    if norm.training and few and type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
        out = F.batch_norm(
            features, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
        )
    else:
        out = norm(features)
    if residual is not None:
        out = out + residual
    return F.relu_(out) if relu else out


def leave_to_torch(module: nn.Module) -> None:
    """Let torch normalise in all norms inside a module: to the bit what it was before there were native kernels."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            child.__dict__[_BY_TORCH] = True


_BY_TORCH = "normalised_by_torch"


def _native(norm: nn.BatchNorm1d | nn.BatchNorm2d, features: _Features, residual: _Features | None) -> bool:
    """Whether `norm_act` may go past the module: it is an ordinary one, and nobody wants to hear of its call.

    ZeRO-3 is such a listener: it gathers the weights of a module outside a 3D network when that is called.
    """
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d) or _BY_TORCH in norm.__dict__:
        return False
    if norm._forward_pre_hooks or norm._forward_hooks or norm._backward_pre_hooks or norm._backward_hooks:
        return False
    # Of a map: only with channels last are its cells rows, without a copy.
    if features.ndim > 2 and not features.movedim(1, -1).is_contiguous():
        return False
    return works_on(features, residual, norm.weight, norm.bias, norm.running_mean, norm.running_var)


def _norm_act_native(
    norm: nn.BatchNorm1d | nn.BatchNorm2d, features: _Features, residual: _Features | None, relu: bool
) -> _Features:
    few = features.numel() < 2 * features.shape[1]
    training = norm.running_mean is None or (norm.training and not few)
    running_mean, running_var, rate = norm.running_mean, norm.running_var, norm.momentum
    if training and norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if rate is None:  # torch: the plain average over all batches
            rate = 1.0 / float(norm.num_batches_tracked)
    settings = NormSettings(relu=relu, training=training, eps=norm.eps, rate=rate or 0.0)
    of_channels = (norm.weight, norm.bias, running_mean, running_var)
    if features.ndim == 2:
        return norm_act_rows(features, residual, *of_channels, settings)
    cells, channels = features.movedim(1, -1), features.shape[1]
    added = None if residual is None else residual.movedim(1, -1).reshape(-1, channels)
    rows = norm_act_rows(cells.reshape(-1, channels), added, *of_channels, settings)
    return rows.reshape(cells.shape).movedim(-1, 1)


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
        return norm_act(self.norm, self.linear(points))
