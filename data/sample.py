"""The contract between data and models: one recorded moment (`Sample`) and one training step's worth (`Batch`).

Frames: `lidar` (x forward, y left, z up at the sensor), `ego` (vehicle), `world` (fixed to the log's map), `cam`
(x right, y down, z forward). `T_a_b` maps points of frame b to frame a. Metres, radians, microseconds. Pixel (0, 0)
is the *centre* of the top-left pixel, u to the right, v down.

Letters: B samples, I images of all samples, N points of all samples, M voxels, P pairs, S superpixels, Q matches
between two views, H W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt8
from torch import Tensor

IGNORE_LABEL = 255
"""Semantic label of points that no loss and no metric counts."""


@dataclass(frozen=True, kw_only=True)
class CameraView:
    """One camera's image and calibration, at the camera's own time.

    Attributes:
        name: sensor name, letters, digits and underscores, the same in every sample of a set.
        image_size: height, width of the image as stored.
        image: RGB; None where the reader was asked to leave it undecoded.
        jpeg: when a set is written, the image as the source has it, where that is a JPEG: stored unchanged, so that
            nothing is lost. When it is read, the stored image in place of `image`, where the reader was asked for it.
        K: pinhole intrinsics, pixels.
        T_cam_ego: extrinsics.
        T_world_ego: ego pose when the image was taken.
        timestamp_us: when the image was taken.
        superpixels: segment id of each pixel, consecutive from 0; None before they are made.
        depth_m: ground-truth depth along the optical axis, 0 where unknown; None where the set has none.
        labels: ground-truth class of each pixel, IGNORE_LABEL where unlabelled; None where the set has none.
    """

    name: str
    image_size: tuple[int, int]
    K: Float[np.ndarray, "3 3"]
    T_cam_ego: Float[np.ndarray, "4 4"]
    T_world_ego: Float[np.ndarray, "4 4"]
    timestamp_us: int
    image: UInt8[np.ndarray, "H W 3"] | None = None
    jpeg: bytes | None = None
    superpixels: Integer[np.ndarray, "H W"] | None = None
    depth_m: Float[np.ndarray, "H W"] | None = None
    labels: UInt8[np.ndarray, "H W"] | None = None


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Labelled 3D boxes in the LiDAR frame at the sweep's time.

    Attributes:
        centers_m: box centres.
        sizes_m: length (along heading), width, height.
        yaws: heading about z, radians.
        velocities_mps: in the ground plane; NaN where unknown.
        classes: index into the set's class names.
        track_ids: the same object through a log has the same id; -1 where unknown.
        num_points: points of the sweep inside, as the set states them; -1 where unknown. This and the next two are None
            where the set has nothing of the kind.
        difficulties: the set's own level; -1 where unknown.
        attributes: index into the set's attributes (docs/datasets/<set>.md); -1 where it has none.
    """

    centers_m: Float[np.ndarray, "boxes 3"]
    sizes_m: Float[np.ndarray, "boxes 3"]
    yaws: Float[np.ndarray, " boxes"]
    velocities_mps: Float[np.ndarray, "boxes 2"]
    classes: Int[np.ndarray, " boxes"]
    track_ids: Int[np.ndarray, " boxes"]
    num_points: Int[np.ndarray, " boxes"] | None = None
    difficulties: Int[np.ndarray, " boxes"] | None = None
    attributes: Int[np.ndarray, " boxes"] | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sweep, its cameras, calibration, poses and (where the set has them) labels.

    Attributes:
        key: unique in its set; letters, digits, '-' and '_' (a dot would end a WebDataset key).
        log: name of the drive that it belongs to.
        timestamp_us: time of the sweep.
        points_lidar: x, y, z in metres in the LiDAR frame.
        intensity: return strength, 0 to 1.
        T_ego_lidar: extrinsics.
        T_world_ego: ego pose at the sweep's time.
        cameras: in the set's fixed order.
        labels: semantic class of each point, IGNORE_LABEL where unlabelled.
        instances: object of each point, 0 for none.
        boxes: 3D boxes.
    """

    key: str
    log: str
    timestamp_us: int
    points_lidar: Float[np.ndarray, "N 3"]
    intensity: Float[np.ndarray, " N"]
    T_ego_lidar: Float[np.ndarray, "4 4"]
    T_world_ego: Float[np.ndarray, "4 4"]
    cameras: tuple[CameraView, ...]
    labels: UInt8[np.ndarray, " N"] | None = None
    instances: Int[np.ndarray, " N"] | None = None
    boxes: Boxes | None = None

    def T_cam_lidar(self, camera: CameraView) -> Float[np.ndarray, "4 4"]:  # noqa: N802
        """Pose chain LiDAR -> ego at the sweep's time -> world -> ego at the camera's time -> camera."""
        T_cam_world = camera.T_cam_ego @ np.linalg.inv(camera.T_world_ego)
        return np.asarray(T_cam_world @ self.T_world_ego @ self.T_ego_lidar)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank's forward pass sees. Ragged parts of all samples lie one after another.

    Attributes:
        keys: one a sample, for messages.
        points: x, y, z in the (augmented) LiDAR frame, metres.
        point_sample: sample of each point, non-decreasing.
        point_voxel: voxel of each point, index into `voxel_coords`.
        voxel_coords: (sample, x, y, z) integer cell; may be negative in x, y, z; unique rows, sorted by sample.
        voxel_features: network input of each voxel (see `VoxelConfig.features`).
        images: RGB, or None where the step needs no pixels (cached teacher, downstream).
        image_sample: sample of each image, non-decreasing; None with `images` except under a teacher cache.
        pair_point: point of each point-pixel pair.
        pair_image: image of each pair.
        pair_uv: pixel coordinates of each pair in the (augmented) image.
        pair_segment: superpixel of each pair, 0 <= id < num_segments, unique over the whole batch; None without.
        segments: superpixel of each pixel with the same ids, -1 where none; None without superpixels or pixels.
        num_segments: S, counting superpixels that have no point.
        segments_per_image: how many of them belong to each image, in order; None with `image_sample`.
        segment_features: cached teacher features pooled over each superpixel; None without a teacher cache.
        labels: semantic class of each point, IGNORE_LABEL where unlabelled; None without.
        T_aug_lidar: what was done to each sample's cloud: recorded LiDAR frame to the frame of `points`.
        image_K: intrinsics of each (augmented) image; a mirrored one has a negative first focal length. None without
            images.
        image_T_cam_points: frame of `points` to each camera: `project(image_K, image_T_cam_points p)` is `pair_uv`.
        image_affine: pixel coordinates of the stored image to those of the augmented one, per image.
        image_depth_m: ground-truth depth, 0 where unknown; downstream only.
        image_labels: ground-truth class of each pixel, IGNORE_LABEL where unlabelled; downstream only.
        ground: whether a point lies on the ground; None unless `BatchSpec.ground`.
        cluster: object of each point, 0 <= id < num_clusters, unique over the batch, -1 for none; None unless
            `BatchSpec.clusters`. `second` has the same ids.
        num_clusters: clusters of all samples, also those that augmentation removed.
        second: another view of the same samples in the same order (`BatchSpec.second_cloud`,
            `BatchSpec.second_images`). Of the two parts, cloud and images, the one that was not asked for is that of
            the first view.
        match_point: points of this view that have a partner in the second one; None without `BatchSpec.second_cloud`.
        match_second: the partner of each, a point of `second`. No point occurs twice in `match_point`.
    """

    keys: tuple[str, ...]
    points: Float[Tensor, "N 3"]
    point_sample: Int[Tensor, " N"]
    point_voxel: Int[Tensor, " N"]
    voxel_coords: Int[Tensor, "M 4"]
    voxel_features: Float[Tensor, "M F"]
    images: UInt8[Tensor, "I 3 H W"] | None = None
    image_sample: Int[Tensor, " I"] | None = None
    pair_point: Int[Tensor, " P"] | None = None
    pair_image: Int[Tensor, " P"] | None = None
    pair_uv: Float[Tensor, "P 2"] | None = None
    pair_segment: Int[Tensor, " P"] | None = None
    segments: Int[Tensor, "I H W"] | None = None
    num_segments: int = 0
    segments_per_image: Int[Tensor, " I"] | None = None
    segment_features: Float[Tensor, "S D"] | None = None
    labels: Int[Tensor, " N"] | None = None
    T_aug_lidar: Float[Tensor, "B 4 4"] | None = None
    image_K: Float[Tensor, "I 3 3"] | None = None  # noqa: N815
    image_T_cam_points: Float[Tensor, "I 4 4"] | None = None  # noqa: N815
    image_affine: Float[Tensor, "I 2 3"] | None = None
    image_depth_m: Float[Tensor, "I H W"] | None = None
    image_labels: UInt8[Tensor, "I H W"] | None = None
    ground: Bool[Tensor, " N"] | None = None
    cluster: Int[Tensor, " N"] | None = None
    num_clusters: int = 0
    second: Batch | None = None
    match_point: Int[Tensor, " Q"] | None = None
    match_second: Int[Tensor, " Q"] | None = None

    @property
    def num_samples(self) -> int:
        """B."""
        return len(self.keys)

    @property
    def num_points(self) -> int:
        """N."""
        return int(self.points.shape[0])

    def tensors(self) -> dict[str, Shaped[Tensor, "..."]]:
        """The tensor fields that are present, by name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """All tensors changed, also those of `second`; one that both views share stays shared."""
        done: dict[int, Tensor] = {}

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in done:
                done[id(tensor)] = f(tensor)
            return done[id(tensor)]

        moved: dict[str, Any] = {name: once(t) for name, t in self.tensors().items()}
        if self.second is not None:
            second: dict[str, Any] = {name: once(t) for name, t in self.second.tensors().items()}
            moved["second"] = dataclasses.replace(self.second, **second)
        return dataclasses.replace(self, **moved)
