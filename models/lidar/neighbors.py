"""Neighbour maps: which input voxel meets which output voxel under which kernel offset.

Voxels are packed into one int64 key each, (sample, x, y, z) from high to low bits, and kept sorted, so that a whole
column of neighbours along z is found by one binary search and the neighbours of all voxels by a few vectorised ones.
On the CPU, where there is a compiler, the same lists are made by merging instead (`models.lidar.native.maps`), three to
eight times faster; the functions `..._by_torch` are the other way.

Kernel offsets are numbered with x running fastest, then y, then z, the lowest corner first:
    k = (x - low) + size * (y - low) + size² * (z - low),   low = -(size // 2) for odd sizes, 0 for size 2
and, as in `torch.nn.functional.conv3d` (cross-correlation), the output voxel at p reads the input voxel at
stride * p + offset with weight[k].

Letters: M voxels, P pairs of (input voxel, output voxel), K kernel offsets.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int, Int32, Int64
from torch import Tensor

from models.lidar.native import maps

AXIS_BITS = 17
"""Bits of x, y and z in a key; the 12 bits above hold the sample (63 in all, so that keys stay positive)."""

MAX_SAMPLES = 1 << (63 - 3 * AXIS_BITS)
"""Samples a batch can have."""

_BIAS = 1 << (AXIS_BITS - 1)
# Cells at the rim of the range would find neighbours in the next column of the packed order.
_GUARD = 8
COORD_LIMIT = _BIAS - _GUARD
"""Coordinates must lie in [-COORD_LIMIT, COORD_LIMIT)."""

MAX_SIZE = 2 * _GUARD - 1
"""Of a submanifold kernel: a larger one would reach past the rim."""

Offset = tuple[int, int, int]
Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Kernel, stride and padding of a convolution inside a box, along x, y, z, as in `torch.nn.functional.conv3d`.

    Attributes:
        cells: of the output box, whose lowest corner is (0, 0, 0).
    """

    kernel: Triple
    stride: Triple
    padding: Triple
    cells: Triple


@dataclass(frozen=True, kw_only=True)
class KernelMap:
    """All pairs of one sparse convolution, sorted by kernel offset. Shared by the layers of a stage.

    Attributes:
        in_rows: input voxel of each pair.
        out_rows: output voxel of each pair; within one offset no output voxel and no input voxel comes twice.
        counts: pairs of each of the K offsets, in the offsets' order.
        num_in: input voxels.
        num_out: output voxels.
        center: offset under which every voxel meets itself (submanifold kernels); its pairs are not listed and its
            count is 0, because a plain matrix product does the same without gathering.
    """

    in_rows: Int32[Tensor, " P"]
    out_rows: Int32[Tensor, " P"]
    counts: tuple[int, ...]
    num_in: int
    num_out: int
    center: int | None = None

    @property
    def num_pairs(self) -> int:
        """P, without the centre's."""
        return int(self.in_rows.shape[0])

    @cached_property
    def blocks(self) -> tuple[tuple[int, Int32[Tensor, " n"], Int32[Tensor, " n"]], ...]:
        """(offset, input rows, output rows) of every offset that has listed pairs."""
        split = zip(self.in_rows.split(self.counts), self.out_rows.split(self.counts), strict=True)
        return tuple((k, i, o) for k, (i, o) in enumerate(split) if len(i))

    @cached_property
    def transposed(self) -> KernelMap:
        """The map of the transposed convolution: the same pairs and offsets, input and output swapped."""
        return replace(self, in_rows=self.out_rows, out_rows=self.in_rows, num_in=self.num_out, num_out=self.num_in)


def kernel_offsets(size: int) -> list[Offset]:
    """The K = size³ offsets in the order of the weights (x fastest)."""
    low = -(size // 2) if size % 2 else 0
    span = range(low, low + size)
    return [(x, y, z) for z in span for y in span for x in span]


def pack(coords: Int[Tensor, "M 4"]) -> Int64[Tensor, " M"]:
    """Keys that sort like (sample, x, y, z). Coordinates must be in range (see `check_range`)."""
    c = coords.long()
    key = c[:, 0]
    for axis in (1, 2, 3):
        key = (key << AXIS_BITS) + (c[:, axis] + _BIAS)
    return key


def unpack(keys: Int64[Tensor, " M"]) -> Int32[Tensor, "M 4"]:
    """Inverse of `pack`."""
    mask = (1 << AXIS_BITS) - 1
    xyz = [((keys >> (AXIS_BITS * (2 - axis))) & mask) - _BIAS for axis in range(3)]
    return torch.stack([keys >> (3 * AXIS_BITS), *xyz], dim=1).int()


def check_range(coords: Int[Tensor, "M 4"], num_samples: int) -> None:
    """Refuse coordinates that cannot be packed.

    Raises:
        ValueError: a sample index outside [0, num_samples), a coordinate outside the range, or too many samples.
    """
    if not 0 <= num_samples <= MAX_SAMPLES:
        raise ValueError(f"num_samples is {num_samples}, expected 0 to {MAX_SAMPLES}")
    if coords.shape[0] == 0:
        return
    low, high = (v.tolist() for v in coords.aminmax(dim=0))
    if low[0] < 0 or high[0] >= num_samples:
        raise ValueError(f"samples in coords run from {low[0]} to {high[0]}, expected 0 to {num_samples - 1}")
    if min(low[1:]) < -COORD_LIMIT or max(high[1:]) >= COORD_LIMIT:
        raise ValueError(
            f"voxel coordinates run from {min(low[1:])} to {max(high[1:])}, expected [-{COORD_LIMIT}, {COORD_LIMIT}): "
            "drop far points or enlarge the voxels"
        )


def submanifold_map(keys: Int64[Tensor, " M"], size: int) -> KernelMap:
    """Pairs of a stride-1 convolution whose output voxels are its input voxels.

    `keys` are packed voxels, ascending, unique; `size` is odd, at most MAX_SIZE.
    """
    if not maps.usable(keys):
        return submanifold_map_by_torch(keys, size)
    in_rows, out_rows, counts = maps.submanifold_lists(keys, size)
    return KernelMap(
        in_rows=in_rows, out_rows=out_rows, counts=counts, num_in=len(keys), num_out=len(keys), center=size**3 // 2
    )


def submanifold_map_by_torch(keys: Int64[Tensor, " M"], size: int) -> KernelMap:
    """See `submanifold_map`.

    Only the offsets after the centre are searched; the pairs of offset -o are those of o with both sides swapped.
    """
    num, reach = keys.shape[0], size // 2
    number = {offset: k for k, offset in enumerate(kernel_offsets(size))}
    in_rows = [keys.new_empty(0, dtype=torch.int32)] * size**3
    out_rows = list(in_rows)
    padded = torch.cat([keys, keys.new_full((size,), torch.iinfo(torch.int64).max)])
    columns = [(x, y) for x in range(reach + 1) for y in range(-reach, reach + 1) if (x, y) >= (0, 0)]
    for x, y in columns if num else []:
        shifted = keys + (x << (2 * AXIS_BITS)) + (y << AXIS_BITS)
        if (x, y) == (0, 0):  # a voxel's own column: what lies above it comes next in the order
            steps = range(1, reach + 1)
            position = torch.arange(1, num + 1, device=keys.device)
        else:
            steps = range(-reach, reach + 1)
            position = torch.searchsorted(padded, shifted - reach)
        for z in steps:
            hit = padded.index_select(0, position) == shifted + z
            rows = hit.nonzero().squeeze(1)
            neighbors = position.index_select(0, rows).int()
            rows = rows.int()
            k, mirrored = number[x, y, z], number[-x, -y, -z]
            in_rows[k], out_rows[k] = neighbors, rows
            in_rows[mirrored], out_rows[mirrored] = rows, neighbors
            position = position + hit
    return KernelMap(
        in_rows=torch.cat(in_rows),
        out_rows=torch.cat(out_rows),
        counts=tuple(int(rows.shape[0]) for rows in in_rows),
        num_in=num,
        num_out=num,
        center=size**3 // 2,
    )


def strided_map(keys: Int64[Tensor, " M"], size: int) -> tuple[Int64[Tensor, " M_out"], KernelMap]:
    """Packed output voxels, ascending, and pairs of a convolution with stride 2.

    An output voxel p exists where at least one input voxel lies at 2 p + offset. With size 2 these are the cells of
    twice the edge length (floor division, also below zero); with size 3 (padding 1) their rim as well.

    `keys` are packed voxels, ascending, unique.
    """
    if not maps.usable(keys):
        return strided_map_by_torch(keys, size)
    pad = size // 2 if size % 2 else 0
    return _new_voxels(keys, maps.strided_lists(keys, (size, size, size), (2, 2, 2), (pad, pad, pad)))


def strided_map_by_torch(keys: Int64[Tensor, " M"], size: int) -> tuple[Int64[Tensor, " M_out"], KernelMap]:
    """See `strided_map`."""
    coords = unpack(keys)
    parity = (coords[:, 1] & 1) + 2 * (coords[:, 2] & 1) + 4 * (coords[:, 3] & 1)
    rows_of = [(parity == p).nonzero().squeeze(1) for p in range(8)]
    in_rows, out_keys = [], []
    for x, y, z in kernel_offsets(size):
        rows = rows_of[(x & 1) + 2 * (y & 1) + 4 * (z & 1)]
        cells = coords.index_select(0, rows)
        # Coordinates minus offset are even here, so the shift divides exactly.
        target = torch.stack([cells[:, 0], *(cells[:, 1 + i] - o >> 1 for i, o in enumerate((x, y, z)))], dim=1)
        in_rows.append(rows.int())
        out_keys.append(pack(target))
    return _map_to_new_voxels(in_rows, out_keys, num_in=len(keys))


def bounded_map(keys: Int64[Tensor, " M"], window: Window) -> tuple[Int64[Tensor, " M_out"], KernelMap]:
    """Packed output voxels, ascending, and pairs of a convolution inside a box.

    An output voxel p exists in the box where at least one input voxel lies at stride * p - padding + offset.

    `keys` are packed voxels, ascending, unique.
    """
    if not maps.usable(keys):
        return bounded_map_by_torch(keys, window)
    return _new_voxels(keys, maps.strided_lists(keys, window.kernel, window.stride, window.padding, window.cells))


def bounded_map_by_torch(keys: Int64[Tensor, " M"], window: Window) -> tuple[Int64[Tensor, " M_out"], KernelMap]:
    """See `bounded_map`."""
    coords = unpack(keys)

    def reached(axis: int, offset: int) -> tuple[Bool[Tensor, " M"], Int32[Tensor, " M"]]:
        # Along one axis: whether an output cell reads a voxel under this offset, and which cell.
        place, stride = coords[:, 1 + axis] + (window.padding[axis] - offset), window.stride[axis]
        cell = place.div(stride, rounding_mode="floor")
        return (cell * stride == place) & (cell >= 0) & (cell < window.cells[axis]), cell

    along = [[reached(axis, offset) for offset in range(size)] for axis, size in enumerate(window.kernel)]
    in_rows, out_keys = [], []
    for z, y, x in itertools.product(*reversed(along)):
        rows = (x[0] & y[0] & z[0]).nonzero().squeeze(1)
        cells = [coords[:, 0], x[1], y[1], z[1]]
        in_rows.append(rows.int())
        out_keys.append(pack(torch.stack([c.index_select(0, rows) for c in cells], dim=1)))
    return _map_to_new_voxels(in_rows, out_keys, num_in=len(keys))


def _new_voxels(
    keys: Int64[Tensor, " M"], found: tuple[Int64[Tensor, " M_out"], maps.Lists]
) -> tuple[Int64[Tensor, " M_out"], KernelMap]:
    out_keys, (in_rows, out_rows, counts) = found
    return out_keys, KernelMap(
        in_rows=in_rows, out_rows=out_rows, counts=counts, num_in=len(keys), num_out=len(out_keys)
    )


def _map_to_new_voxels(
    in_rows: list[Int32[Tensor, " _"]], out_keys: list[Int64[Tensor, " _"]], *, num_in: int
) -> tuple[Int64[Tensor, " M_out"], KernelMap]:
    """Packed output voxels, ascending, and pairs, from the input rows and packed output voxels of each offset."""
    keys, out_rows = torch.unique(torch.cat(out_keys), return_inverse=True)
    counts = tuple(len(rows) for rows in in_rows)
    return keys, KernelMap(
        in_rows=torch.cat(in_rows), out_rows=out_rows.int(), counts=counts, num_in=num_in, num_out=len(keys)
    )
