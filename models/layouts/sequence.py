"""What a 3D network does before its dense map, as a list of operations that any code can follow.

ONNX has no sparse convolutions, so a network with a bird's-eye view leaves in two pieces: the 2D network as ONNX, and
what comes before it as a JSON of this list beside a .safetensors with the tensors. docs/onnx.md explains each kind
of operation. `run` follows the list and nothing else; every export is proven by it.

Letters: M voxels or points, K kernel offsets, C channels, B samples, X Y D cells along x, y, z.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.layouts.base import AnyTensor
from models.layouts.second_parts import kernel_size
from models.layouts.spconv_reader import State, batch_norm, dense, norm_relu, strided, submanifold, voxels
from models.lidar.bev import BevBackbone
from models.lidar.bounded import BoundedConv3d
from models.lidar.pillars import Pillars
from models.lidar.res16unet import ResidualBlock
from models.lidar.sparse import SparseConvolution
from models.lidar.sparse_encoder import ConvNormReLU3d
from models.lidar.voxelnet import VoxelNet

FORMAT = "tandem-sequence-1"

Operation = dict[str, Any]


def sequence_of(network: nn.Module) -> tuple[dict[str, Any], dict[str, AnyTensor], BevBackbone]:
    """The operations before a network's 2D part, the tensors that they need, and the 2D part.

    Raises:
        ValueError: it has no dense 2D part; says which format takes it.
    """
    if not isinstance(network, VoxelNet | Pillars) or network.bev_backbone is None:
        raise ValueError(
            f"the network is a {type(network).__name__} without a dense 2D part, and ONNX has no sparse convolutions; "
            "use --format tandem, or one of a project with a sparse library; --part image_backbone is for images"
        )
    operations, box = _of_voxels(network) if isinstance(network, VoxelNet) else _of_pillars(network)
    tensors = {
        key: value.detach().cpu().contiguous()
        for key, value in network.state_dict().items()
        if not key.startswith("bev_backbone.") and not key.endswith("num_batches_tracked")
    }
    head = {"format": FORMAT, "kernel_index": "x + kernel_x * (y + kernel_y * z)", **box}
    return {**head, "operations": operations}, tensors, network.bev_backbone


def _of_voxels(network: VoxelNet) -> tuple[list[Operation], dict[str, Any]]:
    operations: list[Operation] = []
    for number, layer in enumerate(network.encoder.layers):
        name = f"encoder.layers.{number}"
        if isinstance(layer, ResidualBlock):
            first = _convolution(f"{name}.conv1", f"{name}.norm1", layer.conv1, layer.norm1)
            second = _convolution(f"{name}.conv2", f"{name}.norm2", layer.conv2, layer.norm2)
            operations.append({"kind": "residual", "first": first, "second": {**second, "relu": False}})
        else:
            assert isinstance(layer, ConvNormReLU3d)
            operations.append(_convolution(f"{name}.conv", f"{name}.norm", layer.conv, layer.norm))
    x, y, z = network.grid_size
    operations.append({"kind": "map", "channel": "c * layers_of_z + z", "cells": [*network.encoder.out_size]})
    return operations, {"grid_min": [*network.grid_min], "grid_cells": [x, y, z + 1]}


def _convolution(name: str, norm_name: str, conv: SparseConvolution, norm: nn.BatchNorm1d) -> Operation:
    window = conv.window if isinstance(conv, BoundedConv3d) else None
    kernel = kernel_size(conv)
    return {
        "kind": "submanifold" if window is None else "strided",
        "weight": f"{name}.weight",
        "kernel": [*kernel],
        "stride": [1, 1, 1] if window is None else [*window.stride],
        "padding": [size // 2 for size in kernel] if window is None else [*window.padding],
        "norm": norm_name,
        "eps": norm.eps,
        "relu": True,
    }


def _of_pillars(network: Pillars) -> tuple[list[Operation], dict[str, Any]]:
    config = network.config
    operations: list[Operation] = [{"kind": "decorate"}]
    for number, layer in enumerate(network.pillar_encoder.layers):
        norm = layer.get_submodule("norm")
        assert isinstance(norm, nn.BatchNorm1d)
        name = f"pillar_encoder.layers.{number}"
        if number:
            operations.append({"kind": "append_maximum"})
        operations.append(
            {"kind": "linear", "weight": f"{name}.linear.weight", "norm": f"{name}.norm", "eps": norm.eps, "relu": True}
        )
        operations.append({"kind": "maximum"})
    operations.append({"kind": "map", "channel": "c", "cells": [*config.num_pillars, 1]})
    limits = {"range_min_m": [*config.range_min_m], "range_max_m": [*config.range_max_m]}
    return operations, {"pillar_size_m": config.pillar_size_m, **limits}


# ---- following the list


def run(
    sequence: Mapping[str, Any], tensors: State, inputs: tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int]
) -> Float[Tensor, "B C Y X"]:
    """The map that a list of operations makes of voxels, on spconv's CPU build and plain torch.

    Args:
        sequence: as it lies in the JSON.
        tensors: as they lie in the .safetensors.
        inputs: cells (sample, x, y, z) that count from 0 metres, features, number of samples.
    """
    return _run_voxels(sequence, tensors, inputs) if "grid_min" in sequence else _run_pillars(sequence, tensors, inputs)


def _run_voxels(sequence: Mapping[str, Any], tensors: State, inputs: tuple[Tensor, Tensor, int]) -> Tensor:
    coords, features, num_samples = inputs
    x_size, y_size, z_size = sequence["grid_cells"]
    cells = torch.cat([coords[:, :1], coords[:, 1:] - torch.tensor(sequence["grid_min"])], dim=1)
    *operations, last = sequence["operations"]
    x = voxels(features, cells, (x_size, y_size, z_size), num_samples)
    for number, operation in enumerate(operations):
        if operation["kind"] == "residual":
            before = x.features
            x = _convolve(_convolve(x, operation["first"], tensors), operation["second"], tensors)
            x = x.replace_feature(F.relu(x.features + before))
        else:
            x = _convolve(x, operation, tensors, key=str(number))
    grid = dense(x)
    assert [*grid.shape[2:]] == last["cells"]
    # [B, C, X, Y, D]: the layers of a column one after another in the channels.
    return grid.permute(0, 1, 4, 3, 2).flatten(1, 2)


def _convolve(x: Any, operation: Operation, tensors: State, key: str | None = None) -> Any:
    kernel, (kx, ky, kz) = tensors[operation["weight"]], operation["kernel"]
    # Offsets with x fastest, to spconv's [C_out, kx, ky, kz, C_in].
    weight = kernel.reshape(kz, ky, kx, *kernel.shape[1:]).permute(4, 2, 1, 0, 3).contiguous()
    if operation["kind"] == "submanifold":
        x = submanifold(x, weight)
    else:
        x = strided(x, weight, stride=tuple(operation["stride"]), padding=tuple(operation["padding"]), key=key)
    return norm_relu(x, tensors, operation["norm"], eps=operation["eps"], relu=operation["relu"])


def _run_pillars(sequence: Mapping[str, Any], tensors: State, inputs: tuple[Tensor, Tensor, int]) -> Tensor:
    coords, points, num_samples = inputs
    low, high = torch.tensor(sequence["range_min_m"]), torch.tensor(sequence["range_max_m"])
    inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(dim=1)
    points, sample = points[inside], coords[inside, 0].long()
    *operations, last = sequence["operations"]
    (x_size, y_size, _), size = last["cells"], sequence["pillar_size_m"]
    cell = ((points[:, :2] - low[:2]) / size).floor().long()
    cell = torch.stack([cell[:, 0].clamp(max=x_size - 1), cell[:, 1].clamp(max=y_size - 1)], dim=1)
    places = torch.cat([sample[:, None], cell], dim=1)
    pillars, of_pillar = torch.unique(places, dim=0, return_inverse=True)
    x, largest = points, points
    for operation in operations:
        if operation["kind"] == "decorate":
            mean = torch.stack([points[of_pillar == number, :3].mean(dim=0) for number in range(len(pillars))])
            centre = low[:2] + (cell + 0.5) * size
            x = torch.cat([points, points[:, :3] - mean[of_pillar], points[:, :2] - centre], dim=1)
        elif operation["kind"] == "append_maximum":
            x = torch.cat([x, largest[of_pillar]], dim=1)
        elif operation["kind"] == "linear":
            x = batch_norm(F.linear(x, tensors[operation["weight"]]), tensors, operation["norm"], eps=operation["eps"])
            x = F.relu(x)
        else:
            largest = torch.stack([x[of_pillar == number].amax(dim=0) for number in range(len(pillars))])
    bev = torch.zeros(num_samples, y_size, x_size, largest.shape[1])
    bev[pillars[:, 0], pillars[:, 2], pillars[:, 1]] = largest
    return bev.permute(0, 3, 1, 2)
