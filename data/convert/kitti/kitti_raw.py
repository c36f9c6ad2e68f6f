"""KITTI raw data, synced and rectified: ``<date>/<date>_drive_XXXX_sync`` with ``calib_*.txt`` in the date's folder.

Ego poses come from oxts. Without oxts they are the identity, without timestamps.txt 10 Hz is assumed; the notes of
the prepared set say so. Cameras and sweep of a frame share one pose: the cameras fire as the scanner faces forward.

Source: Geiger et al., Vision meets Robotics: The KITTI Dataset (IJRR 2013); the raw data's development kit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from common.ranges import some_of
from data.convert.base import Converter, Skipped
from data.convert.files import layout_error, read_bytes, read_image
from data.convert.kitti import common as kitti
from data.geometry import rigid
from data.sample import CameraView, Sample
from data.storage.encode import DamagedError
from data.storage.shard import ShardError

_COLOUR_CAMERAS = ("image_02", "image_03")
_FRAME_PERIOD_US = 100_000
_EARTH_RADIUS_M = 6378137.0


@dataclass(frozen=True, kw_only=True)
class KittiRawConverter(Converter):
    """Settings and reader of KITTI raw.

    Attributes:
        source: folder that holds the dates' folders.
        cameras: which of image_02 (left colour) and image_03 (right colour); () for those that every drive has.
        val_logs: drives of the split "val", e.g. 2011_09_26_drive_0005_sync; all others are "train".
    """

    source: str
    cameras: tuple[str, ...] = ()
    val_logs: tuple[str, ...] = ()

    set_name: ClassVar[str] = "kitti-raw"

    def __post_init__(self) -> None:
        some_of(self, cameras=_COLOUR_CAMERAS)

    @cached_property
    def _drives(self) -> dict[str, Path]:
        drives = sorted(path for path in Path(self.source).glob("*/*_drive_*_sync") if path.is_dir())
        if not drives:
            raise layout_error(
                self.source, "KITTI raw", "<date>/<date>_drive_<number>_sync (the 'synced+rectified' archives)"
            )
        unknown = sorted(set(self.val_logs) - {path.name for path in drives})
        if unknown:
            raise ShardError(f"val_logs names {unknown[0]!r}, which is not in {self.source}")
        return {path.name: path for path in drives}

    def camera_names(self) -> tuple[str, ...]:
        """The cameras that are read."""
        return self._camera_names

    @cached_property
    def _camera_names(self) -> tuple[str, ...]:
        for camera in self.cameras:
            for drive in self._drives.values():
                if not (drive / camera).is_dir():
                    raise layout_error(self.source, "KITTI raw", f"{camera}/data/*.png", drive)
        if self.cameras:
            return self.cameras
        everywhere = tuple(
            name for name in _COLOUR_CAMERAS if all((path / name).is_dir() for path in self._drives.values())
        )
        if not everywhere:
            poorest = min(
                self._drives.values(), key=lambda path: sum((path / name).is_dir() for name in _COLOUR_CAMERAS)
            )
            expected = "a colour camera that every drive has (choose: cameras=[image_02])"
            raise layout_error(self.source, "KITTI raw", expected, poorest)
        return everywhere

    def logs(self) -> tuple[str, ...]:
        """Drives by name."""
        return tuple(self._drives)

    def split_of(self, log: str) -> str:
        """Split of a drive: KITTI raw has no official ones."""
        return "val" if log in self.val_logs else "train"

    def num_frames(self, log: str) -> int:
        """Frames that have a sweep or an image."""
        return len(self._frame_names(log))

    def _frame_names(self, log: str) -> list[str]:
        """Union over sensors: some drives lack a few sweeps, which is counted as skipped, not silently shorter."""
        drive = self._drives[log]
        found = list((drive / "velodyne_points" / "data").glob("*.bin"))
        for camera in self._camera_names:
            found += (drive / camera / "data").glob("*.png")
        return kitti.numbered(found)

    def notes(self) -> tuple[str, ...]:
        """Which parts of the official layout are absent and what stands in for them."""
        found = []
        absent = [name for name in _COLOUR_CAMERAS if name not in self._camera_names]
        if absent and not self.cameras:
            found.append(f"no {absent[0]} in every drive: only {', '.join(self._camera_names)}")
        no_oxts = [log for log, path in self._drives.items() if not (path / "oxts").is_dir()]
        if no_oxts:
            found.append(f"no oxts: ego poses are identity ({kitti.some(no_oxts)})")
        untimed = [
            log for log, path in self._drives.items() if not (path / "velodyne_points" / "timestamps.txt").is_file()
        ]
        if untimed:
            found.append(f"no timestamps.txt: 10 Hz assumed ({kitti.some(untimed)})")
        return tuple(found)

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Frames of a drive; a damaged one is named and left out."""
        drive = self._drives[log]
        names = self._frame_names(log)[start:stop]
        try:
            calibration = _Calibration(drive.parent, self._camera_names)
            clock = _Clock(drive, self._camera_names)
            poses = _Poses(drive)
        except DamagedError as error:
            yield from (Skipped.of(error, f"{log}_{name}") for name in names)
            return
        for name in names:
            try:
                yield _read_frame(drive, name, calibration, clock, poses)
            except DamagedError as error:
                yield Skipped.of(error, f"{log}_{name}")


class _Calibration:
    """The date's transforms: ego = imu, lidar = velodyne."""

    def __init__(self, date: Path, cameras: tuple[str, ...]) -> None:
        velo_to_cam = kitti.read_calibration(date / "calib_velo_to_cam.txt")
        imu_to_velo = kitti.read_calibration(date / "calib_imu_to_velo.txt")
        cam_to_cam = kitti.read_calibration(date / "calib_cam_to_cam.txt")
        T_cam0_velo = rigid(kitti.entry(velo_to_cam, "R", (3, 3)), kitti.entry(velo_to_cam, "T", (3,)))
        T_velo_imu = rigid(kitti.entry(imu_to_velo, "R", (3, 3)), kitti.entry(imu_to_velo, "T", (3,)))
        T_rect0_cam0 = kitti.rotation(kitti.entry(cam_to_cam, "R_rect_00", (3, 3)))
        self.T_ego_lidar = kitti.inverse("imu_to_velo", T_velo_imu)
        self.K: dict[str, Float[np.ndarray, "3 3"]] = {}
        self.T_cam_ego: dict[str, Float[np.ndarray, "4 4"]] = {}
        for camera in cameras:
            P = kitti.entry(cam_to_cam, f"P_rect_{camera[-2:]}", (3, 4))
            self.K[camera], T_cam_rect0 = kitti.split_projection(P)
            self.T_cam_ego[camera] = T_cam_rect0 @ T_rect0_cam0 @ T_cam0_velo @ T_velo_imu


class _Clock:
    """Times of each sensor's frames in microseconds."""

    def __init__(self, drive: Path, cameras: tuple[str, ...]) -> None:
        self._times = {
            sensor: kitti.read_timestamps(drive / sensor / "timestamps.txt") for sensor in ("velodyne_points", *cameras)
        }

    def time_us(self, sensor: str, frame: int) -> int:
        times = self._times[sensor]
        if times is None:
            return frame * _FRAME_PERIOD_US
        if frame >= len(times):
            raise DamagedError("meta-broken", f"{sensor}/timestamps.txt has {len(times)} lines, no frame {frame}")
        return times[frame]


class _Poses:
    """Ego poses of a drive in a local world frame that starts at the drive's first pose."""

    def __init__(self, drive: Path) -> None:
        self._folder = drive / "oxts" / "data"
        self._scale = 1.0
        self._T_start_mercator: Float[np.ndarray, "4 4"] | None = None
        if (drive / "oxts").is_dir():
            first = next(iter(sorted(self._folder.glob("*.txt"))), None)
            if first is None:
                raise DamagedError("calibration-missing", f"{self._folder} holds no pose")
            packet = _oxts_packet(first)
            self._scale = float(np.cos(np.radians(packet[0])))
            start = oxts_pose(packet, self._scale)
            self._T_start_mercator = kitti.inverse(str(first), start)

    def T_world_ego(self, name: str) -> Float[np.ndarray, "4 4"]:  # noqa: N802
        if self._T_start_mercator is None:
            return np.eye(4)
        path = self._folder / f"{name}.txt"
        if not path.is_file():
            raise DamagedError("calibration-missing", f"pose {path}")
        return np.asarray(self._T_start_mercator @ oxts_pose(_oxts_packet(path), self._scale))


def _oxts_packet(path: Path) -> Float[np.ndarray, " n"]:
    try:
        values = np.array([float(number) for number in read_bytes(path).split()])
    except ValueError as error:
        raise DamagedError("meta-broken", f"{path}: {error}") from error
    if values.size < 6 or not np.isfinite(values[:6]).all():
        raise DamagedError("meta-broken", f"{path}: expected latitude, longitude, altitude, roll, pitch, yaw first")
    return values


def oxts_pose(packet: Float[np.ndarray, " n"], scale: float) -> Float[np.ndarray, "4 4"]:
    """Pose of the imu in Mercator metres (x east, y north, z up).

    Args:
        packet: latitude, longitude in degrees, altitude in metres, roll, pitch, yaw (0 = east) in radians, ...
        scale: cosine of the drive's first latitude; makes Mercator's metres true there.
    """
    latitude, longitude, altitude, roll, pitch, yaw = packet[:6]
    x = scale * _EARTH_RADIUS_M * np.radians(longitude)
    y = scale * _EARTH_RADIUS_M * np.log(np.tan(np.pi / 4 + np.radians(latitude) / 2))
    cr, sr, cp, sp, cy, sy = (f(a) for a in (roll, pitch, yaw) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return rigid(about_z @ about_y @ about_x, np.array([x, y, altitude]))


def _read_frame(drive: Path, name: str, calibration: _Calibration, clock: _Clock, poses: _Poses) -> Sample:
    sweep = kitti.read_sweep(drive / "velodyne_points" / "data" / f"{name}.bin")
    T_world_ego = poses.T_world_ego(name)
    cameras = []
    for camera, K in calibration.K.items():
        image = read_image(drive / camera / "data" / f"{name}.png")
        view = CameraView(
            name=camera,
            image_size=(image.shape[0], image.shape[1]),
            K=K,
            T_cam_ego=calibration.T_cam_ego[camera],
            T_world_ego=T_world_ego,
            timestamp_us=clock.time_us(camera, int(name)),
            image=image,
        )
        cameras.append(view)
    return Sample(
        key=f"{drive.name}_{name}",
        log=drive.name,
        timestamp_us=clock.time_us("velodyne_points", int(name)),
        points_lidar=sweep[:, :3],
        intensity=sweep[:, 3],
        T_ego_lidar=calibration.T_ego_lidar,
        T_world_ego=T_world_ego,
        cameras=tuple(cameras),
    )
