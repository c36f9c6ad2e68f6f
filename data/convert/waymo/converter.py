"""Waymo Open Dataset (perception) in both published formats: TFRecord segments, and the v2 Parquet folders.

`SRC` holds ``*.tfrecord`` or the folders of the v2 components, either directly or in training/ validation/ testing/.
The two give the same samples: the readers (`waymo_proto`, `waymo_parquet`) fill one structure (`waymo_frame`), the rest
is here.

Frames: `ego` is Waymo's vehicle frame. `lidar` has the axes of the vehicle and the place of the top laser, 2.2 m above
the road: the sweep merges up to five lasers, and heights are then those of other sets' roof scanners. World coordinates
are the set's own (tens of kilometres; all poses are float64).

Not modelled: lens distortion (unless `undistort`) and the rolling shutter; docs/datasets/waymo.md has the size of both.

Source: Sun et al., Scalability in Perception for Autonomous Driving: Waymo Open Dataset (CVPR 2020).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import cv2
import numpy as np
from jaxtyping import Float

from common.ranges import at_least, different, expect, some_of
from data.convert.base import NO_CAMERA, Converter, Skipped, check_cameras, read_or_skip
from data.convert.box_labels import labels_from_boxes
from data.convert.raw_files import layout_error
from data.convert.waymo.frame import CAMERAS, LASERS, CameraCalibration, RawCamera, RawFrame, WaymoParts
from data.convert.waymo.labels import (
    BOX_CATEGORIES,
    BOX_NAMES,
    SEGMENTATION_NAMES,
    lidar_boxes,
    scale_intensity,
    segmentation_labels,
)
from data.convert.waymo.parquet import REQUIRED, ParquetSegment
from data.convert.waymo.range_image import laser_points, merge
from data.convert.waymo.tfrecord import TfRecordSegment
from data.geometry import rigid
from data.sample import IGNORE_LABEL, CameraView, Sample
from data.storage.damage import DamagedError
from data.storage.decode import decode_jpeg

_SPLITS = {"training": "train", "validation": "val", "testing": "test"}
Segment = TfRecordSegment | ParquetSegment
"""One drive of 20 s in either format; both readers have the same methods."""

_OUR_AXES = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
"""Camera frame x forward, y left, z up, to ours."""

_HALF_PIXEL = 0.5
"""Waymo counts pixels from the image's corner, we from the centre of the first pixel."""


@dataclass(frozen=True, kw_only=True)
class WaymoConverter(Converter):
    """Settings and reader of the Waymo Open Dataset.

    Attributes:
        source: folder of the segments, the components, or of training, validation, testing.
        format: "tfrecord" or "parquet" where a folder holds both; "auto" takes what is there.
        lasers: whose points make a sweep, in this order.
        returns: "both" returns of each laser, or only the "first".
        cameras: which, in this order; () or ("none",) for sweeps only.
        labels: "segmentation": 22 classes from the top laser's labels, where a frame has them; points of other lasers
            are ignored. "boxes": points inside labelled boxes, for detection; points in no-label zones are ignored.
        labelled_only: leave out frames whose points have no classes (about six of seven): for downstream sets.
        every_frame: every n-th frame, of those that are used; 1 for all, 10 a second.
        undistort: bring images to the pinhole model, at the price of encoding them again; otherwise the JPEGs are
            stored as they are.
    """

    source: str
    format: Literal["auto", "tfrecord", "parquet"] = "auto"
    lasers: tuple[str, ...] = tuple(LASERS)
    returns: Literal["both", "first"] = "both"
    cameras: tuple[str, ...] = tuple(CAMERAS)
    labels: Literal["segmentation", "boxes"] = "segmentation"
    labelled_only: bool = False
    every_frame: int = 1
    undistort: bool = False

    set_name: ClassVar[str] = "waymo"
    box_categories: ClassVar[tuple[str, ...]] = BOX_CATEGORIES

    def __post_init__(self) -> None:
        check_cameras(self, *CAMERAS)
        some_of(self, lasers=LASERS)
        different(self, "lasers", "cameras")
        expect(self, "lasers", bool(self.lasers), f"some of {', '.join(LASERS)}")
        at_least(self, every_frame=1)
        if self.labelled_only and self.labels != "segmentation":
            raise ValueError("labelled_only chooses frames with segmentation: it needs labels=segmentation")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of points and boxes."""
        return SEGMENTATION_NAMES if self.labels == "segmentation" else BOX_NAMES

    # ---- segments
    @cached_property
    def _segments(self) -> dict[str, tuple[str, Segment]]:
        """Log -> split, reader."""
        root = Path(self.source)
        places = [(root / folder, split) for folder, split in _SPLITS.items() if (root / folder).is_dir()]
        segments: dict[str, tuple[str, Segment]] = {}
        for folder, split in places or [(root, "train")]:
            for log, segment in self._segments_in(folder):
                if log in segments:
                    raise layout_error(self.source, "Waymo", f"each segment once ({log} is there twice)", folder)
                segments[log] = (split, segment)
        if not segments:
            folders = f"{'/, '.join(REQUIRED)}/"
            either = f"*.tfrecord or v2 folders ({folders})"
            kinds = {"tfrecord": "*.tfrecord", "parquet": f"v2 folders {folders}", "auto": either}
            raise layout_error(self.source, "Waymo", f"{kinds[self.format]}, directly or in {'/, '.join(_SPLITS)}/")
        return dict(sorted(segments.items(), key=lambda item: (list(_SPLITS.values()).index(item[1][0]), item[0])))

    def _segments_in(self, folder: Path) -> Iterator[tuple[str, Segment]]:
        records = sorted(folder.glob("*.tfrecord")) if self.format != "parquet" else []
        tables = self.format != "tfrecord" and any((folder / name).is_dir() for name in REQUIRED)
        if records and tables:
            expected = "either *.tfrecord or v2 folders; choose with format=tfrecord or format=parquet"
            raise layout_error(self.source, "Waymo", expected, folder)
        for path in records:
            yield _log_name(path), TfRecordSegment(path)
        if tables:
            absent = [name for name in REQUIRED if not any((folder / name).glob("*.parquet"))]
            if absent:
                expected = f"{'/, '.join(REQUIRED)}/ with *.parquet (v2); without files: {', '.join(absent)}"
                raise layout_error(self.source, "Waymo", expected, folder)
            names = {path.stem for name in REQUIRED for path in (folder / name).glob("*.parquet")}
            for name in sorted(names):
                yield _log_name(Path(name)), ParquetSegment(folder, name)

    @cached_property
    def _index(self) -> dict[str, tuple[int, ...]]:
        """What `_indices` has found: a walk through a file is done once."""
        return {}

    def _indices(self, log: str) -> tuple[int, ...]:
        """Numbers in the source of the frames that are used."""
        if log not in self._index:
            segment = self._segments[log][1]
            numbers = segment.labelled() if self.labelled_only else tuple(range(segment.num_frames()))
            self._index[log] = numbers[:: self.every_frame]
        return self._index[log]

    def logs(self) -> tuple[str, ...]:
        """Segments, by split and name."""
        return tuple(self._segments)

    def camera_names(self) -> tuple[str, ...]:
        """As the setting."""
        return () if self.cameras == NO_CAMERA else self.cameras

    def split_of(self, log: str) -> str:
        """Of the folder; "train" without folders."""
        return self._segments[log][0]

    def num_frames(self, log: str) -> int:
        """Frames that are used."""
        return len(self._indices(log))

    def notes(self) -> tuple[str, ...]:
        """What had to be assumed."""
        notes = ["poses of the sweep are of the middle of the turn, its time is that of its beginning"]
        if self.camera_names():
            notes.append("rolling shutter" + ("" if self.undistort else " and lens distortion") + " not modelled")
        if not any((Path(self.source) / folder).is_dir() for folder in _SPLITS):
            notes.append(f"no {'/, '.join(_SPLITS)}/ folders: all segments are train")
        return tuple(notes)

    # ---- frames
    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Frames in order of time; a damaged one is named and left out."""
        split, segment = self._segments[log]
        indices = self._indices(log)[start:stop]
        parts = WaymoParts(
            lasers=self.lasers,
            num_returns=2 if self.returns == "both" else 1,
            cameras=self.camera_names(),
            segmentation=self.labels == "segmentation" and split != "test",
        )
        for index, frame in zip(indices, segment.frames(indices, parts), strict=True):
            key = f"{log}_{segment.frame_name(index)}"
            if isinstance(frame, DamagedError):
                yield Skipped.of(frame, key, log)
            else:
                yield read_or_skip(functools.partial(self._sample, log, frame, labelled=split != "test"), key, log)

    def _sample(self, log: str, frame: RawFrame, *, labelled: bool) -> Sample:
        what = f"{log}, frame {frame.timestamp_us}"
        if not frame.lasers:
            raise DamagedError("empty-sweep", f"{what}: no range image of {', '.join(self.lasers)}")
        cloud = merge([laser_points(laser, frame.T_world_vehicle, what) for laser in frame.lasers.values()])
        T_ego_lidar = rigid(np.eye(3), frame.top.T_vehicle_laser[:3, 3])
        points = cloud.points_vehicle - T_ego_lidar[:3, 3]
        boxes = lidar_boxes(frame, T_ego_lidar, self.class_names) if labelled else None
        labels = instances = None
        if self.labels == "segmentation" and cloud.segmented:
            labels, instances = segmentation_labels(cloud)
        elif self.labels == "boxes" and boxes is not None:
            labels, instances = labels_from_boxes(points, boxes, BOX_NAMES.index("background"))
            labels[cloud.no_label_zone] = IGNORE_LABEL
        return Sample(
            key=f"{log}_{frame.timestamp_us}",
            log=log,
            timestamp_us=frame.timestamp_us,
            points_lidar=points,
            intensity=scale_intensity(cloud.intensity, what),
            T_ego_lidar=T_ego_lidar,
            T_world_ego=frame.T_world_vehicle,
            cameras=tuple(self._camera(name, frame, what) for name in self.camera_names()),
            labels=labels,
            instances=instances,
            boxes=boxes,
            elongations=cloud.elongation.astype(np.float32),
        )

    def _camera(self, name: str, frame: RawFrame, what: str) -> CameraView:
        raw, calibration = frame.cameras.get(name), frame.camera_calibrations.get(name)
        if calibration is None:
            detail = f"{what}: camera {name!r}: only {', '.join(frame.camera_calibrations) or 'none'}"
            raise DamagedError("calibration-missing", detail)
        if raw is None or not raw.jpeg:
            present = ", ".join(frame.cameras) or "none"
            raise DamagedError("member-missing", f"{what}: image {name!r}: only {present}")
        return camera_view(name, raw, calibration, what, undistort=self.undistort)


def _log_name(path: Path) -> str:
    """The segment's name: ``segment-<name>_with_camera_labels.tfrecord`` in v1, ``<name>.parquet`` in v2."""
    name = path.name.removesuffix(".tfrecord").removeprefix("segment-").removesuffix("_with_camera_labels")
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def camera_view(name: str, raw: RawCamera, calibration: CameraCalibration, what: str, *, undistort: bool) -> CameraView:
    """One image with its calibration in our axes; `what` names the frame in messages.

    Raises:
        DamagedError: the JPEG is damaged, or of another size than the calibration.
    """
    image = decode_jpeg(f"{what}: {name}", raw.jpeg)
    if image.shape[:2] != calibration.image_size:
        detail = f"{what}: {name} is {image.shape[:2]}, its calibration {calibration.image_size}"
        raise DamagedError("image-size", detail)
    K = pinhole(calibration)
    if undistort:
        image = np.asarray(cv2.undistort(image, K, calibration.intrinsics[4:]))
    return CameraView(
        name=name,
        image_size=calibration.image_size,
        K=K,
        T_cam_ego=rigid(_OUR_AXES, np.zeros(3)) @ np.linalg.inv(calibration.T_vehicle_cam),
        T_world_ego=raw.T_world_vehicle,
        timestamp_us=round(raw.time_s * 1e6),
        image=image,
        jpeg=None if undistort else raw.jpeg,
    )


def pinhole(calibration: CameraCalibration) -> Float[np.ndarray, "3 3"]:
    """Intrinsics without distortion, the centre of the top-left pixel being (0, 0)."""
    f_u, f_v, c_u, c_v = calibration.intrinsics[:4]
    return np.array([[f_u, 0.0, c_u - _HALF_PIXEL], [0.0, f_v, c_v - _HALF_PIXEL], [0.0, 0.0, 1.0]])
