"""WaffleIron: tokens of points, mixed in space by dense 2D convolutions on flattened grids, in channels by MLPs.

A token is made of each point and its nearest neighbours and keeps its point to the end: no down-sampling. A layer first
averages the tokens into the cells of a plane, convolves the plane twice, channel by channel, and gives every token its
cell's answer (the cloud between the plates of a waffle iron); then an MLP works on each token alone. The planes take
turns: seen from above, from the side, from the front.

Points are the voxels that come in, with x, y, z in metres (`data.voxel.features=xyz_intensity`), which ScaLR thins to
0.1 m. Their distance from the sensor is added to the input here. Points outside the range do not enter in
pre-training; at evaluation they lie in the cells of the rim.

Layer scale begins at random between -1 and 1, as in the released code (a convolution with a weight a channel).
Deviations: a sample with fewer points than neighbours repeats the nearest one, the released code refuses it; cells that
hold no point of a sample are zero in both.

Source: Puy, Boulch, Marlet, "Using a Waffle Iron for automotive point cloud semantic segmentation", ICCV 2023, section
3 and the released settings; Puy et al., "Three pillars improving vision foundation model distillation for lidar", CVPR
2024 (ScaLR: width 768, LayerNorm for BatchNorm).

Letters: M points (voxels that come in), B samples, F input channels, C channels, k neighbours, H W cells of a plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from common.ranges import at_least, below, expect, one_of, positive
from data.batch_spec import VoxelConfig
from models.lidar.base import Backbone, BackboneConfig, check_range
from models.lidar.layers import norm_act
from models.lidar.sparse import sparse_tensor
from models.pairing import full_precision
from models.points.neighbors import knn

Preset = Literal["waffleiron_48_768", "waffleiron_48_384", "waffleiron_48_256", "waffleiron_tiny"]
Limits = tuple[float, float, float]
Plane = tuple[int, int]
"""Axes of a grid."""

XY, XZ, YZ = (0, 1), (0, 2), (1, 2)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    width: int
    depth: int
    planes: tuple[Plane, ...] = (XY, XZ, YZ)
    layer_norm: bool = False


_LAYOUTS: dict[str, _Layout] = {
    "waffleiron_48_768": _Layout(width=768, depth=48, layer_norm=True),
    "waffleiron_48_384": _Layout(width=384, depth=48),
    "waffleiron_48_256": _Layout(width=256, depth=48, planes=(XY,)),
    "waffleiron_tiny": _Layout(width=48, depth=6),
}


@dataclass(frozen=True, kw_only=True)
class WaffleIronConfig(BackboneConfig):
    """Which WaffleIron, and what it sees. The defaults are ScaLR's.

    Attributes:
        preset: "waffleiron_48_768": ScaLR's, 48 layers of 768 channels with LayerNorm; "waffleiron_48_384": the paper's
            on nuScenes (cells of 0.6 m, range of 50 m); "waffleiron_48_256": on SemanticKITTI, seen from above alone
            (cells of 0.4 m); "waffleiron_tiny": for the CPU.
        in_channels: x, y, z and whatever else a point has.
        cell_m: edge of a plane's cells, metres; stretched so that whole cells fill the range.
        range_min_m: lower limits along x, y, z, metres.
        range_max_m: upper limits (exclusive).
        num_neighbors: nearest neighbours that go into a point's token.
        drop_path: probability that a sample skips a half of a layer in training.
    """

    NEEDS_POINTS = True

    preset: Preset = "waffleiron_48_768"
    in_channels: int = 4
    cell_m: float = 0.5
    range_min_m: Limits = (-64.0, -64.0, -8.0)
    range_max_m: Limits = (64.0, 64.0, 8.0)
    num_neighbors: int = 16
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, preset=Preset)
        positive(self, "cell_m")
        at_least(self, num_neighbors=1, drop_path=0)
        below(self, cell_m=math.inf, drop_path=1)
        spans = [high - low for low, high in zip(self.range_min_m, self.range_max_m, strict=True)]
        fits = all(math.isfinite(span) and span >= self.cell_m for span in spans)
        expect(self, "range_min_m", fits, f"at least a cell of {self.cell_m} m below range_max_m {self.range_max_m}")

    @property
    def num_cells(self) -> tuple[int, int, int]:
        """Along x, y, z: as many whole ones as fit."""
        spans = (high - low for low, high in zip(self.range_min_m, self.range_max_m, strict=True))
        x, y, z = (math.floor(span / self.cell_m + 1e-6) for span in spans)
        return x, y, z

    def check_voxels(self, voxels: VoxelConfig) -> None:
        """Refuse voxels without coordinates, and pre-training on points outside the grids.

        Raises:
            ValueError: another input than x, y, z first, or no Cartesian limits inside the range.
        """
        super().check_voxels(voxels)
        check_range(voxels, self.range_min_m, self.range_max_m, whose="the grids'")

    def toy(self) -> WaffleIronConfig:
        """See `BackboneConfig.toy`."""
        return replace(self, preset="waffleiron_tiny")

    def build(self) -> WaffleIron:
        """Assemble the network with fresh weights."""
        return WaffleIron(self)


class WaffleIron(Backbone):
    """Features of each point (voxel that comes in)."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        layout = _LAYOUTS[config.preset]
        self.config, self.planes = config, layout.planes
        self.num_features = layout.width
        momentum = config.bn_momentum
        self.embedding = Embedding(config.in_channels + 1, layout.width, config.num_neighbors, bn_momentum=momentum)
        self.layers = nn.ModuleList(Layer(layout, config) for _ in range(layout.depth))

    def forward(
        self, voxel_coords: Int[Tensor, "M 4"], voxel_features: Float[Tensor, "M F"], num_samples: int
    ) -> Float[Tensor, "M C"]:
        """Features of each point, in the order of the input rows. See `Backbone.forward`.

        Places are the first three features; `voxel_coords` gives samples and an order.

        Raises:
            ValueError: a voxel comes twice, or a coordinate is out of range or not finite.
        """
        x, rows = sparse_tensor(voxel_coords, voxel_features, num_samples)
        places = x.features[:, :3]
        counts = torch.tensor(x.grid.voxels_per_sample, device=places.device, dtype=torch.int64)
        sample = torch.repeat_interleave(torch.arange(num_samples, device=places.device), counts)
        distance = torch.linalg.vector_norm(full_precision(places), dim=1, keepdim=True)
        inputs = torch.cat([x.features, distance.to(x.features.dtype)], dim=1)
        tokens = full_precision(self.embedding(inputs, places, counts))
        grids = [self._grid(plane, places, sample, num_samples) for plane in self.planes]
        for number, layer in enumerate(self.layers):
            tokens = layer(tokens, grids[number % len(grids)])
        return tokens if rows is None else tokens[rows]

    @property
    def num_layers(self) -> int:
        """The embedding and the layers, for rates that fall from layer to layer."""
        return 1 + len(self.layers)

    def layer_of(self, name: str) -> int:
        """0 for the embedding, then in the order of computation."""
        part, number, *_ = name.split(".")
        return 1 + int(number) if part == "layers" else 0

    def _grid(
        self, plane: Plane, places: Float[Tensor, "M 3"], sample: Int64[Tensor, " M"], num_samples: int
    ) -> FlatGrid:
        config = self.config
        cells = []
        for axis in plane:
            low, high, number = config.range_min_m[axis], config.range_max_m[axis], config.num_cells[axis]
            place = (places[:, axis].double() - low) * (number / (high - low))
            cells.append(place.floor().clamp(0, number - 1).long())
        height, width = (config.num_cells[axis] for axis in plane)
        return FlatGrid.of((sample * height + cells[0]) * width + cells[1], sample, (num_samples, height, width))


@dataclass(frozen=True, eq=False)
class FlatGrid:
    """A plane's cells and who is in them.

    Attributes:
        cell: of each point, counted through all samples.
        share: of each point in its cell: one over the number of points there.
        sample: of each point.
        shape: samples and the cells along the plane's axes.
    """

    cell: Int64[Tensor, " M"]
    share: Float[Tensor, "M 1"]
    sample: Int64[Tensor, " M"]
    shape: tuple[int, int, int]

    @staticmethod
    def of(cell: Int64[Tensor, " M"], sample: Int64[Tensor, " M"], shape: tuple[int, int, int]) -> FlatGrid:
        """The grid of points in these cells."""
        counts = torch.bincount(cell, minlength=math.prod(shape))
        return FlatGrid(cell, 1.0 / counts[cell].unsqueeze(1), sample, shape)

    def flatten(self, tokens: Float[Tensor, "M C"]) -> Float[Tensor, "B C H W"]:
        """Mean of the tokens in each cell, zeros where there is none (channels last in memory)."""
        tokens = full_precision(tokens)
        empty = tokens.new_zeros(math.prod(self.shape), tokens.shape[1])
        means = empty.index_add(0, self.cell, tokens * self.share.to(tokens.dtype))
        return means.view(*self.shape, tokens.shape[1]).permute(0, 3, 1, 2)

    def inflate(self, grid: Float[Tensor, "B C H W"]) -> Float[Tensor, "M C"]:
        """To each point what its cell holds."""
        return grid.permute(0, 2, 3, 1).reshape(-1, grid.shape[1]).index_select(0, self.cell)


class Embedding(nn.Module):
    """A token of each point: its own features, joined with the maximum over its neighbours' differences from it.

    Source: WaffleIron, section 3.3.
    """

    def __init__(self, in_features: int, width: int, num_neighbors: int, *, bn_momentum: float) -> None:
        super().__init__()
        self.num_neighbors = num_neighbors
        self.input_norm = nn.BatchNorm1d(in_features, momentum=bn_momentum)
        self.own = nn.Linear(in_features, width)
        self.difference_norm = nn.BatchNorm1d(in_features, momentum=bn_momentum)
        self.neighbor_in = nn.Linear(in_features, width, bias=False)
        self.neighbor_norm = nn.BatchNorm1d(width, momentum=bn_momentum)
        self.neighbor_out = nn.Linear(width, width, bias=False)
        self.join = nn.Linear(2 * width, width)

    def forward(
        self, inputs: Float[Tensor, "M F"], places: Float[Tensor, "M 3"], counts: Int64[Tensor, " B"]
    ) -> Float[Tensor, "M C"]:
        """Tokens of points that stand sample by sample."""
        x = norm_act(self.input_norm, inputs, relu=False)
        neighbor = nearest_others(places, counts, self.num_neighbors)
        differences = (x[neighbor] - x.unsqueeze(1)).flatten(0, 1)
        hidden = self.neighbor_in(norm_act(self.difference_norm, differences, relu=False))
        around = self.neighbor_out(norm_act(self.neighbor_norm, hidden))
        largest = around.view(len(x), self.num_neighbors, around.shape[1]).amax(dim=1)
        joined: Tensor = self.join(torch.cat([self.own(x), largest], dim=1))
        return joined


def nearest_others(places: Float[Tensor, "M 3"], counts: Int64[Tensor, " B"], k: int) -> Int64[Tensor, "M k"]:
    """Rows of the k nearest other points of the same sample.

    A sample with fewer of them repeats the nearest; a point that is alone in its sample is its own neighbour.

    Raises:
        ValueError: a coordinate is not finite.
    """
    found = knn(places, counts, places, counts, k + 1).index
    itself = torch.arange(len(places), device=places.device).unsqueeze(1)
    # The first one is the point itself, or one at the same place.
    others = found[:, 1:]
    nearest = torch.where(others[:, :1] >= 0, others[:, :1], itself)
    return torch.where(others >= 0, others, nearest)


class _Mix(nn.Module):
    """Half of a layer: tokens + drop path(layer scale * what a subclass makes of the normalised tokens)."""

    def __init__(self, width: int, norm: nn.BatchNorm1d | nn.LayerNorm, *, drop_path: float) -> None:
        super().__init__()
        self.norm = norm
        self.scale = nn.Parameter(torch.empty(width).uniform_(-1, 1))
        self.drop_path = drop_path

    def _normalised(self, tokens: Float[Tensor, "M C"]) -> Float[Tensor, "M C"]:
        if isinstance(self.norm, nn.LayerNorm):
            normalised: Tensor = self.norm(tokens)
            return normalised
        return norm_act(self.norm, tokens, relu=False)

    def _added(
        self, tokens: Float[Tensor, "M C"], change: Float[Tensor, "M C"], grid: FlatGrid
    ) -> Float[Tensor, "M C"]:
        change = full_precision(change) * self.scale
        if self.training and self.drop_path > 0:
            kept = torch.rand(grid.shape[0], device=tokens.device) >= self.drop_path
            change = change * (kept / (1 - self.drop_path))[grid.sample].unsqueeze(1)
        return tokens + change


class SpatialMix(_Mix):
    """Flatten, two depthwise 3 x 3 convolutions with a ReLU between them, inflate.

    Source: WaffleIron, section 3.2, equation 2.
    """

    def __init__(self, width: int, norm: nn.BatchNorm1d | nn.LayerNorm, *, drop_path: float) -> None:
        super().__init__(width, norm, drop_path=drop_path)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Float[Tensor, "M C"], grid: FlatGrid) -> Float[Tensor, "M C"]:
        """Tokens that have heard of their surroundings in the plane."""
        cells = grid.flatten(self._normalised(tokens))
        change = grid.inflate(self.conv2(F.relu_(self.conv1(cells))))
        return self._added(tokens, change, grid)


class ChannelMix(_Mix):
    """Two layers on each token alone with a ReLU between them.

    Source: WaffleIron, section 3.2, equation 3.
    """

    def __init__(self, width: int, norm: nn.BatchNorm1d | nn.LayerNorm, *, drop_path: float) -> None:
        super().__init__(width, norm, drop_path=drop_path)
        self.linear1 = nn.Linear(width, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "M C"], grid: FlatGrid) -> Float[Tensor, "M C"]:
        """Tokens, each on its own; the grid says of which sample."""
        change = self.linear2(F.relu_(self.linear1(self._normalised(tokens))))
        return self._added(tokens, change, grid)


class Layer(nn.Module):
    """Mixing in space, then in channels."""

    def __init__(self, layout: _Layout, config: WaffleIronConfig) -> None:
        super().__init__()
        width, drop_path = layout.width, config.drop_path
        self.spatial = SpatialMix(width, _norm(layout, config.bn_momentum), drop_path=drop_path)
        self.channel = ChannelMix(width, _norm(layout, config.bn_momentum), drop_path=drop_path)

    def forward(self, tokens: Float[Tensor, "M C"], grid: FlatGrid) -> Float[Tensor, "M C"]:
        """New tokens of the same points."""
        mixed: Tensor = self.channel(self.spatial(tokens, grid), grid)
        return mixed


def _norm(layout: _Layout, bn_momentum: float) -> nn.BatchNorm1d | nn.LayerNorm:
    return nn.LayerNorm(layout.width) if layout.layer_norm else nn.BatchNorm1d(layout.width, momentum=bn_momentum)
