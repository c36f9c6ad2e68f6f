"""Networks with statistics that are not those of fresh ones, and what they are fed, to prove layouts of weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from data.batch_spec import VoxelConfig
from models.layouts.base import Fed
from models.lidar.inputs import PointInput

ModuleT = TypeVar("ModuleT", bound=nn.Module)

GRID_MIN, GRID_MAX, CELL_M = (0, -32, -12), (48, 32, 12), (0.05, 0.05, 0.1)
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


def fed(*, reduce: str = "first", cell_m: tuple[float, float, float] = CELL_M) -> Fed:
    """Voxels with x, y, z and intensity in the grid above."""
    low, high = ((c * size for c, size in zip(cells, cell_m, strict=True)) for cells in (GRID_MIN, GRID_MAX))
    voxels = VoxelConfig(
        kind="cartesian",
        size=cell_m,
        features="xyz_intensity",
        reduce=reduce,  # type: ignore[arg-type]
        range_min=tuple(low),  # type: ignore[arg-type]
        range_max=tuple(high),  # type: ignore[arg-type]
    )
    return Fed(points=PointInput.of(voxels), voxels=voxels)
