"""From a sample in the shards to a `View`, what a training step sees of one sweep: read, pair, augment, second view.

Ground and objects are found in the recorded sweep, before any augmentation, and follow their points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

from common.ranges import at_least
from data.batch_spec import BatchSpec, VoxelConfig
from data.geometry import transform
from data.order import SampleDraws
from data.sample import IGNORE_LABEL, CameraView, Sample
from data.storage.decode import Images, SuperpixelForm, decode_jpeg
from data.storage.reader import Reader, SampleError, blamed_on
from data.storage.shard import ShardError
from data.storage.teacher_cache import TeacherCache
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
from data.views.boxes import BoxConfig, ViewBoxes, class_numbers, wanted_boxes
from data.views.clusters import clusters
from data.views.colour import draw_colour
from data.views.ground import ground_mask
from data.views.object_sampling import ObjectSampler, ObjectSamplingConfig
from data.views.pairs import Pairs, cut_to_cameras, no_pairs, point_pixel_pairs
from data.views.point_colour import draw_point_colours
from data.views.second_sweep import Partner, PartnerFinder, SweepMatches
from data.views.voxelize import Voxels, inside_range, measured_of, voxelize


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


# ---- reading
def read_view(
    reader: Reader,
    index: int,
    config: ViewConfig,
    spec: BatchSpec,
    draws: SampleDraws,
    partners: PartnerFinder | None,
    cache: TeacherCache | None = None,
    *,
    labels: bool = False,
    sampler: ObjectSampler | None = None,
) -> View:
    """Read what the method needs of a sample, and nothing else, and make its view.

    A teacher cache gives features in place of pixels; `labels` adds the classes of points as the set numbers them
    (`spec.point_classes` does so in its own order); a sampler puts objects of other sweeps in, whose points' classes
    and pixels are not known, so it excludes `labels`, `spec.point_classes` and `spec.images`.

    Raises:
        SampleError: the sample is damaged, has no pairs, no partner, no labelled boxes or points where `spec` asks for
            them, or no view of it can be made, whatever the exception.
        ShardError: the cache was built with other superpixels, the set has no class of a name in `spec.boxes` or
            `spec.point_classes`, or the storage is away.
    """
    images: Images = "encoded" if spec.images and cache is None else False
    superpixels: SuperpixelForm = "runs" if spec.superpixels else False
    sample = reader.read(
        index, images=images, superpixels=superpixels, labels=labels or bool(spec.boxes or spec.point_classes)
    )
    return view_of(sample, reader, index, config, spec, draws, partners, cache, labels=labels, sampler=sampler)


def view_of(
    sample: Sample,
    reader: Reader,
    index: int,
    config: ViewConfig,
    spec: BatchSpec,
    draws: SampleDraws,
    partners: PartnerFinder | None = None,
    cache: TeacherCache | None = None,
    *,
    labels: bool = False,
    sampler: ObjectSampler | None = None,
) -> View:
    """As `read_view`, of a sample that has been read."""
    shard = reader.shard_of(index)
    with blamed_on(sample.key, shard):
        boxes = _boxes(sample, reader, spec, shard)
        if spec.point_classes:
            sample = _of_classes(sample, reader, spec, shard)
        elif not labels:
            sample = dataclasses.replace(sample, labels=None, instances=None)
        if config.cut_to_cameras:
            sample = cut_to_cameras(sample)
        if sampler is not None and boxes is not None:
            sample, boxes = sampler.put_into(sample, boxes, index, draws)
        partner = None if partners is None else partners.find(index, sample, draws.partner(), shard=shard)
        cached = None if cache is None else _cached_features(cache, index, sample)
        return make_view(sample, config, spec, draws, shard=shard, cached=cached, partner=partner, boxes=boxes)


def partners_for(reader: Reader, indices: Int[np.ndarray, " n"], spec: BatchSpec) -> PartnerFinder | None:
    """Finds other sweeps among the samples in use; None where the method needs none."""
    if spec.second_cloud is None or spec.second_cloud.source == "same":
        return None
    return PartnerFinder(reader, indices, spec.second_cloud)


def _boxes(sample: Sample, reader: Reader, spec: BatchSpec, shard: str) -> ViewBoxes | None:
    """Those of the classes that are asked for; None where none are."""
    if not spec.boxes:
        return None
    numbers = class_numbers(reader.manifest, spec.boxes)
    if sample.boxes is None:
        raise SampleError("no-boxes", sample.key, shard, "nobody has labelled its objects")
    return wanted_boxes(sample.boxes, numbers)


def _of_classes(sample: Sample, reader: Reader, spec: BatchSpec, shard: str) -> Sample:
    """With the classes of its points numbered as `spec` asks, and its objects where it asks for them."""
    numbers = class_numbers(reader.manifest, spec.point_classes, of="points")
    if sample.labels is None:
        raise SampleError("no-labels", sample.key, shard, "nobody has labelled its points")
    if spec.instances and sample.instances is None:
        raise SampleError("no-instances", sample.key, shard, "nobody has told the objects of its points apart")
    labels = np.where(numbers < 0, IGNORE_LABEL, numbers)[sample.labels].astype(np.uint8)
    return dataclasses.replace(sample, labels=labels, instances=sample.instances if spec.instances else None)


def _cached_features(cache: TeacherCache, index: int, sample: Sample) -> list[np.ndarray]:
    """Teacher features of each camera.

    Raises:
        ShardError: the cache was built with other superpixels, or has another sample's features there.
    """
    offsets, rows = cache.offsets(index), cache.features(index, sample.key)
    for number, view in enumerate(sample.cameras):
        stored = view.num_superpixels
        if stored != offsets[number + 1] - offsets[number]:
            raise ShardError(
                f"sample {sample.key}, camera {view.name}: {stored} superpixels in the shards, "
                f"{offsets[number + 1] - offsets[number]} in {cache.path}; delete that folder and build it again"
            )
    return [rows[offsets[number] : offsets[number + 1]] for number in range(len(sample.cameras))]


# ---- making
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
