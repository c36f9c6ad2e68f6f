"""The steps from a recorded sweep to an augmented cloud and augmented images, that `data.views.view` puts together.

Ground and objects are found in the recorded sweep, before any augmentation, and follow their points.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from data.batch_spec import BatchSpec
from data.geometry import transform
from data.order import SampleDraws
from data.sample import CameraView, Sample
from data.storage.decode import decode_jpeg
from data.storage.shards import SampleError
from data.views.augment import (
    AugmentConfig,
    PixelTransform,
    PointAugmentConfig,
    draw_cloud_transform,
    draw_cuboid,
    draw_jitter,
    draw_pixel_transform,
    draw_thinning,
)
from data.views.clusters import clusters
from data.views.colour import draw_colour
from data.views.ground import ground_mask
from data.views.pairs import Pairs, point_pixel_pairs
from data.views.voxelize import VoxelConfig, inside_range


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What is known of a sweep before anything is drawn.

    Attributes:
        sample: the sweep; its cameras may be another sweep's.
        cameras: those in use.
        pairs: in the stored images; None without images.
        ground: as in `View`, of all points.
        cluster: likewise.
        num_clusters: likewise.
    """

    sample: Sample
    cameras: tuple[CameraView, ...]
    pairs: Pairs | None
    ground: Bool[np.ndarray, " N"] | None
    cluster: Int[np.ndarray, " N"] | None
    num_clusters: int


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """An augmented cloud: the points that are left, which recorded ones they are (ascending), their stored pairs."""

    T_aug_lidar: Float[np.ndarray, "4 4"]
    recorded: Int[np.ndarray, " N"]
    points: Float[np.ndarray, "N 3"]
    pairs: Pairs | None

    def only(self, kept: Bool[np.ndarray, " N"]) -> Cloud:
        """The points that a mask keeps."""
        pairs = None if self.pairs is None else self.pairs.keep_points(kept)
        left = np.flatnonzero(kept)
        return dataclasses.replace(
            self, recorded=self.recorded.take(left), points=self.points.take(left, axis=0), pairs=pairs
        )


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Augmented images: what was done to each, and the results (None without pixels)."""

    transforms: tuple[PixelTransform, ...]
    images: tuple[UInt8[np.ndarray, "H W 3"], ...] | None

    def placed(self, pairs: Pairs) -> Pairs:
        """Pairs of the stored images in the augmented ones; those that were cropped away are gone."""
        uv = np.empty_like(pairs.uv)
        inside = np.empty(len(pairs), dtype=bool)
        for number, moved in enumerate(self.transforms):
            mine = pairs.of_camera(number)
            uv[mine] = moved.uv(pairs.uv[mine])
            inside[mine] = moved.inside(uv[mine])
        return Pairs(point=pairs.point, camera=pairs.camera, uv=uv.astype(np.float32)).select(inside)


def record(sample: Sample, chosen: tuple[int, ...], spec: BatchSpec, draws: SampleDraws, shard: str) -> Recorded:
    """Pairs, ground and objects of the sweep as it is."""
    cameras = tuple(sample.cameras[camera] for camera in chosen)
    pairs = point_pixel_pairs(sample, chosen) if spec.images else None
    if pairs is not None and len(pairs) == 0:
        raise SampleError("zero-pairs", sample.key, shard, f"{len(sample.points_lidar)} points, {len(cameras)} cameras")
    if spec.superpixels and any(camera.superpixels is None for camera in cameras):
        raise SampleError("superpixels-missing", sample.key, shard, "the set was prepared without superpixels")
    ground = None if spec.ground is None else ground_mask(sample.points_lidar, spec.ground, draws.ground())
    cluster = None
    if spec.clusters is not None:
        standing = np.flatnonzero(np.ones(len(sample.points_lidar), dtype=bool) if ground is None else ~ground)
        cluster = np.full(len(sample.points_lidar), -1, dtype=np.int64)
        cluster[standing] = clusters(sample.points_lidar[standing], spec.clusters)
    return Recorded(
        sample=sample,
        cameras=cameras,
        pairs=pairs,
        ground=ground,
        cluster=cluster,
        num_clusters=0 if cluster is None else int(cluster.max(initial=-1)) + 1,
    )


def draw_cloud(
    rng: np.random.Generator, recorded: Recorded, augment: PointAugmentConfig, voxel: VoxelConfig, min_pairs: int
) -> Cloud:
    """Motion, noise, limits of the grid, dropped cuboid, thinning."""
    T_aug_lidar = draw_cloud_transform(rng, augment)
    points = transform(T_aug_lidar, recorded.sample.points_lidar).astype(np.float32)
    points = draw_jitter(rng, points, augment)
    kept = inside_range(points, voxel)
    dropped = draw_cuboid(rng, points, augment)
    if _may_drop(dropped, kept, recorded, min_pairs):
        kept &= ~dropped
    kept[kept] = draw_thinning(rng, int(kept.sum()), augment)
    everything = np.arange(len(points))
    return Cloud(T_aug_lidar=T_aug_lidar, recorded=everything, points=points, pairs=recorded.pairs).only(kept)


def _may_drop(
    dropped: Bool[np.ndarray, " N"], kept: Bool[np.ndarray, " N"], recorded: Recorded, min_pairs: int
) -> bool:
    """Whether some points stay, and each image that would lose pairs keeps at least `min_pairs`."""
    if recorded.pairs is None:
        return bool((kept & ~dropped).any())
    pairs = recorded.pairs.select(kept[recorded.pairs.point])
    num_cameras = len(recorded.cameras)
    lost = pairs.select(dropped[pairs.point]).counts(num_cameras)
    left = pairs.counts(num_cameras) - lost
    return bool(((lost == 0) | (left >= min_pairs)).all())


def draw_pixels(
    rng: np.random.Generator, recorded: Recorded, cloud: Cloud, augment: AugmentConfig, image_size: tuple[int, int]
) -> Pixels:
    """Crop, mirror, resize, and then the colours of each image. The pixels that the crop needs are decoded only now.

    Raises:
        DamagedError: an image cannot be decoded.
    """
    assert cloud.pairs is not None
    transforms = []
    for number, camera in enumerate(recorded.cameras):
        uv = cloud.pairs.uv[cloud.pairs.of_camera(number)]
        transforms.append(draw_pixel_transform(rng, uv, camera.image_size, image_size, augment))
    images = None
    if all(camera.jpeg is not None or camera.image is not None for camera in recorded.cameras):
        images = tuple(_pixels(camera, moved) for camera, moved in zip(recorded.cameras, transforms, strict=True))
        if augment.image.enabled and augment.image.colour.enabled:
            images = tuple(draw_colour(rng, augment.image.colour)(image) for image in images)
    return Pixels(transforms=tuple(transforms), images=images)


def _pixels(camera: CameraView, moved: PixelTransform) -> UInt8[np.ndarray, "h w 3"]:
    if camera.image is not None:
        return moved.image(camera.image)
    assert camera.jpeg is not None
    return moved.image(decode_jpeg(camera.name, camera.jpeg, moved.reduction), moved.reduction)


def only_seen(cloud: Cloud, pixels: Pixels | None) -> Cloud:
    """The points that some augmented image shows."""
    assert pixels is not None
    assert cloud.pairs is not None
    seen = np.zeros(len(cloud.points), dtype=bool)
    seen[pixels.placed(cloud.pairs).point] = True
    return cloud.only(seen)
