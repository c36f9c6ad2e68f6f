"""Neighbour maps by `maps.h`: the lists of `models.lidar.neighbors`, made in a fraction of the time, on the CPU.

Letters: M voxels, P pairs, K kernel offsets.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from models.lidar.native.library import declare, kernels, pointer, threads

Triple = tuple[int, int, int]
Lists = tuple[Int32[Tensor, " P"], Int32[Tensor, " P"], tuple[int, ...]]
"""Input rows, output rows, and how many pairs each offset has."""

_CHUNK = 4096
"""Voxels of a piece of work."""

_FAR = 1 << 30
"""Beyond all cells."""

_MOST_COLUMNS, _MOST_LISTS = 128, 2048
"""What the arrays of `maps.h` hold: columns (x, y) of a kernel's offsets, and offsets of which pairs are searched."""


def usable(keys: Tensor) -> bool:
    """Whether these voxels' maps can be made here: on the CPU, with a compiler."""
    return keys.device.type == "cpu" and kernels() is not None


def submanifold_lists(keys: Int64[Tensor, " M"], size: int) -> Lists:
    """See `neighbors.submanifold_map`."""
    find, gather = _functions()[:2]
    keys, num, half = keys.contiguous(), len(keys), size**3 // 2
    pieces = -(-num // _CHUNK)
    found = torch.empty(half, 2, num, dtype=torch.int32)
    counts = torch.empty(half, pieces, dtype=torch.int64)
    if num:
        find(pointer(keys), num, size, _CHUNK, pointer(found), pointer(counts), threads())
    ahead = _ahead(size)
    totals = [0] * size**3
    for k, total in zip(ahead, counts.sum(dim=1).tolist(), strict=True):
        # The opposite offset has the opposite number.
        totals[k] = totals[size**3 - 1 - k] = total
    starts = torch.tensor([0, *totals[:-1]]).cumsum(0)
    rows = torch.empty(2, sum(totals), dtype=torch.int32)
    gather(num, size, _CHUNK, *map(pointer, (found, counts, starts, rows[0], rows[1])), threads())
    return rows[0], rows[1], tuple(totals)


@functools.cache
def _ahead(size: int) -> tuple[int, ...]:
    """Numbers of the offsets whose pairs are searched, in the order of `maps.h`."""
    reach = range(-(size // 2), size // 2 + 1)
    after = [(x, y, z) for x in reach for y in reach for z in reach if (x, y, z) > (0, 0, 0)]
    return tuple(size**3 // 2 + x + size * y + size**2 * z for x, y, z in after)


def strided_lists(
    keys: Int64[Tensor, " M"], kernel: Triple, stride: Triple, padding: Triple, cells: Triple | None = None
) -> tuple[Int64[Tensor, " M_out"], Lists]:
    """Output voxels and pairs of a convolution in which output p reads stride * p - padding + offset.

    Args:
        keys: packed voxels, ascending, unique.
        kernel: offsets along x, y, z, from 0.
        stride: of the output cells.
        padding: as of `torch.nn.functional.conv3d`.
        cells: output cells are those from (0, 0, 0) to below this; None: unbounded.

    Raises:
        ValueError: a kernel that is too large.
    """
    if kernel[0] * kernel[1] > _MOST_COLUMNS or math.prod(kernel) > _MOST_LISTS:
        raise ValueError(
            f"kernel is {kernel}, expected at most {_MOST_COLUMNS} offsets along x and y and {_MOST_LISTS} in all"
        )
    _, _, find, gather = _functions()
    keys, offsets = keys.contiguous(), math.prod(kernel)
    low, high = ((-_FAR,) * 3, (_FAR,) * 3) if cells is None else ((0, 0, 0), cells)
    shape = (ctypes.c_int32 * 15)(*kernel, *stride, *padding, *low, *high)
    pieces = max(1, -(-len(keys) // _CHUNK))
    found = (ctypes.c_int64 * (6 * pieces))()
    counts = (ctypes.c_int64 * offsets)()
    num_out = find(pointer(keys), len(keys), shape, pieces, found, counts, threads())
    rows = torch.empty(2, sum(counts), dtype=torch.int32)
    out_keys = torch.empty(num_out, dtype=torch.int64)
    gather(found, pieces, offsets, *map(pointer, (out_keys, rows[0], rows[1])), threads())
    return out_keys, (rows[0], rows[1], tuple(counts))


@functools.cache
def _functions() -> tuple[Any, Any, Any, Any]:
    p, n, i = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    return (
        declare("tandem_find_neighbours", [p, n, i, n, p, p, i]),
        declare("tandem_list_neighbours", [n, i, n, p, p, p, p, p, i]),
        declare("tandem_find_strided", [p, n, p, n, p, p, i], n),
        declare("tandem_list_strided", [p, n, n, p, p, p, i]),
    )
