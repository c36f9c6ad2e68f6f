"""SPVCNN: a sparse U-Net with a second branch that keeps each point's own features ("point-voxel convolution").

The U-Net looks at neighbourhoods, but its coarse stages blur what is small. The point branch never loses resolution:
three layers on each point alone, to which the U-Net's features are added by trilinear interpolation after the coarsest
stage, at stride 4 and at the end; before the decoder's first and third stage the points' features are averaged into
the cells.

As in the released code the "points" are the occupied cells of the finest grid, so this network takes what any other
backbone takes, and before the first and after the last stage the two branches have the same rows. Deviation: that code
takes a coarse cell to be at its low corner, which moves coarse features by up to half a cell; here it is at its centre,
unless `coarse_cells="corner"` asks for theirs, which weights that go there need.

Source: Tang, Liu, Zhao, Lin, Lin, Wang, Han, "Searching efficient 3D architectures with sparse point-voxel
convolution", ECCV 2020, section 3.1 (SPVConv) and the released SPVCNN (widths, where the branches meet, dropout).

Letters: M voxels of the finest grid (= points), K voxels of a coarse grid, F input channels, C channels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from common.ranges import at_least, below, one_of
from models.lidar import res16unet
from models.lidar.base import Backbone
from models.lidar.layers import PointLayer, leave_to_torch
from models.lidar.neighbors import pack
from models.lidar.prepared import MapPlan
from models.lidar.res16unet import Res16UNet, Res16UNetConfig
from models.lidar.sparse import SparseBackboneConfig, SparseTensor, VoxelGrid, sparse_tensor
from models.pairing import full_precision, segment_mean

Preset = Literal["spvcnn", "spvcnn_tiny"]
CoarseCells = Literal["centre", "corner"]

_LEAST = 1e-8  # added to the divisor by the released code; up to 4e-5 of a feature

_UNETS: dict[str, res16unet.Preset] = {"spvcnn": "minkunet18", "spvcnn_tiny": "res16unet_tiny"}


@dataclass(frozen=True, kw_only=True)
class SpvcnnConfig(SparseBackboneConfig):
    """Which SPVCNN.

    Attributes:
        preset: "spvcnn": the published one of 21.8 M parameters, its U-Net is MinkUNet18; "spvcnn_tiny": 1.7 M, for
            the CPU.
        dropout: share of the averaged point features that is zeroed on the way into the decoder.
        coarse_cells: where a coarse cell's features are taken to be when points read them: its "centre", or its low
            "corner", as in the released code and all that follow it (torchsparse's layout, which other projects read,
            takes only these).
    """

    preset: Preset = "spvcnn"
    dropout: float = 0.3
    coarse_cells: CoarseCells = "centre"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, preset=Preset, coarse_cells=CoarseCells)
        at_least(self, dropout=0)
        below(self, dropout=1)

    def unet(self) -> Res16UNetConfig:
        """The voxel branch."""
        preset, momentum = _UNETS[self.preset], self.bn_momentum
        return Res16UNetConfig(preset=preset, in_channels=self.in_channels, bn_momentum=momentum, backend=self.backend)

    def toy(self) -> SpvcnnConfig:
        """See `BackboneConfig.toy`."""
        return replace(self, preset="spvcnn_tiny", backend="auto")

    def build(self) -> Spvcnn:
        """Assemble the network with fresh weights."""
        return Spvcnn(self)


class Spvcnn(Backbone):
    """Features of each voxel, at the input's resolution."""

    def __init__(self, config: SpvcnnConfig) -> None:
        super().__init__()
        self.unet = Res16UNet(config.unet())
        self.num_features = self.unet.num_features
        # The branches meet after the stem, the last encoder stage, the second and the last decoder stage.
        widths = [self.unet.level_features[level] for level in (0, 4, 6, 8)]
        # The released layers have a bias, which BatchNorm takes away; kept for their published number of parameters.
        self.point_layers = nn.ModuleList(
            PointLayer(a, b, bn_momentum=config.bn_momentum, bias=True) for a, b in itertools.pairwise(widths)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.coarse_cells: CoarseCells = config.coarse_cells
        if config.backend == "torch":
            leave_to_torch(self)

    def forward(
        self, voxel_coords: Int[Tensor, "M 4"], voxel_features: Float[Tensor, "M F"], num_samples: int
    ) -> Float[Tensor, "M C"]:
        """Features of each voxel, in the order of the input rows. See `Backbone.forward`.

        Raises:
            ValueError: a voxel comes twice, or coordinates are out of range.
        """
        x, rows = sparse_tensor(voxel_coords, voxel_features, num_samples)
        x = self.unet.stem_stage(x)
        fine, points = x.grid, x.features
        skips = []
        for stage in self.unet.encoder:
            skips.append(x)
            x = stage(x)
        for number, layer in enumerate(self.point_layers):
            points = devoxelize(x, fine, self.coarse_cells) + layer(points)
            if number < 2:
                x = x.with_features(self.dropout(voxel_means(points, fine, x.grid)).to(x.features.dtype))
                for stage in self.unet.decoder[2 * number : 2 * number + 2]:
                    x = stage(x, skips.pop())
        return points if rows is None else points[rows]

    def map_plan(self) -> MapPlan:
        """See `Backbone.map_plan`."""
        return self.unet.map_plan()


def voxel_means(features: Float[Tensor, "M C"], fine: VoxelGrid, coarse: VoxelGrid) -> Float[Tensor, "K C"]:
    """Mean over the fine voxels that lie in each coarse one (in float32 for shorter types)."""
    factor = coarse.stride // fine.stride
    keys = pack(torch.cat([fine.coords[:, :1], fine.coords[:, 1:].div(factor, rounding_mode="floor")], dim=1))
    return segment_mean(features, torch.searchsorted(coarse.keys, keys), len(coarse.keys))[0]


def devoxelize(x: SparseTensor, fine: VoxelGrid, at: CoarseCells = "centre") -> Float[Tensor, "M C"]:
    """Features of the fine voxels, trilinear between the eight coarse cells around, centres between centres.

        out[m] = sum over occupied corners c of w_mc x[c] / sum over occupied corners of w_mc

    Corners without a voxel do not count. The cell that holds the fine voxel is always there, so the divisor is at
    least 1/8; between low corners (`at`), 1/4096.

    `x` lies on a grid that strided convolutions of kernel size 2 made from `fine`, or on `fine` itself.

    Source: Tang et al. 2020, section 3.1 ("devoxelization").
    """
    if x.grid is fine:
        return x.features
    corners, weights = _corners(x.grid, fine, at)
    features = full_precision(x.features)
    return F.embedding_bag(corners, features, mode="sum", per_sample_weights=weights.to(features.dtype))


def _corners(coarse: VoxelGrid, fine: VoxelGrid, at: CoarseCells) -> tuple[Int64[Tensor, "M 8"], Float[Tensor, "M 8"]]:
    """Rows of the eight coarse cells around each fine voxel, and their weights (0 and row 0 where there is none)."""
    factor = coarse.stride // fine.stride
    # In coarse cells; exact, factors being powers of two.
    half = 0.5 if at == "centre" else 0.0
    place = (fine.coords[:, 1:].double() + half) / factor - half
    low = place.floor()
    part = place - low
    rows, weights = [], []
    for corner in itertools.product((0, 1), repeat=3):
        offset = torch.tensor(corner, device=low.device)
        keys = pack(torch.cat([fine.coords[:, :1].long(), low.long() + offset], dim=1))
        row = torch.searchsorted(coarse.keys, keys).clamp(max=len(coarse.keys) - 1)
        occupied = coarse.keys[row] == keys
        weight = torch.where(offset.bool(), part, 1 - part).prod(dim=1)
        rows.append(torch.where(occupied, row, 0))
        weights.append(torch.where(occupied, weight, 0.0))
    weight = torch.stack(weights, dim=1)
    total = weight.sum(dim=1, keepdim=True)
    return torch.stack(rows, dim=1), weight / (total if at == "centre" else total + _LEAST)
