"""Strided sparse convolution inside a box, with its own kernel, stride and padding along each axis.

`sparse.StridedConv3d` works on an unbounded grid, which suits U-Nets. Detectors (SECOND and its relatives) end in a
dense bird's-eye view, so their grid has a size, and what lies beyond its rim does not exist: here an output voxel at p
reads the input at stride * p - padding + offset, exactly as `torch.nn.functional.conv3d` does on the dense grid.

Letters: M voxels, C channels, K kernel offsets.
"""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from models.lidar.neighbors import KernelMap, map_to_new_voxels, pack, unpack
from models.lidar.sparse import BackendName, SparseConvolution, SparseTensor, VoxelGrid

Triple = tuple[int, int, int]


class BoundedConv3d(SparseConvolution):
    """Sparse convolution from a box of cells, lowest corner (0, 0, 0), to a smaller one.

    It makes output voxels wherever it reaches an input voxel. Weights are [K, C_in, C_out], offsets with x fastest.

    Attributes:
        size: cells of the input box along x, y, z.
        out_size: cells of the output box.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Triple,
        *,
        kernel_size: Triple = (3, 3, 3),
        stride: Triple = (2, 2, 2),
        padding: Triple = (1, 1, 1),
        backend: BackendName = "auto",
    ) -> None:
        x, y, z = (
            (cells + 2 * pad - kernel) // step + 1
            for cells, kernel, step, pad in zip(size, kernel_size, stride, padding, strict=True)
        )
        if min(x, y, z) < 1:
            raise ValueError(
                f"a box of {size} cells is too small for kernel {kernel_size}, stride {stride}, padding {padding}"
            )
        super().__init__(in_channels, out_channels, math.prod(kernel_size), backend=backend)
        self.kernel_size = kernel_size
        self.size, self.out_size = size, (x, y, z)
        self.stride, self.padding = stride, padding

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}, size={self.size}"

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve. All voxels must lie in the box."""
        keys, kernel_map = self._map(x.coords)
        grid = VoxelGrid(
            coords=unpack(keys), keys=keys, num_samples=x.num_samples, stride=x.stride * max(self.stride[:2])
        )
        return SparseTensor(self._convolve(x.features, kernel_map), grid)

    def _map(self, coords: Int32[Tensor, "M 4"]) -> tuple[Int64[Tensor, " M_out"], KernelMap]:
        """Packed output voxels, ascending, and pairs."""
        reached = [
            [self._cells(coords[:, 1 + axis], axis, offset) for offset in range(size)]
            for axis, size in enumerate(self.kernel_size)
        ]
        in_rows, out_keys = [], []
        for z, y, x in itertools.product(*reversed(reached)):
            rows = (x[0] & y[0] & z[0]).nonzero().squeeze(1)
            cells = [coords[:, 0], x[1], y[1], z[1]]
            in_rows.append(rows.int())
            out_keys.append(pack(torch.stack([c.index_select(0, rows) for c in cells], dim=1)))
        return map_to_new_voxels(in_rows, out_keys, num_in=len(coords))

    def _cells(
        self, coords: Int32[Tensor, " M"], axis: int, offset: int
    ) -> tuple[Bool[Tensor, " M"], Int32[Tensor, " M"]]:
        """Along one axis: whether an output cell reads a voxel under this offset, and which cell."""
        reach = coords + (self.padding[axis] - offset)
        cell = reach.div(self.stride[axis], rounding_mode="floor")
        return (cell * self.stride[axis] == reach) & (cell >= 0) & (cell < self.out_size[axis]), cell
