"""What a network's input means, in words and in its first layer."""

from __future__ import annotations

import pytest
import torch

from data.batch_spec import Features, VoxelConfig
from models.lidar.inputs import PointInput


@pytest.mark.parametrize(
    ("features", "channel", "words"),
    [
        ("intensity", 0, "intensity from 0.5 to 2.5, of the mean of the points of a voxel"),
        ("xyz_intensity", 3, "x, y, z in metres, intensity from 0.5 to 2.5, of the mean of the points of a voxel"),
        ("xyz_intensity_time", 3, "intensity from 0.5 to 2.5, seconds since the point was measured, of the mean"),
        ("xyz_intensity_elongation", 3, "intensity from 0.5 to 2.5, elongation of the pulse, of the mean"),
        ("occupancy", None, "1 (occupancy), of the mean of the points of a voxel"),
    ],
)
def test_intensity_alone_is_scaled(features: Features, channel: int | None, words: str) -> None:
    fed = PointInput(features=features, reduce="mean", intensity_scale=2.0, intensity_offset=0.5)
    assert words in str(fed)
    width = VoxelConfig(features=features).num_features
    kernel = torch.ones(27, width, 4)
    expected = kernel.clone()
    if channel is not None:
        expected[:, channel] = 3.0
    assert torch.equal(fed.fold(kernel, 3.0), expected)
    assert PointInput.from_text(fed.to_text()) == fed
    assert PointInput.of(VoxelConfig(features=features)).features == features
