"""Calls of the compiled sparse convolution (`convolve*.h`)."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from models.lidar.native.library import declare, pointer, threads
from models.lidar.neighbors import KernelMap

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
"""Types of numbers that there are kernels for, as `convolve_calls.h` numbers them."""

_pointer, _int, _int64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_PAIRS = (_int64, _pointer, _pointer, _pointer, _int64)  # offsets, starts, in, out, centre


class Pairs:
    """A map's pairs as the kernels read them: within each offset ascending in the row that is written.

    It is kept by the map and does not refer back to it: a cycle keeps the memory of a batch until the garbage collector
    runs.

    Attributes:
        forward: starts of the offsets (K + 1), rows read, rows written.
        backward: the same with the rows' parts swapped.
    """

    def __init__(self, kernel_map: KernelMap) -> None:
        self.center = -1 if kernel_map.center is None else kernel_map.center
        self.num_in, self.num_out = kernel_map.num_in, kernel_map.num_out
        self.offsets = len(kernel_map.counts)
        counts = torch.tensor((0, *kernel_map.counts), dtype=torch.int64)
        self.starts: Int64[Tensor, " K1"] = counts.cumsum(0)
        self._lists = (kernel_map.in_rows.contiguous(), kernel_map.out_rows.contiguous())

    @functools.cached_property
    def forward(self) -> tuple[Int64[Tensor, " K1"], Int32[Tensor, " P"], Int32[Tensor, " P"]]:
        """Ascending in the output row."""
        return self.starts, *self._ascending(*self._lists)

    @functools.cached_property
    def backward(self) -> tuple[Int64[Tensor, " K1"], Int32[Tensor, " P"], Int32[Tensor, " P"]]:
        """Ascending in the input row, which the gradient of the input writes."""
        in_rows, out_rows = self._lists
        return self.starts, *self._ascending(out_rows, in_rows)

    def _ascending(
        self, read: Int32[Tensor, " P"], written: Int32[Tensor, " P"]
    ) -> tuple[Int32[Tensor, " P"], Int32[Tensor, " P"]]:
        # The maps of `neighbors` ascend in both rows; others (a wrapped or shuffled one) are put in order once.
        if _ascends()(self.offsets, pointer(self.starts), pointer(written)):
            return read, written
        offset = torch.repeat_interleave(torch.arange(self.offsets), self.starts.diff())
        order = torch.argsort(offset * (int(written.max()) + 1) + written, stable=True)
        return read[order], written[order]


def pairs_of(kernel_map: KernelMap) -> Pairs:
    """A map's pairs, made on first use and kept with it."""
    pairs: Pairs | None = kernel_map.__dict__.get("_native_pairs")
    if pairs is None:
        pairs = kernel_map.__dict__["_native_pairs"] = Pairs(kernel_map)
    return pairs


@functools.cache
def _ascends() -> Any:
    return declare("tandem_ascends", (_int64, _pointer, _pointer), _int)


@functools.cache
def _convolve() -> Any:
    arguments = (*_PAIRS, _pointer, _int64, _pointer, _int, _pointer, _int64, _int64, _int)
    return declare("tandem_convolve", (_int, *arguments), _int)


@functools.cache
def _weight_gradient() -> Any:
    arguments = (*_PAIRS, _pointer, _int64, _pointer, _int64, _int64, _pointer, _int)
    return declare("tandem_convolve_weight_gradient", (_int, *arguments), _int)


def forward(
    features: Float[Tensor, "M_in C_in"], weight: Float[Tensor, "K C_in C_out"], pairs: Pairs
) -> Float[Tensor, "M_out C_out"]:
    """out[o] = sum over the pairs (i, o, k) of features[i] @ weight[k]."""
    out = features.new_empty(pairs.num_out, weight.shape[2])
    _run_convolve(features, weight, pairs, pairs.forward, out, transposed=False)
    return out


def input_gradient(
    grad: Float[Tensor, "M_out C_out"], weight: Float[Tensor, "K C_in C_out"], pairs: Pairs
) -> Float[Tensor, "M_in C_in"]:
    """The gradient of `forward` in its features: the convolution back over the same pairs with transposed weights."""
    out = grad.new_empty(pairs.num_in, weight.shape[1])
    _run_convolve(grad, weight, pairs, pairs.backward, out, transposed=True)
    return out


def weight_gradient(
    features: Float[Tensor, "M_in C_in"], grad: Float[Tensor, "M_out C_out"], pairs: Pairs
) -> Float[Tensor, "K C_in C_out"]:
    """The gradient of `forward` in its weight: for each offset the sum over its pairs of features[i]^T grad[o]."""
    out = features.new_empty(pairs.offsets, features.shape[1], grad.shape[1])
    starts, read, written = pairs.forward
    failed = _weight_gradient()(
        *(TYPES[features.dtype], pairs.offsets, pointer(starts), pointer(read), pointer(written), pairs.center),
        *(pointer(features), features.shape[1], pointer(grad), len(grad), grad.shape[1], pointer(out), threads()),
    )
    _check(failed)
    return out


def _run_convolve(
    rows: Float[Tensor, "M_read C"],
    weight: Float[Tensor, "K _ _"],
    pairs: Pairs,
    lists: tuple[Int64[Tensor, " K1"], Int32[Tensor, " P"], Int32[Tensor, " P"]],
    out: Float[Tensor, "M_written C2"],
    *,
    transposed: bool,
) -> None:
    failed = _convolve()(
        *(TYPES[rows.dtype], pairs.offsets, *(pointer(part) for part in lists), pairs.center),
        *(pointer(rows), rows.shape[1], pointer(weight), int(transposed)),
        *(pointer(out), len(out), out.shape[1], threads()),
    )
    _check(failed)


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("sparse convolution: no memory for the packed weights or the sums of a weight's gradient")
