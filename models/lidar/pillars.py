"""Pillars: PointPillars' and CenterPoint's pillar encoder and 2D backbone.

The points of each vertical pillar become one vector (a small PointNet), the pillars a dense bird's-eye view, and a 2D
network does the rest. Each point then reads the map bilinearly at its own place.

Pillars are made here, from coordinates in metres: the voxels that come in are only a thinning of the points, each with
x, y, z (`data.voxel.features=xyz_intensity`) of its first point or of their mean. Cells of 0.05 to 0.1 m keep nearly
all that a pillar can use.

Points outside the range do not enter; at evaluation they read the nearest rim of the map, because every point needs a
prediction.

Deviations: the papers keep at most 100 (20 in CenterPoint) points a pillar and 12,000 to 60,000 pillars, chosen at
random, and their BatchNorm counts the zeros that fill a pillar up; here every point counts once and nothing else.

Source: Lang, Vora, Caesar, Zhou, Yang, Beijbom, "PointPillars: fast encoders for object detection from point clouds",
CVPR 2019, sections 2.1 and 2.2; Yin, Zhou, Krähenbühl, "Center-based 3D object detection and tracking", CVPR 2021
(released code: two layers a pillar, map at stride 4).

Letters: M points (voxels that come in), K pillars, B samples, F input channels, C channels, X Y cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.ranges import below, expect, one_of, positive
from data.batch_spec import VoxelConfig
from models.lidar.base import Backbone, BackboneConfig, BirdEyeGrid, check_range
from models.lidar.bev import BN_EPS, BevBackbone, BevLayout, read_bev, to_bev
from models.lidar.layers import PointLayer
from models.pairing import segment_mean

Preset = Literal["pointpillars", "centerpoint", "centerpoint_waymo", "pillars_tiny"]
Limits = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    widths: tuple[int, ...]  # of the layers on points
    bev: BevLayout


def _bev(out_stride: int, first_stride: int = 2) -> BevLayout:
    return BevLayout(
        convolutions=(3, 5, 5),
        strides=(first_stride, 2, 2),
        channels=(64, 128, 256),
        up_channels=(128, 128, 128),
        out_stride=out_stride,
    )


_LAYOUTS: dict[str, _Layout] = {
    "pointpillars": _Layout(widths=(64,), bev=_bev(2)),
    "centerpoint": _Layout(widths=(64, 64), bev=_bev(4)),
    "centerpoint_waymo": _Layout(widths=(64, 64), bev=_bev(1, first_stride=1)),
    "pillars_tiny": _Layout(
        widths=(32,),
        bev=BevLayout(
            convolutions=(1, 1, 1), strides=(2, 2, 2), channels=(32, 48, 64), up_channels=(32, 32, 32), out_stride=2
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class PillarsConfig(BackboneConfig):
    """Which pillar network, and what it sees. The defaults are PointPillars' for cars on KITTI.

    Attributes:
        preset: "pointpillars": one layer a point, map at twice the pillars' size, 4.8 M parameters; "centerpoint": two
            layers, four times; "centerpoint_waymo": two layers, map of the pillars' size; "pillars_tiny": for the CPU.
        in_channels: x, y, z and whatever else a point has.
        pillar_size_m: edge of a pillar along x and y, metres.
        range_min_m: lower limits along x, y, z, metres.
        range_max_m: upper limits (exclusive). Along x and y a multiple of 8 pillars.
    """

    NEEDS_POINTS = True

    preset: Preset = "pointpillars"
    in_channels: int = 4
    pillar_size_m: float = 0.16
    range_min_m: Limits = (0.0, -39.68, -3.0)
    range_max_m: Limits = (69.12, 39.68, 1.0)
    bn_momentum: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, preset=Preset)
        positive(self, "pillar_size_m")
        below(self, pillar_size_m=math.inf)
        ordered = all(low < high for low, high in zip(self.range_min_m, self.range_max_m, strict=True))
        expect(self, "range_min_m", ordered, f"below range_max_m {self.range_max_m}")
        multiple = _LAYOUTS[self.preset].bev.total_stride
        for axis, low, high in zip("xy", self.range_min_m, self.range_max_m, strict=False):  # z is one cell
            pillars = (high - low) / self.pillar_size_m
            if abs(pillars - round(pillars)) > 1e-4 or round(pillars) % multiple:
                raise ValueError(
                    f"range_min_m to range_max_m holds {pillars:.6g} pillars of {self.pillar_size_m} m along {axis}, "
                    f"expected a multiple of {multiple}: change the range to a multiple of "
                    f"{multiple * self.pillar_size_m:g} m"
                )

    @property
    def num_pillars(self) -> tuple[int, int]:
        """Along x and y."""
        x, y = (round((self.range_max_m[axis] - self.range_min_m[axis]) / self.pillar_size_m) for axis in (0, 1))
        return x, y

    def check_voxels(self, voxels: VoxelConfig) -> None:
        """Refuse voxels without coordinates, and pre-training on points that the network does not see.

        Raises:
            ValueError: another input than x, y, z first, or no Cartesian limits inside the pillars' range.
        """
        super().check_voxels(voxels)
        check_range(voxels, self.range_min_m, self.range_max_m, whose="the pillars'")

    def toy(self) -> PillarsConfig:
        """See `BackboneConfig.toy`."""
        return replace(self, preset="pillars_tiny")

    def build(self) -> Pillars:
        """Assemble the network with fresh weights."""
        return Pillars(self)


class Pillars(Backbone):
    """Features of each point (voxel that comes in), read from the bird's-eye view."""

    def __init__(self, config: PillarsConfig) -> None:
        super().__init__()
        layout = _LAYOUTS[config.preset]
        self.config = config
        self.out_stride = layout.bev.out_stride
        self.pillar_encoder = PillarEncoder(config.in_channels + 5, layout.widths, bn_momentum=config.bn_momentum)
        self.bev_backbone = BevBackbone(layout.widths[-1], layout.bev, bn_momentum=config.bn_momentum)
        self.num_features = layout.bev.num_features

    def forward(
        self,
        voxel_coords: Int[Tensor, "M 4"],
        voxel_features: Float[Tensor, "M F"],
        num_samples: int,
        *,
        give: Literal["voxels", "map"] = "voxels",
    ) -> Tensor:
        """Features of each point, in the order of the input rows. See `Backbone.forward`.

        Only the samples are taken from `voxel_coords`; places are the first three features. With `give` what
        `bird_eye_view` gives: at ZeRO-3 the weights of a 3D network are there during its call only.
        """
        bev = self._map(voxel_coords, voxel_features, num_samples)
        if give == "map":
            return bev
        # From pillar edges to pillar centres to centres of map cells.
        return read_bev(bev, voxel_coords[:, 0].long(), (self._pillar(voxel_features[:, :2]) - 0.5) / self.out_stride)

    @property
    def bird_eye_grid(self) -> BirdEyeGrid:
        """See `GivesBirdEyeView`. Heads count a map cell from the edge of its first pillar, as the released ones do."""
        (low_x, low_y, _), (x_size, y_size) = self.config.range_min_m, self.config.num_pillars
        cell = self.out_stride * self.config.pillar_size_m
        return BirdEyeGrid(
            low_m=(low_x, low_y), cell_m=(cell, cell), size=(x_size // self.out_stride, y_size // self.out_stride)
        )

    def bird_eye_view(
        self, voxel_coords: Int[Tensor, "M 4"], voxel_features: Float[Tensor, "M F"], num_samples: int
    ) -> Float[Tensor, "B C Y X"]:
        """The map that a detection head works on. See `GivesBirdEyeView`."""
        bev: Tensor = self(voxel_coords, voxel_features, num_samples, give="map")
        return bev

    def _map(
        self, voxel_coords: Int[Tensor, "M 4"], voxel_features: Float[Tensor, "M F"], num_samples: int
    ) -> Float[Tensor, "B C Y X"]:
        sample, points = voxel_coords[:, 0].long(), voxel_features
        low, high = (points.new_tensor(limits) for limits in (self.config.range_min_m, self.config.range_max_m))
        inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(dim=1)
        sample, points = sample[inside], points[inside]
        x_size, y_size = self.config.num_pillars
        last = torch.tensor([x_size - 1, y_size - 1], device=points.device)
        # A point a rounding below the upper limit may come out beyond the last pillar.
        cell = self._pillar(points[:, :2]).floor().long().clamp(min=torch.zeros_like(last), max=last)
        key, pillar = torch.unique((sample * y_size + cell[:, 1]) * x_size + cell[:, 0], return_inverse=True)
        features = self.pillar_encoder(self._decorate(points, cell, pillar, len(key)), pillar, len(key))
        x, y, number = key % x_size, key // x_size % y_size, key // (x_size * y_size)
        cells = torch.stack([number, x, y, torch.zeros_like(x)], dim=1)
        bev: Tensor = self.bev_backbone(to_bev(features, cells, num_samples, (x_size, y_size, 1)))
        return bev

    def _pillar(self, xy: Float[Tensor, "M 2"]) -> Float[Tensor, "M 2"]:
        """Places in pillars, the first one from 0 to 1."""
        return (xy - xy.new_tensor(self.config.range_min_m[:2])) / self.config.pillar_size_m

    def _decorate(
        self, points: Float[Tensor, "M F"], cell: Int[Tensor, "M 2"], pillar: Int[Tensor, " M"], num_pillars: int
    ) -> Float[Tensor, "M F_and_5"]:
        """Each point with its offsets to the mean of its pillar's points (3) and to the pillar's centre (2).

        Source: PointPillars, section 2.1 (D = 9).
        """
        xyz = points[:, :3]
        mean = segment_mean(xyz, pillar, num_pillars)[0]
        low = xyz.new_tensor(self.config.range_min_m[:2])
        centre = low + (cell.to(xyz.dtype) + 0.5) * self.config.pillar_size_m
        return torch.cat([points, xyz - mean.to(xyz.dtype)[pillar], xyz[:, :2] - centre], dim=1)


class PillarEncoder(nn.Module):
    """One vector a pillar: linear layers on each point with BatchNorm and ReLU, each followed by the pillar's maximum.

    Between layers a point gets its pillar's maximum appended, so all but the last have half the channels they give out.

    Source: PointPillars, section 2.1; the layers with appended maxima are VoxelNet's (Zhou and Tuzel, CVPR 2018).
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...], *, bn_momentum: float) -> None:
        super().__init__()
        layers = []
        for number, width in enumerate(widths):
            own = width if number == len(widths) - 1 else width // 2
            layers.append(PointLayer(in_channels, own, bn_momentum=bn_momentum, bn_eps=BN_EPS))
            in_channels = width
        self.layers = nn.ModuleList(layers)

    def forward(
        self, points: Float[Tensor, "M C_in"], pillar: Int[Tensor, " M"], num_pillars: int
    ) -> Float[Tensor, "K C"]:
        """Features of each pillar; every pillar has a point."""
        largest = points
        for number, layer in enumerate(self.layers):
            if number:
                points = torch.cat([points, largest[pillar]], dim=1)
            points = layer(points)
            index = pillar[:, None].expand_as(points)
            largest = points.new_zeros(num_pillars, points.shape[1]).scatter_reduce(0, index, points, "amax")
        return largest
