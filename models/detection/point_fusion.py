"""MVX-Net's point fusion: each point gets the image's features where it is seen, before points become voxels.

Source: Sindagi, Zhou, Tuzel, "MVX-Net: multimodal VoxelNet for 3D object detection", ICRA 2019, section III-B
(PointFusion); widths, five levels and lateral convolutions are those of mmdetection3d's `PointFusion` and
`DynamicVFE`, which SimIPU trains.

Deviations: a point that several images show gets the mean of them (there: one image a sample); a point is seen where
the loader pairs it with a pixel, one pixel or more inside an image and in front of its camera, and there the map is
read between the centres of its cells (there: wherever it projects to, with zeros beyond the map's rim).

Letters: N points of all samples, M voxels, F features of a point, C channels, V points that images show, I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.ranges import at_least, positive
from data.sample import PointPixelPairs
from models.lidar.bev import BN_EPS
from models.lidar.layers import PointLayer, norm_act
from models.pairing import FeatureMap, read_pixels, segment_max, segment_mean


@dataclass(frozen=True, kw_only=True)
class PointFusionConfig:
    """Settings of the point encoder with its fusion; the defaults are SimIPU's on KITTI.

    Attributes:
        widths: of the layers on points before the fusion.
        lateral_channels: that each level of the image's pyramid is brought to by a 3 x 3 convolution.
        num_levels: levels of the pyramid, finest first; those beyond the image network's own are its last one thinned
            to every second cell, as FPN's extra level.
        channels: of a fused point, and of a voxel.
        bn_momentum: weight of the newest batch in BatchNorm's running statistics.
    """

    widths: tuple[int, ...] = (64, 64)
    lateral_channels: int = 128
    num_levels: int = 5
    channels: int = 128
    bn_momentum: float = 0.01

    def __post_init__(self) -> None:
        at_least(self, widths=1, lateral_channels=1, num_levels=1, channels=1)
        positive(self, "bn_momentum")


class FusedVoxelEncoder(nn.Module):
    """Dynamic voxel features with point fusion after the last layer: a row a voxel, made of all of its points."""

    def __init__(self, config: PointFusionConfig, in_channels: int, level_features: Sequence[int]) -> None:
        """Take points of `in_channels` features and a pyramid of so many channels a level."""
        super().__init__()
        self.layers = nn.ModuleList()
        for width in config.widths:
            self.layers.append(PointLayer(in_channels, width, bn_momentum=config.bn_momentum, bn_eps=BN_EPS))
            in_channels = 2 * width
        self.fusion = PointFusion(config, config.widths[-1], level_features)

    def forward(
        self,
        points: Float[Tensor, "N F"],
        point_voxel: Int[Tensor, " N"],
        num_voxels: int,
        levels: Sequence[FeatureMap],
        pairs: PointPixelPairs,
    ) -> Float[Tensor, "M C"]:
        """Features of each voxel; between layers a point gets the maximum over its voxel's points appended."""
        features = self.layers[0](points)
        for layer in self.layers[1:]:
            largest = segment_max(features, point_voxel, num_voxels)
            features = layer(torch.cat([features, largest.to(features.dtype)[point_voxel]], dim=1))
        return segment_max(self.fusion(features, levels, pairs), point_voxel, num_voxels)


class PointFusion(nn.Module):
    """Features of a point and of its pixels, each through a linear layer with BatchNorm, added."""

    def __init__(self, config: PointFusionConfig, point_channels: int, level_features: Sequence[int]) -> None:
        super().__init__()
        extra = max(0, config.num_levels - len(level_features))
        widths = [*level_features[: config.num_levels], *[level_features[-1]] * extra]
        self.lateral = nn.ModuleList(nn.Conv2d(width, config.lateral_channels, 3, padding=1) for width in widths)
        self.image_layer = nn.Linear(config.lateral_channels * len(widths), config.channels)
        self.point_layer = nn.Linear(point_channels, config.channels)
        self.image_norm, self.point_norm = (
            nn.BatchNorm1d(config.channels, eps=BN_EPS, momentum=config.bn_momentum) for _ in range(2)
        )

    def forward(
        self, points: Float[Tensor, "N F"], levels: Sequence[FeatureMap], pairs: PointPixelPairs
    ) -> Float[Tensor, "N C"]:
        """Fused features.

            relu(norm(linear(mean over images of [lateral_l(level_l) at uv for each level l])) + norm(linear(point)))

        Points that no image shows enter the image's linear layer as zeros.
        """
        own = norm_act(self.point_norm, self.point_layer(points), relu=False)
        return norm_act(self.image_norm, self.image_layer(self.read(levels, pairs, len(points))), residual=own)

    def read(
        self, levels: Sequence[FeatureMap], pairs: PointPixelPairs, num_points: int
    ) -> Float[Tensor, "N lateral_times_levels"]:
        """Features of each point's pixels, level after level; zeros where no image shows it."""
        maps = list(levels[: len(self.lateral)])
        while len(maps) < len(self.lateral):
            maps.append(_thinned(maps[-1]))
        rows = [
            read_pixels(FeatureMap(conv(one.values), one.stride, one.origin_px), pairs.image, pairs.uv)
            for conv, one in zip(self.lateral, maps, strict=True)
        ]
        return segment_mean(torch.cat(rows, dim=1), pairs.point, num_points)[0]


def _thinned(level: FeatureMap) -> FeatureMap:
    """Every second cell of a map."""
    return FeatureMap(level.values[:, :, ::2, ::2], 2 * level.stride, level.origin_px)
