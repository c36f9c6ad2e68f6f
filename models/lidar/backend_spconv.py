"""Sparse convolution by spconv 2 (CUDA; on the CPU forward only). The one importer of spconv.

spconv's gather-multiply-scatter function takes explicit pairs, so it runs on this package's own neighbour maps:
voxel order, negative coordinates and floor division are those of every other back-end, and nothing needs shifting.
Bias is left to the caller, because spconv's CPU build refuses it. Its CPU build (2.3.8) has no working backward pass,
so gradients on the CPU are refused here instead of being wrong.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from models.lidar.neighbors import KernelMap

with warnings.catch_warnings():
    # spconv 2.3.8's build helpers call locale.getdefaultlocale and old torch.cuda.amp names on import.
    warnings.simplefilter("ignore", category=DeprecationWarning)
    warnings.simplefilter("ignore", category=FutureWarning)
    from spconv.core import ConvAlgo
    from spconv.cppconstants import CPU_ONLY_BUILD
    from spconv.pytorch.functional import SparseConvFunction


def available(device: torch.device) -> bool:
    """Whether this back-end can train on a device: on CUDA, with spconv's CUDA build."""
    return device.type == "cuda" and not CPU_ONLY_BUILD


def convolve(
    features: Float[Tensor, "M_in C_in"], weight: Float[Tensor, "K C_in C_out"], kernel_map: KernelMap
) -> Float[Tensor, "M_out C_out"]:
    """Sparse convolution. See `sparse.Backend`.

    Raises:
        RuntimeError: a gradient is needed on the CPU.
        ValueError: another type than float32 (or float16 on CUDA).
    """
    on_cpu = features.device.type == "cpu"
    if on_cpu and torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad):
        raise RuntimeError(
            "spconv's CPU build has no backward pass: use backend='torch' to train on the CPU, "
            "or torch.no_grad() for a forward pass"
        )
    if features.dtype is torch.bfloat16:
        # spconv's gather-multiply-scatter kernels know no bf16; float32 loses nothing, and the caller's type returns.
        return convolve(features.float(), weight.float(), kernel_map).to(torch.bfloat16)
    supported = (torch.float32,) if on_cpu else (torch.float32, torch.float16)
    if features.dtype not in supported:
        raise ValueError(
            f"features are {features.dtype}, spconv expects one of {supported} on {features.device.type}: "
            "use backend='torch'"
        )
    if kernel_map.num_pairs == 0 and kernel_map.center is None:
        return features.new_zeros(kernel_map.num_out, weight.shape[2])
    pairs, counts = _pair_table(kernel_map)
    if pairs.shape[2] == 0:
        return features.new_zeros(0, weight.shape[2])
    filters = weight.permute(2, 0, 1).unsqueeze(1).unsqueeze(1).contiguous()  # [C_out, 1, 1, K, C_in]
    # Under autocast to whatever type spconv's function casts its inputs to float16, whose range bf16 runs leave.
    with torch.autocast(features.device.type, enabled=False):
        out: Tensor = SparseConvFunction.apply(
            features.contiguous(), filters, pairs, counts, kernel_map.num_out, ConvAlgo.Native
        )
    return out


def _pair_table(kernel_map: KernelMap) -> tuple[Int32[Tensor, "2 K longest"], Int32[Tensor, " K"]]:
    """Layout of spconv: the pairs of each offset from the left, -1 after them. Kept with the map."""
    cached: tuple[Tensor, Tensor] | None = kernel_map.__dict__.get("_spconv_pairs")
    if cached is not None:
        return cached
    counts = list(kernel_map.counts)
    if kernel_map.center is not None:
        counts[kernel_map.center] = kernel_map.num_out
    pairs = kernel_map.in_rows.new_full((2, len(counts), max(counts)), -1)
    for k, in_rows, out_rows in kernel_map.blocks:
        pairs[0, k, : len(in_rows)] = in_rows
        pairs[1, k, : len(out_rows)] = out_rows
    if kernel_map.center is not None:
        pairs[:, kernel_map.center] = -1
        rows = torch.arange(kernel_map.num_out, dtype=torch.int32, device=pairs.device)
        pairs[:, kernel_map.center, : kernel_map.num_out] = rows
    table = (pairs, torch.tensor(counts, dtype=torch.int32, device=pairs.device))
    kernel_map.__dict__["_spconv_pairs"] = table
    return table
