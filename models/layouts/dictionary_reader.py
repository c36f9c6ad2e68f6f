"""Sparse convolutions that look each neighbour up in a dictionary: slow, and nothing in them can be subtly wrong.

MinkowskiEngine and torchsparse cannot be built for present versions of torch on the CPU, so files in their layouts are
proven by these few lines of plain torch, which know the two things that their documentation says: a kernel is
[K, C_in, C_out], and k stands for the k-th offset of a list.

Source: MinkowskiEngine 0.5, documentation of `KernelGenerator` and `src/kernel_region.hpp`; torchsparse 1.4 and 2.1,
`nn/utils/kernel.py` (2.1's maps made on the fly, `backend/others/sparsemapping_cuda.cu`, have the same order).

Letters: M voxels, K kernel offsets, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.lidar.neighbors import Offset


def first_axis_fastest(size: int) -> list[Offset]:
    """Offsets of a kernel, x fastest: odd sizes centred, even ones from 0."""
    low = -(size // 2) if size % 2 else 0
    along = [low + step for step in range(size)]
    return [(x, y, z) for z in along for y in along for x in along]


def last_axis_fastest(size: int) -> list[Offset]:
    """The same with z fastest."""
    return [(x, y, z) for z, y, x in first_axis_fastest(size)]


@dataclass(frozen=True, eq=False)
class Voxels:
    """Features on cells (sample, x, y, z), which are counted in cells of their own grid."""

    cells: Int[Tensor, "M 4"]
    features: Float[Tensor, "M C"]

    def with_features(self, features: Float[Tensor, "M C"]) -> Voxels:
        """Other features on the same cells."""
        return Voxels(self.cells, features)

    def rows_of(self, cells: Int[Tensor, "N 4"]) -> Int[Tensor, " N"]:
        """Row of each cell; -1 where there is none."""
        rows = {tuple(cell): row for row, cell in enumerate(self.cells.tolist())}
        return torch.tensor([rows.get(tuple(cell), -1) for cell in cells.tolist()], dtype=torch.long)


def submanifold(x: Voxels, kernel: Tensor, offsets: Sequence[Offset]) -> Voxels:
    """out[p] = sum over k of x[p + offset_k] W_k, on the same cells. A kernel without an axis of offsets has one, 0."""
    if kernel.ndim == 2:
        return x.with_features(x.features @ kernel)
    return _summed(x, x.cells, kernel, [x.cells + _step(offset) for offset in offsets])


def halved(x: Voxels, kernel: Tensor, offsets: Sequence[Offset]) -> Voxels:
    """out[p] = sum over k of x[2 p + offset_k] W_k, on the cells of twice the edge that hold one of x."""
    coarse = torch.unique(x.cells.div(_TWICE, rounding_mode="floor"), dim=0)
    return _summed(x, coarse, kernel, [coarse * _TWICE + _step(offset) for offset in offsets])


def doubled(x: Voxels, kernel: Tensor, offsets: Sequence[Offset], finer: Voxels) -> Voxels:
    """out[p] = sum over k of x[q] W_k with 2 q + offset_k = p, on the finer cells."""
    twice = Voxels(x.cells * _TWICE, x.features)
    return _summed(twice, finer.cells, kernel, [finer.cells - _step(offset) for offset in offsets])


_TWICE = torch.tensor([1, 2, 2, 2])


def _step(offset: Offset) -> Int[Tensor, " 4"]:
    return torch.tensor([0, *offset])


def _summed(x: Voxels, cells: Int[Tensor, "N 4"], kernel: Tensor, sources: list[Int[Tensor, "N 4"]]) -> Voxels:
    """Features on `cells`: under each offset that of the cell of x which is its source, where there is one."""
    if len(sources) != len(kernel):
        raise ValueError(f"a kernel of {len(kernel)} offsets, expected {len(sources)}")
    out = x.features.new_zeros(len(cells), kernel.shape[2])
    for weight, source in zip(kernel, x.rows_of(torch.cat(sources)).split(len(cells)), strict=True):
        found = source >= 0
        out[found] += x.features[source[found]] @ weight
    return Voxels(cells, out)
