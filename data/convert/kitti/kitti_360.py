"""KITTI-360: ``{calibration, data_2d_raw, data_3d_raw, data_poses}``, perspective cameras and Velodyne sweeps.

    calibration/{perspective,calib_cam_to_pose,calib_cam_to_velo}.txt
    data_2d_raw/<drive>/image_0{0,1}/data_rect/NNNNNNNNNN.png, image_0{0,1}/timestamps.txt
    data_3d_raw/<drive>/velodyne_points/data/NNNNNNNNNN.bin, velodyne_points/timestamps.txt
    data_poses/<drive>/poses.txt

The published frame of poses (GPS/IMU) is x forward, y right, z down; our ego frame is that frame turned about x, so
that y is left and z up. The world is the set's own (metres east, north, up). Sweep and images of a frame share one
pose. `poses.txt` names the frames that have one: the others are left out, with their number in the notes, as a pose
that is made up would put their points elsewhere. Sweeps are as the scanner turned: their points are not moved to one
moment, which at 50 km/h is up to 1.4 m along the road. The set's 3D labels belong to accumulated clouds and are not
read.

Source: Liao et al., KITTI-360 (PAMI 2022); the set's documentation and development kit.
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
from data.convert.files import layout_error, read_image, read_numbers
from data.convert.kitti import common as kitti
from data.geometry import rigid
from data.sample import CameraView, Sample
from data.storage.encode import DamagedError
from data.storage.shard import ShardError

_NAME = "KITTI-360"
_CAMERAS = ("image_00", "image_01")
_NO_CAMERA = ("none",)
_TEST_DRIVES = ("2013_05_28_drive_0008_sync", "2013_05_28_drive_0018_sync")
_FRAME_PERIOD_US = 100_000
_T_EGO_POSE = np.diag([1.0, -1.0, -1.0, 1.0])
"""The set's GPS/IMU frame to ours; its own inverse."""


@dataclass(frozen=True, kw_only=True)
class Kitti360Converter(Converter):
    """Settings and reader of KITTI-360.

    Attributes:
        source: folder that holds `calibration` and `data_3d_raw`.
        cameras: which of image_00 (left) and image_01 (right); () for those that every drive has, which may be none;
            ("none",) for sweeps only.
        val_logs: drives of the split "val"; 0008 and 0018, held out by the set, are "test", all others "train".
    """

    source: str
    cameras: tuple[str, ...] = ()
    val_logs: tuple[str, ...] = ()

    set_name: ClassVar[str] = "kitti-360"

    def __post_init__(self) -> None:
        if self.cameras != _NO_CAMERA:
            some_of(self, "or none alone", cameras=_CAMERAS)

    @property
    def _root(self) -> Path:
        return Path(self.source)

    @cached_property
    def _drives(self) -> tuple[str, ...]:
        sweeps = self._root / "data_3d_raw"
        drives = tuple(sorted(p.parent.name for p in sweeps.glob("*_drive_*_sync/velodyne_points") if p.is_dir()))
        if not drives:
            raise layout_error(self.source, _NAME, "data_3d_raw/<drive>_sync/velodyne_points/data", self._root)
        unknown = sorted(set(self.val_logs) - set(drives))
        if unknown:
            raise layout_error(self.source, _NAME, f"{unknown[0]}, which val_logs names,", sweeps)
        if not (self._root / "calibration").is_dir():
            raise layout_error(self.source, _NAME, "calibration/", self._root)
        return drives

    def _images(self, drive: str, camera: str) -> Path:
        return self._root / "data_2d_raw" / drive / camera / "data_rect"

    def _sweeps(self, drive: str) -> Path:
        return self._root / "data_3d_raw" / drive / "velodyne_points" / "data"

    def _poses_file(self, drive: str) -> Path:
        return self._root / "data_poses" / drive / "poses.txt"

    @cached_property
    def _camera_names(self) -> tuple[str, ...]:
        if self.cameras == _NO_CAMERA:
            return ()
        for camera in self.cameras:
            for drive in self._drives:
                if not self._images(drive, camera).is_dir():
                    raise layout_error(self.source, _NAME, f"{camera}/data_rect", self._root / "data_2d_raw" / drive)
        return self.cameras or tuple(
            name for name in _CAMERAS if all(self._images(drive, name).is_dir() for drive in self._drives)
        )

    def logs(self) -> tuple[str, ...]:
        """Drives by name."""
        return self._drives

    def camera_names(self) -> tuple[str, ...]:
        """The cameras that are read, () for sweeps only."""
        return self._camera_names

    def split_of(self, log: str) -> str:
        """By `val_logs` and the set's held-out drives."""
        if log in self.val_logs:
            return "val"
        return "test" if log in _TEST_DRIVES else "train"

    def num_frames(self, log: str) -> int:
        """Frames with a pose that have a sweep or an image."""
        return len(self._frames(log, self._poses(log)))

    def _poses(self, log: str) -> dict[int, Float[np.ndarray, "4 4"]] | None:
        """Pose of each frame that has one; None for a drive without poses."""
        path = self._poses_file(log)
        try:
            return read_poses(path) if path.is_file() else None
        except DamagedError as error:  # it says which frames there are, so no frame can be skipped for it
            raise ShardError(f"{error.detail}; expected a frame's number and 12 numbers a line") from error

    def _frames(self, log: str, poses: dict[int, Float[np.ndarray, "4 4"]] | None) -> list[str]:
        names = self._recorded(log)
        return names if poses is None else [name for name in names if int(name) in poses]

    def _recorded(self, log: str) -> list[str]:
        found = list(self._sweeps(log).glob("*.bin"))
        for camera in self._camera_names:
            found += self._images(log, camera).glob("*.png")
        return kitti.numbered(found)

    def notes(self) -> tuple[str, ...]:
        """What is absent, what stands in for it, and how many frames have no pose."""
        found = ["sweeps are not unwound: points lie where the turning scanner saw them"]
        if not self._camera_names:
            found.append("no images: sweeps only")
        for log in self._drives:
            recorded, poses = self._recorded(log), self._poses(log)
            absent = 0 if poses is None else len(recorded) - len(self._frames(log, poses))
            if poses is None:
                found.append(f"{log}: no poses.txt, ego poses are identity")
            elif absent:
                found.append(f"{log}: {absent} of {len(recorded)} frames are not in poses.txt and left out")
            if not (self._sweeps(log).parent / "timestamps.txt").is_file():
                found.append(f"{log}: no timestamps.txt, 10 Hz assumed")
        return tuple(found)

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Frames with a pose in order of number; a damaged one is named and left out."""
        poses = self._poses(log)
        names = self._frames(log, poses)[start:stop]
        try:
            rig = _Rig(self._root / "calibration", self._camera_names)
            times = self._times(log)
        except DamagedError as error:
            yield from (Skipped.of(error, f"{log}_{name}") for name in names)
            return
        for name in names:
            try:
                yield self._read(log, name, rig, times, np.eye(4) if poses is None else poses[int(name)])
            except DamagedError as error:
                yield Skipped.of(error, f"{log}_{name}")

    def _times(self, log: str) -> dict[str, list[int] | None]:
        """Times of each sensor's frames."""
        files = {camera: self._images(log, camera).parent for camera in self._camera_names}
        files[""] = self._sweeps(log).parent
        return {sensor: kitti.read_timestamps(folder / "timestamps.txt") for sensor, folder in files.items()}

    def _read(
        self,
        log: str,
        name: str,
        rig: _Rig,
        times: dict[str, list[int] | None],
        T_world_pose: Float[np.ndarray, "4 4"],
    ) -> Sample:
        sweep = kitti.read_sweep(self._sweeps(log) / f"{name}.bin")
        T_world_ego = T_world_pose @ _T_EGO_POSE
        cameras = []
        for camera in self._camera_names:
            image = read_image(self._images(log, camera) / f"{name}.png")
            view = CameraView(
                name=camera,
                image_size=(image.shape[0], image.shape[1]),
                K=rig.K[camera],
                T_cam_ego=rig.T_cam_ego[camera],
                T_world_ego=T_world_ego,
                timestamp_us=_time_us(times[camera], int(name)),
                image=image,
            )
            cameras.append(view)
        return Sample(
            key=f"{log}_{name}",
            log=log,
            timestamp_us=_time_us(times[""], int(name)),
            points_lidar=np.ascontiguousarray(sweep[:, :3]),
            intensity=np.clip(sweep[:, 3], 0, 1),
            T_ego_lidar=rig.T_ego_lidar,
            T_world_ego=T_world_ego,
            cameras=tuple(cameras),
        )


def _time_us(times: list[int] | None, frame: int) -> int:
    if times is None:
        return frame * _FRAME_PERIOD_US
    if frame >= len(times):
        raise DamagedError("meta-broken", f"timestamps.txt has {len(times)} lines, no frame {frame}")
    return times[frame]


def read_poses(path: Path) -> dict[int, Float[np.ndarray, "4 4"]]:
    """Lines of a frame's number and a 3 x 4 matrix, the set's GPS/IMU frame to its world.

    Raises:
        DamagedError: a line has another form.
    """
    rows = read_numbers(path, 13)
    if not np.isfinite(rows[:, 0]).all():
        raise DamagedError("meta-broken", f"{path}: a frame's number is not finite")
    return {int(row[0]): rigid(row[1:].reshape(3, 4)[:, :3], row[1:].reshape(3, 4)[:, 3]) for row in rows}


class _Rig:
    """Calibration: `calib_cam_to_pose` has the cameras before rectification, `perspective` what rectifies them."""

    def __init__(self, folder: Path, cameras: tuple[str, ...]) -> None:
        to_pose = kitti.read_calibration(folder / "calib_cam_to_pose.txt")
        T_pose_cam0 = kitti.homogeneous(kitti.entry(to_pose, "image_00", (3, 4)))
        (row,) = _one_line(folder / "calib_cam_to_velo.txt")
        T_lidar_cam0 = kitti.homogeneous(row.reshape(3, 4))
        self.T_ego_lidar = _T_EGO_POSE @ T_pose_cam0 @ kitti.inverse("calib_cam_to_velo", T_lidar_cam0)
        self.K: dict[str, Float[np.ndarray, "3 3"]] = {}
        self.T_cam_ego: dict[str, Float[np.ndarray, "4 4"]] = {}
        perspective = kitti.read_calibration(folder / "perspective.txt") if cameras else {}
        for camera in cameras:
            number = camera[-2:]
            # The fourth column of P_rect_01 repeats the baseline that calib_cam_to_pose has: as the set's kit, K only.
            self.K[camera], _ = kitti.split_projection(kitti.entry(perspective, f"P_rect_{number}", (3, 4)))
            T_rect_cam = kitti.rotation(kitti.entry(perspective, f"R_rect_{number}", (3, 3)))
            T_pose_cam = kitti.homogeneous(kitti.entry(to_pose, camera, (3, 4)))
            self.T_cam_ego[camera] = T_rect_cam @ kitti.inverse(camera, T_pose_cam) @ _T_EGO_POSE


def _one_line(path: Path) -> Float[np.ndarray, "1 12"]:
    if not path.is_file():
        raise DamagedError("calibration-missing", str(path))
    rows = read_numbers(path, 12)
    if len(rows) != 1:
        raise DamagedError("calibration-missing", f"{path}: {len(rows)} lines, expected 1")
    return rows
