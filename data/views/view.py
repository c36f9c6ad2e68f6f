"""From a sample to a `View`: pair, augment, look up superpixels, add a second view. What a step sees of one sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

from data.batch_spec import BatchSpec
from data.order import SampleDraws
from data.sample import Sample
from data.storage.shards import SampleError
from data.views.augment import AugmentConfig, PixelTransform
from data.views.pairs import Pairs
from data.views.second_sweep import Matches, Partner
from data.views.stages import Cloud, Pixels, Recorded, draw_cloud, draw_pixels, only_seen, record
from data.views.voxelize import VoxelConfig


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """What is made of a sample.

    Attributes:
        image_size: height, width that images are brought to, pixels.
        cameras_per_sample: use so many cameras of each sample, drawn anew each epoch; None for all.
        voxel: grid and input features.
        augment: what changes from epoch to epoch.
    """

    image_size: tuple[int, int] = (224, 416)
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
        recorded: which point of the recorded sweep each point is.
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
        T_cam_points: from the frame of `points` to each camera.
        K: intrinsics of each augmented image.
        ground: whether each point lies on the ground; None unless asked for.
        cluster: object of each point, -1 for none; None unless asked for.
        num_clusters: of the recorded sweep.
        second: the other view; None unless asked for. It has none itself.
        matches: points of the two views that belong together; None without a second cloud.
    """

    key: str
    recorded: Int[np.ndarray, " N"]
    points: Float[np.ndarray, "N 3"]
    intensity: Float[np.ndarray, " N"]
    labels: UInt8[np.ndarray, " N"] | None = None
    images: tuple[UInt8[np.ndarray, "H W 3"], ...] | None = None
    segments: tuple[Integer[np.ndarray, "H W"], ...] | None = None
    num_images: int = 0
    pair_point: Int[np.ndarray, " P"] | None = None
    pair_image: Int[np.ndarray, " P"] | None = None
    pair_uv: Float[np.ndarray, "P 2"] | None = None
    pair_segment: Int[np.ndarray, " P"] | None = None
    num_segments: tuple[int, ...] = ()
    segment_features: Float[np.ndarray, "S D"] | None = None
    T_aug_lidar: Float[np.ndarray, "4 4"]
    pixel_transforms: tuple[PixelTransform, ...] = ()
    T_cam_points: Float[np.ndarray, "V 4 4"] | None = None
    K: Float[np.ndarray, "V 3 3"] | None = None
    ground: Bool[np.ndarray, " N"] | None = None
    cluster: Int[np.ndarray, " N"] | None = None
    num_clusters: int = 0
    second: View | None = None
    matches: Matches | None = None


def make_view(
    sample: Sample,
    config: ViewConfig,
    spec: BatchSpec,
    draws: SampleDraws,
    *,
    shard: str = "",
    cached: Sequence[np.ndarray] | None = None,
    partner: Partner | None = None,
) -> View:
    """Pair and augment one sample; make a second view of it where the method wants one.

    A pair's superpixel is that of the augmented image's pixel nearest to it (halves round up).

    Args:
        sample: as read; without pixels under a teacher cache or where no images are wanted.
        config: what to do.
        spec: what the method needs.
        draws: the sample's own random numbers.
        shard: for messages.
        cached: teacher features of the superpixels of each camera.
        partner: the other sweep, where `spec.second_cloud` is another one.

    Raises:
        SampleError: no point falls into any image ("zero-pairs") or, where no images are wanted, into the voxel grid
            ("no-points"), or superpixels are missing.
    """
    rng, augment = draws.first(), config.augment
    chosen = _choose_cameras(rng, len(sample.cameras), config.cameras_per_sample) if spec.images else ()
    recorded = record(sample, chosen, spec, draws, shard)
    cloud = draw_cloud(rng, recorded, augment.points, config.voxel, augment.min_pairs)
    pixels = draw_pixels(rng, recorded, cloud, augment, config.image_size) if spec.images else None
    if spec.only_seen:
        cloud = only_seen(cloud, pixels)
    features = None if cached is None else np.concatenate([cached[camera] for camera in chosen]).astype(np.float32)
    view = _assemble(recorded, cloud, pixels, spec, shard, features)
    if spec.second_cloud is None and not spec.second_images:
        return view

    # Of cloud and images, what is not drawn again is the first view's, the very arrays.
    rng, matches = draws.second(), None
    if spec.second_cloud is not None:
        matches = partner.matches if partner is not None else _with_itself(sample)
        if partner is not None:
            # With the first sweep's cameras: their poses relate them to these points, too.
            other = dataclasses.replace(partner.sample, cameras=sample.cameras)
            recorded = record(other, chosen, spec, draws, shard)
        cloud = draw_cloud(rng, recorded, augment.second_points or augment.points, config.voxel, augment.min_pairs)
    if spec.second_images:
        pixels = draw_pixels(rng, recorded, cloud, augment, config.image_size)
    if spec.second_cloud is not None and spec.only_seen:
        cloud = only_seen(cloud, pixels)
    second = _assemble(recorded, cloud, pixels, spec, shard, features)
    kept = None if matches is None else matches.kept(view.recorded, second.recorded)
    return dataclasses.replace(view, second=second, matches=kept)


def _choose_cameras(rng: np.random.Generator, available: int, wanted: int | None) -> tuple[int, ...]:
    if wanted is None or wanted >= available:
        return tuple(range(available))
    return tuple(sorted(int(camera) for camera in rng.choice(available, wanted, replace=False)))


def _with_itself(sample: Sample) -> Matches:
    every = np.arange(len(sample.points_lidar))
    return Matches(first=every, second=every)


def _assemble(
    recorded: Recorded,
    cloud: Cloud,
    pixels: Pixels | None,
    spec: BatchSpec,
    shard: str,
    features: Float[np.ndarray, "S D"] | None,
) -> View:
    """All that belongs to the points and pixels that are left."""
    sample, left = recorded.sample, cloud.recorded
    if len(left) == 0 and pixels is None:
        raise SampleError("no-points", sample.key, shard, f"none of {len(sample.points_lidar)} is in the voxel grid")
    view = View(
        key=sample.key,
        recorded=left,
        points=cloud.points,
        intensity=sample.intensity[left].astype(np.float32),
        labels=None if sample.labels is None else sample.labels[left],
        T_aug_lidar=cloud.T_aug_lidar,
        ground=None if recorded.ground is None else recorded.ground[left],
        cluster=None if recorded.cluster is None else recorded.cluster[left],
        num_clusters=recorded.num_clusters,
    )
    return view if pixels is None else _with_pixels(view, recorded, cloud, pixels, spec, shard, features)


def _with_pixels(
    view: View,
    recorded: Recorded,
    cloud: Cloud,
    pixels: Pixels,
    spec: BatchSpec,
    shard: str,
    features: Float[np.ndarray, "S D"] | None,
) -> View:
    assert cloud.pairs is not None
    pairs = pixels.placed(cloud.pairs)
    if len(pairs) == 0:
        raise SampleError("zero-pairs", view.key, shard, "none is left inside voxel.range_min to range_max")
    cameras, transforms = recorded.cameras, pixels.transforms
    maps = [np.asarray(camera.superpixels) for camera in cameras] if spec.superpixels else None
    T_lidar_points = np.linalg.inv(cloud.T_aug_lidar)
    return dataclasses.replace(
        view,
        images=pixels.images,
        segments=tuple(moved.segments(ids) for moved, ids in zip(transforms, maps, strict=True))
        if maps is not None and pixels.images is not None
        else None,
        num_images=len(cameras),
        pair_point=pairs.point,
        pair_image=pairs.camera,
        pair_uv=pairs.uv,
        pair_segment=None if maps is None else _pair_segments(pairs, transforms, maps),
        num_segments=(0,) * len(cameras) if maps is None else tuple(int(ids.max()) + 1 for ids in maps),
        segment_features=features,
        pixel_transforms=transforms,
        K=np.stack([moved.affine @ camera.K for moved, camera in zip(transforms, cameras, strict=True)]),
        T_cam_points=np.stack([recorded.sample.T_cam_lidar(camera) @ T_lidar_points for camera in cameras]),
    )


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
