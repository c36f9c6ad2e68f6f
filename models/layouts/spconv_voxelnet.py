"""SECOND's and CenterPoint's networks on voxels for networks that are built of spconv's layers by hand.

Names are those of `SparseSequential`s and `Sequential`s in a row: `encoder.<layer>.0` a convolution and `.1` its
BatchNorm, `.conv1`, `.bn1` and so on of a residual block; `bev_backbone.blocks` and `.ups` as in `torch.nn`. Axes are
z, y, x, so that a dense tensor of spconv, its first two axes joined, is the map.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from jaxtyping import Float, Int
from torch import Tensor

from models.layouts.base import Fed, Place
from models.layouts.bird_eye import BirdEyeNames, Named, bird_eye_places, encoder_steps, read_bird_eye
from models.layouts.second_parts import BevNames, Step, bev_sizes
from models.layouts.spconv_reader import State
from models.layouts.torchsparse import input_text
from models.layouts.unet_places import refuse_other_eps
from models.lidar.voxelnet import VoxelNet

_AT = "encoder."
FIRST = f"{_AT}0.0.weight"
"""A sparse kernel of each file."""
_EPS = 1e-3
_BEV = BevNames(blocks="bev_backbone.blocks.", deblocks="bev_backbone.ups.", first=0)


def voxelnet_places(network: VoxelNet) -> dict[str, Place]:
    """Places of all tensors.

    Raises:
        ValueError: a BatchNorm has another eps than the text says.
    """
    refuse_other_eps(network, _EPS, "a network of the text beside this file")
    return bird_eye_places(network, _NAMES)


def voxelnet_text(network: VoxelNet, fed: Fed) -> str:
    """The text beside the file."""
    x, y, z = network.grid_size
    low = ", ".join(str(cell) for cell in reversed(network.grid_min))
    return f"""# A sparse encoder on spconv 2 and a 2D backbone in torch

```python
state = torch.load("FILE", weights_only=True)["state_dict"]
```

{input_text(fed)}
- Voxels are (sample, z, y, x), less the lowest cell ({low}); `spatial_shape` is ({z + 1}, {y}, {x}).
- A kernel is [C_out, kz, ky, kx, C_in], without bias.
- A convolution is followed by BatchNorm (eps {_EPS:g}) and ReLU. In a residual block, the block's input is added
  behind the second BatchNorm, before the ReLU.
- Names count as `SparseSequential(conv, norm, relu)` does: `.0` a convolution, `.1` its BatchNorm; a residual block has
  `conv1`, `bn1`, `conv2`, `bn2`; of a row of dense convolutions each takes three numbers, `.0` and `.1`, `.3` and `.4`.
- Behind the last sparse layer, `x.dense()` is [B, C, z, y, x]; C and z joined are the channels of the map.

{_lines(network)}
"""


def voxelnet_features(
    state: State, network: VoxelNet, inputs: tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int]
) -> Float[Tensor, "B C Y X"]:
    """The map of a network that is built of a file."""
    return read_bird_eye(state, network, _NAMES, inputs, eps=_EPS)


def _named(network: VoxelNet) -> Named:
    return [
        (f"{_AT}{number}", (f"encoder.layers.{number}", layer)) for number, layer in enumerate(network.encoder.layers)
    ]


def _steps(state: State) -> list[Step]:
    residual = f"{_AT}1.conv1.weight" in state
    return encoder_steps((f"{_AT}{number}" for number in itertools.count()), residual=residual)


_NAMES = BirdEyeNames(named=_named, steps=_steps, pillars=None, bev=_BEV)


# ---- the text


def _lines(network: VoxelNet) -> str:
    kernels = {
        place.key: place.out(network.get_parameter(ours))
        for ours, place in voxelnet_places(network).items()
        if place.key.endswith("weight")
    }
    lines = [*_encoder_lines(kernels), *_bev_lines(network)]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def _encoder_lines(kernels: State) -> Iterator[str]:
    kinds = {"submanifold": "SubMConv3d", "strided": "SparseConv3d", "block": "residual block of two SubMConv3d"}
    for step in _steps(kernels):
        kernel = kernels[f"{step.name}.conv1.weight" if step.kind == "block" else f"{step.name}.0.weight"]
        cells = "x".join(str(side) for side in kernel.shape[1:4])
        moved = f", stride {step.stride}, padding {step.padding}" if step.kind == "strided" else ""
        channels = f"{kernel.shape[4]} to {kernel.shape[0]}"
        yield f'{kinds[step.kind]}, {cells}{moved}, {channels}, indice_key="{step.key}": `{step.name}`'


def _bev_lines(network: VoxelNet) -> Iterator[str]:
    if network.bev_backbone is None:
        return
    sizes = bev_sizes(network.bev_backbone)
    for level, (layers, stride, filters) in enumerate(zip(sizes.layers, sizes.strides, sizes.filters, strict=True)):
        yield f"{layers + 1} Conv2d, 3x3, padding 1, the first of stride {stride}, to {filters}: `{_BEV.blocks}{level}`"
    for level, (up, filters) in enumerate(zip(sizes.up_strides, sizes.up_filters, strict=True)):
        kind = f"ConvTranspose2d, kernel and stride {up:g}" if up >= 1 else f"Conv2d, both {1 / up:g}"
        yield f"{kind}, to {filters}, on what block {level} gives: `{_BEV.deblocks}{level}`"
    yield "the results of these, joined: the map"
