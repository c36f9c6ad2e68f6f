"""PandaSet: ``<sequence>/{lidar,camera/<name>,annotations/{cuboids,semseg},meta}``, tables as pickles of pandas.

The tables are read without unpickling (`data.convert.pandaset.pandas_pickle`), so that a file of unknown origin cannot
run code.

Points and boxes are published in a world frame, with the vehicle's pose at each sweep and each camera's pose at each
image. The frame of those vehicle poses has x to the right, y forward, z up and its origin near the ground; turned by 90
degrees it is our `ego`. The set does not say where in it the scanners sit; our `lidar` frame lies `lidar_height_m`
above, as in ScaLR, which brings the road to where it is in other sets. A camera's ego pose is the vehicle's motion
between sweeps, at the image's time, and its extrinsics follow from that: what is published, its pose in the world, is
kept exactly. Images have plain pinhole intrinsics; integer coordinates are taken for centres of pixels.

Source: Xiao et al., PandaSet: Advanced Sensor Suite Dataset for Autonomous Driving (ITSC 2021); the development kit's
documentation; for the axes OpenPCDet's reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from data.convert.base import NO_CAMERA, FrameConverter, check_cameras
from data.convert.box_labels import labels_from_boxes
from data.convert.intensity import scaled_intensity
from data.convert.pandaset.classes import (
    CLASS_NAMES,
    CLASSES,
    LABEL_OF_NAME,
    LABEL_OF_NUMBER,
    OPENPCDET_SPLITS,
    SCALR_LATITUDE_DEG,
)
from data.convert.pandaset.pandas_pickle import read_table
from data.convert.poses import looks_forward, pose, pose_between, track_id
from data.convert.raw_files import check_image_fits, layout_error, read_jpeg, read_json
from data.geometry import rigid, transform, yaw_rotation
from data.sample import IGNORE_LABEL, Boxes, CameraView, Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

CAMERAS = (*("front_camera", "front_left_camera", "front_right_camera", "left_camera", "right_camera", "back_camera"),)
_SENSORS: dict[str, tuple[int, ...]] = {"pandar64": (0,), "pandargt": (1,), "both": (0, 1)}
"""Setting -> values of the points' column d."""

_CATEGORY_OF = {name: number for number, name in enumerate(CLASSES)}
_INTENSITY_MAX = 255.0
_MAX_TIME_S = 1e10
_MAX_EXTRAPOLATION = 1.5
"""Sweeps beyond the first and last one to which the vehicle's motion is carried on."""

_T_PANDA_EGO = rigid(yaw_rotation(np.pi / 2), np.zeros(3))
"""Our x (forward) is PandaSet's y, our y (left) its -x."""


@dataclass(frozen=True, kw_only=True)
class PandasetConverter(FrameConverter):
    """Settings and reader of PandaSet.

    Attributes:
        source: folder that holds the sequences (001, 002, ...).
        sensor: the turning Pandar64, the forward-looking PandarGT, or both in one cloud.
        cameras: which of the six, in this order; () or ("none",) for none.
        split: "scalr": sequences with point labels north of 37.6 degrees are "train", south of it "val", those without
            point labels "unlabelled". "openpcdet": its lists of train, val and test.
        lidar_height_m: of our LiDAR frame above the vehicle poses' origin.
    """

    source: str
    sensor: Literal["pandar64", "pandargt", "both"] = "pandar64"
    cameras: tuple[str, ...] = CAMERAS
    split: Literal["scalr", "openpcdet"] = "scalr"
    lidar_height_m: float = 1.6

    set_name: ClassVar[str] = "pandaset"
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES
    box_categories: ClassVar[tuple[str, ...]] = tuple(CLASSES)

    def __post_init__(self) -> None:
        check_cameras(self, *CAMERAS)

    # ---- sequences
    @cached_property
    def _logs(self) -> dict[str, str]:
        """Split of each sequence."""
        root = Path(self.source)
        folders = sorted(path.parent for path in root.glob("*/lidar") if path.parent.name.isdecimal())
        if not folders:
            raise layout_error(self.source, "PandaSet", "<sequence>/lidar, such as 001/lidar")
        for camera in self.camera_names():
            lacking = next((folder for folder in folders if not (folder / "camera" / camera).is_dir()), None)
            if lacking:
                raise layout_error(self.source, "PandaSet", f"images of {camera}", lacking / "camera")
        if self.split == "scalr":
            return {folder.name: self._scalr_split(folder) for folder in folders}
        lists = {name: split for split, names in OPENPCDET_SPLITS.items() for name in names}
        return {folder.name: lists[folder.name] for folder in folders if folder.name in lists}

    def _scalr_split(self, folder: Path) -> str:
        if not _has_semseg(folder):
            return "unlabelled"
        path = folder / "meta" / "gps.json"
        if not path.is_file():
            raise layout_error(self.source, "PandaSet", "gps.json, for split=scalr", folder / "meta")
        try:
            latitude = float(read_json(path)[0]["lat"])
        except (ArithmeticError, DamagedError, LookupError, TypeError, ValueError) as error:
            raise ShardError(f"{path} has no latitude ({error!r:.200}), which split=scalr needs") from error
        return "train" if latitude > SCALR_LATITUDE_DEG else "val"

    def camera_names(self) -> tuple[str, ...]:
        """The cameras that are read."""
        return () if self.cameras == NO_CAMERA else self.cameras

    def split_of(self, log: str) -> str:
        """By the rule that `split` names."""
        return self._logs[log]

    def _frames(self, log: str) -> list[tuple[str, str]]:
        files = (Path(self.source) / log / "lidar").glob("*.pkl.gz")
        names = (path.name.removesuffix(".pkl.gz") for path in files)
        return [(f"{log}_{name}", name) for name in sorted((name for name in names if name.isdecimal()), key=int)]

    def _reader(self, log: str) -> Callable[[str], Sample]:
        return _Reader(self, log).read

    def notes(self) -> tuple[str, ...]:
        """What had to be assumed, and which sequences lack labels."""
        notes = [f"LiDAR frame {self.lidar_height_m:g} m above the published vehicle poses"]
        bare = [log for log in self._logs if not _has_semseg(Path(self.source) / log)]
        if bare:
            notes.append(f"{len(bare)} of {len(self._logs)} sequences have no point labels")
        front = CAMERAS[0]
        if front in self.camera_names():
            try:
                reader = _Reader(self, next(iter(self._logs)))
                if not looks_forward(reader.T_cam_ego(front, 0)):
                    notes.append(f"{front} of {reader.log} does not look forward: the axes are not the expected ones")
            except DamagedError as error:
                notes.append(f"cannot tell whether {front} looks forward: {error.detail}")
        return tuple(notes)


def _has_semseg(folder: Path) -> bool:
    return (folder / "annotations" / "semseg").is_dir()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Track:
    """Where a sensor was at each of its measurements.

    Attributes:
        path: folder of the sensor.
        measured: pose (to the world) and time in seconds of each measurement; what is wrong with damaged ones.
    """

    path: Path
    measured: Sequence[tuple[Float[np.ndarray, "4 4"], float] | DamagedError]

    def at(self, index: int) -> tuple[Float[np.ndarray, "4 4"], float]:
        """Pose and time of a measurement.

        Raises:
            DamagedError: there is none, or it is damaged.
        """
        if index >= len(self.measured):
            detail = f"{self.path} has {len(self.measured)} poses and times, none for number {index}"
            raise DamagedError("calibration-missing", detail)
        entry = self.measured[index]
        if isinstance(entry, DamagedError):
            raise DamagedError(entry.reason, entry.detail)
        return entry


def _read_track(path: Path) -> _Track:
    """A sensor's poses.json and timestamps.json.

    Raises:
        DamagedError: one is missing, is no list, or they differ in length: then no entry's number is certain.
    """
    poses, times = read_json(path / "poses.json"), read_json(path / "timestamps.json")
    if not (isinstance(poses, list) and isinstance(times, list) and len(poses) == len(times)):
        counts = [len(entries) if isinstance(entries, list) else "no list of" for entries in (poses, times)]
        raise DamagedError("calibration-missing", f"{path}: {counts[0]} poses, {counts[1]} times")
    entries = enumerate(zip(poses, times, strict=True))
    return _Track(path=path, measured=[_measured(f"{path}, number {number}", *entry) for number, entry in entries])


def _measured(what: str, pose: Any, time: Any) -> tuple[Float[np.ndarray, "4 4"], float] | DamagedError:
    try:
        time_s = float(time)
        if not abs(time_s) < _MAX_TIME_S:
            raise ValueError(f"time {time_s}")
        return _pose(what, pose), time_s
    except DamagedError as error:
        return error
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        return DamagedError("calibration-missing", f"{what}: {error!r:.200}")


def _pose(what: str, entry: Mapping[str, Any]) -> Float[np.ndarray, "4 4"]:
    heading, position = entry["heading"], entry["position"]
    return pose(what, [heading[axis] for axis in "wxyz"], [position[axis] for axis in "xyz"])


def _read_intrinsics(folder: Path) -> Float[np.ndarray, "3 3"]:
    path = folder / "intrinsics.json"
    values = read_json(path)
    try:
        fx, fy, cx, cy = (float(values[name]) for name in ("fx", "fy", "cx", "cy"))
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise DamagedError("calibration-missing", f"{path}: {error!r:.200}") from error
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


class _Reader:
    """One sequence: its calibration, poses and times.

    Raises:
        DamagedError: one of the files that hold them is missing or damaged.
    """

    def __init__(self, settings: PandasetConverter, log: str) -> None:
        self.log = log
        self._settings = settings
        self._folder = Path(settings.source) / log
        self._sweeps = _read_track(self._folder / "lidar")
        self._sweep_times_s = _filled([_time_of(entry) for entry in self._sweeps.measured])
        self._views = {name: _read_track(self._folder / "camera" / name) for name in settings.camera_names()}
        self._K = {name: _read_intrinsics(self._folder / "camera" / name) for name in settings.camera_names()}
        self._semseg = _has_semseg(self._folder)

    def read(self, name: str) -> Sample:
        number = int(name)
        T_world_panda, time_s = self._sweeps.at(number)
        T_world_ego = T_world_panda @ _T_PANDA_EGO
        T_ego_lidar = rigid(np.eye(3), np.array([0.0, 0.0, self._settings.lidar_height_m]))
        T_lidar_world = np.linalg.inv(T_world_ego @ T_ego_lidar)
        sweep, of_sensor = self._sweep(name)
        points = transform(T_lidar_world, sweep[:, :3]).astype(np.float32)
        boxes = self._boxes(name, T_lidar_world)
        _, instances = labels_from_boxes(points, boxes, IGNORE_LABEL)
        return Sample(
            key=f"{self.log}_{name}",
            log=self.log,
            timestamp_us=round(time_s * 1e6),
            points_lidar=points,
            intensity=scaled_intensity(sweep[:, 3], _INTENSITY_MAX, f"{self._folder}/lidar/{name}.pkl.gz"),
            T_ego_lidar=T_ego_lidar,
            T_world_ego=T_world_ego,
            cameras=tuple(self._view(camera, name) for camera in self._settings.camera_names()),
            labels=self._labels(name, of_sensor.size)[of_sensor] if self._semseg else None,
            instances=instances,
            boxes=boxes,
        )

    def _sweep(self, name: str) -> tuple[Float[np.ndarray, "N 4"], Bool[np.ndarray, " all"]]:
        """x, y, z in the world and raw intensity of the sensor's points; which of all points they are."""
        path = self._folder / "lidar" / f"{name}.pkl.gz"
        table = _columns(path, ("x", "y", "z", "i", "d"))
        of_sensor = np.isin(table["d"], _SENSORS[self._settings.sensor])
        rows = np.stack([table[column][of_sensor] for column in ("x", "y", "z", "i")], axis=1)
        return rows.astype(np.float64), np.asarray(of_sensor)

    def _labels(self, name: str, count: int) -> UInt8[np.ndarray, " all"]:
        path = self._folder / "annotations" / "semseg" / f"{name}.pkl.gz"
        numbers = _columns(path, ("class",))["class"]
        if numbers.size != count:
            raise DamagedError("array-broken", f"{path} has {numbers.size} labels for {count} points")
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(LABEL_OF_NUMBER):
            raise DamagedError("meta-broken", f"{path} has classes from {numbers.min()} to {numbers.max()}")
        labels: UInt8[np.ndarray, " all"] = np.array(LABEL_OF_NUMBER, dtype=np.uint8)[numbers.astype(np.int64)]
        return labels

    def _boxes(self, name: str, T_lidar_world: Float[np.ndarray, "4 4"]) -> Boxes:
        """Boxes that belong to the sensor; a moving object that both see has one for each."""
        path = self._folder / "annotations" / "cuboids" / f"{name}.pkl.gz"
        numbers = [f"{part}.{axis}" for part in ("position", "dimensions") for axis in "xyz"]
        table = _columns(path, (*numbers, "yaw", "cuboids.sensor_id"), texts=("uuid", "label"))
        of_sensor = np.isin(table["cuboids.sensor_id"], (-1, *_SENSORS[self._settings.sensor]))
        rows = np.stack([table[column][of_sensor] for column in numbers], axis=1).astype(np.float64)
        yaws = table["yaw"][of_sensor].astype(np.float64)
        if not (np.isfinite(rows).all() and np.isfinite(yaws).all()):
            raise DamagedError("meta-broken", f"{path}: a box is not finite")
        names = [str(name) for name in table["label"][of_sensor]]
        classes = [LABEL_OF_NAME.get(name, IGNORE_LABEL) for name in names]
        # At yaw 0 the front looks along the world's y.
        heading = np.stack([-np.sin(yaws), np.cos(yaws), np.zeros_like(yaws)], axis=1) @ T_lidar_world[:3, :3].T
        return Boxes(
            centers_m=transform(T_lidar_world, rows[:, 0:3]),
            sizes_m=rows[:, [4, 3, 5]],  # published as width, length, height
            yaws=np.arctan2(heading[:, 1], heading[:, 0]),
            velocities_mps=np.full((len(rows), 2), np.nan),
            classes=np.array(classes, dtype=np.int32),
            track_ids=np.array([track_id(str(uuid)) for uuid in table["uuid"][of_sensor]], dtype=np.int32),
            categories=np.array([_CATEGORY_OF.get(name, -1) for name in names], dtype=np.int32),
        )

    def T_cam_ego(self, camera: str, number: int) -> Float[np.ndarray, "4 4"]:  # noqa: N802
        """Extrinsics of an image: its pose in the world, seen from the vehicle at that time."""
        T_world_cam, time_s = self._views[camera].at(number)
        return np.asarray(np.linalg.inv(T_world_cam) @ self._ego_at(time_s))

    def _view(self, camera: str, name: str) -> CameraView:
        number = int(name)
        _, time_s = self._views[camera].at(number)
        path = self._folder / "camera" / camera / f"{name}.jpg"
        jpeg, image = read_jpeg(path)
        check_image_fits(path, self._K[camera], image.shape[:2])
        return CameraView(
            name=camera,
            image_size=(image.shape[0], image.shape[1]),
            K=self._K[camera],
            T_cam_ego=self.T_cam_ego(camera, number),
            T_world_ego=self._ego_at(time_s),
            timestamp_us=round(time_s * 1e6),
            image=image,
            jpeg=jpeg,
        )

    def _ego_at(self, time_s: float) -> Float[np.ndarray, "4 4"]:
        """T_world_ego at any time of the sequence, and a little before and after."""
        if len(self._sweeps.measured) < 2:
            return np.asarray(self._sweeps.at(0)[0] @ _T_PANDA_EGO)
        times = self._sweep_times_s
        right = int(np.clip(np.searchsorted(times, time_s), 1, len(times) - 1))
        (before, start), (after, end) = self._sweeps.at(right - 1), self._sweeps.at(right)
        share = (time_s - start) / (end - start) if end > start else np.inf
        if not -_MAX_EXTRAPOLATION <= share <= 1 + _MAX_EXTRAPOLATION:
            detail = f"an image at {time_s} s, sweeps from {times[0]} to {times[-1]} s"
            raise DamagedError("calibration-missing", f"{self._sweeps.path}: no vehicle pose for {detail}")
        return np.asarray(pose_between(before, after, share) @ _T_PANDA_EGO)


def _time_of(entry: tuple[Float[np.ndarray, "4 4"], float] | DamagedError) -> float:
    return np.nan if isinstance(entry, DamagedError) else entry[1]


def _filled(times_s: Sequence[float]) -> Float[np.ndarray, " n"]:
    """Times with those of damaged measurements put between their neighbours', so that an image finds them there."""
    times = np.array(times_s, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(times))
    return np.interp(np.arange(len(times)), known, times[known]) if known.size else np.zeros(len(times))


def _columns(
    path: Path, numbers: Sequence[str], texts: Sequence[str] = ()
) -> Mapping[str, Shaped[np.ndarray, " rows"]]:
    """Some columns of a pickled table.

    Raises:
        DamagedError: the table is damaged, or a column is missing or of another kind.
    """
    table = read_table(path)
    for name in (*numbers, *texts):
        if name not in table:
            raise DamagedError("array-broken", f"{path} has no column {name}; it has {', '.join(table)}")
    for name in numbers:
        if table[name].dtype.kind not in "fiu":
            raise DamagedError("array-broken", f"{path}: column {name} holds {table[name].dtype}, expected numbers")
    return table
