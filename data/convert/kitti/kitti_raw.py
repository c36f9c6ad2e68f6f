"""KITTI raw data, synced and rectified: ``<date>/<date>_drive_XXXX_sync`` with ``calib_*.txt`` in the date's folder.

For depth, lists of frames as those of the Eigen split, and annotated depth: `data.convert.kitti.frame_lists`.

Ego poses come from oxts. Without oxts they are the identity, without timestamps.txt 10 Hz is assumed; the notes of
the prepared set say so. Cameras and sweep of a frame share one pose: the cameras fire as the scanner faces forward.

Source: Geiger et al., Vision meets Robotics: The KITTI Dataset (IJRR 2013); the raw data's development kit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from data.convert.base import NO_CAMERA, FrameConverter, check_cameras, unique_logs
from data.convert.intensity import check_intensity
from data.convert.kitti import common as kitti
from data.convert.kitti.frame_lists import annotated_depth, check_disjoint, read_frame_list, with_depth
from data.convert.raw_files import layout_error, read_bytes, read_view
from data.convert.rgbd import read_depth
from data.geometry import rigid
from data.sample import CameraView, Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

_NAME = "KITTI raw"
_SWEEPS = "velodyne_points"
_COLOUR_CAMERAS = ("image_02", "image_03")
_EARTH_RADIUS_M = 6378137.0


@dataclass(frozen=True, kw_only=True)
class KittiRawConverter(FrameConverter):
    """Settings and reader of KITTI raw.

    Attributes:
        source: folder that holds the dates' folders.
        cameras: which of image_02 (left colour) and image_03 (right colour); () for those that every drive has;
            ("none",) for sweeps only.
        val_logs: drives of the split "val", e.g. 2011_09_26_drive_0005_sync; all others are "train".
        train_list: text file that names frames of the split "train", see `read_frame_list`; with it or `val_list`,
            frames in neither are left out.
        val_list: as `train_list`, of "val".
        depth: folder of the depth that was annotated for these drives (`annotated_depth`), kept with the images; frames
            without it are left out.
    """

    source: str
    cameras: tuple[str, ...] = ()
    val_logs: tuple[str, ...] = ()
    train_list: str | None = None
    val_list: str | None = None
    depth: str | None = None

    set_name: ClassVar[str] = "kitti-raw"
    _later: ClassVar[tuple[str, ...]] = ("train_list", "val_list", "depth")

    def __post_init__(self) -> None:
        check_cameras(self, *_COLOUR_CAMERAS)
        if self.val_logs and self._listed is not None:
            raise ValueError("val_logs and lists of frames (train_list, val_list) exclude each other")
        if self.depth is not None and self.cameras == NO_CAMERA:
            raise ValueError("depth belongs to images, and cameras=[none] asks for sweeps only")

    @cached_property
    def _listed(self) -> dict[str, dict[str, set[str]]] | None:
        """Frames of each drive of each split, where lists name them."""
        given = {"train": self.train_list, "val": self.val_list}
        listed = {split: {} if path is None else read_frame_list(path) for split, path in given.items()}
        check_disjoint(listed["train"], listed["val"])
        return listed if any(listed.values()) else None

    @cached_property
    def _logs(self) -> dict[str, Path]:
        """Folder of each drive."""
        drives = sorted(path for path in Path(self.source).glob("*/*_drive_*_sync") if path.is_dir())
        if not drives:
            expected = "<date>/<date>_drive_<number>_sync (the 'synced+rectified' archives)"
            raise layout_error(self.source, _NAME, expected)
        unknown = sorted(set(self.val_logs) - {path.name for path in drives})
        if unknown:
            raise ShardError(f"val_logs names {unknown[0]!r}, which is not in {self.source}")
        if self._listed is not None:
            listed = {drive for split in self._listed.values() for drive in split}
            drives = [path for path in drives if path.name in listed]
            if not drives:
                raise ShardError(f"{self.source} holds none of the {len(listed)} drives that the lists name")
        return unique_logs((path.name, path, path) for path in drives)

    @cached_property
    def _camera_names(self) -> tuple[str, ...]:
        drives = self._logs.values()
        names = kitti.camera_names(
            self.cameras,
            _COLOUR_CAMERAS,
            lambda camera: (drive / camera for drive in drives),
            lambda folder: layout_error(self.source, _NAME, f"{folder.name}/data/*.png or *.jpg", folder.parent),
        )
        if not names and self.cameras != NO_CAMERA:
            poorest = min(drives, key=lambda drive: sum((drive / name).is_dir() for name in _COLOUR_CAMERAS))
            expected = "a colour camera that every drive has (choose: cameras=[image_02], or [none] for sweeps only)"
            raise layout_error(self.source, _NAME, expected, poorest)
        return names

    def split_of(self, log: str) -> str:
        """Split of a drive: KITTI raw has no official ones."""
        held = self.val_logs if self._listed is None else self._listed["val"]
        return "val" if log in held else "train"

    def _frames(self, log: str) -> list[tuple[str, str]]:
        drive = self._logs[log]
        names = kitti.recorded(drive / _SWEEPS / "data", (drive / camera / "data" for camera in self._camera_names))
        if self._listed is not None:
            names = [name for name in names if name in self._listed[self.split_of(log)][log]]
        if self.depth is not None:
            names = with_depth(names, self.depth, log, self._camera_names)
        return [(f"{log}_{name}", name) for name in names]

    def notes(self) -> tuple[str, ...]:
        """Which parts of the official layout are absent and what stands in for them."""
        notes = []
        unused = [name for name in _COLOUR_CAMERAS if name not in self._camera_names]
        if unused and not self.cameras:
            notes.append(f"no {unused[0]} in every drive: only {', '.join(self._camera_names)}")
        no_oxts = [log for log, path in self._logs.items() if not (path / "oxts").is_dir()]
        untimed = [log for log, path in self._logs.items() if not (path / _SWEEPS / "timestamps.txt").is_file()]
        notes += kitti.absent("oxts: ego poses are identity", no_oxts)
        if self._listed is not None:
            listed = sum(len(names) for drives in self._listed.values() for names in drives.values())
            used = sum(self.num_frames(log) for log in self._logs)
            lacking = "" if self.depth is None else " with annotated depth"
            if used < listed:
                notes.append(f"{listed - used} of {listed} listed frames are not in the source{lacking}")
        return (*notes, *kitti.absent("timestamps.txt: 10 Hz assumed", untimed))

    def _reader(self, log: str) -> Callable[[str], Sample]:
        drive = self._logs[log]
        calibration = _Calibration(drive.parent, self._camera_names)
        clock = kitti.Clock({sensor: drive / sensor for sensor in (_SWEEPS, *self._camera_names)})
        return functools.partial(_read_frame, drive, calibration, clock, _Poses(drive), self.depth)


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
        self.sizes = {camera: kitti.stated_size(cam_to_cam, f"S_rect_{camera[-2:]}") for camera in cameras}
        self.K: dict[str, Float[np.ndarray, "3 3"]] = {}
        self.T_cam_ego: dict[str, Float[np.ndarray, "4 4"]] = {}
        for camera in cameras:
            P = kitti.entry(cam_to_cam, f"P_rect_{camera[-2:]}", (3, 4))
            self.K[camera], T_cam_rect0 = kitti.split_projection(P)
            self.T_cam_ego[camera] = T_cam_rect0 @ T_rect0_cam0 @ T_cam0_velo @ T_velo_imu


class _Poses:
    """Ego poses of a drive in a local world frame that starts at the drive's first pose."""

    def __init__(self, drive: Path) -> None:
        self._folder = drive / "oxts" / "data"
        self._scale = 1.0
        self._T_start_mercator: Float[np.ndarray, "4 4"] | None = None
        if (drive / "oxts").is_dir():
            packet = self._first_packet()
            self._scale = float(np.cos(np.radians(packet[0])))
            self._T_start_mercator = kitti.inverse("the first pose", oxts_pose(packet, self._scale))

    def _first_packet(self) -> Float[np.ndarray, " n"]:
        """Of the first file that is whole: a damaged one is its own frame's loss."""
        for path in sorted(self._folder.glob("*.txt")):
            try:
                return _oxts_packet(path)
            except DamagedError:
                continue
        raise DamagedError("calibration-missing", f"{self._folder} holds no pose")

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


def _read_frame(
    drive: Path, calibration: _Calibration, clock: kitti.Clock, poses: _Poses, depth: str | None, name: str
) -> Sample:
    path = drive / _SWEEPS / "data" / f"{name}.bin"
    sweep = kitti.read_sweep(path)
    check_intensity(sweep[:, 3], 1.0, str(path))
    T_world_ego = poses.T_world_ego(name)

    def view(camera: str) -> CameraView:
        path, time_us = kitti.image_file(drive / camera / "data", name), clock.time_us(camera, int(name))
        K, T_cam_ego, size = calibration.K[camera], calibration.T_cam_ego[camera], calibration.sizes[camera]
        view = read_view(camera, path, K, T_cam_ego, T_world_ego, time_us, size)
        if depth is None:
            return view
        folder = annotated_depth(depth, drive.name, camera)
        assert folder is not None, "frames without depth were left out"
        depth_m = read_depth(folder / f"{name}.png", unit_m=1 / 256, invalid=(0,))
        if depth_m.shape != view.image_size:
            raise DamagedError("image-size", f"{folder / name}.png: depth {depth_m.shape}, image {view.image_size}")
        return dataclasses.replace(view, depth_m=depth_m)

    return Sample(
        key=f"{drive.name}_{name}",
        log=drive.name,
        timestamp_us=clock.time_us(_SWEEPS, int(name)),
        points_lidar=sweep[:, :3],
        intensity=sweep[:, 3],
        T_ego_lidar=calibration.T_ego_lidar,
        T_world_ego=T_world_ego,
        cameras=tuple(view(camera) for camera in calibration.K),
    )
