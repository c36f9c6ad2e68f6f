"""Exported weights in a loop of your own: torch, `models` and `data`; no engine, no launchers, no config files.

    tandem export runs/slidr_street backbone.safetensors
    python examples/plain_torch.py backbone.safetensors sweep.npy

`sweep.npy` holds float32 [N, 4]: x, y, z in metres in the LiDAR frame, intensity from 0 to 1. A linear layer on the
frozen features learns to tell points that lie low from the others, as a stand-in for your own task.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from torch import nn

from data.batch_spec import VoxelConfig
from data.views.voxelize import voxelize
from models.lidar.backbones import BACKBONES
from models.lidar.base import Backbone
from models.weights import load_backbone, read_backbone_metadata


def load(path: str) -> tuple[Backbone, VoxelConfig]:
    """The exported network in evaluation mode, and the grid that its input was made with."""
    metadata = read_backbone_metadata(path)
    settings = json.loads(metadata["backbone"])
    backbone = BACKBONES[settings.pop("name", "res16unet")](**settings).build()
    load_backbone(path, backbone, min_match=1.0)
    return backbone.eval(), VoxelConfig(**json.loads(metadata["voxel"]))


def point_features(backbone: Backbone, grid: VoxelConfig, sweep: np.ndarray) -> torch.Tensor:
    """Feature of each point [N, C]: that of the voxel it lies in."""
    coords, features, point_voxel = voxelize(sweep[:, :3], sweep[:, 3], grid)
    sample = np.zeros((len(coords), 1), dtype=np.int32)  # one sweep: every voxel belongs to sample 0
    with torch.no_grad():
        voxels = backbone(torch.from_numpy(np.hstack([sample, coords])), torch.from_numpy(features), 1)
    return voxels[torch.from_numpy(point_voxel)]


if __name__ == "__main__":
    torch.manual_seed(0)
    network, voxel_grid = load(sys.argv[1])
    points = np.load(sys.argv[2])
    inputs = point_features(network, voxel_grid, points)
    low = torch.from_numpy(points[:, 2] < np.median(points[:, 2])).float()
    layer = nn.Linear(inputs.shape[1], 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(100):
        loss = nn.functional.binary_cross_entropy_with_logits(layer(inputs)[:, 0], low)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = ((layer(inputs)[:, 0] > 0) == (low > 0)).float().mean()
    print(f"features {tuple(inputs.shape)}, {accuracy:.0%} of the points classified correctly")
