"""VoxelNet: SECOND's sparse encoder, read as a bird's-eye view; the 3D network of SLidR's and NCLR's detection runs.

A sparse encoder takes a Cartesian grid to stride 8 along x and y and folds what is left of z into channels. The map
is, by preset, given out as it is (SLidR), or run through SECOND's 2D backbone (SECOND, NCLR's "BEVNet", CenterPoint).
Each voxel then reads the map bilinearly at its own place, so the voxels of a column share their features: made for
detection, weak for segmentation.

The grid has a fixed size (`grid_min`, `grid_max`). Voxels outside do not enter the network; at evaluation they read the
nearest rim of the map, because every point needs a prediction.

Deviations:
- SLidR's 1 x 1 convolution to 64 channels before the map is read is left to the method's linear head after it; without
  a bias the two commute, apart from the layers of z having their own weights here.
- The released residual blocks carry biases in front of BatchNorm, which takes them away; here there are none.

Source: Yan, Mao, Li, "SECOND", Sensors 2018, in OpenPCDet's layout (VoxelBackBone8x, 0.712 M parameters with four input
channels; VoxelResBackBone8x); Sautier et al., SLidR, CVPR 2022, supplementary material; Yin, Zhou, Krähenbühl,
"Center-based 3D object detection and tracking", CVPR 2021 (its voxel encoder is the residual one).

Letters: M voxels, B samples, F input channels, C channels, X Y D cells along x, y, z.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from common.ranges import one_of, positive
from data.batch_spec import VoxelConfig
from models.lidar.ball_pooling import PointSet, scattered
from models.lidar.base import Backbone, BirdEyeGrid
from models.lidar.bev import BevBackbone, BevLayout, read_bev, to_bev
from models.lidar.layers import leave_to_torch
from models.lidar.neighbors import Triple
from models.lidar.prepared import MapPlan, in_box
from models.lidar.sparse import SparseBackboneConfig, SparseTensor, sparse_tensor
from models.lidar.sparse_encoder import EncoderLayout, SparseEncoder

Preset = Literal["voxelbackbone8x", "second", "centerpoint", "second_tiny"]
STRIDE = 8
"""Of the bird's-eye view along x and y."""

_SECOND_BEV = BevLayout(convolutions=(5, 5), strides=(1, 2), channels=(128, 256), up_channels=(256, 256), out_stride=1)


@dataclass(frozen=True, kw_only=True)
class _Layout(EncoderLayout):
    bev: BevLayout | None = None


_LAYOUTS: dict[str, _Layout] = {
    "voxelbackbone8x": _Layout(channels=(16, 32, 64, 64), out=128),
    "second": _Layout(channels=(16, 32, 64, 64), out=128, bev=_SECOND_BEV),
    "centerpoint": _Layout(channels=(16, 32, 64, 128), out=128, residual=True, bev=_SECOND_BEV),
    "second_tiny": _Layout(
        channels=(16, 16, 32, 32),
        out=32,
        bev=BevLayout(convolutions=(1, 1), strides=(1, 2), channels=(48, 64), up_channels=(48, 48), out_stride=1),
    ),
}


@dataclass(frozen=True, kw_only=True)
class VoxelNetConfig(SparseBackboneConfig):
    """Which VoxelNet, and the box of cells that it sees. The defaults are SLidR's on nuScenes (0.1, 0.1, 0.2 m).

    Attributes:
        preset: "voxelbackbone8x": SECOND's sparse encoder alone (SLidR); "second": with the 2D backbone;
            "centerpoint": residual encoder, 2D backbone; "second_tiny": for the CPU.
        grid_min: lowest cell along x, y, z; must be what `data.voxel.range_min` and `size` say.
        grid_max: first cell beyond the grid.
        voxel_size_m: edges of a cell, metres, which only detection heads need to know; must be `data.voxel.size`.
            None: not told.
    """

    preset: Preset = "voxelbackbone8x"
    grid_min: Triple = (-512, -512, -25)
    grid_max: Triple = (512, 512, 15)
    voxel_size_m: tuple[float, float, float] | None = None
    bn_momentum: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, preset=Preset)
        positive(self, "voxel_size_m")
        x, y, z = self.grid_size
        bev = _LAYOUTS[self.preset].bev
        multiple = STRIDE * (1 if bev is None else bev.total_stride)
        if min(x, y) < 1 or x % multiple or y % multiple:
            raise ValueError(
                f"the grid from {self.grid_min} to {self.grid_max} has {x} x {y} cells along x and y, expected "
                f"multiples of {multiple} for {self.preset}: change the range or the voxel size"
            )
        if z % 16 != 8 or z < 24:
            raise ValueError(
                f"the grid from {self.grid_min} to {self.grid_max} has {z} cells along z, expected 24, 40, 56, ...: "
                "with another number the highest cells would be lost on the way to the map. Change the range or the "
                "voxel size along z (SECOND's grids have 40)"
            )

    @property
    def grid_size(self) -> Triple:
        """Cells along x, y, z."""
        x, y, z = (high - low for low, high in zip(self.grid_min, self.grid_max, strict=True))
        return x, y, z

    def check_voxels(self, voxels: VoxelConfig) -> None:
        """Refuse voxels of another grid.

        Raises:
            ValueError: cylindrical voxels, no limits, limits that are no whole cells, or other ones than the grid's.
        """
        if voxels.kind != "cartesian" or voxels.range_min is None or voxels.range_max is None:
            raise ValueError(
                f"{self.preset} works on a bounded Cartesian grid, got data.voxel.kind={voxels.kind!r}, "
                f"range_min={voxels.range_min}: set data.voxel.kind=cartesian, data.voxel.range_min and range_max"
            )
        if self.voxel_size_m is not None and self.voxel_size_m != voxels.size:
            raise ValueError(
                f"voxel_size_m is {list(self.voxel_size_m)}, but data.voxel.size={list(voxels.size)}: set one of them "
                "to the other"
            )
        limits = (("min", voxels.range_min, self.grid_min), ("max", voxels.range_max, self.grid_max))
        for name, limit, grid in limits:
            cells = [edge / size for edge, size in zip(limit, voxels.size, strict=True)]
            whole = [round(c) for c in cells]
            if any(abs(c - w) > 1e-6 for c, w in zip(cells, whole, strict=True)):
                raise ValueError(f"data.voxel.range_{name}={limit} is no whole number of cells of {voxels.size}")
            if tuple(whole) != grid:
                raise ValueError(
                    f"grid_{name} is {list(grid)}, but data.voxel.range_{name}={limit} in cells of {voxels.size} is "
                    f"{whole}: set method.backbone.grid_{name}={whole}"
                )

    def toy(self) -> VoxelNetConfig:
        """See `BackboneConfig.toy`."""
        return replace(self, preset="second_tiny", backend="auto")

    def build(self) -> VoxelNet:
        """Assemble the network with fresh weights."""
        return VoxelNet(self)


@dataclass(frozen=True, eq=False)
class VoxelLevels:
    """All that the network computes on the way to its map.

    Attributes:
        levels: voxels at strides 1, 2, 4, 8, each with its features at the centre of the cells that it was made of.
        folded: the map before the 2D backbone.
        bev: the map that `VoxelNet.bird_eye_view` gives.
    """

    levels: tuple[PointSet, ...]
    folded: Float[Tensor, "B C Y X"]
    bev: Float[Tensor, "B C2 Y X"]


_Levels = tuple[tuple[tuple[Tensor, Tensor, Tensor], ...], Tensor, Tensor]
"""The same in tuples."""


class VoxelNet(Backbone):
    """Features of each voxel, read from the bird's-eye view."""

    def __init__(self, config: VoxelNetConfig) -> None:
        super().__init__()
        layout = _LAYOUTS[config.preset]
        x, y, z = config.grid_size
        self.grid_min, self.grid_size = config.grid_min, config.grid_size
        self.voxel_size_m = config.voxel_size_m
        # OpenPCDet gives the encoder one more layer of cells on top, so that 40 cells end as 2.
        self.encoder = SparseEncoder(config, layout, (x, y, z + 1))
        self.num_features = self.encoder.num_features
        self.bev_backbone: BevBackbone | None = None
        if layout.bev is not None:
            self.bev_backbone = BevBackbone(self.num_features, layout.bev, bn_momentum=config.bn_momentum)
            self.num_features = layout.bev.num_features
        if config.backend == "torch":
            leave_to_torch(self)

    @overload
    def forward(
        self,
        voxel_coords: Int[Tensor, "M 4"],
        voxel_features: Float[Tensor, "M F"],
        num_samples: int,
        *,
        give: Literal["voxels", "map"] = "voxels",
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        voxel_coords: Int[Tensor, "M 4"],
        voxel_features: Float[Tensor, "M F"],
        num_samples: int,
        *,
        give: Literal["levels"],
    ) -> _Levels: ...

    def forward(
        self,
        voxel_coords: Int[Tensor, "M 4"],
        voxel_features: Float[Tensor, "M F"],
        num_samples: int,
        *,
        give: Literal["voxels", "map", "levels"] = "voxels",
    ) -> Tensor | _Levels:
        """Features of each voxel, in the order of the input rows. See `Backbone.forward`.

        With `give` what `bird_eye_view` or `levels` gives, as plain tensors: at ZeRO-3 the weights of a 3D network are
        there during its call only.

        Raises:
            ValueError: a voxel comes twice, or coordinates are out of range.
        """
        *levels, last = self._encoded(voxel_coords, voxel_features, num_samples)
        folded = to_bev(last.features, last.coords, num_samples, self.encoder.out_size)
        bev: Tensor = folded if self.bev_backbone is None else self.bev_backbone(folded)
        if give == "map":
            return bev
        if give == "levels":
            points = (self._points(x, *place) for x, place in zip(levels, self.encoder.places, strict=True))
            return tuple((x.points, x.features, x.counts) for x in points), folded, bev
        return read_bev(bev, voxel_coords[:, 0], self._cells(voxel_coords)[:, :2].to(torch.float32) / STRIDE)

    @property
    def bird_eye_grid(self) -> BirdEyeGrid:
        """See `GivesBirdEyeView`. Heads count a map cell from the edge of its first voxel, as the released ones do."""
        (x, y, _), (low_x, low_y, _), (x_size, y_size, _) = self._voxel_size(), self.grid_min, self.grid_size
        return BirdEyeGrid(
            low_m=(low_x * x, low_y * y), cell_m=(STRIDE * x, STRIDE * y), size=(x_size // STRIDE, y_size // STRIDE)
        )

    def bird_eye_view(
        self, voxel_coords: Int[Tensor, "M 4"], voxel_features: Float[Tensor, "M F"], num_samples: int
    ) -> Float[Tensor, "B C Y X"]:
        """The map that a detection head works on. See `GivesBirdEyeView`."""
        bev: Tensor = self(voxel_coords, voxel_features, num_samples, give="map")
        return bev

    def levels(
        self, voxel_coords: Int[Tensor, "M 4"], voxel_features: Float[Tensor, "M F"], num_samples: int
    ) -> VoxelLevels:
        """The map and what it was made of. In: as `bird_eye_view`. The voxels of each level are in a scattered order.

        Raises:
            ValueError: as `bird_eye_grid`.
        """
        points, folded, bev = self(voxel_coords, voxel_features, num_samples, give="levels")
        return VoxelLevels(tuple(PointSet(*level) for level in points), folded, bev)

    @property
    def limits_m(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lower and upper limits of the grid along x, y, z.

        Raises:
            ValueError: as `bird_eye_grid`.
        """
        size = self._voxel_size()
        edges = zip(self.grid_min, self.grid_size, size, strict=True)
        low, high = zip(*((first * edge, (first + cells) * edge) for first, cells, edge in edges), strict=True)
        return low, high

    def map_cells(self, xy_m: Float[Tensor, "Q 2"]) -> Float[Tensor, "Q 2"]:
        """Places in metres as `read_bev` counts them."""
        (x, y), (low_x, low_y) = self.bird_eye_grid.cell_m, self.bird_eye_grid.low_m
        # The centre of map cell 0 is that of the first voxel, half a voxel from the rim.
        return (xy_m - xy_m.new_tensor([low_x, low_y])) / xy_m.new_tensor([x, y]) - 0.5 / STRIDE

    def _encoded(
        self, voxel_coords: Int[Tensor, "M 4"], voxel_features: Float[Tensor, "M F"], num_samples: int
    ) -> list[SparseTensor]:
        shifted, inside = in_box(voxel_coords, self.grid_min, self.grid_size)
        return self.encoder.levels(sparse_tensor(shifted, voxel_features[inside], num_samples)[0])

    def map_plan(self) -> MapPlan:
        """See `Backbone.map_plan`."""
        return MapPlan(levels=self.encoder.map_levels(), box=(self.grid_min, self.grid_size))

    def _points(self, x: SparseTensor, step: Triple, start: Triple) -> PointSet:
        order = scattered(x.grid.keys)
        low, step_, start_ = (x.coords.new_tensor(v) for v in (self.grid_min, step, start))
        cells = x.coords[order, 1:] * step_ + start_ + low
        places = (cells + 0.5) * torch.tensor(self._voxel_size(), device=cells.device)
        counts = torch.tensor(x.grid.voxels_per_sample, device=cells.device)
        return PointSet(places, x.features[order], counts)

    def _voxel_size(self) -> tuple[float, float, float]:
        if self.voxel_size_m is None:
            raise ValueError(
                "voxel_size_m: got None, expected the edges of a cell in metres, as data.voxel.size: a detection head "
                "needs them (set backbone.voxel_size_m)"
            )
        return self.voxel_size_m

    def _cells(self, voxel_coords: Int[Tensor, "M 4"]) -> Int[Tensor, "M 3"]:
        """Cells counted from `grid_min`."""
        return voxel_coords[:, 1:] - torch.tensor(self.grid_min, device=voxel_coords.device)
