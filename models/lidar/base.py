"""What every 3D network offers, so that methods, evaluation and export need not know which one it is.

Letters: M voxels, F input channels, C channels, Q centres, B samples, X Y cells of a bird's-eye view.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from common.ranges import at_least, at_most, positive
from data.batch_spec import VoxelConfig

if TYPE_CHECKING:  # which needs this module
    from models.lidar.prepared import MapPlan


class Backbone(nn.Module, ABC):
    """A 3D network.

    Attributes:
        num_features: output channels.
    """

    num_features: int

    @abstractmethod
    def forward(
        self, voxel_coords: Int[Tensor, "M 4"], voxel_features: Float[Tensor, "M F"], num_samples: int
    ) -> Float[Tensor, "M C"]:
        """Features of each voxel, in the order of the input rows.

        Args:
            voxel_coords: (sample, x, y, z), unique rows in any order, x, y, z may be negative.
            voxel_features: network input of each voxel.
            num_samples: samples in the batch, with or without voxels.
        """

    def map_plan(self) -> MapPlan | None:
        """Neighbour maps that a pass needs, which a loader can make beforehand; None: none."""
        return None


Centres = tuple[Float[Tensor, "Q 3"], Float[Tensor, "Q C"], Int[Tensor, " B"]]
"""Places in metres, features, and how many of them each sample has, one sample after another."""


@runtime_checkable
class GivesCentres(Protocol):
    """Optional ability of a 3D network: a few sampled points that stand for all, with their features.

    `forward(..., centres=True)` gives `Centres`.
    """

    @property
    def centres_use_all(self) -> bool:
        """Whether centres need all weights, and have `num_features` channels.

        Else some weights would get no gradient through centres alone.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class BirdEyeGrid:
    """Where the cells of a bird's-eye view lie: cell (x, y) begins at `low_m` + `cell_m` * (x, y).

    Attributes:
        low_m: lower limits along x and y, metres.
        cell_m: edges of a cell along x and y, metres.
        size: number of cells along x and y.
    """

    low_m: tuple[float, float]
    cell_m: tuple[float, float]
    size: tuple[int, int]

    @property
    def high_m(self) -> tuple[float, float]:
        """Upper limits along x and y, metres."""
        x, y = (low + n * cell for low, n, cell in zip(self.low_m, self.size, self.cell_m, strict=True))
        return x, y


@runtime_checkable
class GivesBirdEyeView(Protocol):
    """Optional ability of a 3D network: the map that a detection head works on.

    `num_features` is also the number of the map's channels.
    """

    num_features: int

    @property
    def bird_eye_grid(self) -> BirdEyeGrid:
        """Places of the map's cells.

        Raises:
            ValueError: the network was not told its cells in metres; says which setting does.
        """
        ...

    def bird_eye_view(
        self, voxel_coords: Int[Tensor, "M 4"], voxel_features: Float[Tensor, "M F"], num_samples: int
    ) -> Float[Tensor, "B C Y X"]:
        """The map. In: as `Backbone.forward`; voxels outside the network's range are left out."""
        ...


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(ABC):
    """Settings of one family of 3D networks; `models.lidar.backbones.BACKBONES` lists the families.

    Attributes:
        in_channels: features of an input voxel (`VoxelConfig.num_features`).
        bn_momentum: weight of the newest batch in BatchNorm's running statistics.
    """

    NEEDS_POINTS: ClassVar[bool] = False
    """Whether the first three features of a voxel must be x, y, z in metres."""

    in_channels: int = 1
    bn_momentum: float = 0.1

    def __post_init__(self) -> None:
        """Check ranges; a family's own `__post_init__` calls this one."""
        if self.NEEDS_POINTS:
            at_least(self, "x, y and z of each point", in_channels=3)
        at_least(self, in_channels=1)
        positive(self, "bn_momentum")
        at_most(self, bn_momentum=1)

    def check_voxels(self, voxels: VoxelConfig) -> None:
        """Refuse voxels that this network cannot work on; most take any.

        Raises:
            ValueError: says what the network expects.
        """
        if self.NEEDS_POINTS and not voxels.features.startswith("xyz"):
            raise ValueError(
                f"{type(self).__name__.removesuffix('Config')} works on coordinates in metres, got "
                f"data.voxel.features={voxels.features!r}: set data.voxel.features=xyz_intensity"
            )

    @abstractmethod
    def toy(self) -> BackboneConfig:
        """The family's narrowest network, on a back-end that runs on CPUs, for a quick check of a run's wiring."""

    @abstractmethod
    def build(self) -> Backbone:
        """Assemble the network with fresh weights."""


def check_range(
    voxels: VoxelConfig, low: tuple[float, float, float], high: tuple[float, float, float], *, whose: str
) -> None:
    """Refuse voxels beyond the range that a network works on, from `low` to `high` in metres; `whose` says of what.

    Raises:
        ValueError: no Cartesian limits inside the range; says which settings to change.
    """
    within = (
        voxels.kind == "cartesian"
        and voxels.range_min is not None
        and voxels.range_max is not None
        and all(a >= b for a, b in zip(voxels.range_min, low, strict=True))
        and all(a <= b for a, b in zip(voxels.range_max, high, strict=True))
    )
    if not within:
        raise ValueError(
            f"points outside {whose} range would train on the features of its rim; the range is {low} to {high}, got "
            f"data.voxel.kind={voxels.kind!r}, range_min={voxels.range_min}, range_max={voxels.range_max}: set "
            f"data.voxel.kind=cartesian, data.voxel.range_min={list(low)}, data.voxel.range_max={list(high)}, or less"
        )
