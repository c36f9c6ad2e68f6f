"""Networks with statistics that are not those of fresh ones, and what they are fed, to prove layouts of weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from data.batch_spec import VoxelConfig
from models.layouts.base import Fed
from models.lidar.inputs import PointInput
from models.lidar.pillars import PillarsConfig
from models.lidar.voxelnet import VoxelNetConfig

ModuleT = TypeVar("ModuleT", bound=nn.Module)

GRID_MIN, GRID_MAX, CELL_M = (0, -32, -20), (48, 32, 20), (0.05, 0.05, 0.1)
"""A grid of detectors that a test can afford; no two axes have the same number of cells."""


def stirred(network: ModuleT) -> ModuleT:
    """The network in evaluation mode, with random weights, biases and statistics in every BatchNorm."""
    generator = torch.Generator().manual_seed(5)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            with torch.no_grad():
                for tensor, scale, shift in (
                    (norm.weight, 1.0, 0.5),
                    (norm.bias, 0.4, -0.2),
                    (norm.running_mean, 0.4, -0.2),
                    (norm.running_var, 0.3, 0.1),
                ):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * scale + shift)
    return network.eval()


def small_voxelnet(preset: str) -> VoxelNetConfig:
    """On the grid above."""
    return VoxelNetConfig(
        preset=preset,  # type: ignore[arg-type]
        in_channels=4,
        grid_min=GRID_MIN,
        grid_max=GRID_MAX,
        voxel_size_m=CELL_M,
    )


def small_pillars(preset: str) -> PillarsConfig:
    """In the same range."""
    return PillarsConfig(
        preset=preset,  # type: ignore[arg-type]
        pillar_size_m=0.1,
        range_min_m=(0.0, -1.6, -1.2),
        range_max_m=(2.4, 1.6, 1.2),
    )


def fed(*, features: str = "xyz_intensity", reduce: str = "first") -> Fed:
    """Voxels of the grid above."""
    low, high = ([c * size for c, size in zip(cells, CELL_M, strict=True)] for cells in (GRID_MIN, GRID_MAX))
    voxels = VoxelConfig(
        kind="cartesian",
        size=CELL_M,
        features=features,  # type: ignore[arg-type]
        reduce=reduce,  # type: ignore[arg-type]
        range_min=tuple(low),  # type: ignore[arg-type]
        range_max=tuple(high),  # type: ignore[arg-type]
    )
    return Fed(points=PointInput.of(voxels), voxels=voxels)
