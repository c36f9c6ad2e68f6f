"""The contract between data and models: one recorded moment (`Sample`) and one training step's worth (`Batch`).

Frames: `lidar` (x forward, y left, z up at the sensor), `ego` (vehicle), `world` (fixed to the log's map), `cam`
(x right, y down, z forward). `T_a_b` maps points of frame b to frame a. Metres, radians, microseconds. Pixel (0, 0)
is the *centre* of the top-left pixel, u to the right, v down.

Letters: B samples, I images of all samples, N points of all samples, M voxels, P pairs, S superpixels, K boxes, Q
matches between two views, H W pixels.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt8

from common.constants import MIN_DEPTH_M
from data.runs import Runs

if TYPE_CHECKING:  # sets are prepared and verified without torch, which takes seconds
    import torch
    from torch import Tensor

T = TypeVar("T")

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
        min_depth_m: points nearer to the camera's plane make no pair with its pixels: near the vehicle, a scanner sees
            past what hides them from a camera beside it. Depth cameras see their points themselves.
        superpixels: segment id of each pixel, consecutive from 0; None before they are made.
        superpixel_runs: when it is read, the same as it is stored, in place of `superpixels`, where the reader was
            asked for it.
        ignored_px: left, top, right, bottom of rectangles in which unlabelled objects are (KITTI's DontCare); None
            where the set has none.
        depth_m: ground-truth depth along the optical axis, 0 where unknown; None where the set has none.
        labels: ground-truth class of each pixel, IGNORE_LABEL where unlabelled; None where the set has none.
    """

    name: str
    image_size: tuple[int, int]
    K: Float[np.ndarray, "3 3"]
    T_cam_ego: Float[np.ndarray, "4 4"]
    T_world_ego: Float[np.ndarray, "4 4"]
    timestamp_us: int
    min_depth_m: float = MIN_DEPTH_M
    image: UInt8[np.ndarray, "H W 3"] | None = None
    jpeg: bytes | None = None
    superpixels: Integer[np.ndarray, "H W"] | None = None
    superpixel_runs: Runs | None = None
    ignored_px: Float[np.ndarray, "rects 4"] | None = None
    depth_m: Float[np.ndarray, "H W"] | None = None
    labels: UInt8[np.ndarray, "H W"] | None = None

    @property
    def num_superpixels(self) -> int:
        """How many it has in whatever form, 0 before they are made."""
        if self.superpixel_runs is not None:
            return self.superpixel_runs.largest + 1
        return 0 if self.superpixels is None else int(self.superpixels.max()) + 1


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
        categories: index into the set's own names of kinds of objects (`Manifest.box_categories`), which are finer than
            its classes: also of boxes whose class is IGNORE_LABEL.
        num_radar_points: points of radars inside, as the set states them; -1 where unknown.
        truncations: share of the object outside its image; NaN where unknown.
        occlusions: the set's own level; -1 where unknown.
        image_boxes_px: left, top, right, bottom in the image of `camera`; NaN where unknown.
        alphas: KITTI's observation angle, radians; NaN where unknown.
        camera: name of the camera that the last four are about; None: the set's first one.
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
    categories: Int[np.ndarray, " boxes"] | None = None
    num_radar_points: Int[np.ndarray, " boxes"] | None = None
    truncations: Float[np.ndarray, " boxes"] | None = None
    occlusions: Int[np.ndarray, " boxes"] | None = None
    image_boxes_px: Float[np.ndarray, "boxes 4"] | None = None
    alphas: Float[np.ndarray, " boxes"] | None = None
    camera: str | None = None


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
        times_s: how long before the sweep's time each point was measured, seconds: 0 or more in a cloud of several
            sweeps; None where all points count as of the sweep's time.
        elongations: of each point's pulse beyond its nominal width, in the set's own unit; None where not measured.
        colors: red, green and blue of each point; None where the set has none.
        token: what the set's own benchmark calls the sweep (nuScenes' sample token); None where `key` tells it.
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
    times_s: Float[np.ndarray, " N"] | None = None
    elongations: Float[np.ndarray, " N"] | None = None
    colors: UInt8[np.ndarray, "N 3"] | None = None
    token: str | None = None

    def T_cam_lidar(self, camera: CameraView) -> Float[np.ndarray, "4 4"]:  # noqa: N802
        """Pose chain LiDAR -> ego at the sweep's time -> world -> ego at the camera's time -> camera."""
        T_cam_world = camera.T_cam_ego @ np.linalg.inv(camera.T_world_ego)
        return np.asarray(T_cam_world @ self.T_world_ego @ self.T_ego_lidar)

    def point_fields(self) -> dict[str, Shaped[np.ndarray, "N ..."]]:
        """What is stated of each point: the fields that have a row a point, where they are present."""
        columns = [field.name for field in dataclasses.fields(self) if re.search(r"['\"] ?N\b", str(field.type))]
        return {name: getattr(self, name) for name in columns if getattr(self, name) is not None}


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """Where the images of a batch were taken from, one row an image.

    Attributes:
        sample: sample of each image, non-decreasing.
        K: intrinsics of each (augmented) image; a mirrored one has a negative first focal length.
        T_cam_points: frame of `Batch.points` to each camera: `project(K, T_cam_points p)` is `PointPixelPairs.uv`.
        affine: pixel coordinates of the stored image to those of the augmented one.
        min_depth_m: points nearer to its plane make no pair with the pixels of an image, see `CameraView`.
    """

    sample: Int[Tensor, " I"]
    K: Float[Tensor, "I 3 3"]
    T_cam_points: Float[Tensor, "I 4 4"]
    affine: Float[Tensor, "I 2 3"]
    min_depth_m: Float[Tensor, " I"]


@dataclass(frozen=True, kw_only=True)
class PointPixelPairs:
    """Which point is seen at which pixel of which image; a point that several cameras see is in several pairs.

    Attributes:
        point: point of each pair.
        image: image of each pair.
        uv: pixel coordinates of each pair in the (augmented) image.
    """

    point: Int[Tensor, " P"]
    image: Int[Tensor, " P"]
    uv: Float[Tensor, "P 2"]

    def select(self, rows: Shaped[Tensor, " K"] | slice) -> PointPixelPairs:
        """Some of the pairs: by their numbers, a mask or a slice."""
        return PointPixelPairs(point=self.point[rows], image=self.image[rows], uv=self.uv[rows])


@dataclass(frozen=True, kw_only=True)
class Superpixels:
    """The superpixels of all images, 0 <= id < num, unique over the batch; those of one image are consecutive.

    Attributes:
        num: S, counting superpixels that have no point.
        per_image: how many of them belong to each image, in order.
        of_pair: superpixel of each pair.
        of_pixel: superpixel of each pixel, -1 where none, int32: `.long()` where it is an index; None under a teacher
            cache, which needs no pixels.
        features: cached teacher features pooled over each superpixel; None without a teacher cache.
    """

    num: int
    per_image: Int[Tensor, " I"]
    of_pair: Int[Tensor, " P"]
    of_pixel: Int[Tensor, "I H W"] | None
    features: Float[Tensor, "S D"] | None


@dataclass(frozen=True, kw_only=True)
class PointClusters:
    """Objects found in the clouds without labels, 0 <= id < num, unique over the batch.

    Attributes:
        num: clusters of all samples, also those that augmentation removed.
        of_point: cluster of each point, -1 for none. A second view has the same ids.
    """

    num: int
    of_point: Int[Tensor, " N"]


@dataclass(frozen=True, kw_only=True)
class BatchBoxes:
    """Labelled boxes of a batch, those of one sample after another.

    Attributes:
        boxes: x, y, z of the centre in the frame of `Batch.points`, length along the heading, width, height, metres;
            heading from +x counter-clockwise about z, radians.
        velocities_mps: in the ground plane, in the same frame; NaN where unknown.
        classes: index into `BatchSpec.boxes`, the names that were asked for.
        sample: sample of each box, non-decreasing.
    """

    boxes: Float[Tensor, "K 7"]
    velocities_mps: Float[Tensor, "K 2"]
    classes: Int[Tensor, " K"]
    sample: Int[Tensor, " K"]


@dataclass(frozen=True, kw_only=True)
class PointMatches:
    """Points of the two views that are the same place.

    Attributes:
        first: points of this view that have a partner in the second one; none occurs twice.
        second: the partner of each, a point of `Batch.second`.
    """

    first: Int[Tensor, " Q"]
    second: Int[Tensor, " Q"]


@dataclass(frozen=True, kw_only=True)
class VoxelMaps:
    """Neighbour maps of the voxels, which a loader made for the network (`models.lidar.prepared`, which reads them).

    Attributes:
        keys: packed voxels of all strides of all passes of the network.
        rows: input and output row of each pair.
        layout: what of them is what.
    """

    keys: Int[Tensor, " keys"]
    rows: Int[Tensor, "2 pairs"]
    layout: Any


_NEEDS = {
    "images": "images (BatchSpec.images, no teacher cache)",
    "cameras": "calibrated images (BatchSpec.images)",
    "pairs": "point-pixel pairs (BatchSpec.images)",
    "superpixels": "superpixels (BatchSpec.superpixels, of a set that was prepared with them)",
    "ground": "a ground mask (BatchSpec.ground)",
    "clusters": "clusters of points (BatchSpec.clusters)",
    "labels": "classes of points (BatchSpec.point_classes, of a set that has them)",
    "instances": "objects of points (BatchSpec.instances, of a set that has them)",
    "boxes": "labelled boxes (BatchSpec.boxes, of a set that has them)",
    "second": "a second view (BatchSpec.second_cloud or BatchSpec.second_images)",
    "matches": "a second cloud with matches (BatchSpec.second_cloud)",
}
"""Part of a batch -> what it is, and the setting that asks the loader for it."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank's forward pass sees. Ragged parts of all samples lie one after another.

    The cloud is always there. Everything else is a tensor or a group of tensors that is whole or None, as the method's
    `BatchSpec` asked; a method takes the parts that it cannot do without by `need`.

    Attributes:
        keys: one a sample, for messages.
        points: x, y, z in the (augmented) LiDAR frame, metres.
        point_sample: sample of each point, non-decreasing.
        point_voxel: voxel of each point, index into `voxel_coords`.
        voxel_coords: (sample, x, y, z) integer cell; may be negative in x, y, z; unique rows, sorted by sample.
        voxel_features: network input of each voxel (see `VoxelConfig.features`).
        T_aug_lidar: what was done to each sample's cloud: recorded LiDAR frame to the frame of `points`.
        images: RGB; None where the step needs no pixels (cached teacher, downstream tasks on points).
        cameras: of the images, also where a teacher cache takes the place of their pixels.
        pairs: of points and pixels.
        superpixels: of the images.
        ground: whether a point lies on the ground.
        clusters: objects among the points.
        labels: semantic class of each point, IGNORE_LABEL where unlabelled; numbered as in the set, or as
            `BatchSpec.point_classes` asks.
        instances: labelled object of each point, 0 for none; the same number in two samples is two objects.
        boxes: labelled objects.
        image_depth_m: ground-truth depth, 0 where unknown; downstream only.
        image_labels: ground-truth class of each pixel, IGNORE_LABEL where unlabelled; downstream only.
        second: another view of the same samples in the same order (`BatchSpec.second_cloud`,
            `BatchSpec.second_images`). Of the two parts, cloud and images, the one that was not asked for is that of
            the first view. It has no second view itself.
        matches: between the points of this view and of a second cloud.
        maps: neighbour maps of both views' voxels, where the loader was asked to make them.
    """

    keys: tuple[str, ...]
    points: Float[Tensor, "N 3"]
    point_sample: Int[Tensor, " N"]
    point_voxel: Int[Tensor, " N"]
    voxel_coords: Int[Tensor, "M 4"]
    voxel_features: Float[Tensor, "M F"]
    T_aug_lidar: Float[Tensor, "B 4 4"]
    images: UInt8[Tensor, "I 3 H W"] | None = None
    cameras: Cameras | None = None
    pairs: PointPixelPairs | None = None
    superpixels: Superpixels | None = None
    ground: Bool[Tensor, " N"] | None = None
    clusters: PointClusters | None = None
    labels: Int[Tensor, " N"] | None = None
    instances: Int[Tensor, " N"] | None = None
    boxes: BatchBoxes | None = None
    image_depth_m: Float[Tensor, "I H W"] | None = None
    image_labels: UInt8[Tensor, "I H W"] | None = None
    second: Batch | None = None
    matches: PointMatches | None = None
    maps: VoxelMaps | None = None

    @property
    def num_samples(self) -> int:
        """B."""
        return len(self.keys)

    @property
    def num_points(self) -> int:
        """N."""
        return int(self.points.shape[0])

    @overload
    def need(self, part: Literal["images"], *, by: str) -> UInt8[Tensor, "I 3 H W"]: ...
    @overload
    def need(self, part: Literal["cameras"], *, by: str) -> Cameras: ...
    @overload
    def need(self, part: Literal["pairs"], *, by: str) -> PointPixelPairs: ...
    @overload
    def need(self, part: Literal["superpixels"], *, by: str) -> Superpixels: ...
    @overload
    def need(self, part: Literal["ground"], *, by: str) -> Bool[Tensor, " N"]: ...
    @overload
    def need(self, part: Literal["clusters"], *, by: str) -> PointClusters: ...
    @overload
    def need(self, part: Literal["labels", "instances"], *, by: str) -> Int[Tensor, " N"]: ...
    @overload
    def need(self, part: Literal["boxes"], *, by: str) -> BatchBoxes: ...
    @overload
    def need(self, part: Literal["second"], *, by: str) -> Batch: ...
    @overload
    def need(self, part: Literal["matches"], *, by: str) -> PointMatches: ...

    def need(self, part: str, *, by: str) -> Any:
        """A part of the batch that a method cannot do without.

        Args:
            part: name of the field.
            by: name of the method, for the message.

        Raises:
            ValueError: the batch has no such part; says which setting of `BatchSpec` asks for it.
        """
        value = getattr(self, part)
        if value is None:
            raise ValueError(f"{by} needs {_NEEDS[part]}; this batch has none")
        return value

    def tensors(self) -> dict[str, Shaped[Tensor, "..."]]:
        """All tensors that are present, also those of groups and of the second view: "points", "pairs.uv", ..."""
        return dict(_named_tensors(self))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; a tensor that both views share stays shared."""
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=True), {})

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return _mapped(self, lambda tensor: tensor.pin_memory(), {})


def first_sample(batch: Batch) -> Batch:
    """What of a batch belongs to its first sample. Its superpixels and clusters have the first ids: they stay."""
    counts = {
        "B": 1,
        "N": int((batch.point_sample == 0).sum()),
        "M": int((batch.voxel_coords[:, 0] == 0).sum()),
        "I": 0 if batch.cameras is None else int((batch.cameras.sample == 0).sum()),
    }
    counts["K"] = 0 if batch.boxes is None else int((batch.boxes.sample == 0).sum())
    counts["P"] = 0 if batch.pairs is None else int((batch.pairs.point < counts["N"]).sum())
    counts["Q"] = 0 if batch.matches is None else int((batch.matches.first < counts["N"]).sum())
    counts["S"] = 0 if batch.superpixels is None else int(batch.superpixels.per_image[: counts["I"]].sum())
    # Maps are those of all samples.
    first = dataclasses.replace(_first_rows(dataclasses.replace(batch, maps=None), counts), keys=batch.keys[:1])
    if first.superpixels is not None:
        first = dataclasses.replace(first, superpixels=dataclasses.replace(first.superpixels, num=counts["S"]))
    # How many clusters its recorded sweep had is not known: those that are left in either view count.
    clusters = [view.clusters for view in (first, first.second) if view is not None and view.clusters is not None]
    num = max((int(part.of_point.max()) + 1 for part in clusters if len(part.of_point)), default=0)
    return _with_num_clusters(first, num)


def _with_num_clusters(batch: Batch, num: int) -> Batch:
    if batch.clusters is None:
        return batch
    second = None if batch.second is None else _with_num_clusters(batch.second, num)
    return dataclasses.replace(batch, second=second, clusters=dataclasses.replace(batch.clusters, num=num))


def _first_rows(part: T, counts: Mapping[str, int]) -> T:
    """Each tensor of a group cut to its first rows. What the rows are is the first letter of its shape annotation."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(part):  # type: ignore[arg-type]
        value = getattr(part, field.name)
        if isinstance(value, Batch):
            changed[field.name] = first_sample(value)
        elif _is_tensor(value):
            letter = re.search(r"['\"] ?([A-Z])", str(field.type))
            assert letter is not None, f"{field.name}: {field.type} does not say what its rows are"
            changed[field.name] = value[: counts[letter[1]]]
        elif dataclasses.is_dataclass(value):
            changed[field.name] = _first_rows(value, counts)
    return dataclasses.replace(part, **changed)  # type: ignore[type-var]


def _is_tensor(value: Any) -> bool:
    # Where nobody has imported torch there is none.
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def _named_tensors(part: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if _is_tensor(value):
            yield prefix + field.name, value
        elif dataclasses.is_dataclass(value):
            yield from _named_tensors(value, f"{prefix}{field.name}.")


def _mapped(part: T, change: Callable[[Tensor], Tensor], done: dict[int, Tensor]) -> T:
    """A group with all its tensors changed; one that occurs twice is changed once (`done`, by its identity)."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(part):  # type: ignore[arg-type]
        value = getattr(part, field.name)
        if _is_tensor(value):
            if id(value) not in done:
                done[id(value)] = change(value)
            changed[field.name] = done[id(value)]
        elif dataclasses.is_dataclass(value):
            changed[field.name] = _mapped(value, change, done)
    return dataclasses.replace(part, **changed)  # type: ignore[type-var]
