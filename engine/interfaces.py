"""What the engine needs of a batch, a batch source, an objective and a backbone: nothing more than is written here.

`engine` imports neither `data` nor `models`; their classes satisfy these protocols by shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

# Members are read-only properties, not plain attributes: the classes that satisfy them are frozen dataclasses.
BatchT = TypeVar("BatchT", bound="BatchLike")
BatchT_co = TypeVar("BatchT_co", bound="BatchLike", covariant=True)


@runtime_checkable
class BatchLike(Protocol):
    """One rank's micro-batch."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the samples, for messages."""

    @property
    def num_samples(self) -> int:
        """Samples in the batch."""

    @property
    def num_points(self) -> int:
        """Points of all samples together."""

    def to(self: BatchT, device: torch.device | str) -> BatchT:
        """The same batch on another device."""


@runtime_checkable
class PointBatch(BatchLike, Protocol):
    """A batch of labelled sweeps, as downstream protocols use it. Fields as in `data.sample.Batch`."""

    @property
    def point_sample(self) -> Int[Tensor, " N"]:
        """Sample of each point."""

    @property
    def point_voxel(self) -> Int[Tensor, " N"]:
        """Voxel of each point."""

    @property
    def voxel_coords(self) -> Int[Tensor, "M 4"]:
        """(sample, x, y, z) cell of each voxel."""

    @property
    def voxel_features(self) -> Float[Tensor, "M F"]:
        """Network input of each voxel."""

    @property
    def labels(self) -> Int[Tensor, " N"] | None:
        """Semantic class of each point."""


@runtime_checkable
class BatchSource(Protocol[BatchT_co]):
    """An endless stream of this rank's micro-batches, addressable by position: the n-th batch is a pure function
    of (seed, n, rank, world size), so the whole state of the stream is n.
    """  # noqa: D205

    @property
    def samples_per_epoch(self) -> int:
        """Samples of all ranks in one epoch."""

    def batches(self, start: int) -> Iterator[BatchT_co]:
        """Micro-batches number `start`, `start` + 1, ... of this rank."""

    def state(self, position: int) -> dict[str, int | str]:
        """What a checkpoint must hold to continue at `position` (a handful of integers and a fingerprint)."""

    def check_state(self, state: Mapping[str, int | str]) -> None:
        """Refuse (ValueError naming the field) a state that this source cannot continue."""


@runtime_checkable
class HasParamGroups(Protocol):
    """Optional ability of an objective: its own parameter groups (per-tower rates, no decay on norms, ...)."""

    def param_groups(self) -> list[dict[str, object]]:
        """Groups as torch optimizers take them; `lr_scale` multiplies the run's rate."""


@runtime_checkable
class HasLayers(Protocol):
    """Optional ability of a network: it numbers its layers, for rates that fall from layer to layer."""

    @property
    def num_layers(self) -> int:
        """Layers, the stem included."""

    def layer_of(self, name: str) -> int:
        """Layer of the parameter with this name in the network, 0 for those next to the input."""


@runtime_checkable
class FollowsUpdates(Protocol):
    """Optional ability of an objective: something happens after each update (a momentum encoder follows)."""

    def after_update(self, progress: float) -> None:
        """Called on all ranks after an update that was applied, not after a skipped one.

        Args:
            progress: updates done as a share of the whole run, above 0 to 1.
        """


@runtime_checkable
class ChecksEngine(Protocol):
    """Optional ability of an objective: refuse what it cannot work under."""

    def check_engine(self, *, zero_stage: int, precision: str) -> None:
        """Called once before training.

        Raises:
            ValueError: names the setting, why it does not work and what does.
        """


@runtime_checkable
class CountsSkips(Protocol):
    """A source that leaves out damaged samples and counts them."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Different samples that this process left out, by reason."""


@runtime_checkable
class CamerasLike(Protocol):
    """Calibration of a batch's images. Fields as in `data.sample.Cameras`."""

    @property
    def K(self) -> Float[Tensor, "I 3 3"]:  # noqa: N802
        """Intrinsics of each image."""

    @property
    def T_cam_points(self) -> Float[Tensor, "I 4 4"]:  # noqa: N802
        """True pose of each camera."""

    @property
    def min_depth_m(self) -> Float[Tensor, " I"]:
        """Depth from which on each image shows points."""


@runtime_checkable
class CalibratedBatch(BatchLike, Protocol):
    """A batch whose images are calibrated. Fields as in `data.sample.Batch`."""

    @property
    def images(self) -> Shaped[Tensor, "I 3 H W"] | None:
        """RGB."""

    @property
    def cameras(self) -> CamerasLike | None:
        """Calibration of the images."""


@runtime_checkable
class PoseEstimateLike(Protocol):
    """Poses that an objective found, with their matches. Fields as in `models.pose.alignment.PoseEstimate`."""

    @property
    def T_cam_points(self) -> Float[Tensor, "I 4 4"]:  # noqa: N802
        """Frame of the points to each camera."""

    @property
    def valid(self) -> Bool[Tensor, " I"]:
        """Whether a pose was found."""

    @property
    def match_image(self) -> Int[Tensor, " Q"]:
        """Image of each point that was looked at."""

    @property
    def match_points(self) -> Float[Tensor, "Q 3"]:
        """The points, metres."""

    @property
    def match_soft_uv(self) -> Float[Tensor, "Q 2"]:
        """Pixel found for each, as a weighted mean."""

    @property
    def match_hard_uv(self) -> Float[Tensor, "Q 2"]:
        """Pixel of the best cell alone."""

    @property
    def match_kept(self) -> Bool[Tensor, " Q"]:
        """Whether the point is taken for one that the image shows."""


@runtime_checkable
class EstimatesPose(Protocol):
    """Optional ability of an objective: find the pose between camera and LiDAR."""

    def estimate_pose(self, batch: Any) -> PoseEstimateLike:
        """The pose of each camera, without looking at the true one."""
