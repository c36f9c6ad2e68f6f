"""From a sample to its `View`: pair, augment, second view.

Ground and objects are found in the recorded sweep, before any augmentation, and follow their points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from data.batch_spec import BatchSpec, VoxelConfig
from data.geometry import transform
from data.order import SampleDraws
from data.sample import CameraView, Sample
from data.storage.decode import decode_jpeg
from data.storage.reader import SampleError
from data.views.augment import (
    AugmentConfig,
    PixelTransform,
    PointAugmentConfig,
    draw_at_most,
    draw_cloud_transform,
    draw_cuboid,
    draw_elastic,
    draw_jitter,
    draw_pixel_transform,
    draw_thinning,
)
from data.views.boxes import ViewBoxes
from data.views.clusters import clusters
from data.views.colour import draw_colour
from data.views.ground import ground_mask
from data.views.pairs import Pairs, no_pairs, point_pixel_pairs
from data.views.point_colour import draw_point_colours
from data.views.second_sweep import Partner, SweepMatches
from data.views.view import View, ViewCameras, ViewClusters, ViewConfig, ViewSuperpixels
from data.views.voxelize import Voxels, inside_range, measured_of, voxelize


def make_view(
    sample: Sample,
    config: ViewConfig,
    spec: BatchSpec,
    draws: SampleDraws,
    *,
    shard: str = "",
    cached: Sequence[np.ndarray] | None = None,
    partner: Partner | None = None,
    boxes: ViewBoxes | None = None,
) -> View:
    """Pair, augment and voxelise one sample; make a second view of it where the method needs one.

    The sample has no pixels under a teacher cache (`cached`: features of each camera's superpixels) or where `spec`
    asks for no images. `partner` is the other sweep, where `spec.second_cloud` is another one; `boxes` are those of
    the recorded sweep that the view shall have; `shard` is for messages.

    Raises:
        SampleError: no point falls into any image ("zero-pairs") though `spec` needs pairs, or, where it asks for no
            images, into the voxel grid ("no-points"); or there are no cameras ("no-images"), or no superpixels.
        DamagedError: an image cannot be decoded.
    """
    rng, augment = draws.first(), config.augment
    in_use = tuple(range(len(sample.cameras))) if spec.images else ()
    if config.cameras_per_sample is not None and config.cameras_per_sample < len(in_use):
        in_use = tuple(sorted(rng.choice(len(in_use), config.cameras_per_sample, replace=False).tolist()))
    recorded = dataclasses.replace(_record(sample, in_use, spec, draws, shard), boxes=boxes)
    cloud = _draw_cloud(rng, recorded, augment.points, config)
    pixels = _draw_pixels(rng, recorded, cloud, augment, config.image_size) if spec.images else None
    if spec.only_seen and pixels is not None:
        cloud = _keep_seen(cloud, pixels)
    features = None if cached is None else np.concatenate([cached[camera] for camera in in_use]).astype(np.float32)
    voxels = cloud.voxels(recorded, config.voxel)
    view = _assemble(recorded, cloud, voxels, pixels, spec, shard, features)
    view = _with_boxes(view, recorded, config)
    if spec.second_cloud is None and not spec.second_images:
        return view

    # Of cloud and images, what is not drawn again is the first view's, the very arrays.
    rng, matches = draws.second(), None
    if spec.second_cloud is not None:
        every_point = np.arange(len(sample.points_lidar))
        matches = SweepMatches(first=every_point, second=every_point) if partner is None else partner.matches
        if partner is not None:
            # With the first sweep's cameras: their poses relate them to these points, too.
            other = dataclasses.replace(partner.sample, cameras=sample.cameras)
            recorded = _record(other, in_use, spec, draws, shard)
        cloud = _draw_cloud(rng, recorded, augment.second_points or augment.points, config)
    if spec.second_images:
        pixels = _draw_pixels(rng, recorded, cloud, augment, config.image_size)
    if spec.second_cloud is not None and spec.only_seen and pixels is not None:
        cloud = _keep_seen(cloud, pixels)
    if spec.second_cloud is not None:
        voxels = cloud.voxels(recorded, config.voxel)
    second = _assemble(recorded, cloud, voxels, pixels, spec, shard, features)
    second = _with_boxes(second, recorded, config)
    if matches is not None:
        matches = matches.keep(view.recorded, second.recorded)
    return dataclasses.replace(view, second=second, matches=matches)


# ---- the steps, in order
@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """What is known of a sweep before anything is drawn.

    Attributes:
        sample: the sweep; its cameras may be another sweep's.
        cameras: those in use; none where no images are asked for.
        pairs: in the stored images.
        ground: as in `View`, of all points.
        clusters: likewise.
        boxes: labelled ones; None where they are not asked for, or of another sweep.
    """

    sample: Sample
    cameras: tuple[CameraView, ...]
    pairs: Pairs
    ground: Bool[np.ndarray, " N"] | None
    clusters: ViewClusters | None
    boxes: ViewBoxes | None = None

    def intensity(self, points: Int[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Of some points."""
        return np.asarray(self.sample.intensity[points], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class _Cloud:
    """An augmented cloud: the points it keeps, which recorded ones they are (ascending), their stored pairs.

    `colors` are those of all recorded points, where they were changed.
    """

    T_aug_lidar: Float[np.ndarray, "4 4"]
    recorded: Int[np.ndarray, " N"]
    points: Float[np.ndarray, "N 3"]
    pairs: Pairs
    colors: UInt8[np.ndarray, "R 3"] | None = None

    def keep(self, mask: Bool[np.ndarray, " N"]) -> _Cloud:
        """The points that a mask keeps."""
        rows = np.flatnonzero(mask)
        return dataclasses.replace(
            self,
            recorded=self.recorded.take(rows),
            points=self.points.take(rows, axis=0),
            pairs=self.pairs.keep_points(mask),
        )

    def voxels(self, recorded: _Recorded, config: VoxelConfig) -> Voxels:
        """The points in the grid."""
        sample = recorded.sample
        measured = measured_of(
            sample if self.colors is None else dataclasses.replace(sample, colors=self.colors), config
        )
        of_points = None if measured is None else measured[self.recorded]
        return voxelize(self.points, recorded.intensity(self.recorded), config, of_points)


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """Augmented images: what was done to each, and the results (None under a teacher cache)."""

    transforms: tuple[PixelTransform, ...]
    images: tuple[UInt8[np.ndarray, "H W 3"], ...] | None

    def place(self, pairs: Pairs) -> Pairs:
        """Pairs of the stored images in the augmented ones, without those that were cropped away."""
        uv = np.empty_like(pairs.uv)
        inside = np.empty(len(pairs), dtype=bool)
        for number, pixel_transform in enumerate(self.transforms):
            rows = pairs.of_camera(number)
            uv[rows] = pixel_transform.uv(pairs.uv[rows])
            inside[rows] = pixel_transform.inside(uv[rows])
        return Pairs(point=pairs.point, camera=pairs.camera, uv=uv.astype(np.float32)).select(inside)


def _record(sample: Sample, in_use: tuple[int, ...], spec: BatchSpec, draws: SampleDraws, shard: str) -> _Recorded:
    """Pairs, ground and objects of the sweep as it is."""
    cameras = tuple(sample.cameras[camera] for camera in in_use)
    pairs = point_pixel_pairs(sample, in_use) if spec.images else no_pairs()
    if spec.images and not cameras and not spec.need_pairs:
        raise SampleError("no-images", sample.key, shard, "it has no cameras")
    if spec.images and spec.need_pairs and len(pairs) == 0:
        raise SampleError("zero-pairs", sample.key, shard, f"{len(sample.points_lidar)} points, {len(cameras)} cameras")
    if spec.superpixels and any(camera.num_superpixels == 0 for camera in cameras):
        raise SampleError("superpixels-missing", sample.key, shard, "the set was prepared without superpixels")
    ground = None if spec.ground is None else ground_mask(sample.points_lidar, spec.ground, draws.ground())
    objects = None
    if spec.clusters is not None:
        off_ground = np.flatnonzero(np.ones(len(sample.points_lidar), dtype=bool) if ground is None else ~ground)
        of_point = np.full(len(sample.points_lidar), -1, dtype=np.int64)
        of_point[off_ground] = clusters(sample.points_lidar[off_ground], spec.clusters)
        objects = ViewClusters(num=int(of_point.max(initial=-1)) + 1, of_point=of_point)
    return _Recorded(sample=sample, cameras=cameras, pairs=pairs, ground=ground, clusters=objects)


def _draw_cloud(
    rng: np.random.Generator, recorded: _Recorded, augment: PointAugmentConfig, config: ViewConfig
) -> _Cloud:
    """Motion, noise, limits of the grid, dropped cuboid, thinning, a limit of their number, colours."""
    # The order of the draws is part of the data: another one gives every run other batches.
    T_aug_lidar = draw_cloud_transform(rng, augment)
    points = draw_elastic(rng, recorded.sample.points_lidar, augment)
    points = transform(T_aug_lidar, points).astype(np.float32)
    points = draw_jitter(rng, points, augment)
    keep = inside_range(points, config.voxel)
    in_cuboid = draw_cuboid(rng, points, augment)
    if _may_drop(in_cuboid, keep, recorded, config.augment.min_pairs):
        keep &= ~in_cuboid
    keep[keep] = draw_thinning(rng, int(keep.sum()), augment)
    keep[keep] = draw_at_most(rng, int(keep.sum()), config.max_points)
    colors = recorded.sample.colors
    if colors is not None:
        colors = draw_point_colours(rng, colors, augment.colour) if augment.enabled else None
    all_points = np.arange(len(points))
    cloud = _Cloud(T_aug_lidar=T_aug_lidar, recorded=all_points, points=points, pairs=recorded.pairs, colors=colors)
    return cloud.keep(keep)


def _may_drop(
    in_cuboid: Bool[np.ndarray, " N"], keep: Bool[np.ndarray, " N"], recorded: _Recorded, min_pairs: int
) -> bool:
    """Whether each image that would lose pairs keeps at least `min_pairs`; without images: whether points stay."""
    num_cameras = len(recorded.cameras)
    if num_cameras == 0:
        return bool((keep & ~in_cuboid).any())
    pairs = recorded.pairs.select(keep[recorded.pairs.point])
    num_lost = pairs.select(in_cuboid[pairs.point]).counts(num_cameras)
    num_left = pairs.counts(num_cameras) - num_lost
    return bool(((num_lost == 0) | (num_left >= min_pairs)).all())


def _draw_pixels(
    rng: np.random.Generator, recorded: _Recorded, cloud: _Cloud, augment: AugmentConfig, image_size: tuple[int, int]
) -> _Pixels:
    """Crop, mirror, resize, and then the colours of each image. The pixels that the crop needs are decoded only now."""
    cameras, transforms = recorded.cameras, []
    for number, camera in enumerate(cameras):
        uv = cloud.pairs.uv[cloud.pairs.of_camera(number)]
        transforms.append(draw_pixel_transform(rng, uv, camera.image_size, image_size, augment))
    images = None
    if all(camera.jpeg is not None or camera.image is not None for camera in cameras):
        images = tuple(_cut(camera, place) for camera, place in zip(cameras, transforms, strict=True))
        if augment.image.enabled and augment.image.colour.enabled:
            images = tuple(draw_colour(rng, augment.image.colour)(image) for image in images)
    return _Pixels(transforms=tuple(transforms), images=images)


def _cut(camera: CameraView, place: PixelTransform) -> UInt8[np.ndarray, "h w 3"]:
    if camera.image is not None:
        return place.image(camera.image)
    assert camera.jpeg is not None
    return place.image(decode_jpeg(camera.name, camera.jpeg, place.reduction), place.reduction)


def _keep_seen(cloud: _Cloud, pixels: _Pixels) -> _Cloud:
    """The points that some augmented image shows."""
    seen = np.zeros(len(cloud.points), dtype=bool)
    seen[pixels.place(cloud.pairs).point] = True
    return cloud.keep(seen)


def _assemble(
    recorded: _Recorded,
    cloud: _Cloud,
    voxels: Voxels,
    pixels: _Pixels | None,
    spec: BatchSpec,
    shard: str,
    features: Float[np.ndarray, "S D"] | None,
) -> View:
    """All that belongs to the points and pixels that are left."""
    sample, points, objects = recorded.sample, cloud.recorded, recorded.clusters
    if len(points) == 0 and pixels is None:
        raise SampleError("no-points", sample.key, shard, f"none of {len(sample.points_lidar)} is in the voxel grid")
    view = View(
        key=sample.key,
        recorded=points,
        points=cloud.points,
        intensity=recorded.intensity(points),
        voxels=voxels,
        T_aug_lidar=cloud.T_aug_lidar,
        ground=None if recorded.ground is None else recorded.ground[points],
        clusters=None if objects is None else dataclasses.replace(objects, of_point=objects.of_point[points]),
        labels=None if sample.labels is None else sample.labels[points],
        instances=None if sample.instances is None else sample.instances[points],
    )
    if pixels is None:
        return view
    pairs = pixels.place(cloud.pairs)
    if spec.need_pairs and len(pairs) == 0:
        raise SampleError("zero-pairs", view.key, shard, "none is left inside voxel.range_min to range_max")
    cameras, transforms = recorded.cameras, pixels.transforms
    T_lidar_points = np.linalg.inv(cloud.T_aug_lidar)
    return dataclasses.replace(
        view,
        images=pixels.images,
        cameras=ViewCameras(
            transforms=transforms,
            K=np.stack([place.affine @ camera.K for place, camera in zip(transforms, cameras, strict=True)]),
            T_cam_points=np.stack([sample.T_cam_lidar(camera) @ T_lidar_points for camera in cameras]),
            min_depth_m=np.array([float(camera.min_depth_m) for camera in cameras]),
        ),
        pairs=pairs,
        superpixels=_superpixels(cameras, pixels, pairs, features) if spec.superpixels else None,
    )


def _with_boxes(view: View, recorded: _Recorded, config: ViewConfig) -> View:
    """With the boxes where its points are."""
    if recorded.boxes is None:
        return view
    boxes = recorded.boxes.moved(view.T_aug_lidar).kept(view.points, config.voxel, config.boxes)
    return dataclasses.replace(view, boxes=boxes)


def _superpixels(
    cameras: Sequence[CameraView], pixels: _Pixels, pairs: Pairs, features: Float[np.ndarray, "S D"] | None
) -> ViewSuperpixels:
    """Those of the stored images, moved with the pixels.

    A pair's superpixel is that of the augmented image's pixel nearest to it (halves round up).
    """
    stored = [
        np.asarray(camera.superpixels) if camera.superpixel_runs is None else camera.superpixel_runs
        for camera in cameras
    ]
    maps = tuple(place.nearest(ids) for place, ids in zip(pixels.transforms, stored, strict=True))
    columns, rows = np.floor(pairs.uv + 0.5).astype(np.int64).T
    of_pair = np.empty(len(pairs), dtype=np.int64)
    for number, ids in enumerate(maps):
        of_camera = pairs.of_camera(number)
        of_pair[of_camera] = ids[rows[of_camera], columns[of_camera]]
    return ViewSuperpixels(
        num=tuple(camera.num_superpixels for camera in cameras),
        of_pair=of_pair,
        of_pixel=None if pixels.images is None else maps,
        features=features,
    )
