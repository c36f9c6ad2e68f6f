"""What a detector finds in the frames of a set, and what is known of them, in the terms of the detection metrics.

Boxes of a set and of a detector lie in the LiDAR frame. Where a benchmark measures on the map, both are moved there.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from common.boxes.image import image_boxes, observation_angles
from data.batch_spec import BatchSpec
from data.convert.nuscenes.names import ATTRIBUTES
from data.geometry import transform
from data.loading.detection_frames import DetectionFrames, detection_frames
from data.loading.loader import DataConfig
from data.sample import IGNORE_LABEL, Batch, Boxes, Cameras, PointPixelPairs
from data.storage.manifest import Manifest
from data.storage.reader import SampleReader
from data.views.truth import FrameTruth
from engine.detection.frames import FoundObjects, TrueObjects
from engine.detection.nuscenes_rules import CLASS_RANGE_M, likely_attribute
from models.detection.base import Detector

ON_THE_MAP = frozenset({"nuscenes"})
"""Benchmarks that measure in the frame of the map."""

RENAMED: Mapping[tuple[str, str], Mapping[str, str]] = {("synthetic", "nuscenes"): {"cyclist": "bicycle"}}
"""(set, benchmark) -> name of a class in the set -> its name there, where that is another; case does not count."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a detector found in a frame, in the recorded LiDAR frame; fields as `models.detection.base.Detections`."""

    boxes: Float64[np.ndarray, "D 7"]
    velocities_mps: Float64[np.ndarray, "D 2"]
    classes: Int[np.ndarray, " D"]
    scores: Float64[np.ndarray, " D"]


NOTHING = Found(
    boxes=np.zeros((0, 7)), velocities_mps=np.zeros((0, 2)), classes=np.zeros(0, np.int64), scores=np.zeros(0)
)


@dataclass(frozen=True, kw_only=True)
class JudgedFrame:
    """A frame with its truth and what was found in it."""

    truth: FrameTruth
    found: Found

    @property
    def index(self) -> int:
        """Row of the frame in its set's manifest."""
        return self.truth.index

    @property
    def labelled(self) -> bool:
        """Whether somebody has labelled its objects."""
        return self.truth.boxes is not None


def detect(
    detector: Detector,
    reader: SampleReader,
    indices: Int[np.ndarray, " n"],
    config: DataConfig,
    *,
    batch_size: int,
    device: torch.device,
    go_on: Callable[[], bool] = lambda: True,
    equal_passes: bool = False,
) -> list[JudgedFrame] | None:
    """What a detector in evaluation mode finds in some frames of a set; damaged ones are left out, see the loader.

    Args:
        detector: on `device`.
        reader: of the set.
        indices: of the frames.
        config: of the detector's run: its voxels and the size of its images.
        batch_size: frames at a time.
        device: of the detector.
        go_on: asked before every batch, ceil(n / batch_size) times; False ends it.
        equal_passes: make a forward pass for every batch, also for one that holds no frame to look at, as ranks that
            share weights must.

    Returns:
        A frame each; None where it was ended.

    Raises:
        ShardError: see `data.loading.detection_frames`.
    """
    done: list[JudgedFrame] = []
    images = detector.LOOKS_AT_IMAGES
    frames: Iterator[DetectionFrames] = detection_frames(
        reader, indices, config, spec=BatchSpec(images=images, need_pairs=False), batch_size=batch_size
    )
    for _ in range(-(-len(indices) // batch_size)):
        if not go_on():
            return None
        part = next(frames, None)
        batch = None if part is None else part.batch
        if batch is None and equal_passes:
            detector.detect(no_points(config, images=images).to(device))
        found = {} if batch is None else _by_key(detector, batch.to(device))
        if part is not None:
            done += [JudgedFrame(truth=truth, found=found.get(truth.key, NOTHING)) for truth in part.truths]
    return done


def _by_key(detector: Detector, batch: Batch) -> dict[str, Found]:
    found = detector.detect(batch)
    columns = {name: _numpy(getattr(found, name)) for name in ("boxes", "velocities_mps", "classes", "scores")}
    sample = _numpy(found.sample)
    return {
        key: Found(**{name: values[sample == number] for name, values in columns.items()})
        for number, key in enumerate(batch.keys)
    }


def _numpy(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()


def no_points(config: DataConfig, *, images: bool = False) -> Batch:
    """One sample without points, with a black image where images are looked at."""
    none = torch.zeros(0, dtype=torch.long)
    batch = Batch(
        keys=("",),
        points=torch.zeros(0, 3),
        point_sample=none,
        point_voxel=none,
        voxel_coords=torch.zeros(0, 4, dtype=torch.long),
        voxel_features=torch.zeros(0, config.voxel.num_features),
        T_aug_lidar=torch.eye(4)[None],
    )
    if not images:
        return batch
    return dataclasses.replace(
        batch,
        images=torch.zeros(1, 3, *config.image_size, dtype=torch.uint8),
        cameras=Cameras(
            sample=torch.zeros(1, dtype=torch.long),
            K=torch.eye(3)[None],
            T_cam_points=torch.eye(4)[None],
            affine=torch.eye(3)[None, :2],
            min_depth_m=torch.ones(1),
        ),
        pairs=PointPixelPairs(point=none, image=none, uv=torch.zeros(0, 2)),
    )


# ---- in the terms of a benchmark


def true_objects(frame: FrameTruth, manifest: Manifest, benchmark: str) -> TrueObjects | None:
    """What is known of a frame; None where nobody has labelled it."""
    boxes = frame.boxes
    if boxes is None:
        return None
    T, origin = _frame_of(frame, benchmark)
    camera = frame.boxes_camera
    return TrueObjects(
        key=frame.key,
        boxes=moved(np.column_stack([boxes.centers_m, boxes.sizes_m, boxes.yaws]).astype(np.float64), T),
        categories=benchmark_classes(_categories(boxes, manifest), manifest, benchmark),
        origin_m=origin,
        velocities_mps=_turned(boxes.velocities_mps.astype(np.float64), T),
        attributes=_attributes(boxes, manifest, benchmark),
        num_lidar_points=_or_none(boxes.num_points, np.int64),
        num_radar_points=_radar_points(boxes, benchmark),
        difficulties=_or_none(boxes.difficulties, np.int64),
        truncations=_or_none(boxes.truncations, np.float64),
        occlusions=_or_none(boxes.occlusions, np.int64),
        image_boxes_px=_or_none(boxes.image_boxes_px, np.float64),
        alphas=_or_none(boxes.alphas, np.float64),
        ignored_px=None if camera is None else _or_none(camera.ignored_px, np.float64),
    )


def benchmark_classes(classes: Sequence[str], manifest: Manifest, benchmark: str) -> tuple[str, ...]:
    """Names of a detector's classes in a benchmark."""
    renamed = RENAMED.get((manifest.set_name, benchmark), {})
    return tuple(renamed.get(name, name) for name in classes)


def found_objects(found: Found, frame: FrameTruth, names: Sequence[str], benchmark: str) -> FoundObjects:
    """What was found in a frame, with its boxes in the image that the true ones are given in, where there is one.

    Args:
        found: in the frame.
        frame: its calibration.
        names: of the detector's classes, see `benchmark_classes`.
        benchmark: that it is for. nuScenes' wants attributes, which are chosen by class and speed.
    """
    T, _ = _frame_of(frame, benchmark)
    classes = tuple(names[number] for number in found.classes.tolist())
    speeds = np.nan_to_num(np.linalg.norm(found.velocities_mps, axis=1)).tolist()
    in_image: dict[str, Float64[np.ndarray, "..."]] = {}
    if (camera := frame.boxes_camera) is not None:
        boxes, T_cam_lidar = torch.from_numpy(found.boxes), torch.from_numpy(frame.T_cam_lidar(camera)).double()
        K = torch.from_numpy(camera.K).double()
        in_image = {
            "image_boxes_px": image_boxes(boxes, K, T_cam_lidar, camera.image_size).numpy(),
            "alphas": observation_angles(boxes, T_cam_lidar).numpy(),
        }
    return FoundObjects(
        key=frame.key,
        boxes=moved(found.boxes, T),
        scores=found.scores,
        classes=classes,
        attributes=None
        if benchmark != "nuscenes"
        else tuple(
            likely_attribute(name, speed) if name in CLASS_RANGE_M else ""
            for name, speed in zip(classes, speeds, strict=True)
        ),
        velocities_mps=_turned(found.velocities_mps, T),
        **in_image,
    )


def select(frame: FoundObjects, rows: Bool[np.ndarray, " D"]) -> FoundObjects:
    """Some of the found objects of a frame."""
    values = {field.name: getattr(frame, field.name) for field in dataclasses.fields(frame) if field.name != "key"}
    kept: dict[str, Any] = {
        name: tuple(itertools.compress(value, rows)) if isinstance(value, tuple) else value[rows]
        for name, value in values.items()
        if value is not None
    }
    return dataclasses.replace(frame, **kept)


def pairs_of(
    frames: Sequence[JudgedFrame], manifest: Manifest, classes: Sequence[str], benchmark: str
) -> tuple[list[TrueObjects], list[FoundObjects]]:
    """True and found objects of the frames that somebody has labelled."""
    truth, found, names = [], [], benchmark_classes(classes, manifest, benchmark)
    for frame in frames:
        true = true_objects(frame.truth, manifest, benchmark)
        if true is not None:
            truth.append(true)
            found.append(found_objects(frame.found, frame.truth, names, benchmark))
    return truth, found


def _frame_of(frame: FrameTruth, benchmark: str) -> tuple[Float64[np.ndarray, "4 4"], Float64[np.ndarray, "3"]]:
    """LiDAR frame to the benchmark's, and where ranges are measured from in that one: the vehicle."""
    T_ego_lidar = frame.T_ego_lidar.astype(np.float64)
    if benchmark not in ON_THE_MAP:
        return np.eye(4), np.linalg.inv(T_ego_lidar)[:3, 3]
    T_world_ego = frame.T_world_ego.astype(np.float64)
    return T_world_ego @ T_ego_lidar, T_world_ego[:3, 3]


def moved(boxes: Float64[np.ndarray, "K 7"], T: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "K 7"]:
    """Boxes in another upright frame."""
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], axis=1)
    turned = _turned(heading, T)
    return np.column_stack([transform(T, boxes[:, :3]), boxes[:, 3:6], np.arctan2(turned[:, 1], turned[:, 0])])


def _turned(flat: Float64[np.ndarray, "K 2"], T: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "K 2"]:
    """Directions in the ground plane."""
    return np.asarray(flat @ T[:2, :2].T)


def _or_none(values: np.ndarray | None, kind: type) -> np.ndarray | None:
    return None if values is None else values.astype(kind)


def _categories(boxes: Boxes, manifest: Manifest) -> tuple[str, ...]:
    """The set's finest names; "" where it has none of an object."""
    if boxes.categories is not None and manifest.box_categories:
        return tuple("" if number < 0 else manifest.box_categories[number] for number in boxes.categories.tolist())
    return tuple("" if number == IGNORE_LABEL else manifest.class_names[number] for number in boxes.classes.tolist())


def _attributes(boxes: Boxes, manifest: Manifest, benchmark: str) -> tuple[str, ...] | None:
    """NuScenes' names; "" for every object of another set, where no attribute can be wrong."""
    if benchmark != "nuscenes":
        return None
    if boxes.attributes is None or manifest.set_name != "nuscenes":
        return ("",) * len(boxes.classes)
    return tuple("" if number < 0 else ATTRIBUTES[number] for number in boxes.attributes.tolist())


def _radar_points(boxes: Boxes, benchmark: str) -> Int[np.ndarray, " K"] | None:
    """0 for nuScenes' metric where the set has no radar."""
    if boxes.num_radar_points is None and benchmark == "nuscenes":
        return np.zeros(len(boxes.classes), np.int64)
    return _or_none(boxes.num_radar_points, np.int64)


def frames_config(config: DataConfig, *, num_workers: int) -> DataConfig:
    """Of a detector's run, what frames are read with when it is judged."""
    return dataclasses.replace(config, more=(), num_workers=num_workers)
