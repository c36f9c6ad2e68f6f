"""Parts of 3D networks by loops over every voxel and every cell."""

from __future__ import annotations

import torch
from torch import Tensor


def devoxelize(coarse: Tensor, features: Tensor, fine: Tensor, factor: int) -> Tensor:
    """Hat functions of all coarse cells at the centre of each fine voxel, divided by their sum."""
    rows = []
    for voxel in fine:
        total, weight = torch.zeros_like(features[0]), 0.0
        for cell, value in zip(coarse, features, strict=True):
            if cell[0] != voxel[0]:
                continue
            hat = 1.0
            for axis in (1, 2, 3):
                distance = abs((int(voxel[axis]) + 0.5) - (int(cell[axis]) + 0.5) * factor) / factor
                hat *= max(0.0, 1.0 - distance)
            total, weight = total + hat * value, weight + hat
        rows.append(total / weight)
    return torch.stack(rows)


def voxel_means(coarse: Tensor, features: Tensor, fine: Tensor, factor: int) -> Tensor:
    """Mean over the fine voxels inside each coarse one."""
    rows = []
    for cell in coarse.tolist():
        inside = [i for i, v in enumerate(fine.tolist()) if [v[0], *(c // factor for c in v[1:])] == cell]
        rows.append(features[inside].mean(0))
    return torch.stack(rows)
