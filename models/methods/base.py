"""What every pre-training method offers to the engine and to the launchers."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from data.batch_spec import BatchSpec
from data.sample import Batch
from models.lidar.base import BackboneConfig
from models.visuals import Sketch


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


class Objective(nn.Module, ABC):
    """A method's towers, heads and loss. The engine steps on `forward(batch).total`.

    Downstream tasks take over the attribute `backbone` (a `models.lidar.base.Backbone`) or `image_backbone` (a
    `models.image.base.ImageEncoder`), or both; a method that trains no such network has no such attribute. What a
    method can do besides (own parameter groups, work after each update, an estimate of the pose) are the protocols of
    `engine.interfaces`.
    """

    @abstractmethod
    def forward(self, batch: Batch) -> LossTerms:
        """Loss of one micro-batch."""

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """What there is to show of a batch of one sample, by name; called in evaluation mode without gradient."""
        return {}


@dataclass(frozen=True, kw_only=True)
class MethodConfig(ABC):
    """Settings of one method: the paper's values as defaults, ranges checked in `__post_init__`."""

    @abstractmethod
    def batch_spec(self) -> BatchSpec:
        """What the loader must put into batches."""

    def point_networks(self) -> dict[str, BackboneConfig]:
        """The 3D networks that are built, by their section's name: all must fit the run's voxels."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, BackboneConfig)}

    @abstractmethod
    def build(self) -> Objective:
        """Assemble the method."""


def matched_clouds(batch: Batch, method: str) -> tuple[Batch, Int[Tensor, " Q"], Int[Tensor, " Q"]]:
    """The second view, and the points of the first and of the second one that belong together.

    Args:
        batch: of a method that wants a second cloud.
        method: who asks, for the message.

    Raises:
        ValueError: the batch has no second cloud.
    """
    if batch.second is None or batch.match_point is None or batch.match_second is None:
        raise ValueError(f"{method} needs a second cloud with matches; this batch has none (BatchSpec.second_cloud)")
    return batch.second, batch.match_point, batch.match_second


def joined_clouds(first: Batch, second: Batch) -> tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int]:
    """The voxels of two views as one input of a 3D network: those of the first view, then those of the second one.

    A network that runs once instead of once a view normalises over both views together. It must run once under ZeRO-3:
    DeepSpeed 0.19 fails on the gradient of a weight that was gathered twice in a forward pass.

    Returns:
        Coordinates, the samples of the second view counted on from those of the first; features; number of samples.
    """
    shift = torch.tensor([first.num_samples, 0, 0, 0], dtype=second.voxel_coords.dtype, device=second.points.device)
    coords = torch.cat([first.voxel_coords, second.voxel_coords + shift])
    features = torch.cat([first.voxel_features, second.voxel_features])
    return coords, features, first.num_samples + second.num_samples
