"""Sparse convolution by spconv-triton (CUDA and ROCm; float32, float16, bf16). The one importer of spconv_triton.

Its kernels are written in Triton and compiled on first use, so that they need no build for a CUDA version; they are for
GPUs from NVIDIA's Ampere on and AMD's. They take, for each kernel offset, the input row of every output row (-1: none),
which is made here from this package's own neighbour maps: voxel order and floor division are those of every other
back-end. Up to 31 offsets, rows are visited in the order of the offsets that they have, and offsets that a whole tile
lacks are skipped.

Sums run in a fixed order, without atomics, for given tile sizes. Those are chosen by timing when a combination of
channels and offsets first comes, which takes seconds each; so the last bits may differ between processes. Triton keeps
the choices in TRITON_CACHE_DIR (~/.triton/cache), and later processes with the same folder take them from there.

Source of the kernels' scheme: spconv's masked implicit GEMM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int32
from spconv_triton.pytorch import ops
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.lidar.neighbors import KernelMap

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_ONE_WORD = [np.array([0xFFFFFFFF], dtype=np.uint32)]
_LEAST_CAPABILITY = (8, 0)
"""Of NVIDIA's devices: before Ampere there is no bf16, and spconv-triton calls itself slow."""


def available(device: torch.device) -> bool:
    """Whether "auto" should train with it on a device: on AMD's GPUs, and NVIDIA's from Ampere on."""
    usable = device.type == "cuda" and torch.cuda.is_available()
    return usable and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def convolve(
    features: Float[Tensor, "M_in C_in"], weight: Float[Tensor, "K C_in C_out"], kernel_map: KernelMap
) -> Float[Tensor, "M_out C_out"]:
    """Sparse convolution. See `sparse.Backend`. Products are summed in float32; float32 is not cut to TF32.

    Raises:
        ValueError: another device than a GPU, or another type than float32, float16 and bf16.
    """
    if not features.is_cuda:
        raise ValueError(f"features are on {features.device}, backend='triton' is for GPUs: use backend='auto'")
    if features.dtype not in _TYPES:
        raise ValueError(f"features are {features.dtype}, backend='triton' expects one of {_TYPES}: use 'torch'")
    result: Tensor = _Convolution.apply(features, weight, kernel_map)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class _Side:
    """Where each row of one side finds its partners.

    Attributes:
        partners: row of the other side by offset, -1 for none.
        masks: bit k of a row is set where it has a partner under offset k; ascending. A list of one, as spconv has it;
            empty where rows are not visited by masks.
        order: the row that each mask belongs to.
    """

    partners: Int32[Tensor, "K M"]
    masks: list[Int32[Tensor, " M"]]
    order: list[Int32[Tensor, " M"]]


def _side(kernel_map: KernelMap, rows: Int32[Tensor, " P"], partners: Int32[Tensor, " P"], num: int) -> _Side:
    num_offsets, device = len(kernel_map.counts), rows.device
    numbers = torch.arange(num_offsets, dtype=torch.int32, device=device)
    counts = torch.tensor(kernel_map.counts, device=device)
    table = rows.new_full((num_offsets, num), -1)
    table[torch.repeat_interleave(numbers, counts, output_size=len(rows)).long(), rows.long()] = partners
    if kernel_map.center is not None:
        table[kernel_map.center] = torch.arange(num, dtype=torch.int32, device=device)
    # spconv-triton masks up to 32 offsets in a signed word; the sign is left alone here. One offset needs no mask.
    if not 1 < num_offsets < 32:
        return _Side(table, [], [])
    bits = ((table >= 0).int() << numbers[:, None]).sum(0, dtype=torch.int32)
    masks, order = torch.sort(bits, stable=True)
    return _Side(table, [masks], [order.int()])


def _sides(kernel_map: KernelMap) -> tuple[_Side, _Side]:
    """Of the output and the input voxels. Kept with the map."""
    cached: tuple[_Side, _Side] | None = kernel_map.__dict__.get("_triton_sides")
    if cached is None:
        m = kernel_map
        cached = (_side(m, m.out_rows, m.in_rows, m.num_out), _side(m, m.in_rows, m.out_rows, m.num_in))
        kernel_map.__dict__["_triton_sides"] = cached
    return cached


class _Convolution(torch.autograd.Function):
    # Not spconv-triton's own function: that one casts to float16 whenever autocast is on, also for bf16.
    @staticmethod
    def forward(
        ctx: Any, features: Float[Tensor, "M_in C_in"], weight: Float[Tensor, "K C_in C_out"], kernel_map: KernelMap
    ) -> Float[Tensor, "M_out C_out"]:
        filters = weight.permute(2, 0, 1).contiguous()  # [C_out, K, C_in]
        ctx.empty = kernel_map.num_pairs == 0 and (kernel_map.center is None or kernel_map.num_out == 0)
        if ctx.empty:
            ctx.save_for_backward(features, filters)
            return features.new_zeros(kernel_map.num_out, weight.shape[2])
        ctx.sides = outputs, _ = _sides(kernel_map)
        ctx.save_for_backward(features, filters)
        out: Tensor
        out, _, _ = ops.implicit_gemm(
            features,
            filters,
            outputs.partners,
            outputs.masks,
            outputs.order,
            kernel_map.num_out,
            _ONE_WORD,
            True,
            False,
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Float[Tensor, "M_out C_out"]
    ) -> tuple[Float[Tensor, "M_in C_in"] | None, Float[Tensor, "K C_in C_out"] | None, None]:
        features, filters = ctx.saved_tensors
        if ctx.empty:
            return torch.zeros_like(features), torch.zeros_like(filters).permute(1, 2, 0), None
        outputs, inputs = ctx.sides
        grad_features, grad_filters = ops.implicit_gemm_backward(
            features,
            filters,
            grad,
            outputs.partners,
            inputs.partners,
            outputs.masks,
            inputs.masks,
            outputs.order,
            inputs.order,
            mask_output_fwd=torch.empty(0),
            masks=_ONE_WORD,
            mask_width=-1,
            is_subm=False,  # the gradient of the input has masks of its own here
        )
        return grad_features, grad_filters.permute(1, 2, 0), None
