"""The parts that OpenPCDet's and mmdetection3d's detectors on a bird's-eye view have in common: places and readers.

Both projects name the layers of SECOND's encoder in their own way, so each layout lists its layers, in the order in
which they run there, as steps; the reader does what the steps say.

Letters: B samples, C channels, D Y X cells along z, y, x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.layouts.base import Axes, Place, norm_places, sparse_kernel
from models.layouts.spconv_reader import State, batch_norm, dense, norm_relu, strided, submanifold, voxels
from models.lidar.bev import BevBackbone
from models.lidar.bounded import BoundedConv3d
from models.lidar.neighbors import Triple
from models.lidar.res16unet import ResidualBlock
from models.lidar.sparse import SparseConvolution, SubmanifoldConv3d
from models.lidar.sparse_encoder import ConvNormReLU3d, SparseEncoder
from models.lidar.voxelnet import VoxelNet

# ---- the sparse encoder


@dataclass(frozen=True)
class Stages:
    """Our layers of an encoder by their names, as both projects divide them.

    Attributes:
        first: the convolution on the input.
        stages: at strides 1, 2, 4, 8; all but the first begin with their strided convolution.
        last: the convolution along z.
    """

    first: tuple[str, nn.Module]
    stages: tuple[tuple[tuple[str, nn.Module], ...], ...]
    last: tuple[str, nn.Module]


def stages_of(encoder: SparseEncoder, prefix: str) -> Stages:
    """The layers of an encoder, whose tensors' names begin with `prefix`."""
    first, *middle, last = ((f"{prefix}.layers.{number}", layer) for number, layer in enumerate(encoder.layers))
    stages: list[list[tuple[str, nn.Module]]] = [[]]
    for name, layer in middle:
        if isinstance(layer, ConvNormReLU3d) and isinstance(layer.conv, BoundedConv3d):
            stages.append([])
        stages[-1].append((name, layer))
    return Stages(first, tuple(tuple(stage) for stage in stages), last)


def layer_places(ours: tuple[str, nn.Module], theirs: str, axes: Axes) -> dict[str, Place]:
    """Places of one layer: `theirs`.0 and .1 of a convolution with BatchNorm, .conv1 .bn1 .conv2 .bn2 of a block."""
    name, layer = ours
    if isinstance(layer, ResidualBlock):
        found: dict[str, Place] = {}
        for number, conv in ((1, layer.conv1), (2, layer.conv2)):
            kernel = sparse_kernel(f"{theirs}.conv{number}.weight", kernel_size(conv), axes)
            found |= {
                f"{name}.conv{number}.weight": kernel,
                **norm_places(f"{name}.norm{number}", f"{theirs}.bn{number}"),
            }
        return found
    assert isinstance(layer, ConvNormReLU3d)
    kernel = sparse_kernel(f"{theirs}.0.weight", kernel_size(layer.conv), axes)
    return {f"{name}.conv.weight": kernel, **norm_places(f"{name}.norm", f"{theirs}.1")}


def kernel_size(conv: SparseConvolution) -> Triple:
    """Cells of a kernel along x, y, z."""
    if isinstance(conv, BoundedConv3d):
        return conv.window.kernel
    assert isinstance(conv, SubmanifoldConv3d)
    return conv.kernel_size, conv.kernel_size, conv.kernel_size


StepKind = Literal["submanifold", "strided", "block"]


@dataclass(frozen=True)
class Step:
    """One layer of an encoder as a project documents it.

    Attributes:
        kind: "submanifold" and "strided": a convolution `name`.0, BatchNorm `name`.1, ReLU; "block": a residual block
            of convolutions `name`.conv1 and .conv2, each with its BatchNorm `name`.bn1 and .bn2.
        name: in the state dict.
        key: layers of one key have the same voxels.
        stride: along z, y, x.
        padding: along z, y, x.
    """

    kind: StepKind
    name: str
    key: str
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)


def run_steps(x: Any, steps: Sequence[Step], state: State, *, eps: float) -> Any:
    """Run an encoder's layers on spconv."""
    for step in steps:
        if step.kind == "block":
            before = x.features
            for number in (1, 2):
                bias = state.get(f"{step.name}.conv{number}.bias")
                x = submanifold(x, state[f"{step.name}.conv{number}.weight"], bias=bias, key=step.key)
                x = norm_relu(x, state, f"{step.name}.bn{number}", eps=eps, relu=number == 1)
            x = x.replace_feature(F.relu(x.features + before))
            continue
        kernel = state[f"{step.name}.0.weight"]
        if step.kind == "submanifold":
            x = submanifold(x, kernel, key=step.key)
        else:
            x = strided(x, kernel, stride=step.stride, padding=step.padding, key=step.key)
        x = norm_relu(x, state, f"{step.name}.1", eps=eps)
    return x


def encoded(
    state: State,
    network: VoxelNet,
    steps: Sequence[Step],
    inputs: tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int],
    *,
    eps: float,
) -> Float[Tensor, "B C_times_D Y X"]:
    """The map that both projects make of an encoder's voxels: channel c of layer z is channel c * D + z.

    They feed (sample, z, y, x), counted from the lower limits of the range, in a grid with one more layer of cells on
    top; of the network the limits of its grid are read, nothing else.
    """
    coords, features, num_samples = inputs
    x_size, y_size, z_size = network.grid_size
    cells = coords[:, 1:] - torch.tensor(network.grid_min)
    indices = torch.cat([coords[:, :1], cells.flip(1)], dim=1)
    voxel_grid = voxels(features, indices, (z_size + 1, y_size, x_size), num_samples)
    return dense(run_steps(voxel_grid, steps, state, eps=eps)).flatten(1, 2)


# ---- the 2D backbone


@dataclass(frozen=True)
class BevNames:
    """Where a project keeps the 2D backbone.

    Attributes:
        blocks: name of the list of blocks, with a dot behind it.
        deblocks: of what brings a block's output to the common stride.
        first: number of a block's first convolution; 1 where a layer of padding stands before it.
    """

    blocks: str
    deblocks: str
    first: int


@dataclass(frozen=True)
class BevSizes:
    """Numbers of a 2D backbone as configs of both projects give them; one entry a block."""

    layers: tuple[int, ...]
    strides: tuple[int, ...]
    filters: tuple[int, ...]
    up_strides: tuple[float | int, ...]
    up_filters: tuple[int, ...]


def bev_places(backbone: BevBackbone, prefix: str, names: BevNames) -> dict[str, Place]:
    """Places of a 2D backbone, whose tensors' names begin with `prefix`."""
    found: dict[str, Place] = {}
    for level, block in enumerate(backbone.blocks):
        assert isinstance(block, nn.Sequential)
        for number in range(len(block)):
            ours, theirs = f"{prefix}.blocks.{level}.{number}", f"{names.blocks}{level}"
            conv = names.first + 3 * number
            found[f"{ours}.conv.weight"] = Place(key=f"{theirs}.{conv}.weight")
            found |= norm_places(f"{ours}.norm", f"{theirs}.{conv + 1}")
        ours, theirs = f"{prefix}.ups.{level}", f"{names.deblocks}{level}"
        found[f"{ours}.conv.weight"] = Place(key=f"{theirs}.0.weight")
        found |= norm_places(f"{ours}.norm", f"{theirs}.1")
    return found


def bev_sizes(backbone: BevBackbone) -> BevSizes:
    """The numbers of a 2D backbone."""
    blocks = [_convolutions(block) for block in backbone.blocks]
    ups = [_convolutions(up)[0] for up in backbone.ups]
    return BevSizes(
        layers=tuple(len(block) - 1 for block in blocks),
        strides=tuple(block[0].stride[0] for block in blocks),
        filters=tuple(block[0].out_channels for block in blocks),
        up_strides=tuple(up.stride[0] if isinstance(up, nn.ConvTranspose2d) else 1 / up.stride[0] for up in ups),
        up_filters=tuple(up.out_channels for up in ups),
    )


def _convolutions(module: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)]


def read_bev(
    state: State, bev: Float[Tensor, "B C Y X"], sizes: BevSizes, names: BevNames, *, eps: float
) -> Float[Tensor, "B C2 Y2 X2"]:
    """Run a 2D backbone in plain torch."""
    ups = []
    for level, (layers, stride, up_stride) in enumerate(
        zip(sizes.layers, sizes.strides, sizes.up_strides, strict=True)
    ):
        for number in range(layers + 1):
            conv = names.first + 3 * number
            kernel = state[f"{names.blocks}{level}.{conv}.weight"]
            bev = F.conv2d(bev, kernel, stride=1 if number else stride, padding=1)
            bev = F.relu(batch_norm(bev, state, f"{names.blocks}{level}.{conv + 1}", eps=eps))
        kernel = state[f"{names.deblocks}{level}.0.weight"]
        if up_stride >= 1:
            up = F.conv_transpose2d(bev, kernel, stride=round(up_stride))
        else:
            up = F.conv2d(bev, kernel, stride=round(1 / up_stride))
        ups.append(F.relu(batch_norm(up, state, f"{names.deblocks}{level}.1", eps=eps)))
    return torch.cat(ups, dim=1)
