"""Sparse convolution in plain PyTorch: any device, forward and backward, float32/64/bf16, deterministic.

For each kernel offset the input rows are gathered and multiplied by that offset's matrix into one buffer of all
pairs; then the rows of the buffer that belong to one output voxel are added up in a fixed order (`embedding_bag`, no
atomics). The backward pass runs the same steps with the map transposed. Only input features and weight are kept for
it; gathered rows are made again.

Of the schemes measured on CPU (KITTI sweeps at 0.2 m, 6.5 pairs a voxel, 32 channels: one gather of [M, 27 C] and one
product; products first and gathers after; an `index_add` an offset; a CSR matrix) this one was the fastest: 7 to 8
times faster than the first, 1.2 to 2 times than `index_add`. Three things beside the scheme matter on the CPU:

- Buffers are kept between calls: the page faults of fresh memory cost as much as the arithmetic.
- oneDNN (all bf16 products, see `_onednn`) prepares a kernel for each new shape in about 0.6 ms, ten times what the
  product itself takes, and every batch has new counts of pairs. So rows are padded to a few lengths (`_padded`).
- MKL's float32 product reaches less than half of oneDNN's speed on AMD processors (`_onednn`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.lidar.neighbors import KernelMap

_KEPT_SCRATCH_BYTES = 256 * 2**20
# Rows of one product of all voxels (the centre offset); what remains is padded.
_TILE = 4096


def available(device: torch.device) -> bool:
    """Whether this back-end can train on a device: always."""
    return True


def convolve(
    features: Float[Tensor, "M_in C_in"], weight: Float[Tensor, "K C_in C_out"], kernel_map: KernelMap
) -> Float[Tensor, "M_out C_out"]:
    """Sparse convolution: out[o] = sum over pairs (i, o, k) of features[i] @ weight[k]. See `sparse.Backend`."""
    result: Tensor = _Convolution.apply(features, weight, kernel_map)  # type: ignore[no-untyped-call]
    return result


class _Plan:
    """Where the products of a map's pairs lie in the buffer, and which of them each row adds up.

    It is kept by the map and does not refer back to it: a cycle keeps the memory of a batch until the garbage collector
    runs, which in a long run is every few hundred steps.
    """

    def __init__(self, kernel_map: KernelMap) -> None:
        self.in_rows, self.out_rows, self.center = kernel_map.in_rows, kernel_map.out_rows, kernel_map.center
        self.num_in, self.num_out = kernel_map.num_in, kernel_map.num_out
        self.blocks: list[tuple[int, Int32[Tensor, " n"], Int32[Tensor, " n"], int, int]] = []
        self.num_rows = 0
        for k, in_rows, out_rows in kernel_map.blocks:
            stop = self.num_rows + _padded(len(in_rows))
            self.blocks.append((k, in_rows, out_rows, self.num_rows, stop))
            self.num_rows = stop
        self.longest = max((stop - start for *_, start, stop in self.blocks), default=0)

    @cached_property
    def _places(self) -> Int32[Tensor, " P"]:
        """Row in the buffer of each pair."""
        device = self.in_rows.device
        spans = [torch.arange(s, s + len(i), dtype=torch.int32, device=device) for _, i, _, s, _ in self.blocks]
        return torch.cat(spans) if spans else self.in_rows

    @cached_property
    def by_output(self) -> tuple[Int32[Tensor, " P"], Int32[Tensor, " bounds"]]:
        """The products of each output voxel, voxel by voxel, and where each voxel's begin."""
        return self._group(self.out_rows, self.num_out)

    @cached_property
    def by_input(self) -> tuple[Int32[Tensor, " P"], Int32[Tensor, " bounds"]]:
        """The same of each input voxel."""
        return self._group(self.in_rows, self.num_in)

    def _group(self, rows: Int32[Tensor, " P"], num: int) -> tuple[Int32[Tensor, " P"], Int32[Tensor, " bounds"]]:
        ordered, order = torch.sort(rows, stable=True)
        edges = torch.arange(num + 1, device=rows.device, dtype=torch.int32)
        return self._places.index_select(0, order), torch.searchsorted(ordered, edges, out_int32=True)


def _plan(kernel_map: KernelMap) -> _Plan:
    plan: _Plan | None = kernel_map.__dict__.get("_torch_plan")
    if plan is None:
        plan = kernel_map.__dict__["_torch_plan"] = _Plan(kernel_map)
    return plan


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Float[Tensor, "M_in C_in"], weight: Float[Tensor, "K C_in C_out"], kernel_map: KernelMap
    ) -> Float[Tensor, "M_out C_out"]:
        features = features.contiguous()
        ctx.save_for_backward(features, weight)
        ctx.plan = plan = _plan(kernel_map)
        products = _scratch("products", plan.num_rows, weight.shape[2], features)
        gathered = _scratch("gathered", plan.longest, weight.shape[1], features)
        with _onednn(features):
            for k, in_rows, _, start, stop in plan.blocks:
                torch.mm(_gather(features, in_rows, gathered[: stop - start]), weight[k], out=products[start:stop])
            out = _sum_groups(products, *plan.by_output)
            if kernel_map.center is not None:
                _add_product(out, features, weight[kernel_map.center])
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Float[Tensor, "M_out C_out"]
    ) -> tuple[Float[Tensor, "M_in C_in"] | None, Float[Tensor, "K C_in C_out"] | None, None]:
        features, weight = ctx.saved_tensors
        plan: _Plan = ctx.plan
        need_features, need_weight, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_weight = torch.zeros_like(weight) if need_weight else None
        products = _scratch("products", plan.num_rows if need_features else 0, weight.shape[1], grad)
        inputs = _scratch("gathered", plan.longest if need_weight else 0, weight.shape[1], grad)
        grads = _scratch("gathered_grad", plan.longest, weight.shape[2], grad)
        grad_features = None
        with _onednn(grad):
            for k, in_rows, out_rows, start, stop in plan.blocks:
                g = _gather(grad, out_rows, grads[: stop - start])
                if grad_weight is not None:
                    x = _gather(features, in_rows, inputs[: stop - start])
                    torch.mm(x.t(), g, out=grad_weight[k])
                if need_features:
                    torch.mm(g, weight[k].t(), out=products[start:stop])
            if need_features:
                grad_features = _sum_groups(products, *plan.by_input)
            center = plan.center
            if center is not None and grad_weight is not None:
                grad_weight[center] = _outer_product(features, grad)
            if center is not None and grad_features is not None:
                _add_product(grad_features, grad, weight[center].t())
        return grad_features, grad_weight, None


def _gather(rows: Float[Tensor, "M C"], index: Int32[Tensor, " n"], into: Float[Tensor, "padded C"]) -> Tensor:
    """Rows by index, then zeros (which add nothing to the gradient of the weight)."""
    torch.index_select(rows, 0, index, out=into[: len(index)])
    into[len(index) :].zero_()
    return into


def _sum_groups(
    products: Float[Tensor, "rows C"], order: Int32[Tensor, " P"], bounds: Int32[Tensor, " bounds"]
) -> Float[Tensor, "M C"]:
    if len(order) == 0:
        return products.new_zeros(len(bounds) - 1, products.shape[1])
    return F.embedding_bag(order, products, bounds, mode="sum", include_last_offset=True)


def _tiles(*tensors: Float[Tensor, "M _"]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Tensors of M rows in pieces of few different lengths: the last piece is padded with zeros in scratch."""
    num = len(tensors[0])
    for start in range(0, num, _TILE):
        piece = slice(start, min(start + _TILE, num))
        length = piece.stop - start
        if length == _TILE:
            yield piece, [t[piece] for t in tensors]
            continue
        padded = [_scratch(f"tile{i}", _padded(length), t.shape[1], t) for i, t in enumerate(tensors)]
        for tile, t in zip(padded, tensors, strict=True):
            tile[:length] = t[piece]
            tile[length:].zero_()
        yield piece, padded


def _add_product(
    out: Float[Tensor, "M C_out"], rows: Float[Tensor, "M C_in"], matrix: Float[Tensor, "C_in C_out"]
) -> None:
    for piece, (tile,) in _tiles(rows):
        product = torch.mm(tile, matrix, out=_scratch("products", len(tile), matrix.shape[1], rows))
        out[piece] += product[: piece.stop - piece.start]


def _outer_product(x: Float[Tensor, "M C_in"], g: Float[Tensor, "M C_out"]) -> Float[Tensor, "C_in C_out"]:
    # bf16 pieces are added up in float32.
    dtype = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    total = torch.zeros(x.shape[1], g.shape[1], dtype=dtype, device=x.device)
    for _, (xs, gs) in _tiles(x, g):
        total += torch.mm(xs.t(), gs)
    return total


def _padded(count: int) -> int:
    """The next of 16, 20, 24, 28, 32, 40, 48, ...: four lengths an octave, 9 % more rows on average.

    With the small Res16UNet and batches that differ by a factor of 1.7 in size, the shapes of a bf16 step level off at
    about 670; oneDNN keeps 1024 prepared kernels (ONEDNN_PRIMITIVE_CACHE_CAPACITY).
    """
    count = max(count, 16)
    step = 1 << ((count - 1).bit_length() - 3)
    return math.ceil(count / step) * step


_kept = threading.local()


def _scratch(name: str, rows: int, columns: int, like: Float[Tensor, "..."]) -> Float[Tensor, "rows columns"]:
    """An uninitialised [rows, columns] buffer, valid until the next call with this name in this thread.

    CUDA's allocator keeps memory itself; on the CPU up to `_KEPT_SCRATCH_BYTES` a name are kept.
    """
    count = rows * columns
    if like.device.type != "cpu" or count * like.element_size() > _KEPT_SCRATCH_BYTES:
        return torch.empty(rows, columns, dtype=like.dtype, device=like.device)
    kept: dict[tuple[str, torch.dtype], Tensor] = _kept.__dict__.setdefault("buffers", {})
    buffer = kept.get((name, like.dtype))
    if buffer is None or buffer.numel() < count:
        # A tensor born in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            buffer = torch.empty(math.ceil(1.25 * count), dtype=like.dtype)
        kept[name, like.dtype] = buffer
    return buffer[:count].view(rows, columns)


@contextlib.contextmanager
def _onednn(like: Float[Tensor, "..."]) -> Iterator[None]:
    """Let float32 products on the CPU run in oneDNN instead of MKL, where that is as exact.

    torch (2.9 to 2.13) hands float32 products to oneDNN only if bf16 arithmetic is permitted. oneDNN makes use of the
    permission only on processors with AMX tiles, and there the permission is not given.
    """
    if like.device.type != "cpu" or like.dtype is not torch.float32 or not _onednn_is_exact():
        yield
        return
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


@functools.cache
def _onednn_is_exact() -> bool:
    """Try it: bf16 arithmetic would be off by about 1e-2 here, float32 by less than 1e-5."""
    switch = getattr(torch.backends.mkldnn, "matmul", None)
    if switch is None or not hasattr(switch, "fp32_precision") or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(512, 64, generator=generator), torch.rand(64, 64, generator=generator)
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        pairs = ((a, b), (a.t(), a))
        return all(torch.allclose((x @ y).double(), x.double() @ y.double(), rtol=1e-5) for x, y in pairs)
    finally:
        switch.fp32_precision = before
