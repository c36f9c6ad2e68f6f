"""BatchNorm over rows, a residual added, ReLU, as one native operation with its gradient.

Two passes over the rows forward and two backward; kept for the gradient are the rows and, with a residual, the result,
which the next layer keeps anyway. Sums in float32 within blocks of rows, in double
over the blocks; results are equal to the last bit at any number of threads. bfloat16 rows are rounded once, at the end.

Source of the gradient: Ioffe & Szegedy, "Batch normalization", ICML 2015, section 3.

Letters: M rows, C channels.
"""

from __future__ import annotations

import functools
from ctypes import c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.lidar.native.library import declare, kernels, threads

TYPES = (torch.float32, torch.bfloat16)
"""Of the rows; parameters and running statistics are float32."""

_Rows = Float[Tensor, "M C"]
_Channels = Float[Tensor, " C"]


@dataclass(frozen=True, kw_only=True)
class NormSettings:
    """What normalisation does.

    Attributes:
        relu: clamp the result from below at 0.
        training: normalise with the batch's statistics, else with the running ones.
        eps: added to the variance.
        rate: weight of the batch in the running statistics.
    """

    relu: bool
    training: bool
    eps: float
    rate: float


def works_on(features: Tensor, *others: Tensor | None) -> bool:
    """Whether the native operation takes these rows, residual, parameters and running statistics; None for none.

    `others` begin with the residual, which must have the rows' type.
    """
    residual, *channels = others
    return (
        features.device.type == "cpu"
        and features.dtype in TYPES
        and features.shape[1] > 0
        and (residual is None or (residual.dtype is features.dtype and residual.shape == features.shape))
        and all(t is None or (t.dtype is torch.float32 and len(t) == features.shape[1]) for t in channels)
        and kernels() is not None
    )


def norm_act_rows(
    features: _Rows,
    residual: _Rows | None,
    weight: _Channels | None,
    bias: _Channels | None,
    running_mean: _Channels | None,
    running_var: _Channels | None,
    settings: NormSettings,
) -> _Rows:
    """Normalise rows that `works_on` admits, at least two in training; running statistics move in training."""
    out: Tensor = _NormAct.apply(features, residual, weight, bias, running_mean, running_var, settings)  # type: ignore[no-untyped-call]
    return out


class _NormAct(torch.autograd.Function):
    """relu((x - mean) / std * weight + bias + residual).

    With n rows, y the normalised rows, g the gradient that passed the ReLU:
        dx = weight / std * (g - sum(g) / n - y * sum(g * y) / n),  d residual = g
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: _Rows,
        residual: _Rows | None,
        weight: _Channels | None,
        bias: _Channels | None,
        running_mean: _Channels | None,
        running_var: _Channels | None,
        settings: NormSettings,
    ) -> _Rows:
        """The rows in their type."""
        x = features.contiguous()
        added = None if residual is None else residual.contiguous()
        out = torch.empty_like(x)
        rows, channels = x.shape
        statistics = torch.empty(2, channels)  # mean, 1 / standard deviation
        _forward()(
            x.data_ptr(),
            _address(added),
            out.data_ptr(),
            rows,
            channels,
            x.dtype is torch.bfloat16,
            settings.relu,
            _address(weight),
            _address(bias),
            _address(running_mean),
            _address(running_var),
            settings.rate,
            settings.eps,
            settings.training,
            statistics.data_ptr(),
            threads(),
        )
        if settings.training and running_mean is not None and running_var is not None:
            # Written past autograd, which would not notice that a graph needs what was there before.
            torch.autograd.graph.increment_version((running_mean, running_var))
        # Without a residual what passed the ReLU is computed again from the input, which saves reading the output.
        through = out if settings.relu and residual is not None else None
        ctx.save_for_backward(x, through, weight, bias, statistics)
        ctx.settings = settings
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: _Rows) -> tuple[Tensor | None, ...]:
        """Gradients of rows, residual, weight and bias."""
        x, out, weight, bias, statistics = ctx.saved_tensors
        settings: NormSettings = ctx.settings
        of_x, of_residual, of_weight, of_bias, *_ = ctx.needs_input_grad
        grad = grad.contiguous()
        rows, channels = x.shape
        d_x = torch.empty_like(x) if of_x else None
        d_residual = torch.empty_like(x) if of_residual and settings.relu else None
        d_weight = torch.empty(channels) if of_weight else None
        d_bias = torch.empty(channels) if of_bias else None
        if of_x or of_weight or of_bias or d_residual is not None:
            _backward()(
                grad.data_ptr(),
                x.data_ptr(),
                _address(out),
                _address(d_x),
                _address(d_residual),
                rows,
                channels,
                x.dtype is torch.bfloat16,
                settings.relu,
                _address(weight),
                _address(bias),
                statistics.data_ptr(),
                settings.training,
                _address(d_weight),
                _address(d_bias),
                threads(),
            )
        if of_residual and not settings.relu:
            d_residual = grad
        return d_x, d_residual, d_weight, d_bias, None, None, None


def _address(tensor: Tensor | None) -> int | None:
    """Of a contiguous tensor's numbers; a hundred calls a step, so nothing is checked again."""
    return None if tensor is None else tensor.data_ptr()


_SIZES = (c_int64, c_int64, c_int, c_int)
FORWARD = (*[c_void_p] * 3, *_SIZES, *[c_void_p] * 4, c_double, c_double, c_int, c_void_p, c_int)
BACKWARD = (*[c_void_p] * 5, *_SIZES, *[c_void_p] * 3, c_int, c_void_p, c_void_p, c_int)
"""Arguments of the functions of `norm.h`."""


@functools.cache
def _forward() -> Any:
    return declare("tandem_norm_forward", FORWARD)


@functools.cache
def _backward() -> Any:
    return declare("tandem_norm_backward", BACKWARD)
