"""What a training step sees of one sweep, a `View`, and what says how it is made."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

from common.ranges import at_least
from data.batch_spec import VoxelConfig
from data.views.augment import (
    AugmentConfig,
    PixelTransform,
)
from data.views.boxes import BoxConfig, ViewBoxes
from data.views.object_sampling import ObjectSamplingConfig
from data.views.pairs import Pairs
from data.views.second_sweep import SweepMatches
from data.views.voxelize import Voxels


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """What is made of a sample.

    Attributes:
        image_size: height, width that images are brought to, pixels.
        cameras_per_sample: use this many cameras of each sample, drawn again each epoch; None for all.
        voxel: grid and input features.
        augment: what changes from epoch to epoch.
        cut_to_cameras: keep only the points inside the image of some camera, before anything is drawn; no pixel is read
            for it. For sets whose objects are labelled only there (KITTI).
        max_points: use at most this many points of each sample, drawn at random each epoch, and when a detector is
            judged; None for all. VoteNet: 20,000 on SUN RGB-D, 40,000 on ScanNet.
        boxes: which labelled boxes count, where a method asks for boxes.
        sampling: objects of other sweeps that are put into a training sweep.
    """

    image_size: tuple[int, int] = (224, 416)
    cameras_per_sample: int | None = None
    voxel: VoxelConfig = field(default_factory=VoxelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cut_to_cameras: bool = False
    max_points: int | None = None
    boxes: BoxConfig = field(default_factory=BoxConfig)
    sampling: ObjectSamplingConfig = field(default_factory=ObjectSamplingConfig)

    def __post_init__(self) -> None:
        at_least(self, image_size=1, cameras_per_sample=1)
        at_least(self, "null: all", max_points=1)


@dataclass(frozen=True, kw_only=True)
class ViewCameras:
    """Where the images of one sample were taken from.

    Attributes:
        transforms: what was done to each stored image.
        K: intrinsics of each augmented image.
        T_cam_points: from the frame of `View.points` to each camera.
        min_depth_m: see `CameraView`.
    """

    transforms: tuple[PixelTransform, ...]
    K: Float[np.ndarray, "V 3 3"]
    T_cam_points: Float[np.ndarray, "V 4 4"]
    min_depth_m: Float[np.ndarray, " V"]


@dataclass(frozen=True, kw_only=True)
class ViewSuperpixels:
    """Superpixels of one sample, numbered from 0 in each image.

    Attributes:
        num: superpixels of each stored image.
        of_pair: superpixel of each pair within its image.
        of_pixel: superpixels of each augmented image; None without pixels.
        features: cached teacher features, images one after another; None without.
    """

    num: tuple[int, ...]
    of_pair: Int[np.ndarray, " P"]
    of_pixel: tuple[Integer[np.ndarray, "H W"], ...] | None
    features: Float[np.ndarray, "S D"] | None


@dataclass(frozen=True, kw_only=True)
class ViewClusters:
    """Objects of one sample: how many the recorded sweep has, and the object of each point, -1 for none."""

    num: int
    of_point: Int[np.ndarray, " N"]


@dataclass(frozen=True, kw_only=True)
class View:
    """One sample after augmentation. Its parts are whole or None and mean the same as those of `data.sample.Batch`.

    Attributes:
        recorded: which point of the recorded sweep each point is, ascending.
        intensity: 0 to 1.
        voxels: of the points.
        images: one a camera, all of one size.
        cameras: those in use, also where a teacher cache takes the place of their pixels.
    """

    key: str
    recorded: Int[np.ndarray, " N"]
    points: Float[np.ndarray, "N 3"]
    intensity: Float[np.ndarray, " N"]
    voxels: Voxels
    T_aug_lidar: Float[np.ndarray, "4 4"]
    images: tuple[UInt8[np.ndarray, "H W 3"], ...] | None = None
    cameras: ViewCameras | None = None
    pairs: Pairs | None = None
    superpixels: ViewSuperpixels | None = None
    ground: Bool[np.ndarray, " N"] | None = None
    clusters: ViewClusters | None = None
    labels: UInt8[np.ndarray, " N"] | None = None
    instances: Int[np.ndarray, " N"] | None = None
    boxes: ViewBoxes | None = None
    second: View | None = None
    matches: SweepMatches | None = None
