"""torchsparse's own MinkUNet and SPVCNN, and what was made of them: SegContrast's family, BEVLab, PCSeg, Pointcept.

Names `stem`, `stage1` to `stage4`, `up1` to `up4`, `point_transforms`. Kernels are [K, C_in, C_out], those of one cell
[C_in, C_out]. Offsets of odd kernels run x fastest, as ours; those of even kernels z fastest.

Source: mit-han-lab/torchsparse 1.4 and 2.1, `nn/utils/kernel.py` and `nn/modules/conv.py` (layout); mit-han-lab/spvnas,
valeoai/BEVContrast, PJLab-ADG/PCSeg, Pointcept's `ts_spvcnn.py` (names, sizes; where points and voxels meet).

Letters: M voxels, K kernel offsets, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.layouts.base import AnyTensor, Fed, Layout, Place
from models.layouts.dictionary_reader import Voxels, first_axis_fastest, last_axis_fastest
from models.layouts.unet_places import (
    Sizes,
    Unit,
    offsets_kernel,
    refuse_other_eps,
    sizes,
    spvcnn_places,
    unet_places,
)
from models.layouts.unet_reader import ByDictionary, Layer, Stage, UNetNames, UNetReader
from models.lidar.neighbors import Offset
from models.lidar.res16unet import Res16UNet
from models.lidar.spvcnn import Spvcnn

EPS = 1e-5
"""Of torchsparse's BatchNorm, which is torch's."""

_BLOCK_PARTS = {
    "conv1": ("net.0.kernel", "net.1"),
    "conv2": ("net.3.kernel", "net.4"),
    "shortcut": ("downsample.0.kernel", "downsample.1"),
}


class TorchsparseLayout(Layout):
    """See the module."""

    name: ClassVar[str] = "torchsparse"
    title: ClassVar[str] = "torchsparse 1.4 and 2.1 (SegContrast's family, BEVLab, PCSeg)"

    def places(self, network: nn.Module) -> Mapping[str, Place]:
        """See `Layout.places`."""
        unet = torchsparse_unet(network, self.title)
        if isinstance(network, Spvcnn):
            return spvcnn_places(network, their_name, torchsparse_kernel)
        return unet_places(unet, their_name, torchsparse_kernel)

    def wrap(self, state: Mapping[str, AnyTensor], metadata: Mapping[str, str]) -> Any:
        """{"state_dict": ..., "config": what the run states}."""
        return {"state_dict": dict(state), "config": dict(metadata)}

    def unwrap(self, content: Mapping[str, object]) -> Mapping[str, AnyTensor]:
        """A state dict at the top or under a usual name, also with `encoder.`, `model.`, `module.` before its names."""
        return found_state(content, "stem.0.kernel")

    def instructions(self, network: nn.Module, fed: Fed) -> str:
        """See `Layout.instructions`."""
        unet = torchsparse_unet(network, self.title)
        return f"""# {"SPVCNN" if isinstance(network, Spvcnn) else "MinkUNet"} in torchsparse's layout

```python
state = torch.load("FILE", weights_only=True)["state_dict"]
result = network.load_state_dict(state, strict=False)  # missing: the classifier alone; unexpected: nothing
```

{input_text(fed)}
- The network: {blocks_text(sizes(unet))}; two 3x3x3 convolutions as stem; BatchNorm of eps {EPS:g}.
- Coordinates are cells along x, y, z, in torchsparse 1.4 with the sample last, in 2.1 with the sample first. They must
  not be negative: add a multiple of 16 to all of them, then coarse cells stay where they were in pre-training.
- torchsparse 2.1 drops coarse features in the last cells of an odd number of cells; they are the far rim of a sweep.
- Momentum of BatchNorm is not in the file: torchsparse's networks have 0.1.
"""

    def features(
        self, state: Mapping[str, AnyTensor], network: nn.Module, inputs: tuple[AnyTensor, AnyTensor, int]
    ) -> AnyTensor:
        """See `Layout.features`."""
        reader = UNetReader(NAMES, ByDictionary(state, torchsparse_offsets), EPS)
        return spvcnn_features(reader, inputs) if "point_transforms.0.0.weight" in state else reader.whole(inputs)


# ---- the table


def torchsparse_unet(network: nn.Module, project: str) -> Res16UNet:
    """The U-Net in a network that has a counterpart with two convolutions as stem.

    Raises:
        ValueError: it has none.
    """
    unet = network.unet if isinstance(network, Spvcnn) else network
    if not isinstance(unet, Res16UNet):
        raise ValueError(
            f"{project} has no counterpart of a {type(network).__name__}; the nearest presets are minkunet34, "
            "minkunet18 and spvcnn"
        )
    if unet.stem2 is None:
        near = "spvcnn" if isinstance(network, Spvcnn) else nearest_of_two(sizes(unet))
        raise ValueError(f"{project}: its stem has two convolutions, this network's one; the nearest preset is {near}")
    if isinstance(network, Spvcnn) and network.coarse_cells != "corner":
        raise ValueError(
            f"{project} takes a coarse cell to be at its low corner, this network at its centre: the same weights "
            "would give other features there; pre-train with method.backbone.coarse_cells=corner"
        )
    refuse_other_eps(network, EPS, project)
    return unet


def nearest_of_two(size: Sizes) -> str:
    """The preset with two convolutions as stem that is nearest to one with one."""
    return "minkunet34" if sum(size.blocks) > sum((2,) * 8) else "minkunet18"


def their_name(unit: Unit) -> tuple[str, str]:
    """Kernel and BatchNorm as they are called there."""
    if unit.part == "stem":
        return f"stem.{3 * unit.stage}.kernel", f"stem.{3 * unit.stage + 1}"
    if unit.part in ("down", "up"):
        name = f"{'up' if unit.decoder else 'stage'}{unit.stage + 1}.0.net"
        return f"{name}.0.kernel", f"{name}.1"
    block = f"up{unit.stage + 1}.1.{unit.block}" if unit.decoder else f"stage{unit.stage + 1}.{unit.block + 1}"
    kernel, norm = _BLOCK_PARTS[unit.part]
    return f"{block}.{kernel}", f"{block}.{norm}"


def torchsparse_kernel(key: str, unit: Unit) -> Place:
    """A kernel: even ones turned, so that z runs fastest."""
    if unit.cells % 2:
        return offsets_kernel(key, unit)

    def turned(kernel: AnyTensor) -> AnyTensor:
        edges = kernel.reshape(unit.cells, unit.cells, unit.cells, *kernel.shape[1:])
        return edges.transpose(0, 2).reshape(kernel.shape).contiguous()

    return Place(key=key, out=turned, back=turned)


# ---- wrapping


def found_state(content: Mapping[str, object], first: str) -> dict[str, Tensor]:
    """A state dict in a file's content, by the name of one tensor in it; what stands before the name is cut off.

    Empty where the tensor is nowhere.
    """
    inner = next((content[key] for key in ("state_dict", "model", "model_state") if key in content), content)
    if not isinstance(inner, Mapping):
        return {}
    # The shortest: a student comes before its momentum copy's longer prefix.
    ends = sorted((key for key in inner if str(key) == first or str(key).endswith(f".{first}")), key=len)
    if not ends:
        return {}
    prefix = str(ends[0]).removesuffix(first)
    cut = {str(key): value for key, value in inner.items() if str(key).startswith(prefix)}
    return {key.removeprefix(prefix): value for key, value in cut.items() if isinstance(value, Tensor)}


def input_text(fed: Fed) -> str:
    """Lines on what the network is fed, for the text beside a file."""
    voxels = fed.voxels
    unit = "m along x, y, z" if voxels.kind == "cartesian" else "m, degrees, m along radius, angle, height"
    size = ", ".join(f"{edge:g}" for edge in voxels.size)
    lines = [f"- Input features of a voxel: {fed.points}.", f"- Voxels: {voxels.kind}, {size} ({unit})."]
    if "intensity" in voxels.features:
        lines.insert(1, "- Intensity of another range (nuScenes: 0 to 255) has to be brought to this one there.")
    return "\n".join(lines)


def blocks_text(size: Sizes) -> str:
    """Channels and blocks in words."""
    return f"{size.base} channels in the stem, {size.channels} in the stages, {size.blocks} residual blocks"


# ---- the reader


def torchsparse_offsets(size: int) -> list[Offset]:
    """Offsets of a kernel in their order."""
    return first_axis_fastest(size) if size % 2 else last_axis_fastest(size)


NAMES = UNetNames(
    stem=(Layer(kernel="stem.0.kernel", norm="stem.1"), Layer(kernel="stem.3.kernel", norm="stem.4")),
    encoder=[
        Stage(resample=Layer(kernel="0.net.0.kernel", norm="0.net.1").within(name), blocks=f"{name}.", first=1)
        for name in ("stage1", "stage2", "stage3", "stage4")
    ],
    decoder=[
        Stage(resample=Layer(kernel="0.net.0.kernel", norm="0.net.1").within(name), blocks=f"{name}.1.")
        for name in ("up1", "up2", "up3", "up4")
    ],
    conv1=Layer(kernel="net.0.kernel", norm="net.1"),
    conv2=Layer(kernel="net.3.kernel", norm="net.4"),
    shortcut=Layer(kernel="downsample.0.kernel", norm="downsample.1"),
)


def spvcnn_features(reader: UNetReader, inputs: tuple[Tensor, Tensor, int]) -> Float[Tensor, "M C"]:
    """The released SPVCNN: points are the finest cells, and read coarse cells between their low corners."""
    x = reader.stem(reader.by.voxels(*inputs))
    cells: Tensor = x.cells
    points: Tensor = x.features
    skips = []
    for stage in range(4):
        skips.append(x)
        x = reader.encode(x, stage)
    for number, factor in enumerate((16, 4, 1)):
        name = f"point_transforms.{number}"
        transformed = F.linear(points, reader.by.state[f"{name}.0.weight"], reader.by.state[f"{name}.0.bias"])
        points = read_corners(x, cells, factor) + F.relu(reader.norm(transformed, f"{name}.1"))
        if factor > 1:
            x = x.with_features(_means(points, cells, x, factor))
            for stage in (2 * number, 2 * number + 1):
                x = reader.decode(x, skips.pop(), stage)
    return points


def read_corners(x: Voxels, cells: Int[Tensor, "M 4"], factor: int) -> Float[Tensor, "M C"]:
    """Features of fine cells, trilinear between the low corners of coarse ones; those without a voxel do not count."""
    low = cells.div(torch.tensor([1, factor, factor, factor]), rounding_mode="floor")
    part = cells[:, 1:] / factor - low[:, 1:]
    total = torch.full((len(cells), 1), 1e-8)  # their divisor's smallest part
    out = x.features.new_zeros(len(cells), x.features.shape[1])
    for corner in itertools.product((0, 1), repeat=3):
        row = x.rows_of(low + torch.tensor([0, *corner]))
        weight = torch.where(torch.tensor(corner, dtype=torch.bool), part, 1 - part).prod(dim=1, keepdim=True)
        weight = weight * (row >= 0).unsqueeze(1)
        total = total + weight
        out = out + weight * x.features[row.clamp(min=0)]
    return out / total


def _means(
    points: Float[Tensor, "M C"], cells: Int[Tensor, "M 4"], coarse: Voxels, factor: int
) -> Float[Tensor, "K C"]:
    owner = coarse.rows_of(cells.div(torch.tensor([1, factor, factor, factor]), rounding_mode="floor"))
    sums = points.new_zeros(len(coarse.cells), points.shape[1]).index_add(0, owner, points)
    return sums / torch.bincount(owner, minlength=len(coarse.cells)).unsqueeze(1)
