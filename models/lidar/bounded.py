"""Strided sparse convolution inside a box, with its own kernel, stride and padding along each axis.

`sparse.StridedConv3d` works on an unbounded grid, which suits U-Nets. Detectors (SECOND and its relatives) end in a
dense bird's-eye view, so their grid has a size, and what lies beyond its rim does not exist: here an output voxel at p
reads the input at stride * p - padding + offset, exactly as `torch.nn.functional.conv3d` does on the dense grid.

Letters: M voxels, C channels, K kernel offsets.
"""

from __future__ import annotations

import math

from models.lidar.neighbors import Triple, Window
from models.lidar.sparse import BackendName, SparseConvolution, SparseTensor


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
        self.size, self.out_size = size, (x, y, z)
        self.window = Window(kernel=kernel_size, stride=stride, padding=padding, cells=self.out_size)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        window = self.window
        return f"{super().extra_repr()}, stride={window.stride}, padding={window.padding}, size={self.size}"

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve. All voxels must lie in the box."""
        grid, kernel_map = x.grid.coarser(self.window)
        return SparseTensor(self._convolve(x.features, kernel_map), grid)
