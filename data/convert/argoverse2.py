"""Argoverse 2, sensor data set: ``{train,val,test}/<log>/`` with feather tables, sweeps and images by nanosecond.

Sweeps are given in the ego frame at the sweep's time, ego motion compensated, both scanners together, float16. Here
they are moved into the frame of the upper scanner (`up_lidar`), which looks forward as the ego frame does. Images are
undistorted by the publishers; the coefficients k1, k2, k3 in the calibration describe the lens that was, and are not
used. Pixel (0, 0) is a centre: the development kit takes 0 to width - 1 for the image.

A sweep goes with each camera's image nearest in time; cameras run at twice the scanners' rate. Ego poses are listed for
the time of every sweep and image.

Source: Wilson et al., Argoverse 2: Next Generation Datasets for Self-Driving Perception and Forecasting (NeurIPS 2021
datasets track); the user guide and the development kit of the set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from common.printable import listed
from common.ranges import at_least, positive
from data.convert.base import NO_CAMERA, FrameConverter, check_cameras, unique_logs
from data.convert.box_labels import labels_from_boxes
from data.convert.feather import Kind, Table, read_feather
from data.convert.intensity import scaled_intensity
from data.convert.poses import pose, track_id
from data.convert.raw_files import layout_error, read_jpeg
from data.geometry import transform
from data.sample import IGNORE_LABEL, Boxes, CameraView, Sample
from data.storage.damage import DamagedError

RING_CAMERAS = (
    *("ring_front_center", "ring_front_left", "ring_front_right", "ring_side_left", "ring_side_right"),
    *("ring_rear_left", "ring_rear_right"),
)
STEREO_CAMERAS = ("stereo_front_left", "stereo_front_right")
SPLITS = ("train", "val", "test")

CLASS_NAMES = (
    "background",
    *("REGULAR_VEHICLE", "LARGE_VEHICLE", "BUS", "BOX_TRUCK", "TRUCK", "VEHICULAR_TRAILER", "TRUCK_CAB"),
    *("SCHOOL_BUS", "ARTICULATED_BUS", "PEDESTRIAN", "WHEELED_RIDER", "BICYCLE", "BICYCLIST", "MOTORCYCLE"),
    *("MOTORCYCLIST", "WHEELED_DEVICE", "WHEELCHAIR", "STROLLER", "DOG", "BOLLARD", "CONSTRUCTION_CONE", "SIGN"),
    *("CONSTRUCTION_BARREL", "STOP_SIGN", "MOBILE_PEDESTRIAN_CROSSING_SIGN", "MESSAGE_BOARD_TRAILER"),
)
"""Background and the 26 categories that the detection benchmark scores."""

UNSCORED = ("ANIMAL", "OFFICIAL_SIGNALER", "RAILED_VEHICLE", "TRAFFIC_LIGHT_TRAILER")
"""Labelled, but left out of the benchmark: ignored."""

BOX_CATEGORIES = (*CLASS_NAMES[1:], *UNSCORED)
"""What `Boxes.categories` counts."""

_CLASS_OF = {name: number for number, name in enumerate(CLASS_NAMES)}
_INTENSITY_MAX = 255.0
_NANOSECONDS = re.compile(r"[0-9]{1,18}\Z", re.ASCII)
_QUATERNION = ("qw", "qx", "qy", "qz")
_POSITION = ("tx_m", "ty_m", "tz_m")
_SIZE = ("length_m", "width_m", "height_m")
_INTRINSICS = ("fx_px", "fy_px", "cx_px", "cy_px", "height_px", "width_px")

_POSE_COLUMNS: dict[str, Kind] = dict.fromkeys((*_QUATERNION, *_POSITION), "number")
_SWEEP_COLUMNS: dict[str, Kind] = dict.fromkeys(("x", "y", "z", "intensity"), "number")
_INTRINSICS_COLUMNS: dict[str, Kind] = {"sensor_name": "text", **dict.fromkeys(_INTRINSICS, "number")}
_BOX_COLUMNS: dict[str, Kind] = {
    **_POSE_COLUMNS,
    **dict.fromkeys(_SIZE, "number"),
    **dict.fromkeys(("track_uuid", "category"), "text"),
    **dict.fromkeys(("timestamp_ns", "num_interior_pts"), "integer"),
}


@dataclass(frozen=True, kw_only=True)
class Argoverse2Converter(FrameConverter):
    """Settings and reader of the Argoverse 2 sensor data set.

    Attributes:
        source: folder that holds `train`, `val`, `test` (some of them).
        cameras: which of the seven ring and two stereo cameras (these are monochrome), in this order; () or ("none",)
            for none.
        max_image_gap_ms: sweeps that lack an image nearer than that are left out. An image is nearer than 25 ms unless
            some were lost in recording.
        every_sweep: every n-th sweep of a log is used; sweeps are 0.1 s apart.
    """

    source: str
    cameras: tuple[str, ...] = RING_CAMERAS
    max_image_gap_ms: float = 60.0
    every_sweep: int = 1

    set_name: ClassVar[str] = "argoverse2"
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES
    box_categories: ClassVar[tuple[str, ...]] = BOX_CATEGORIES

    def __post_init__(self) -> None:
        check_cameras(self, *RING_CAMERAS, *STEREO_CAMERAS)
        positive(self, "max_image_gap_ms")
        at_least(self, every_sweep=1)

    @cached_property
    def _logs(self) -> dict[str, tuple[str, Path]]:
        """Split and folder of each log."""
        root = Path(self.source)
        logs = unique_logs(
            (path.name, path, (split, path))
            for split in SPLITS
            for path in sorted((root / split).glob("*"))
            if (path / "sensors" / "lidar").is_dir()
        )
        if not logs:
            expected = "{train,val,test}/<log>/sensors/lidar (the sensor data set)"
            raise layout_error(self.source, "Argoverse 2", expected)
        first = {split: path for split, path in reversed(logs.values())}  # what others lack is said frame by frame
        for path in first.values():
            for camera in self.camera_names():
                folder = path / "sensors" / "cameras"
                if not (folder / camera).is_dir():
                    raise layout_error(self.source, "Argoverse 2", f"images of {camera}", folder)
        return logs

    def camera_names(self) -> tuple[str, ...]:
        """The cameras that are read."""
        return () if self.cameras == NO_CAMERA else self.cameras

    def split_of(self, log: str) -> str:
        """The folder that the log is in."""
        return self._logs[log][0]

    def _frames(self, log: str) -> list[tuple[str, int]]:
        times = _times_ns(self._logs[log][1] / "sensors" / "lidar", "feather")
        return [(f"{log}_{time_ns}", time_ns) for time_ns in times[:: self.every_sweep]]

    def _reader(self, log: str) -> Callable[[int], Sample]:
        split, folder = self._logs[log]
        return _LogReader(self, log, folder, labelled=split != "test" and log not in self._unlabelled).read

    @cached_property
    def _unlabelled(self) -> tuple[str, ...]:
        """Logs of train and val without labels, as where sweeps alone were fetched; those of test are not published."""
        logs = [(log, folder) for log, (split, folder) in self._logs.items() if split != "test"]
        return tuple(log for log, folder in logs if not (folder / "annotations.feather").is_file())

    def notes(self) -> tuple[str, ...]:
        """Splits and labels that are not there."""
        present = {split for split, _ in self._logs.values()}
        absent = [split for split in SPLITS if split not in present]
        notes = [f"no logs of {', '.join(absent)} in the source"] if absent else []
        if self._unlabelled:
            notes.append(f"no annotations.feather, so no labels and boxes: {listed(self._unlabelled)}")
        return tuple(notes)


def _times_ns(folder: Path, ending: str) -> list[int]:
    """File names that are times, in order."""
    return sorted(int(path.stem) for path in folder.glob(f"*.{ending}") if _NANOSECONDS.match(path.stem))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Camera:
    K: Float[np.ndarray, "3 3"]
    image_size: tuple[int, int]
    T_cam_ego: Float[np.ndarray, "4 4"]
    times_ns: Int[np.ndarray, " images"]


class _LogReader:
    """One log: its calibration, poses, boxes and the times of its images.

    Raises:
        DamagedError: a table of the log is missing or damaged.
    """

    def __init__(self, settings: Argoverse2Converter, log: str, folder: Path, labelled: bool) -> None:
        self._settings = settings
        self._log = log
        self._folder = folder
        mounts_path = folder / "calibration" / "egovehicle_SE3_sensor.feather"
        mounts = read_feather(mounts_path, {"sensor_name": "text", **_POSE_COLUMNS})

        def T_ego_sensor(name: str) -> Float[np.ndarray, "4 4"]:  # noqa: N802
            return _pose_of(f"{mounts_path}, {name}", mounts, _row_of(mounts_path, mounts, name))

        self._T_ego_lidar = T_ego_sensor("up_lidar")
        intrinsics_path = folder / "calibration" / "intrinsics.feather"
        intrinsics = read_feather(intrinsics_path, _INTRINSICS_COLUMNS)
        self._cameras = {
            name: _Camera(
                **_intrinsics(intrinsics_path, intrinsics, name),
                T_cam_ego=np.linalg.inv(T_ego_sensor(name)),
                times_ns=np.array(_times_ns(folder / "sensors" / "cameras" / name, "jpg"), dtype=np.int64),
            )
            for name in settings.camera_names()
        }
        self._poses_path = folder / "city_SE3_egovehicle.feather"
        self._poses = read_feather(self._poses_path, {"timestamp_ns": "integer", **_POSE_COLUMNS})
        self._annotations = _Annotations(folder / "annotations.feather") if labelled else None

    def read(self, time_ns: int) -> Sample:
        path = self._folder / "sensors" / "lidar" / f"{time_ns}.feather"
        columns = read_feather(path, _SWEEP_COLUMNS)
        points_ego = np.stack([columns[axis] for axis in "xyz"], axis=1)
        points = transform(np.linalg.inv(self._T_ego_lidar), points_ego).astype(np.float32)
        boxes = labels = instances = None
        if self._annotations is not None:
            boxes = self._annotations.boxes(time_ns, self._T_ego_lidar)
            labels, instances = labels_from_boxes(points, boxes, CLASS_NAMES.index("background"))
        return Sample(
            key=f"{self._log}_{time_ns}",
            log=self._log,
            timestamp_us=time_ns // 1000,
            points_lidar=points,
            intensity=scaled_intensity(columns["intensity"], _INTENSITY_MAX, str(path)),
            T_ego_lidar=self._T_ego_lidar,
            T_world_ego=self._pose(time_ns),
            cameras=tuple(self._view(name, camera, time_ns) for name, camera in self._cameras.items()),
            labels=labels,
            instances=instances,
            boxes=boxes,
        )

    def _pose(self, time_ns: int) -> Float[np.ndarray, "4 4"]:
        (rows,) = np.nonzero(self._poses["timestamp_ns"] == time_ns)
        if rows.size == 0:
            raise DamagedError("calibration-missing", f"{self._poses_path} has no pose at {time_ns}")
        return _pose_of(f"{self._poses_path} at {time_ns}", self._poses, int(rows[0]))

    def _view(self, name: str, camera: _Camera, time_ns: int) -> CameraView:
        folder = self._folder / "sensors" / "cameras" / name
        if camera.times_ns.size == 0:
            raise DamagedError("member-missing", f"{folder} holds no image")
        nearest = int(camera.times_ns[np.abs(camera.times_ns - time_ns).argmin()])
        gap_ms = abs(nearest - time_ns) / 1e6
        if gap_ms > self._settings.max_image_gap_ms:
            detail = f"{folder}: the image nearest to {time_ns} is {gap_ms:.0f} ms off"
            raise DamagedError("member-missing", f"{detail}, allowed are {self._settings.max_image_gap_ms:g} ms")
        jpeg, image = read_jpeg(folder / f"{nearest}.jpg")
        if image.shape[:2] != camera.image_size:
            raise DamagedError("image-size", f"{folder}/{nearest}.jpg: {image.shape[:2]}, stated {camera.image_size}")
        return CameraView(
            name=name,
            image_size=camera.image_size,
            K=camera.K,
            T_cam_ego=camera.T_cam_ego,
            T_world_ego=self._pose(nearest),
            timestamp_us=nearest // 1000,
            image=image,
            jpeg=jpeg,
        )


# ---- tables
def _pose_of(what: str, table: Table, row: int) -> Float[np.ndarray, "4 4"]:
    quaternion, position = ([float(table[name][row]) for name in names] for names in (_QUATERNION, _POSITION))
    return pose(what, quaternion, position)


def _row_of(path: Path, table: Table, sensor: str) -> int:
    names = table["sensor_name"].tolist()
    if sensor not in names:
        raise DamagedError("calibration-missing", f"{path} has no {sensor}, but {', '.join(map(str, names))}")
    return int(names.index(sensor))


def _intrinsics(path: Path, table: Table, camera: str) -> Mapping[str, Any]:
    row = _row_of(path, table, camera)
    values = [float(table[name][row]) for name in _INTRINSICS]
    if not np.isfinite(values).all():
        raise DamagedError("calibration-singular", f"{path}, {camera}: {values}")
    fx, fy, cx, cy, height, width = values
    return {"K": np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), "image_size": (int(height), int(width))}


class _Annotations:
    """Boxes of a whole log, in the ego frame at each sweep's time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table = read_feather(path, _BOX_COLUMNS)

    def boxes(self, time_ns: int, T_ego_lidar: Float[np.ndarray, "4 4"]) -> Boxes:
        """Boxes of one sweep in the LiDAR frame; of an upright box there only its heading is kept.

        Raises:
            DamagedError: one of them is damaged, or of an unknown category.
        """
        (rows,) = np.nonzero(self._table["timestamp_ns"] == time_ns)
        unknown = sorted(set(self._table["category"][rows]) - {*BOX_CATEGORIES})
        if unknown:
            raise DamagedError("meta-broken", f"{self._path} at {time_ns} has the unknown category {unknown[0]!r:.80}")
        if not all(np.isfinite(self._table[name][rows]).all() for name in _SIZE):
            raise DamagedError("meta-broken", f"{self._path} at {time_ns} has a box of no finite size")
        T_lidar_ego = np.linalg.inv(T_ego_lidar)
        what = f"{self._path} at {time_ns}"
        poses = [T_lidar_ego @ _pose_of(what, self._table, int(row)) for row in rows]
        T_lidar_box = np.stack(poses) if poses else np.empty((0, 4, 4))
        categories = self._table["category"][rows]
        return Boxes(
            centers_m=T_lidar_box[:, :3, 3],
            sizes_m=np.stack([self._table[name][rows] for name in _SIZE], axis=1).astype(np.float64),
            yaws=np.arctan2(T_lidar_box[:, 1, 0], T_lidar_box[:, 0, 0]),
            velocities_mps=np.full((rows.size, 2), np.nan),
            classes=np.array([_CLASS_OF.get(name, IGNORE_LABEL) for name in categories], dtype=np.int32),
            track_ids=np.array([track_id(name) for name in self._table["track_uuid"][rows]], dtype=np.int32),
            num_points=self._table["num_interior_pts"][rows].astype(np.int64),
            categories=np.array([BOX_CATEGORIES.index(name) for name in categories], dtype=np.int32),
        )
