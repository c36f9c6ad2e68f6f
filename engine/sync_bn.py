"""BatchNorm over the rows of all ranks, on CPU (gloo) as well as CUDA (nccl).

torch's SyncBatchNorm refuses CPU tensors. This one keeps BatchNorm's parameters, buffers and names, so state dicts of
both kinds are interchangeable. Ranks may bring different numbers of rows (points differ from sweep to sweep): the
statistics are those of all rows together. Cost: two small all-reduces forward, one backward.

Fewer than two rows in all ranks together have no variance (a step in which nothing is left of any sweep): they meet the
running statistics, which stay as they are, on every rank alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class _Normalize(torch.autograd.Function):
    """(x - mean) / std over all rows of all ranks, with gradient through mean and variance.

    With n rows in all, y the normalised rows, g the incoming gradient, sums over all ranks:
        dx = (g - sum(g) / n - y * sum(g * y) / n) / std
    Source: Ioffe & Szegedy 2015, section 3, the chain rule there with the batch of all ranks.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Float[Tensor, "rows C"], eps: float
    ) -> tuple[Float[Tensor, "rows C"], Float[Tensor, " C"], Float[Tensor, " C"], Float[Tensor, ""]]:
        """Normalised rows, mean, biased variance, number of rows."""
        x = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        sums = torch.cat([x.sum(0), x.new_tensor([float(x.shape[0])])])
        dist.all_reduce(sums)
        count = sums[-1]
        mean = sums[:-1] / count
        # A second pass over the rows: E[x²] - E[x]² would cancel where the mean is large.
        squares = (x - mean).square().sum(0)
        dist.all_reduce(squares)
        var = squares / count
        inv_std = torch.rsqrt(var + eps)
        y = (x - mean) * inv_std
        ctx.save_for_backward(y, inv_std, count)
        ctx.in_dtype = rows.dtype
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "rows C"], *_: object) -> tuple[Float[Tensor, "rows C"], None]:
        """Gradient of the rows."""
        y, inv_std, count = ctx.saved_tensors
        sums = torch.stack([grad.sum(0), (grad * y).sum(0)])
        dist.all_reduce(sums)
        dx = (grad - (sums[0] + y * sums[1]) / count) * inv_std
        return dx.to(ctx.in_dtype), None


class _SyncMixin(nn.modules.batchnorm._BatchNorm):
    """The forward pass shared by the synchronised classes."""

    def forward(self, input: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Normalise [rows, C] or [batch, C, ...], on a rank without rows an empty tensor, over all but channels.

        Raises:
            ValueError: wrong number of dimensions.
        """
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        together = self.training and dist.is_initialized() and dist.get_world_size() > 1
        if not together:
            return super().forward(input)
        # Channels last and everything else flat: [batch, C, ...] -> [rows, C].
        rows = input.transpose(0, 1).flatten(1).t() if input.ndim > 2 else input
        normalize: Callable[..., tuple[Tensor, ...]] = _Normalize.apply
        y, mean, var, count = normalize(rows, self.eps)
        if float(count) < 2 and self.running_mean is not None:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        self._update_statistics(mean, var, count)
        if self.weight is not None:
            y = y * self.weight.to(y.dtype) + self.bias.to(y.dtype)
        y = y.to(input.dtype)
        if input.ndim == 2:
            return y
        shape = (input.shape[1], input.shape[0], *input.shape[2:])
        return y.t().reshape(shape).transpose(0, 1).contiguous()

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = var * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)


class SyncBatchNorm1d(_SyncMixin, nn.BatchNorm1d):
    """BatchNorm1d with the statistics of all ranks."""


class SyncBatchNorm2d(_SyncMixin, nn.BatchNorm2d):
    """BatchNorm2d with the statistics of all ranks."""


class SyncBatchNorm3d(_SyncMixin, nn.BatchNorm3d):
    """BatchNorm3d with the statistics of all ranks."""


_SYNCED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncBatchNorm1d,
    nn.BatchNorm2d: SyncBatchNorm2d,
    nn.BatchNorm3d: SyncBatchNorm3d,
}


def convert_sync_batchnorm(module: nn.Module) -> int:
    """Make every BatchNorm inside a module a synchronised one, in place; names, parameters and hooks stay.

    Optimizers that already hold the parameters stay valid. Returns how many norms were converted.
    """
    count = 0
    for child in module.modules():
        synced = _SYNCED.get(type(child))
        if synced is not None:
            # The synchronised class adds behaviour and no state, so the object can simply change its class.
            child.__class__ = synced
            count += 1
    return count
