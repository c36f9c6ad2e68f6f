"""Sparse convolution by the package's own compiled kernels: CPU, float32/64/bf16, forward and backward, deterministic.

The kernels (`models/lidar/native/convolve*.h`) are built on first use with the machine's compiler; what they do is told
there. Results are equal to the last bit at any number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from common import native
from models.lidar import backend_torch
from models.lidar.native import convolution
from models.lidar.native.library import FLAGS, SOURCE, kernels
from models.lidar.neighbors import KernelMap


def available(device: torch.device) -> bool:
    """Whether this back-end can train on a device: on the CPU, where the kernels can be built."""
    return device.type == "cpu" and kernels() is not None


def convolve(
    features: Float[Tensor, "M_in C_in"], weight: Float[Tensor, "K C_in C_out"], kernel_map: KernelMap
) -> Float[Tensor, "M_out C_out"]:
    """Sparse convolution. See `sparse.Backend`. Types that there are no kernels for (float16) run in torch's back-end.

    Raises:
        ValueError: the tensors are not on the CPU.
        common.native.BuildError: the kernels cannot be built here; the message says why, and what to do.
    """
    if features.device.type != "cpu":
        raise ValueError(f"features are on {features.device}, backend='native' is for the CPU: use backend='auto'")
    if kernels() is None:
        native.load(SOURCE, flags=FLAGS)  # fails again, with the reason
    if features.dtype not in convolution.TYPES:
        return backend_torch.convolve(features, weight, kernel_map)
    result: Tensor = _Convolution.apply(features, weight, kernel_map)  # type: ignore[no-untyped-call]
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Float[Tensor, "M_in C_in"], weight: Float[Tensor, "K C_in C_out"], kernel_map: KernelMap
    ) -> Float[Tensor, "M_out C_out"]:
        features, weight = features.contiguous(), weight.contiguous()
        ctx.save_for_backward(features, weight)
        ctx.pairs = pairs = convolution.pairs_of(kernel_map)
        return convolution.forward(features, weight, pairs)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Float[Tensor, "M_out C_out"]
    ) -> tuple[Float[Tensor, "M_in C_in"] | None, Float[Tensor, "K C_in C_out"] | None, None]:
        features, weight = ctx.saved_tensors
        need_features, need_weight, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_features = convolution.input_gradient(grad, weight, ctx.pairs) if need_features else None
        grad_weight = convolution.weight_gradient(features, grad, ctx.pairs) if need_weight else None
        return grad_features, grad_weight, None
