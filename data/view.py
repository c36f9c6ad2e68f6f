"""From a sample to a `View`: pair, augment, look up superpixels. What a training step sees of one sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from data.augment import (
    AugmentConfig,
    PixelTransform,
    draw_cloud_transform,
    draw_cuboid,
    draw_pixel_transform,
)
from data.geometry import transform
from data.pairs import Pairs, point_pixel_pairs
from data.sample import Sample
from data.shards import SampleError
from data.voxelize import VoxelConfig, inside_range


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """What is made of a sample.

    Attributes:
        image_size: height, width that images are brought to, pixels.
        superpixels: whether batches carry superpixels (then every sample must have them).
        cameras_per_sample: use so many cameras of each sample, drawn anew each epoch; None for all.
        voxel: grid and input features.
        augment: what changes from epoch to epoch.
    """

    image_size: tuple[int, int] = (224, 416)
    superpixels: bool = True
    cameras_per_sample: int | None = None
    voxel: VoxelConfig = field(default_factory=VoxelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        if min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}, expected a positive height and width")
        if self.cameras_per_sample is not None and self.cameras_per_sample < 1:
            raise ValueError(f"cameras_per_sample is {self.cameras_per_sample}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class View:
    """One sample after augmentation.

    Attributes:
        key: of the sample.
        points: in the augmented LiDAR frame, metres.
        intensity: 0 to 1.
        labels: class of each point; None without.
        images: one a camera, all of one size; None without pixels.
        segments: superpixels of each image; None without superpixels or pixels.
        num_images: cameras in use.
        pair_point: point of each pair.
        pair_image: camera of each pair.
        pair_uv: in the augmented image.
        pair_segment: superpixel of each pair within its image; None without superpixels.
        num_segments: superpixels of each stored image, (0, ...) without.
        segment_features: cached teacher features, images one after another; None without.
        T_aug_lidar: what was done to the cloud.
        pixel_transforms: what was done to each image.
    """

    key: str
    points: Float[np.ndarray, "N 3"]
    intensity: Float[np.ndarray, " N"]
    labels: UInt8[np.ndarray, " N"] | None = None
    images: tuple[UInt8[np.ndarray, "H W 3"], ...] | None = None
    segments: tuple[Int[np.ndarray, "H W"], ...] | None = None
    num_images: int = 0
    pair_point: Int[np.ndarray, " P"] | None = None
    pair_image: Int[np.ndarray, " P"] | None = None
    pair_uv: Float[np.ndarray, "P 2"] | None = None
    pair_segment: Int[np.ndarray, " P"] | None = None
    num_segments: tuple[int, ...] = ()
    segment_features: Float[np.ndarray, "S D"] | None = None
    T_aug_lidar: Float[np.ndarray, "4 4"] | None = None
    pixel_transforms: tuple[PixelTransform, ...] = ()


def make_view(
    sample: Sample,
    config: ViewConfig,
    rng: np.random.Generator,
    *,
    shard: str = "",
    cached: Sequence[np.ndarray] | None = None,
) -> View:
    """Pair and augment one sample.

    A pair's superpixel is that of the augmented image's pixel nearest to it (halves round up).

    Args:
        sample: as read; without pixels under a teacher cache.
        config: what to do.
        rng: the sample's own random numbers.
        shard: for messages.
        cached: teacher features of the superpixels of each camera.

    Raises:
        SampleError: no point falls into any image, or superpixels are missing.
    """
    cameras = _choose_cameras(rng, len(sample.cameras), config.cameras_per_sample)
    views = [sample.cameras[camera] for camera in cameras]
    pairs = point_pixel_pairs(sample, cameras)
    if len(pairs) == 0:
        raise SampleError("zero-pairs", sample.key, shard, f"{len(sample.points_lidar)} points, {len(views)} cameras")
    if config.superpixels and any(view.superpixels is None for view in views):
        raise SampleError("superpixels-missing", sample.key, shard, "the set was prepared without superpixels")

    # Cloud: limits of the grid, rigid motion, dropped cuboid.
    T_aug_lidar = draw_cloud_transform(rng, config.augment.points)
    points = transform(T_aug_lidar, sample.points_lidar).astype(np.float32)
    kept = inside_range(points, config.voxel)
    dropped = draw_cuboid(rng, points, config.augment.points)
    if _may_drop(dropped & kept, pairs.select(kept[pairs.point]), len(views), config.augment.min_pairs):
        kept &= ~dropped
    pairs = pairs.keep_points(kept)

    # Images: crop, mirror, resize; the pairs follow.
    transforms: list[PixelTransform] = []
    uv = np.empty_like(pairs.uv)
    inside = np.empty(len(pairs), dtype=bool)
    for number, view in enumerate(views):
        mine = pairs.of_camera(number)
        moved = draw_pixel_transform(rng, pairs.uv[mine], view.image_size, config.image_size, config.augment)
        transforms.append(moved)
        uv[mine] = moved.uv(pairs.uv[mine])
        inside[mine] = moved.inside(uv[mine])
    pairs = Pairs(point=pairs.point, camera=pairs.camera, uv=uv.astype(np.float32)).select(inside)
    if len(pairs) == 0:
        raise SampleError("zero-pairs", sample.key, shard, "none is left inside voxel.range_min to range_max")

    # Superpixels.
    maps = None
    if config.superpixels:
        maps = [np.asarray(view.superpixels) for view in views]
    with_pixels = all(view.image is not None for view in views)
    return View(
        key=sample.key,
        points=points[kept],
        intensity=sample.intensity[kept].astype(np.float32),
        labels=None if sample.labels is None else sample.labels[kept],
        images=tuple(moved.image(np.asarray(view.image)) for moved, view in zip(transforms, views, strict=True))
        if with_pixels
        else None,
        segments=tuple(moved.segments(ids) for moved, ids in zip(transforms, maps, strict=True))
        if maps is not None and with_pixels
        else None,
        num_images=len(views),
        pair_point=pairs.point,
        pair_image=pairs.camera,
        pair_uv=pairs.uv,
        pair_segment=None if maps is None else _pair_segments(pairs, transforms, maps),
        num_segments=(0,) * len(views) if maps is None else tuple(int(ids.max()) + 1 for ids in maps),
        segment_features=None
        if cached is None
        else np.concatenate([cached[camera] for camera in cameras]).astype(np.float32),
        T_aug_lidar=T_aug_lidar,
        pixel_transforms=tuple(transforms),
    )


def _choose_cameras(rng: np.random.Generator, available: int, wanted: int | None) -> tuple[int, ...]:
    if wanted is None or wanted >= available:
        return tuple(range(available))
    return tuple(sorted(int(camera) for camera in rng.choice(available, wanted, replace=False)))


def _may_drop(dropped: Bool[np.ndarray, " N"], pairs: Pairs, num_cameras: int, min_pairs: int) -> bool:
    """Whether each image that would lose pairs keeps at least `min_pairs`."""
    lost = pairs.select(dropped[pairs.point]).counts(num_cameras)
    left = pairs.counts(num_cameras) - lost
    return bool(((lost == 0) | (left >= min_pairs)).all()) and not bool(dropped.all())


def _pair_segments(
    pairs: Pairs, transforms: Sequence[PixelTransform], maps: Sequence[np.ndarray]
) -> Int[np.ndarray, " P"]:
    nearest = np.floor(pairs.uv + 0.5).astype(np.int64)
    found = np.empty(len(pairs), dtype=np.int64)
    for number, (moved, ids) in enumerate(zip(transforms, maps, strict=True)):
        mine = pairs.of_camera(number)
        rows, columns = moved.source_pixels()
        found[mine] = ids[rows[nearest[mine][:, 1]], columns[nearest[mine][:, 0]]]
    return found
