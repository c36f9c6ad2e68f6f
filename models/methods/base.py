"""What every pre-training method offers to the engine and to the launchers."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from common.ranges import at_least, positive
from data.batch_spec import BatchSpec, VoxelConfig
from data.sample import Batch
from models.contrast.collapse_monitor import collapse_watch
from models.contrast.losses import info_nce
from models.image.base import ImageEncoderConfig
from models.image.teacher import FrozenTeacher, TeacherConfig
from models.lidar.base import Backbone, BackboneConfig
from models.lidar.prepared import MakeMaps, grids_of, joined_coords
from models.lidar.sparse import known_grids
from models.visuals import Sketch

MethodT = TypeVar("MethodT", bound="MethodConfig")

CHUNK_ROWS = 512
"""Rows of the similarity matrix at a time by default; figures in the lab book."""


@dataclass(frozen=True)
class LossTerms:
    """What one forward pass gives back.

    Attributes:
        total: scalar to differentiate.
        parts: named scalars that make up the total, detached, for the log.
        watch: named scalars of the collapse watch (contrastive accuracy, alignment, ...), detached.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    watch: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


def _with_known_maps(forward: Callable[..., LossTerms]) -> Callable[..., LossTerms]:
    @functools.wraps(forward)
    def run(self: Objective, batch: Batch, *args: Any, **kwargs: Any) -> LossTerms:
        with known_grids(() if batch.maps is None else grids_of(batch.maps)):
            return forward(self, batch, *args, **kwargs)

    return run


class Objective(nn.Module, ABC):
    """A method's towers, heads and loss. The engine steps on `forward(batch).total`.

    Downstream tasks take over the attribute `backbone` (a `models.lidar.base.Backbone`) or `image_backbone` (a
    `models.image.base.ImageEncoder`), or both; a method that trains no such network has no such attribute. What a
    method can do besides (own parameter groups, work after each update, an estimate of the pose) are the protocols of
    `engine.interfaces`.
    """

    JOINS_CLOUDS: ClassVar[bool] = False
    """Whether the 3D network runs once on both views (`joined_clouds`), instead of once on each that it runs on."""

    def __init_subclass__(cls) -> None:
        """Let `forward` use the neighbour maps that a batch comes with; not `__call__`, which the engine passes by."""
        super().__init_subclass__()
        if "forward" in cls.__dict__:
            cls.forward = _with_known_maps(cls.forward)  # type: ignore[method-assign]

    @abstractmethod
    def forward(self, batch: Batch) -> LossTerms:
        """Loss of one micro-batch."""

    def map_maker(self) -> MakeMaps | None:
        """What makes the neighbour maps of `backbone` for a batch; None where there is nothing to make."""
        backbone = self.part("backbone")
        plan = backbone.map_plan() if isinstance(backbone, Backbone) else None
        return None if plan is None else MakeMaps(plan, joined=self.JOINS_CLOUDS)

    def part(self, name: str) -> nn.Module | None:
        """A network or head by its attribute's name; None where the method has none."""
        return dict(self.named_children()).get(name)

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """Pictures of a batch of one sample, by name; called in evaluation mode without gradient."""
        return {}


class EmbedsPoints(Objective):
    """An objective with a 3D network and a head that give each voxel a unit embedding."""

    backbone: Backbone
    point_head: nn.Module

    def point_embeddings(self, batch: Batch) -> Float[Tensor, "M D"]:
        """Unit embedding of each voxel."""
        embeddings: Tensor = self.point_head(self.backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples))
        return embeddings


class PoolsTeacher(Objective):
    """An objective whose teacher's features can be averaged over superpixels once, then read from a cache."""

    teacher: FrozenTeacher

    @abstractmethod
    def pool_teacher(self, batch: Batch) -> Float[Tensor, "S C"]:
        """Mean feature of each superpixel of the batch."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig(ABC):
    """Settings of one method: the paper's values as defaults, ranges checked in `__post_init__`.

    Launchers ask a method through the members below, never by the name of a setting that only some methods have. A
    method with such a setting declares a field of the property's name, which takes the property's place.
    """

    FED_BY_METHOD: ClassVar[Mapping[str, str]] = {}
    """3D networks that are fed what the method makes of points, and so do nothing without it -> their first layer."""

    @property
    def gather_negatives(self) -> bool | None:
        """Whether the rows of all ranks are negatives of each other; None: the method has no such choice."""
        return None

    @property
    def chunk_rows(self) -> int | None:
        """Rows of the similarity matrix that the loss holds at a time; None: all of them, or there is no matrix."""
        return None

    @property
    def embedding_dim(self) -> int:
        """Dimensions of the rows that are compared; 0: none, or as many as a network's features."""
        return 0

    @property
    def caches_teacher(self) -> bool:
        """Whether the features of a frozen teacher are to be computed once and read from a cache."""
        return any(teacher.cache for teacher in self.teachers().values())

    def point_networks(self) -> dict[str, BackboneConfig]:
        """The 3D networks that are built, by their section's name: all must fit the run's voxels."""
        return {name: value for name, value in self._sections().items() if isinstance(value, BackboneConfig)}

    def image_networks(self) -> dict[str, ImageEncoderConfig]:
        """The image networks, trained or frozen, by their section's name; teachers are not among them."""
        return {name: value for name, value in self._sections().items() if isinstance(value, ImageEncoderConfig)}

    def teachers(self) -> dict[str, TeacherConfig]:
        """The frozen image networks that points learn from, by their section's name."""
        return {name: value for name, value in self._sections().items() if isinstance(value, TeacherConfig)}

    def _sections(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def tower(self, name: Literal["backbone", "image_backbone"]) -> BackboneConfig | ImageEncoderConfig | None:
        """The network that the objective trains and offers under that name; None: the method has none.

        Networks under other names (a frozen one, a second format's) are not meant for downstream tasks.
        """
        return self.point_networks().get(name) or self.image_networks().get(name)

    def toy(self: MethodT) -> MethodT:
        """The method with the narrowest 3D networks. Image networks stay: files of weights must fit them."""
        return dataclasses.replace(self, **{name: network.toy() for name, network in self.point_networks().items()})

    def check_voxels(self, voxels: VoxelConfig) -> None:
        """Refuse voxels that the 3D networks cannot work on.

        Raises:
            ValueError: names the section of the network, and what it expects.
        """
        width = voxels.num_features
        for name, network in self.point_networks().items():
            if network.in_channels != width:
                raise ValueError(
                    f"{name}.in_channels: got {network.in_channels}, expected {width}: "
                    f"data.voxel.features={voxels.features!r} makes {width} channels a voxel"
                )
            try:
                network.check_voxels(voxels)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    @abstractmethod
    def batch_spec(self) -> BatchSpec:
        """What the loader must put into batches."""

    @abstractmethod
    def build(self) -> Objective:
        """Assemble the method."""


@dataclass(frozen=True, kw_only=True)
class RowContrastConfig(MethodConfig):
    """Settings of a method that contrasts the rows of a batch with each other (`models.contrast.losses.info_nce`).

    Attributes:
        temperature: of the softmax.
        gather_negatives: negatives from all ranks instead of this rank's batch only.
        chunk_rows: rows at a time in the loss, gradient included, which takes less memory; None for all at once. The
            same numbers to rounding.
        watch_rows: rows that the collapse watch looks at.
    """

    temperature: float = 0.07
    gather_negatives: bool = False
    chunk_rows: int | None = CHUNK_ROWS
    watch_rows: int = 512

    def __post_init__(self) -> None:
        at_least(self, chunk_rows=1, watch_rows=2)
        positive(self, "temperature")

    def info_nce(
        self,
        anchors: Float[Tensor, "N D"],
        targets: Float[Tensor, "N D"],
        *,
        symmetric: bool = False,
        excluded: Bool[Tensor, "N T"] | None = None,
    ) -> Float[Tensor, ""]:
        """`models.contrast.losses.info_nce` with these settings."""
        return info_nce(
            anchors,
            targets,
            temperature=self.temperature,
            symmetric=symmetric,
            excluded=excluded,
            gather=self.gather_negatives,
            chunk_rows=self.chunk_rows,
        )


def contrast_terms(
    loss: Float[Tensor, ""], anchors: Float[Tensor, "N D"], targets: Float[Tensor, "N D"], *, watch_rows: int
) -> LossTerms:
    """The terms of a method whose only loss is a contrast between rows; row i of `targets` is that of anchor i."""
    watch = collapse_watch(anchors, targets, max_rows=watch_rows)
    return LossTerms(total=loss, parts={"contrast": loss.detach()}, watch=watch)


def joined_clouds(first: Batch, second: Batch) -> tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int]:
    """Coordinates, features and number of samples of two views as one input of a 3D network, the first view first.

    A network that runs once instead of once a view normalises over both views together. It must run once under ZeRO-3:
    DeepSpeed 0.19 fails on the gradient of a weight that was gathered twice in a forward pass.
    """
    features = torch.cat([first.voxel_features, second.voxel_features])
    return joined_coords(first, second), features, first.num_samples + second.num_samples
