"""ONCE: ``data/<sequence>/{<sequence>.json, lidar_roof/<frame>.bin, <camera>/<frame>.jpg}`` and ``ImageSets/*.txt``.

ONCE's LiDAR frame has x to the left, y to the back, z up; ours (x forward, y left) is that one turned by 90 degrees
about z, and so are boxes' headings and the world, whose axes are those of a sequence's first sweep. Vehicle and LiDAR
frame are the same in ONCE, so ego is LiDAR here.

The published images are distorted, although the documentation says otherwise: the development kit undistorts them
before it projects points, and ONCE's 2D boxes lie in undistorted images. They are undistorted here with the intrinsics
kept, as the kit does for projection, and stored as JPEG again. OpenCV's convention: pixel (0, 0) is a centre.

Source: Mao et al., One Million Scenes for Autonomous Driving: ONCE Dataset (NeurIPS 2021 datasets track); the
documentation page and the development kit of the set.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from common.ranges import positive
from data.convert.base import NO_CAMERA, FrameConverter, check_cameras
from data.convert.box_labels import boxes_from_rows, labels_from_boxes
from data.convert.intensity import scaled_intensity
from data.convert.poses import looks_forward, pose
from data.convert.raw_files import check_image_fits, layout_error, read_bytes, read_jpeg, read_json, read_sweep
from data.geometry import rigid, transform, yaw_rotation
from data.sample import Boxes, CameraView, Sample
from data.storage.damage import DamagedError

CLASS_NAMES = ("background", "Car", "Truck", "Bus", "Pedestrian", "Cyclist")
CAMERAS = ("cam01", "cam03", "cam05", "cam06", "cam07", "cam08", "cam09")
"""Two to the front (of different opening angles), then left back, left front, right front, right back, back."""

SPLITS = {
    "train": ("000076", "000080", "000092", "000104", "000113", "000121"),
    "val": ("000027", "000028", "000112", "000201"),
    "test": (*("000034", "000077", "000168", "000200", "000273", "000275", "000303", "000318", "000322", "000334"),),
}
"""The labelled sequences and those of the test server."""

_RAW_LISTS = ("small", "medium", "large")
_T_LIDAR_ONCE = rigid(yaw_rotation(np.pi / 2), np.zeros(3))
_DISTORTIONS = (4, 5, 8, 12, 14)
"""Numbers of coefficients that OpenCV's model may have; k1 k2 p1 p2 k3 in ONCE."""

_FRAME_ID = re.compile(r"[0-9]{1,15}\Z", re.ASCII)
_BOX_COLUMNS = 7  # centre, length, width, height, heading


@dataclass(frozen=True, kw_only=True)
class OnceConverter(FrameConverter):
    """Settings and reader of ONCE.

    Attributes:
        source: folder that holds `data` and `ImageSets`.
        raw: which unlabelled sequences become the split "raw": those of ImageSets/raw_small.txt; of that and
            raw_medium.txt; of these and raw_large.txt; all that are in the source and in no other split; or none.
        cameras: which of the seven, in this order; () or ("none",) for none.
        undistort: False stores the images as published (distorted: projections are off by some pixels).
        intensity_max: reflectance that becomes intensity 1; larger ones are clipped.
        without_pose: what becomes of frames whose pose the set does not know: left out, or kept with the identity.
    """

    source: str
    raw: Literal["none", "small", "medium", "large", "all"] = "small"
    cameras: tuple[str, ...] = CAMERAS
    undistort: bool = True
    intensity_max: float = 1.0
    without_pose: Literal["skip", "identity"] = "skip"

    set_name: ClassVar[str] = "once"
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES
    box_categories: ClassVar[tuple[str, ...]] = CLASS_NAMES[1:]

    def __post_init__(self) -> None:
        check_cameras(self, *CAMERAS)
        positive(self, "intensity_max")

    # ---- sequences
    @cached_property
    def _listed(self) -> dict[str, str]:
        """Split of each sequence that a list names, whether it is in the source or not."""
        splits = {name: split for split, names in SPLITS.items() for name in names}
        # A larger list does not repeat the smaller ones.
        sizes = _RAW_LISTS[: _RAW_LISTS.index(self.raw) + 1] if self.raw in _RAW_LISTS else ()
        for name in (f"raw_{size}" for size in sizes):
            path = Path(self.source) / "ImageSets" / f"{name}.txt"
            if not path.is_file():
                expected = f"{name}.txt for raw={self.raw} (or choose raw=all or raw=none)"
                raise layout_error(self.source, "ONCE", expected, path.parent)
            for sequence in read_bytes(path).decode("utf-8", errors="replace").split():
                splits.setdefault(sequence, "raw")
        return splits

    @cached_property
    def _logs(self) -> dict[str, str]:
        """Split of each sequence in use."""
        folder = Path(self.source) / "data"
        present = sorted(path.name for path in folder.glob("*") if (path / "lidar_roof").is_dir())
        if not present:
            raise layout_error(self.source, "ONCE", "data/<sequence>/lidar_roof", folder)
        listed = {name: "raw" for name in present} | self._listed if self.raw == "all" else self._listed
        splits = {name: listed[name] for name in present if name in listed}
        if not splits:
            raise layout_error(self.source, "ONCE", f"sequences of train, val, test or raw={self.raw}", folder)
        for name in splits:
            if not (folder / name / f"{name}.json").is_file():
                raise layout_error(self.source, "ONCE", f"{name}.json (poses and calibration)", folder / name)
        for camera in self.camera_names():
            lacking = next((name for name in splits if not (folder / name / camera).is_dir()), None)
            if lacking:
                raise layout_error(self.source, "ONCE", f"images of {camera}", folder / lacking)
        return splits

    def camera_names(self) -> tuple[str, ...]:
        """The cameras that are read."""
        return () if self.cameras == NO_CAMERA else self.cameras

    def split_of(self, log: str) -> str:
        """As published: "train", "val", "test" or "raw"."""
        return self._logs[log]

    def _frames(self, log: str) -> list[tuple[str, Any]]:
        try:
            sequence = _read_sequence(self._json(log))
        except DamagedError as error:  # its reader says so again: each sweep is skipped by that reason
            sweeps = sorted(path.stem for path in (self._json(log).parent / "lidar_roof").glob("*.bin"))
            return [(f"{log}_{name}", error) for name in sweeps or ["none"]]
        whole = [(f"{log}_{frame['frame_id']}", frame) for frame in sequence.frames]
        return whole + [(f"{log}_{place}", error) for place, error in sequence.damaged.items()]

    def _reader(self, log: str) -> Callable[[Mapping[str, Any] | DamagedError], Sample]:
        return _Reader(self, log, _read_sequence(self._json(log))).read

    def _json(self, log: str) -> Path:
        return Path(self.source) / "data" / log / f"{log}.json"

    def notes(self) -> tuple[str, ...]:
        """What had to be assumed, and what is not there."""
        notes = ["images undistorted, intrinsics kept" if self.undistort else "images as published: distorted"]
        absent = [name for name, split in self._listed.items() if name not in self._logs]
        if absent:
            notes.append(f"{len(absent)} of {len(self._listed)} listed sequences are not in the source")
        front = next((name for name in self.camera_names() if name in CAMERAS[:2]), None)
        if front is not None:
            log = next(iter(self._logs))
            try:
                if not looks_forward(_calibration(_read_sequence(self._json(log)), front).T_cam_ego):
                    notes.append(f"{front} of {log} does not look forward: the axes are not the documented ones")
            except DamagedError as error:
                notes.append(f"cannot tell whether {front} looks forward: {error.detail}")
        if self.without_pose == "identity":
            notes.append("frames without pose have the identity")
        return tuple(notes)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sequence:
    """A sequence's JSON: `frames` in order of time, what is wrong with `damaged` ones, `calib` by camera."""

    path: Path
    frames: Sequence[Mapping[str, Any]]
    damaged: Mapping[str, DamagedError]
    calib: Mapping[str, Any]


def _read_sequence(path: Path) -> _Sequence:
    """A sequence's frames and calibration; frame ids are times in milliseconds. The last few are kept.

    Raises:
        DamagedError: the file is missing or has another form.
    """
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise DamagedError("calibration-missing", f"{path} ({error.strerror})") from error


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, changed_ns: int) -> _Sequence:
    content = read_json(path)
    try:
        entries, calib = list(content["frames"]), dict(content["calib"])
        by_id: dict[str, Mapping[str, Any]] = {}
        damaged: dict[str, DamagedError] = {}
        for number, entry in enumerate(entries):
            name = str(entry.get("frame_id")) if isinstance(entry, dict) else ""
            if not _FRAME_ID.match(name):
                detail = f"{path}: frame {number}: frame_id {name!r:.80} is no time in milliseconds"
                damaged[f"entry-{number}"] = DamagedError("meta-broken", detail)
            elif by_id.setdefault(name, entry) != entry:
                damaged[name] = DamagedError("meta-broken", f"{path} lists frame {name} twice, with other content")
        frames = [{**entry, "frame_id": name} for name, entry in by_id.items() if name not in damaged]
        if not frames:
            raise DamagedError("meta-broken", f"{path} holds no frame that is whole")
        frames.sort(key=lambda frame: int(frame["frame_id"]))
        return _Sequence(path=path, frames=frames, damaged=damaged, calib=calib)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError("meta-broken", f"{path}: {error!r:.200}") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class _Camera:
    K: Float[np.ndarray, "3 3"]
    distortion: Float[np.ndarray, " n"]
    T_cam_ego: Float[np.ndarray, "4 4"]


def _calibration(sequence: _Sequence, camera: str) -> _Camera:
    """One camera's calibration in our LiDAR frame.

    Raises:
        DamagedError: it is missing or unusable.
    """
    try:
        entry = sequence.calib[camera]
        K = np.array(entry["cam_intrinsic"], dtype=np.float64).reshape(3, 3)
        T_once_cam = np.array(entry["cam_to_velo"], dtype=np.float64).reshape(4, 4)
        distortion = np.array(entry["distortion"], dtype=np.float64).reshape(-1)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise DamagedError("calibration-missing", f"{sequence.path}, {camera}: {error!r:.200}") from error
    whole = np.isfinite(T_once_cam).all() and np.isfinite(distortion).all()
    if not whole or abs(np.linalg.det(T_once_cam[:3, :3]) - 1) > 0.01 or distortion.size not in _DISTORTIONS:
        detail = f"cam_to_velo {T_once_cam.tolist()}, distortion {distortion.tolist()}"
        raise DamagedError("calibration-singular", f"{sequence.path}, {camera}: {detail}")
    return _Camera(K=K, distortion=distortion, T_cam_ego=np.linalg.inv(_T_LIDAR_ONCE @ T_once_cam))


class _Reader:
    """Frames of one sequence; keeps each camera's undistortion table (12 MB) between them."""

    def __init__(self, settings: OnceConverter, log: str, sequence: _Sequence) -> None:
        self._settings = settings
        self._folder = sequence.path.parent
        self._log = log
        self._sequence = sequence
        self._tables: dict[tuple[str, tuple[int, int]], Any] = {}

    def read(self, frame: Mapping[str, Any] | DamagedError) -> Sample:
        if isinstance(frame, DamagedError):
            raise DamagedError(frame.reason, frame.detail)
        name = frame["frame_id"]
        T_world_ego = self._pose(frame)
        sweep = read_sweep(self._folder / "lidar_roof" / f"{name}.bin", 4)
        points = transform(_T_LIDAR_ONCE, sweep[:, :3]).astype(np.float32)
        boxes = read_boxes(self._sequence.path, frame)
        labels = instances = None
        if boxes is not None:
            labels, instances = labels_from_boxes(points, boxes, CLASS_NAMES.index("background"))
        time_us = int(name) * 1000
        return Sample(
            key=f"{self._log}_{name}",
            log=self._log,
            timestamp_us=time_us,
            points_lidar=points,
            intensity=scaled_intensity(
                sweep[:, 3],
                self._settings.intensity_max,
                f"{self._log}/lidar_roof/{name}.bin",
                "set intensity_max to the value that becomes 1",
            ),
            T_ego_lidar=np.eye(4),
            T_world_ego=T_world_ego,
            cameras=tuple(self._view(camera, name, time_us, T_world_ego) for camera in self._settings.camera_names()),
            labels=labels,
            instances=instances,
            boxes=boxes,
        )

    def _pose(self, frame: Mapping[str, Any]) -> Float[np.ndarray, "4 4"]:
        """From x, y, z, w, position: ONCE's axes on both sides, turned to ours."""
        given = frame.get("pose")
        values: Sequence[Any] = given if isinstance(given, list) else ()
        if not (len(values) == 7 and any(values[:4])):  # a quaternion of zeros stands for "unknown"
            if self._settings.without_pose == "skip":
                raise DamagedError("calibration-missing", f"{self._sequence.path}: {frame['frame_id']} has no pose")
            return np.eye(4)
        what = f"{self._sequence.path}, pose of {frame['frame_id']}"
        T_world_once = pose(what, (values[3], *values[:3]), values[4:])
        return np.asarray(_T_LIDAR_ONCE @ T_world_once @ np.linalg.inv(_T_LIDAR_ONCE))

    def _view(self, camera: str, name: str, time_us: int, T_world_ego: Float[np.ndarray, "4 4"]) -> CameraView:
        calibration = _calibration(self._sequence, camera)
        path = self._folder / camera / f"{name}.jpg"
        jpeg, image = read_jpeg(path)
        check_image_fits(path, calibration.K, image.shape[:2])
        image_size = (image.shape[0], image.shape[1])
        return CameraView(
            name=camera,
            image_size=image_size,
            K=calibration.K,
            T_cam_ego=calibration.T_cam_ego,
            T_world_ego=T_world_ego,
            timestamp_us=time_us,
            image=self._undistorted(camera, image, calibration) if self._settings.undistort else image,
            jpeg=None if self._settings.undistort else jpeg,
        )

    def _undistorted(
        self, camera: str, image: UInt8[np.ndarray, "H W 3"], calibration: _Camera
    ) -> UInt8[np.ndarray, "H W 3"]:
        height, width = image.shape[:2]
        table = self._tables.get((camera, (height, width)))
        if table is None:
            K, size = calibration.K, (width, height)
            table = cv2.initUndistortRectifyMap(K, calibration.distortion, None, K, size, cv2.CV_16SC2)
            self._tables[camera, (height, width)] = table
        return np.asarray(cv2.remap(image, table[0], table[1], cv2.INTER_LINEAR))


def read_boxes(path: Path, frame: Mapping[str, Any]) -> Boxes | None:
    """Boxes in our LiDAR frame; None for frames without annotation.

    Raises:
        DamagedError: the annotation has another form.
    """
    if "annos" not in frame:
        return None
    try:
        names = list(frame["annos"]["names"])
        rows = np.array(frame["annos"]["boxes_3d"], dtype=np.float64).reshape(len(names), _BOX_COLUMNS)
        classes = np.array([CLASS_NAMES.index(name) for name in names], dtype=np.int32)
        counts = frame["annos"].get("num_points_in_gt")
        num_points = None if counts is None else np.array(counts, dtype=np.int32).reshape(len(names))
        if not np.isfinite(rows).all():
            raise ValueError("a box is not finite")
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError("meta-broken", f"{path}, annotation of {frame['frame_id']}: {error!r:.200}") from error
    rows[:, 0:3] = transform(_T_LIDAR_ONCE, rows[:, 0:3])
    # Headings turn with the axes, and stay between -pi and pi.
    rows[:, 6] = np.arctan2(np.sin(rows[:, 6] + np.pi / 2), np.cos(rows[:, 6] + np.pi / 2))
    return dataclasses.replace(boxes_from_rows(rows, classes), num_points=num_points, categories=classes - 1)
