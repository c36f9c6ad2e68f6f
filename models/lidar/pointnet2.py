"""PointNet++ with multi-scale grouping: set abstraction down to few centres, feature propagation back to all points.

A set-abstraction layer chooses centres by farthest point sampling, gathers the points in balls of several radii around
each, runs a small network on every neighbour (its offset to the centre and its features) and keeps the maximum. A
feature-propagation layer interpolates from the three nearest centres and joins the finer level's own features.

Points are the voxels that come in, with x, y, z (`data.voxel.features=xyz_intensity`); cells of 0.05 to 0.1 m keep
nearly every point. They are put into an order that looks random but follows from their cells: the ball's first
neighbours are then a fair choice of it, and results do not depend on the order of the rows.

F-FPS samples by distance in feature space, D-FPS by distance in metres. A layer that uses both draws the second kind
from the points that the first has left. Deviation: the released fusion sampling draws both from all points, so that
some centres come twice; and SimIPU's, with 512 and 512 centres of 512 and 512 points, chooses nothing. SimIPU's
released network ("simipu_released") gets no offsets: places decide about neighbourhoods alone.

Source: Qi, Yi, Su, Guibas, "PointNet++", NeurIPS 2017, sections 3.2 to 3.4; Shi, Wang, Li, "PointRCNN", CVPR 2019, in
OpenPCDet's layout (PointNet2MSG); Yang, Sun, Liu, Jia, "3DSSD", CVPR 2020, section 3.2 (F-FPS); Li et al., "SimIPU",
AAAI 2022, section 3.2 (16,384 points to 1,024 centres).

Letters: N points, Q centres, B samples, F C channels, k neighbours, M voxels that come in.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Literal, overload

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from common.ranges import at_least, one_of
from models.lidar.ball_pooling import BallPooling, PointSet, Scale, point_layers, scattered
from models.lidar.base import Backbone, BackboneConfig, Centres
from models.lidar.layers import PointLayer
from models.lidar.sparse import sparse_tensor
from models.pairing import row_mask
from models.points.neighbors import interpolate
from models.points.sampling import farthest_points, joint_space

Preset = Literal["pointrcnn", "simipu", "simipu_released", "pointnet2_tiny", "simipu_tiny"]
Sampler = Literal["D-FPS", "F-FPS"]


@dataclass(frozen=True, kw_only=True)
class AbstractionLayout:
    """One set-abstraction layer."""

    samplers: tuple[tuple[Sampler, int], ...]  # (kind, number of centres a sample), in turn
    scales: tuple[Scale, ...]  # the balls
    out: int | None = None  # width of a last layer on the joined scales; None for none
    offsets: bool = True  # a neighbour's offset to the centre is input beside its features


@dataclass(frozen=True, kw_only=True)
class _Layout:
    abstraction: tuple[AbstractionLayout, ...]
    propagation: tuple[tuple[int, ...], ...]  # widths, finest level first; (): centres are only interpolated


def _pointrcnn(centres: int, radii: tuple[float, float], *widths: tuple[int, ...]) -> AbstractionLayout:
    scales = tuple(Scale(r, k, w) for r, k, w in zip(radii, (16, 32), widths, strict=True))
    return AbstractionLayout(samplers=(("D-FPS", centres),), scales=scales)


_TINY = (
    AbstractionLayout(samplers=(("D-FPS", 1024),), scales=(Scale(0.4, 8, (16, 16)), Scale(0.8, 16, (16, 32))), out=32),
    AbstractionLayout(
        samplers=(("F-FPS", 128), ("D-FPS", 128)), scales=(Scale(1.0, 8, (32, 32)), Scale(2.0, 16, (32, 48))), out=64
    ),
    AbstractionLayout(samplers=(("D-FPS", 64),), scales=(Scale(2.0, 8, (64, 64)), Scale(4.0, 16, (64, 64))), out=96),
)

_SIMIPU = (
    AbstractionLayout(
        samplers=(("D-FPS", 4096),),
        scales=(Scale(0.2, 32, (32, 32, 64)), Scale(0.4, 32, (32, 32, 64)), Scale(0.8, 64, (64, 64, 128))),
        out=128,
    ),
    AbstractionLayout(
        samplers=(("F-FPS", 1024), ("D-FPS", 1024)),
        scales=(Scale(0.4, 32, (64, 64, 128)), Scale(0.8, 32, (64, 64, 128)), Scale(1.6, 64, (128, 128, 256))),
        out=256,
    ),
    AbstractionLayout(
        samplers=(("F-FPS", 512), ("D-FPS", 512)),
        scales=(Scale(1.6, 16, (128, 128, 256)), Scale(3.2, 16, (128, 192, 256)), Scale(4.8, 16, (128, 256, 256))),
        out=1024,
    ),
)
_SIMIPU_RELEASED = (
    Scale(1.6, 16, (128, 128, 256)),
    Scale(3.2, 16, (128, 128, 256)),
    Scale(4.8, 16, (256, 256, 512)),
)
"""Of the last layer."""

_LAYOUTS: dict[str, _Layout] = {
    "pointrcnn": _Layout(
        abstraction=(
            _pointrcnn(4096, (0.1, 0.5), (16, 16, 32), (32, 32, 64)),
            _pointrcnn(1024, (0.5, 1.0), (64, 64, 128), (64, 96, 128)),
            _pointrcnn(256, (1.0, 2.0), (128, 196, 256), (128, 196, 256)),
            _pointrcnn(64, (2.0, 4.0), (256, 256, 512), (256, 384, 512)),
        ),
        propagation=((128, 128), (256, 256), (512, 512), (512, 512)),
    ),
    "simipu": _Layout(abstraction=_SIMIPU, propagation=()),
    "simipu_released": _Layout(
        abstraction=tuple(
            replace(level, offsets=False) for level in (*_SIMIPU[:2], replace(_SIMIPU[2], scales=_SIMIPU_RELEASED))
        ),
        propagation=(),
    ),
    "pointnet2_tiny": _Layout(abstraction=_TINY, propagation=((48,), (64,), (64,))),
    "simipu_tiny": _Layout(abstraction=_TINY, propagation=()),
}


@dataclass(frozen=True, kw_only=True)
class PointNet2Config(BackboneConfig):
    """Which PointNet++.

    Attributes:
        preset: "pointrcnn": four levels down and up, 3.0 M parameters; "simipu_released": three levels down to 1,024
            centres of 1,024 channels, without offsets, no way up (features of the other points are interpolated);
            "simipu": the same with offsets and 3DSSD's widths in the last layer; "pointnet2_tiny": for the CPU;
            "simipu_tiny": the same without way up.
        in_channels: x, y, z and whatever else a point has.
    """

    NEEDS_POINTS = True

    preset: Preset = "pointrcnn"
    in_channels: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, preset=Preset)
        if not _LAYOUTS[self.preset].abstraction[0].offsets:
            at_least(self, f"x, y, z and what {self.preset} looks at, which is not offsets", in_channels=4)

    def toy(self) -> PointNet2Config:
        """See `BackboneConfig.toy`."""
        return replace(self, preset="pointnet2_tiny" if _LAYOUTS[self.preset].propagation else "simipu_tiny")

    def build(self) -> PointNet2:
        """Assemble the network with fresh weights."""
        return PointNet2(self)


class PointNet2(Backbone):
    """Features of each voxel.

    Attributes:
        num_centre_features: channels of the coarsest level.
        centres_use_all: there is no way up, so that centres need all weights.
    """

    def __init__(self, config: PointNet2Config) -> None:
        super().__init__()
        layout = _LAYOUTS[config.preset]
        widths = [config.in_channels - 3]
        abstraction, propagation = [], []
        for level in layout.abstraction:
            abstraction.append(SetAbstraction(widths[-1], level, bn_momentum=config.bn_momentum))
            widths.append(abstraction[-1].num_features)
        self.num_centre_features = self.num_features = widths[-1]
        for skip, level_widths in zip(reversed(widths[:-1]), reversed(layout.propagation), strict=False):
            chain = (self.num_features + skip, *level_widths)
            propagation.append(FeaturePropagation(chain, bn_momentum=config.bn_momentum))
            self.num_features = level_widths[-1]
        self.centres_use_all = not propagation
        self.abstraction, self.propagation = nn.ModuleList(abstraction), nn.ModuleList(propagation)

    @overload
    def forward(
        self,
        voxel_coords: Int[Tensor, "M 4"],
        voxel_features: Float[Tensor, "M F"],
        num_samples: int,
        *,
        centres: Literal[False] = False,
    ) -> Float[Tensor, "M C"]: ...

    @overload
    def forward(
        self,
        voxel_coords: Int[Tensor, "M 4"],
        voxel_features: Float[Tensor, "M F"],
        num_samples: int,
        *,
        centres: Literal[True],
    ) -> Centres: ...

    def forward(
        self,
        voxel_coords: Int[Tensor, "M 4"],
        voxel_features: Float[Tensor, "M F"],
        num_samples: int,
        *,
        centres: bool = False,
    ) -> Float[Tensor, "M C"] | Centres:
        """Features of each voxel, in the order of the input rows. See `Backbone.forward`.

        Places are the first three features; `voxel_coords` gives samples and an order.

        With `centres` the coarsest level is given instead (`GivesCentres`), without the way back to all points.

        Raises:
            ValueError: a voxel comes twice, or a coordinate is out of range or not finite.
        """
        x, rows = sparse_tensor(voxel_coords, voxel_features, num_samples)
        order = scattered(x.grid.keys)
        values = x.features[order]
        counts = torch.tensor(x.grid.voxels_per_sample, device=values.device, dtype=torch.int64)
        levels = self.encode(PointSet(values[:, :3], values[:, 3:], counts))
        if centres:
            return levels[-1].points, levels[-1].features, levels[-1].counts
        out = torch.empty_like(order)
        out[order] = torch.arange(len(order), device=order.device)
        return self.decode(levels)[out if rows is None else out[rows]]

    def encode(self, points: PointSet) -> list[PointSet]:
        """All levels, the points themselves first, the coarsest last."""
        return list(itertools.accumulate(self.abstraction, lambda level, layer: layer(level), initial=points))

    def decode(self, levels: list[PointSet]) -> Float[Tensor, "N C"]:
        """Features of the finest level's points."""
        coarse = levels[-1]
        for layer, fine in zip(self.propagation, reversed(levels[:-1]), strict=False):  # no layers: no way up
            coarse = PointSet(fine.points, layer(coarse, fine), fine.counts)
        if self.propagation or len(coarse.features) == 0:
            return coarse.features
        finest = levels[0]
        return interpolate(coarse.features, coarse.points, coarse.counts, finest.points, finest.counts)


class SetAbstraction(BallPooling):
    """Centres, and what surrounds each of them.

    Source: PointNet++, section 3.3 (multi-scale grouping).
    """

    def __init__(self, in_features: int, layout: AbstractionLayout, *, bn_momentum: float) -> None:
        super().__init__(in_features, layout.scales, bn_momentum=bn_momentum, offsets=layout.offsets)
        self.samplers = layout.samplers
        self.joined: PointLayer | None = None
        if layout.out is not None:
            self.joined = PointLayer(self.num_features, layout.out, bn_momentum=bn_momentum)
            self.num_features = layout.out

    def forward(self, x: PointSet) -> PointSet:
        """Fewer points, each with what surrounds it; a sample with fewer points than centres keeps all of them."""
        chosen, counts = sample_centres(x, self.samplers)
        centres = x.points[chosen]
        features = self.around(centres, counts, x)
        return PointSet(centres, features if self.joined is None else self.joined(features), counts)


class FeaturePropagation(nn.Module):
    """Interpolation from the coarser level, joined with the finer level's own features, then layers on each point.

    Source: PointNet++, section 3.4.
    """

    def __init__(self, widths: tuple[int, ...], *, bn_momentum: float) -> None:
        super().__init__()
        self.layers = point_layers(widths, bn_momentum=bn_momentum)

    def forward(self, coarse: PointSet, fine: PointSet) -> Float[Tensor, "N C"]:
        """New features of the finer level's points."""
        spread = interpolate(coarse.features, coarse.points, coarse.counts, fine.points, fine.counts)
        out: Tensor = self.layers(torch.cat([spread, fine.features.to(spread.dtype)], dim=1))
        return out


def sample_centres(
    x: PointSet, samplers: tuple[tuple[Sampler, int], ...]
) -> tuple[Int64[Tensor, " Q"], Int64[Tensor, " B"]]:
    """Rows of the centres, and their number in each sample; each sampler chooses from what is left.

    Rows stand sample by sample, within a sample sampler by sampler, in the order of choice.
    """
    sample = torch.repeat_interleave(torch.arange(len(x.counts), device=x.counts.device), x.counts)
    candidates = torch.arange(len(sample), device=sample.device)
    centres = []
    for kind, number in samplers:
        points = x.points[candidates]
        # Features of a network that has diverged: any choice will do, the loss says what has to be known.
        space = points if kind == "D-FPS" else joint_space(points, torch.nan_to_num(x.features[candidates], 0, 0, 0))
        counts = torch.bincount(sample[candidates], minlength=len(x.counts))
        centres.append(candidates[farthest_points(space, counts, number)[0]])
        candidates = (~row_mask(torch.cat(centres), len(sample))).nonzero().squeeze(1)
    rows = torch.cat(centres)
    rows = rows[torch.argsort(sample[rows], stable=True)]
    return rows, torch.bincount(sample[rows], minlength=len(x.counts))
