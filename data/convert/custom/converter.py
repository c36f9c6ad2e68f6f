"""`custom`: anyone's own logs, as a folder of plain files. docs/custom_data.md describes it, with an example to copy.

::

    SRC/classes.txt                                  one name a line; needed with labels or boxes only
    SRC/categories.txt                               one name a line; needed with categories of boxes only
    SRC/<log>/calibration.json
    SRC/<log>/poses.csv                              ego poses; without, the ego stands still
    SRC/<log>/lidar/<timestamp_us>.npy | .bin        x y z intensity
    SRC/<log>/cameras/<name>/<timestamp_us>.jpg | .jpeg | .png
    SRC/<log>/labels/<timestamp_us>.npy              class of each point; optional
    SRC/<log>/boxes/<timestamp_us>.json              optional

Each sweep becomes a sample with each camera's nearest image in time. The ego pose of the sweep and of each image is
interpolated to its own time, so that what the vehicle drove in between is in the projection.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from common.constants import MIN_DEPTH_M
from common.printable import listed
from common.ranges import expect, positive
from common.small_files import DamagedFileError, read_text
from data.convert.base import NO_CAMERA, FrameConverter
from data.convert.custom import formats
from data.convert.custom.boxes import read_boxes
from data.convert.custom.pose_track import read_pose_track
from data.convert.intensity import scaled_intensity
from data.convert.raw_files import JPEGS, layout_error, read_image, read_jpeg
from data.sample import CameraView, Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

_IMAGES = (".jpg", ".jpeg", ".png")
_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")
_CAMERA_NAME = re.compile(r"[A-Za-z0-9_]+\Z")
_PLAUSIBLE_PERIOD_US = (1_000, 60_000_000)
"""Sweeps closer or further apart than this have times in another unit, most likely."""


@dataclass(frozen=True, kw_only=True)
class LogFolders(FrameConverter):
    """Settings and reader of the plain layout, whatever its sweeps are.

    Attributes:
        source: folder that holds the logs' folders.
        cameras: which, in this order; () for all, by name; ("none",) for sweeps only.
        val_logs: logs of the split "val"; all others are "train".
        max_image_gap_ms: a sweep whose nearest image of any camera is further away in time is skipped.
        max_pose_gap_ms: poses further apart are not interpolated between.
        min_depth_m: points nearer to a camera's plane make no pair with its pixels; indoors less than 1 m is right.
        drives_forward: poses by which a log's vehicle drives backwards or sideways are refused; False where one really
            does.
    """

    source: str
    cameras: tuple[str, ...] = ()
    val_logs: tuple[str, ...] = ()
    max_image_gap_ms: float = 60.0
    max_pose_gap_ms: float = 1000.0
    min_depth_m: float = MIN_DEPTH_M
    drives_forward: bool = True

    sweep_endings: ClassVar[tuple[str, ...]]
    """Of the files of sweeps."""

    def __post_init__(self) -> None:
        positive(self, "max_image_gap_ms", "max_pose_gap_ms", "min_depth_m")

    @abstractmethod
    def read_sweep(
        self, path: Path, time_us: int, T_to_sweep: Callable[[int], Float[np.ndarray, "4 4"]]
    ) -> formats.Sweep:
        """A sweep of these files.

        Args:
            path: of the file.
            time_us: of the sweep.
            T_to_sweep: what maps points that the LiDAR measured at a time in microseconds to its frame at `time_us`.

        Raises:
            DamagedError: the file is missing or damaged.
        """

    def settings(self) -> dict[str, Any]:
        """Those that the samples depend on: a refused preparation may go on with another `drives_forward`."""
        return {name: value for name, value in super().settings().items() if name != "drives_forward"}

    # ---- what is there
    @property
    def _expected(self) -> str:
        return f"<log>/calibration.json and <log>/lidar/<timestamp_us>{self.sweep_endings[0]} (docs/custom_data.md)"

    @cached_property
    def _logs(self) -> dict[str, Path]:
        root = Path(self.source)
        if not root.is_dir():
            raise layout_error(self.source, self.set_name, self._expected)
        if (root / "calibration.json").is_file():
            raise layout_error(
                self.source, self.set_name, f"{self._expected}; this is one log, name the folder above it"
            )
        logs = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")}
        if not logs:
            raise layout_error(self.source, self.set_name, self._expected)
        for name, folder in logs.items():
            if not _NAME.match(name):
                raise ShardError(f"{folder}: a log's name has letters, digits, '-' and '_' only; rename the folder")
            if not (folder / "calibration.json").is_file() or not (folder / "lidar").is_dir():
                raise layout_error(self.source, self.set_name, "calibration.json and lidar/", folder)
        unknown = sorted(set(self.val_logs) - set(logs))
        if unknown:
            raise ShardError(f"val_logs names {unknown[0]!r}, which is not in {self.source} ({', '.join(logs)})")
        return logs

    @cached_property
    def _camera_names(self) -> tuple[str, ...]:
        """The same in every log: a set has one list of cameras."""
        if self.cameras == NO_CAMERA:
            return ()
        present = {
            log: tuple(sorted(path.name for path in folder.glob("cameras/*") if path.is_dir()))
            for log, folder in self._logs.items()
        }
        first_log, first = next(iter(present.items()))
        cameras = self.cameras or first
        for log, names in present.items():
            missing = [name for name in cameras if name not in names]
            if missing or (not self.cameras and names != first):
                raise ShardError(
                    f"{self.source}: log {log} has the cameras {list(names)}, expected {list(cameras)} "
                    f"{'as asked for' if self.cameras else f'as in {first_log}'}; choose with cameras=[...] those that "
                    "are in every log, or cameras=[none]"
                )
        wrong = [name for name in cameras if not _CAMERA_NAME.match(name)]
        if wrong:
            raise ShardError(f"{self.source}: camera {wrong[0]!r}: expected letters, digits and '_' only")
        return cameras

    @cached_property
    def _class_names(self) -> tuple[str, ...]:
        path = Path(self.source) / "classes.txt"
        names = _read_names(path)
        if names is not None:
            return names
        labelled = [
            folder / kind for folder in self._logs.values() for kind in ("labels", "boxes") if (folder / kind).is_dir()
        ]
        if labelled:
            raise ShardError(f"{labelled[0]} holds labels, but {path} is missing: one class name a line, 0 first")
        return ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of classes.txt."""
        return self._class_names

    @cached_property
    def _categories(self) -> tuple[str, ...]:
        return _read_names(Path(self.source) / "categories.txt") or ()

    @property
    def box_categories(self) -> tuple[str, ...]:
        """Of categories.txt."""
        return self._categories

    def split_of(self, log: str) -> str:
        """As `val_logs` says."""
        return "val" if log in self.val_logs else "train"

    def _frames(self, log: str) -> list[tuple[str, tuple[int, Path]]]:
        times, paths = _timed_files(self._logs[log] / "lidar", self.sweep_endings)
        return [(f"{log}_{time_us}", (time_us, path)) for time_us, path in zip(times.tolist(), paths, strict=True)]

    def _reader(self, log: str) -> Callable[[tuple[int, Path]], Sample]:
        return _LogReader(self._logs[log], self).read

    def notes(self) -> tuple[str, ...]:
        """What had to be assumed, and what looks odd."""
        still = [log for log, folder in self._logs.items() if not (folder / "poses.csv").is_file()]
        notes = [f"no poses.csv, the ego stands still: {', '.join(still[:4])}"] if still else []
        doubtful: dict[str, list[str]] = {}
        for log, folder in self._logs.items():
            for doubt in _doubts(folder / "calibration.json"):
                doubtful.setdefault(doubt, []).append(log)
        notes += [f"{doubt}: {listed(logs, 4)}" for doubt, logs in doubtful.items()]
        for log, folder in self._logs.items():
            notes += _damaged_poses(folder / "poses.csv")
            periods = np.diff(_timed_files(folder / "lidar", self.sweep_endings)[0])
            period = float(np.median(periods)) if len(periods) else float(_PLAUSIBLE_PERIOD_US[0])
            if not _PLAUSIBLE_PERIOD_US[0] <= period <= _PLAUSIBLE_PERIOD_US[1]:
                notes.append(f"{log}: sweeps are {period:.0f} microseconds apart; are file names in microseconds?")
        return tuple(notes)


@dataclass(frozen=True, kw_only=True)
class CustomConverter(LogFolders):
    """Settings and reader of the plain layout with sweeps that are nothing but rows of numbers.

    Attributes:
        columns: what a row of a sweep holds, in order: x, y, z, intensity, time_s (seconds before the sweep's time),
            elongation, red, green and blue (0 to 255), and any other names for what is not read; without "intensity" it
            is 0 everywhere.
    """

    columns: tuple[str, ...] = formats.COLUMNS

    set_name: ClassVar[str] = "custom"
    sweep_endings: ClassVar[tuple[str, ...]] = (".npy", ".bin")
    _later: ClassVar[tuple[str, ...]] = ("columns", "min_depth_m")

    def __post_init__(self) -> None:
        super().__post_init__()
        once = all(self.columns.count(name) == 1 for name in ("x", "y", "z"))
        once &= all(self.columns.count(name) < 2 for name in formats.READ_COLUMNS)
        expect(self, "columns", once, "x, y, z once each, and what else a row holds, in order")

    def read_sweep(
        self, path: Path, time_us: int, T_to_sweep: Callable[[int], Float[np.ndarray, "4 4"]]
    ) -> formats.Sweep:
        """The rows of a file; see `LogFolders.read_sweep`."""
        return formats.Sweep(rows=formats.read_sweep(path, self.columns), names=self.columns)


def _read_names(path: Path) -> tuple[str, ...] | None:
    """Names of a file, one a line; None where there is no such file."""
    try:
        text = read_text(path)
    except DamagedFileError as error:
        raise ShardError(str(error)) from error
    if text is None:
        return None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(set(names)) != len(names) or not 0 < len(names) < 255:
        raise ShardError(f"{path}: expected 1 to 254 different class names, one on each line")
    return names


def _doubts(path: Path) -> list[str]:
    try:
        return formats.doubts(formats.read_calibration(path))
    except DamagedError:  # each frame of the log will say so
        return []


class _LogReader:
    """One log's calibration, poses and lists of images."""

    def __init__(self, folder: Path, settings: LogFolders) -> None:
        self._folder = folder
        self._settings = settings
        self._class_names = settings.class_names
        self._calibration = formats.read_calibration(folder / "calibration.json")
        track = folder / "poses.csv"
        self._poses = read_pose_track(track, round(settings.max_pose_gap_ms * 1e3)) if track.is_file() else None
        self._images = {name: _timed_files(folder / "cameras" / name, _IMAGES) for name in settings.camera_names()}
        for name in self._images:
            if name not in self._calibration.cameras:
                calibrated = ", ".join(self._calibration.cameras) or "none"
                detail = f"{folder / 'calibration.json'} has no camera {name!r}, it has {calibrated}"
                raise DamagedError("calibration-missing", detail)

    def read(self, frame: tuple[int, Path]) -> Sample:
        """The sample of a sweep, by its time and file.

        Raises:
            DamagedError: a part of it is missing or damaged.
        """
        time_us, path = frame
        sweep = self._settings.read_sweep(path, time_us, lambda at_us: self._to_sweep(at_us, time_us))
        rows, measured = sweep.rows, formats.has_return(sweep.rows)
        labels = boxes = None
        if (self._folder / "labels").is_dir():
            label_path = self._folder / "labels" / f"{time_us}.npy"
            labels = formats.read_labels(label_path, len(rows), len(self._class_names))[measured]
        if (self._folder / "boxes").is_dir():
            path_of_boxes = self._folder / "boxes" / f"{time_us}.json"
            boxes = read_boxes(path_of_boxes, self._class_names, self._settings.box_categories)
        return Sample(
            key=f"{self._folder.name}_{time_us}",
            log=self._folder.name,
            timestamp_us=time_us,
            points_lidar=np.ascontiguousarray(rows[measured, :3]),
            intensity=self._intensity(path, sweep, measured),
            T_ego_lidar=self._calibration.T_ego_lidar,
            T_world_ego=self._pose_at(time_us),
            cameras=tuple(self._view(name, time_us) for name in self._images),
            labels=labels,
            boxes=boxes,
            times_s=rows[measured, 4] if "time_s" in sweep.names else None,
            elongations=rows[measured, 5] if "elongation" in sweep.names else None,
            colors=_colours(path, rows[measured, 6:]) if {*formats.COLOURS} <= {*sweep.names} else None,
        )

    def _to_sweep(self, at_us: int, time_us: int) -> Float[np.ndarray, "4 4"]:
        T_ego_lidar = self._calibration.T_ego_lidar
        T_ego_ego = np.linalg.inv(self._pose_at(time_us)) @ self._pose_at(at_us)
        return np.asarray(np.linalg.inv(T_ego_lidar) @ T_ego_ego @ T_ego_lidar)

    def _intensity(
        self, path: Path, sweep: formats.Sweep, measured: Bool[np.ndarray, " N"]
    ) -> Float32[np.ndarray, " kept"]:
        maximum = self._calibration.intensity_max
        raw = sweep.rows[measured, 3]
        if maximum is None or "intensity" not in sweep.names:
            return np.zeros(len(raw), dtype=np.float32)
        remedy = (
            "intensity_max of calibration.json is the raw value that becomes 1, or null for a sensor that measures none"
        )
        return scaled_intensity(raw, maximum, str(path), remedy)

    def _view(self, name: str, time_us: int) -> CameraView:
        times, paths = self._images[name]
        if not paths:
            raise DamagedError("member-missing", f"{self._folder / 'cameras' / name} holds no image")
        nearest = int(np.abs(times - time_us).argmin())
        gap_ms = abs(int(times[nearest]) - time_us) / 1e3
        if gap_ms > self._settings.max_image_gap_ms:
            detail = f"{name}: the nearest image is {gap_ms:.1f} ms from the sweep"
            raise DamagedError("member-missing", f"{detail}, allowed are {self._settings.max_image_gap_ms:g} ms")
        calibration = self._calibration.cameras[name]
        path, image_time_us = paths[nearest], int(times[nearest])
        jpeg, image = read_jpeg(path) if path.suffix in JPEGS else (None, read_image(path, calibration.white))
        if image.shape[:2] != calibration.image_size:
            stated = f"calibration.json says {calibration.image_size}"
            raise DamagedError("image-size", f"{path} is {image.shape[:2]}, {stated}")
        if calibration.distortion is not None:
            jpeg, image = None, calibration.undistorted(image)
        return CameraView(
            name=name,
            image_size=calibration.image_size,
            K=calibration.K,
            T_cam_ego=calibration.T_cam_ego,
            T_world_ego=self._pose_at(image_time_us),
            timestamp_us=image_time_us,
            min_depth_m=self._settings.min_depth_m,
            image=image,
            jpeg=jpeg,
        )

    def _pose_at(self, time_us: int) -> Float[np.ndarray, "4 4"]:
        return np.eye(4) if self._poses is None else self._poses.at(time_us)


def _colours(path: Path, rgb: Float32[np.ndarray, "N 3"]) -> UInt8[np.ndarray, "N 3"]:
    if len(rgb) and not (rgb.min() >= 0 and rgb.max() <= 255 and (rgb == np.rint(rgb)).all()):
        spread = f"from {rgb.min():g} to {rgb.max():g}"
        raise DamagedError("array-broken", f"{path}: colours {spread}, expected whole numbers from 0 to 255")
    return rgb.astype(np.uint8)


def _damaged_poses(path: Path) -> list[str]:
    """A note where lines of a table of poses cannot be used; the frames beside them are skipped one by one."""
    try:
        damage = read_pose_track(path, 0).damage if path.is_file() else {}
    except DamagedError:  # each frame of the log says so
        return []
    places = "1 place" if len(damage) == 1 else f"{len(damage)} places"
    return [f"poses are damaged in {places}, the first: {next(iter(damage.values()))}"] if damage else []


def _timed_files(folder: Path, suffixes: tuple[str, ...]) -> tuple[Int[np.ndarray, " n"], list[Path]]:
    """Files whose names are times in microseconds, in order of time.

    Raises:
        ShardError: a file has another name, or two have the same time.
    """
    files: dict[int, Path] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if name.startswith("."):  # what file browsers leave
            continue
        if suffix not in suffixes or not re.fullmatch(r"[0-9]{1,18}", stem):
            raise ShardError(f"{folder / name}: expected <time in microseconds> and one of {', '.join(suffixes)}")
        if int(stem) in files:  # as 007 and 7
            raise ShardError(f"{folder}: {files[int(stem)].name} and {name} have the same time")
        files[int(stem)] = folder / name
    times = sorted(files)
    return np.array(times, dtype=np.int64), [files[time] for time in times]
