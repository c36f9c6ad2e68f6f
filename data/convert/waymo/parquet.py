"""Waymo's second format: Parquet tables, one folder a component, one file a segment.

Rows are keyed by segment, frame time and (where it applies) sensor; `ParquetRows` finds those of a frame.

Source: the official v2 component definitions (names and types of the columns), tutorial_v2 for the folders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data.convert.parquet_rows import ParquetRows
from data.convert.waymo import frame as waymo
from data.convert.waymo.frame import CAMERAS, LASERS, CameraCalibration, LaserCalibration, RawCamera, RawFrame, RawLaser
from data.storage.damage import DamagedError

_TIME, _LASER, _CAMERA = "key.frame_timestamp_micros", "key.laser_name", "key.camera_name"
_OBJECT = "key.laser_object_id"
_PREFIX = {
    "vehicle_pose": "[VehiclePoseComponent].",
    "camera_image": "[CameraImageComponent].",
    "camera_calibration": "[CameraCalibrationComponent].",
    "lidar": "[LiDARComponent].",
    "lidar_calibration": "[LiDARCalibrationComponent].",
    "lidar_pose": "[LiDARPoseComponent].",
    "lidar_segmentation": "[LiDARSegmentationLabelComponent].",
    "lidar_box": "[LiDARBoxComponent].",
}
REQUIRED = ("vehicle_pose", "camera_image", "camera_calibration", "lidar", "lidar_calibration", "lidar_pose")
"""Folders without which there are no sweeps; lidar_segmentation and lidar_box are absent where nothing is labelled."""

_BOX = ("center.x", "center.y", "center.z", "size.x", "size.y", "size.z")
_INTRINSICS = ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3")


class ParquetSegment:
    """One segment's files in the components' folders of `root`."""

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._name = name

    def _table(self, component: str) -> ParquetRows:
        return ParquetRows(self._root / component / f"{self._name}.parquet", _PREFIX[component])

    @cached_property
    def _times(self) -> tuple[int, ...]:
        try:
            return tuple(sorted(set(self._table("vehicle_pose").key(_TIME))))
        except DamagedError:
            return ()

    def num_frames(self) -> int:
        """Vehicle poses; one if even those cannot be read."""
        return len(self._times) or 1

    def frame_name(self, index: int) -> str:
        """What messages and a skipped frame's key call it: its time in microseconds."""
        return str(self._times[index]) if self._times else f"{index:06d}"

    def labelled(self) -> tuple[int, ...]:
        """Frames whose points have classes; all if that cannot be read, so that each is named as damaged."""
        table = self._table("lidar_segmentation")
        if not table.path.is_file():
            return ()
        try:
            times = set(table.rows_by(_TIME))
        except DamagedError:
            return tuple(range(self.num_frames()))
        return tuple(index for index, time in enumerate(self._times) if time in times)

    def frames(self, indices: tuple[int, ...], parts: waymo.WaymoParts) -> Iterator[RawFrame | DamagedError]:
        """The frames of these ascending numbers, one item each; a damaged one is an error that is not raised."""
        try:
            reader = _FrameReader({name: self._table(name) for name in _PREFIX}, parts)
            if not self._times:
                self._table("vehicle_pose").key(_TIME)
                raise DamagedError("array-broken", f"{self._table('vehicle_pose').path} has no rows")
        except DamagedError as error:
            yield from (error for _ in indices)
            return
        for index in indices:
            try:
                yield reader.frame(self._times[index])
            except DamagedError as error:
                yield error


class _FrameReader:
    """Open tables of a segment, read forward."""

    def __init__(self, tables: Mapping[str, ParquetRows], parts: waymo.WaymoParts) -> None:
        self._tables = tables
        self._parts = parts
        self._laser_calibrations = _laser_calibrations(tables["lidar_calibration"])
        self._camera_calibrations = _camera_calibrations(tables["camera_calibration"])

    def _rows(self, component: str, time_us: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        table = self._tables[component]
        return table.rows(table.rows_by(_TIME).get(time_us, []), columns)

    def frame(self, time_us: int) -> RawFrame:
        (pose, *_) = self._rows("vehicle_pose", time_us, ["world_from_vehicle.transform"])
        what = f"{self._tables['lidar'].path}, frame {time_us}"
        return RawFrame(
            timestamp_us=time_us,
            T_world_vehicle=_transform(f"{what}: pose", pose["world_from_vehicle.transform"]),
            top=waymo.calibration_of("top", self._laser_calibrations),
            lasers=self._lasers(time_us, what),
            cameras=self._cameras(time_us, what),
            camera_calibrations=self._camera_calibrations,
            boxes=self._boxes(time_us),
        )

    def _cameras(self, time_us: int, what: str) -> dict[str, RawCamera]:
        if not self._parts.cameras:
            return {}
        cameras = {}
        for row in self._rows("camera_image", time_us, [_CAMERA, "image", "pose.transform", "pose_timestamp"]):
            name = waymo.name_of(CAMERAS, row[_CAMERA].as_py())
            if name in self._parts.cameras:
                cameras[name] = RawCamera(
                    jpeg=row["image"].as_py() or b"",
                    T_world_vehicle=_transform(f"{what}: pose of image {name}", row["pose.transform"]),
                    time_s=row["pose_timestamp"].as_py(),
                )
        return {name: cameras[name] for name in self._parts.cameras if name in cameras}

    def _lasers(self, time_us: int, what: str) -> dict[str, RawLaser]:
        images = self._images("lidar", time_us, self._parts.num_returns, 4)
        poses = self._images("lidar_pose", time_us, 1, 6)
        labelled = self._parts.segmentation and self._tables["lidar_segmentation"].path.is_file()
        labels = self._images("lidar_segmentation", time_us, self._parts.num_returns, 2) if labelled else {}
        lasers = {}
        for name in self._parts.lasers:
            present = [number for number, image in enumerate(images.get(name, ())) if image is not None]
            if not present:
                continue
            lasers[name] = RawLaser(
                calibration=waymo.calibration_of(name, self._laser_calibrations),
                returns=tuple(images[name][number] for number in present),
                segmentation=tuple(labels[name][number] if name in labels else None for number in present),
                pose=poses[name][0] if name in poses else None,
            )
        return lasers

    def _images(self, component: str, time_us: int, num_returns: int, channels: int) -> dict[str, list[Any]]:
        """Laser -> one array a return, None where there is none."""
        returns = [f"range_image_return{number + 1}" for number in range(num_returns)]
        columns = [_LASER, *(f"{name}.{part}" for name in returns for part in ("values", "shape"))]
        what = f"{self._tables[component].path}, frame {time_us}"
        return {
            waymo.name_of(LASERS, row[_LASER].as_py()): [
                _image(row[f"{name}.values"], row[f"{name}.shape"], channels, what) for name in returns
            ]
            for row in self._rows(component, time_us, columns)
        }

    def _boxes(self, time_us: int) -> waymo.RawBoxes | None:
        if not self._tables["lidar_box"].path.is_file():
            return None
        shape = [f"box.{name}" for name in _BOX]
        speed = [f"speed.{axis}" for axis in "xyz"]
        others = ["type", "num_lidar_points_in_box", "difficulty_level.detection"]
        rows = self._rows("lidar_box", time_us, [_OBJECT, *shape, "box.heading", *speed, *others])
        plain = [{name: value.as_py() for name, value in row.items()} for row in rows]
        table = [[row[name] for name in (*shape, "box.heading")] for row in plain]
        return waymo.RawBoxes(
            table=np.array(table, dtype=np.float64).reshape(-1, 7),
            velocities=np.array([[row[name] for name in speed] for row in plain], dtype=np.float64).reshape(-1, 3),
            types=np.array([row["type"] for row in plain], dtype=np.int64),
            ids=tuple(row[_OBJECT] for row in plain),
            num_points=np.array([row["num_lidar_points_in_box"] for row in plain], dtype=np.int64),
            difficulties=np.array([row["difficulty_level.detection"] or -1 for row in plain], dtype=np.int64),
        )


def _numbers(scalar: Any) -> Float[np.ndarray, " n"]:
    values: Float[np.ndarray, " n"] = np.array(scalar.as_py() or (), dtype=np.float64)
    return values


def _transform(what: str, scalar: Any) -> Float[np.ndarray, "4 4"]:
    return waymo.matrix(what, _numbers(scalar))


def _image(values: Any, shape: Any, channels: int, what: str) -> Any:
    """An array over the table's own memory."""
    if values.values is None:
        return None
    flat = values.values.to_numpy(zero_copy_only=False)
    dims = tuple(shape.as_py() or ())
    if len(dims) != 3 or dims[2] != channels or min(dims) <= 0 or np.prod(dims) != flat.size:
        raise DamagedError("array-broken", f"{what}: {flat.size} values of shape {dims}, expected {channels} a cell")
    return flat.reshape(dims)


def _laser_calibrations(table: ParquetRows) -> dict[str, LaserCalibration]:
    columns = [_LASER, "extrinsic.transform", *(f"beam_inclination.{name}" for name in ("min", "max", "values"))]
    calibrations = {}
    for row in table.rows(range(len(table.key(_LASER))), columns):
        name = waymo.name_of(LASERS, row[_LASER].as_py())
        calibrations[name] = LaserCalibration(
            T_vehicle_laser=_transform(f"{table.path}: laser {name}", row["extrinsic.transform"]),
            inclinations=_numbers(row["beam_inclination.values"]),
            inclination_range=(row["beam_inclination.min"].as_py(), row["beam_inclination.max"].as_py()),
        )
    return calibrations


def _camera_calibrations(table: ParquetRows) -> dict[str, CameraCalibration]:
    intrinsics = [f"intrinsic.{name}" for name in _INTRINSICS]
    columns = [_CAMERA, *intrinsics, "extrinsic.transform", "width", "height"]
    calibrations = {}
    for row in table.rows(range(len(table.key(_CAMERA))), columns):
        name = waymo.name_of(CAMERAS, row[_CAMERA].as_py())
        calibrations[name] = CameraCalibration(
            intrinsics=np.array([row[column].as_py() for column in intrinsics], dtype=np.float64),
            T_vehicle_cam=_transform(f"{table.path}: camera {name}", row["extrinsic.transform"]),
            image_size=(row["height"].as_py(), row["width"].as_py()),
        )
    return calibrations
