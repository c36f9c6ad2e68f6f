"""What the U-Nets on spconv 2 have in common: kernels along x, y, z, and spconv's own layers to prove them.

A trap: spconv's layer of one cell has a weight [C_out, 1, 1, 1, C_in] as all others have, but multiplies by its memory
read as [C_in, C_out]. Written as its shape says, it loads and gives other features.

Source: spconv 2.3.8, impulse responses on its CPU build; `spconv/pytorch/conv.py`.

Letters: M voxels, C channels, k0 k1 k2 cells of a kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.layouts import spconv_reader
from models.layouts.base import AnyTensor, Place, sparse_kernel
from models.layouts.unet_places import Unit
from models.layouts.unet_reader import Convolutions

_STRIDE = 16
"""Of the coarsest grid: places may be shifted by multiples of it without changing which cells fall together."""


def spconv_kernel(key: str, unit: Unit) -> Place:
    """A kernel of spconv 2 along x, y, z; one of a single cell as spconv reads it, see the module."""
    if unit.cells > 1:
        return sparse_kernel(key, (unit.cells, unit.cells, unit.cells), "xyz")

    def out(kernel: AnyTensor) -> AnyTensor:
        return kernel.contiguous().view(kernel.shape[2], 1, 1, 1, kernel.shape[1]).clone()

    def back(kernel: AnyTensor) -> AnyTensor:
        return kernel.contiguous().view(1, kernel.shape[4], kernel.shape[0]).clone()

    return Place(key=key, out=out, back=back)


class BySpconv(Convolutions):
    """spconv's convolutions on grids whose axes are x, y, z.

    Places are shifted by a multiple of 16 so that none is negative, and the grid is a multiple of 16 long: else cells
    beyond the last whole coarse one would be lost.
    """

    def voxels(self, coords: Int[Tensor, "M 4"], features: Float[Tensor, "M C"], num_samples: int) -> Any:
        """See `Convolutions`."""
        places = coords[:, 1:].long()
        places = places - places.amin(dim=0).div(_STRIDE, rounding_mode="floor") * _STRIDE
        x, y, z = ((places.amax(dim=0) + _STRIDE).div(_STRIDE, rounding_mode="floor") * _STRIDE).tolist()
        return spconv_reader.voxels(features, torch.cat([coords[:, :1].long(), places], dim=1), (x, y, z), num_samples)

    def same(self, x: Any, kernel: str) -> Any:
        """See `Convolutions`."""
        return spconv_reader.submanifold(x, self.state[kernel])

    def down(self, x: Any, kernel: str, level: int) -> Any:
        """See `Convolutions`."""
        weight = self.state[kernel]
        return spconv_reader.strided(x, weight, stride=(2, 2, 2), padding=(0, 0, 0), key=f"level{level}")

    def up(self, x: Any, kernel: str, level: int, finer: Any) -> Any:
        """See `Convolutions`."""
        return spconv_reader.inverse(x, self.state[kernel], key=f"level{level}")

    def features(self, x: Any) -> Tensor:
        """See `Convolutions`."""
        out: Tensor = x.features
        return out

    def replaced(self, x: Any, features: Tensor) -> Any:
        """See `Convolutions`."""
        return x.replace_feature(features)
