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

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from data.convert.base import FrameConverter, check_cameras
from data.convert.intensity import scaled_intensity
from data.convert.kitti import common as kitti
from data.convert.raw_files import layout_error, numbers_of, read_bytes, read_numbers, read_view
from data.sample import CameraView, Sample
from data.storage.damage import DamagedError

_NAME = "KITTI-360"
_CAMERAS = ("image_00", "image_01")
_TEST_DRIVES = ("2013_05_28_drive_0008_sync", "2013_05_28_drive_0018_sync")
_T_EGO_POSE = np.diag([1.0, -1.0, -1.0, 1.0])
"""The set's GPS/IMU frame to ours; its own inverse."""


@dataclass(frozen=True, kw_only=True)
class Kitti360Converter(FrameConverter):
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
        check_cameras(self, *_CAMERAS)

    @property
    def _root(self) -> Path:
        return Path(self.source)

    @cached_property
    def _logs(self) -> dict[str, Path]:
        """Folder of each drive's sweeps."""
        sweeps = self._root / "data_3d_raw"
        folders = sorted(path for path in sweeps.glob("*_drive_*_sync/velodyne_points") if path.is_dir())
        drives = {path.parent.name: path / "data" for path in folders}
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

    @cached_property
    def _camera_names(self) -> tuple[str, ...]:
        return kitti.camera_names(
            self.cameras,
            _CAMERAS,
            lambda camera: (self._images(drive, camera) for drive in self._logs),
            lambda folder: layout_error(self.source, _NAME, f"{folder.parent.name}/data_rect", folder.parent.parent),
        )

    def split_of(self, log: str) -> str:
        """By `val_logs` and the set's held-out drives."""
        if log in self.val_logs:
            return "val"
        return "test" if log in _TEST_DRIVES else "train"

    def _poses(self, log: str) -> Poses | None:
        """Pose of each frame that has one; None for a drive without poses."""
        path = self._root / "data_poses" / log / "poses.txt"
        if not path.is_file():
            return None
        poses = read_poses(path)
        if all(isinstance(pose, DamagedError) for pose in poses.values()):
            expected = "a frame's number and 12 numbers a line, of at least one frame"
            raise layout_error(self.source, _NAME, f"{path.name} with {expected}", path.parent)
        return poses

    def _recorded(self, log: str) -> list[str]:
        return kitti.recorded(self._logs[log], (self._images(log, camera) for camera in self._camera_names))

    def _frames(self, log: str) -> list[tuple[str, str]]:
        poses = self._poses(log)
        return [(f"{log}_{name}", name) for name in self._recorded(log) if poses is None or int(name) in poses]

    def notes(self) -> tuple[str, ...]:
        """What is absent, what stands in for it, and how many frames have no pose."""
        notes = ["sweeps are not unwound: points lie where the turning scanner saw them"]
        if not self._camera_names:
            notes.append("no images: sweeps only")
        for log, sweeps in self._logs.items():
            recorded, poses = self._recorded(log), self._poses(log)
            absent = 0 if poses is None else sum(int(name) not in poses for name in recorded)
            if poses is None:
                notes.append(f"{log}: no poses.txt, ego poses are identity")
            elif absent:
                notes.append(f"{log}: {absent} of {len(recorded)} frames are not in poses.txt and left out")
            if not (sweeps.parent / "timestamps.txt").is_file():
                notes.append(f"{log}: no timestamps.txt, 10 Hz assumed")
        return tuple(notes)

    def _reader(self, log: str) -> Callable[[str], Sample]:
        folders = {camera: self._images(log, camera).parent for camera in self._camera_names}
        # "" names the scanner.
        clock = kitti.Clock({"": self._logs[log].parent, **folders})
        rig = _Rig(self._root / "calibration", self._camera_names)
        return functools.partial(self._read, log, rig, clock, self._poses(log))

    def _read(self, log: str, rig: _Rig, clock: kitti.Clock, poses: Poses | None, name: str) -> Sample:
        path = self._logs[log] / f"{name}.bin"
        sweep = kitti.read_sweep(path)
        T_world_pose = np.eye(4) if poses is None else poses[int(name)]
        if isinstance(T_world_pose, DamagedError):
            raise DamagedError(T_world_pose.reason, T_world_pose.detail)
        T_world_ego = T_world_pose @ _T_EGO_POSE

        def view(camera: str) -> CameraView:
            path, time_us = kitti.image_file(self._images(log, camera), name), clock.time_us(camera, int(name))
            K, T_cam_ego, size = rig.K[camera], rig.T_cam_ego[camera], rig.sizes[camera]
            return read_view(camera, path, K, T_cam_ego, T_world_ego, time_us, size)

        return Sample(
            key=f"{log}_{name}",
            log=log,
            timestamp_us=clock.time_us("", int(name)),
            points_lidar=np.ascontiguousarray(sweep[:, :3]),
            intensity=scaled_intensity(sweep[:, 3], 1.0, str(path)),
            T_ego_lidar=rig.T_ego_lidar,
            T_world_ego=T_world_ego,
            cameras=tuple(view(camera) for camera in self._camera_names),
        )


Poses = Mapping[int, "Float[np.ndarray, '4 4'] | DamagedError"]
"""Pose of each frame by its number; what is wrong with its line where that is damaged."""


def read_poses(path: Path) -> Poses:
    """Lines of a frame's number and a 3 x 4 matrix, the set's GPS/IMU frame to its world.

    A damaged line is the loss of its own frame; one whose number cannot be read belongs to no frame.

    Raises:
        DamagedError: the file cannot be read.
    """
    poses: dict[int, Float[np.ndarray, "4 4"] | DamagedError] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        text = line.decode("utf-8", errors="replace")
        frame = re.match(r"\s*([0-9]{1,10})\s", text)
        if frame is None:
            continue
        known = poses.get(int(frame[1]))
        try:
            pose: Float[np.ndarray, "4 4"] | DamagedError
            pose = kitti.homogeneous(numbers_of(text, 13)[1:].reshape(3, 4))
        except ValueError as error:
            pose = DamagedError("meta-broken", f"{path}, line {number}: {error}")
        if known is not None and not np.array_equal(np.asarray(known), np.asarray(pose)):
            pose = DamagedError("meta-broken", f"{path}, line {number}: frame {frame[1]} has two different poses")
        poses[int(frame[1])] = pose
    return poses


class _Rig:
    """Calibration: `calib_cam_to_pose` has the cameras before rectification, `perspective` what rectifies them."""

    def __init__(self, folder: Path, cameras: tuple[str, ...]) -> None:
        to_pose = kitti.read_calibration(folder / "calib_cam_to_pose.txt")
        T_pose_cam0 = kitti.homogeneous(kitti.entry(to_pose, "image_00", (3, 4)))
        T_lidar_cam0 = kitti.homogeneous(_one_line(folder / "calib_cam_to_velo.txt").reshape(3, 4))
        self.T_ego_lidar = _T_EGO_POSE @ T_pose_cam0 @ kitti.inverse("calib_cam_to_velo", T_lidar_cam0)
        self.K: dict[str, Float[np.ndarray, "3 3"]] = {}
        self.T_cam_ego: dict[str, Float[np.ndarray, "4 4"]] = {}
        perspective = kitti.read_calibration(folder / "perspective.txt") if cameras else {}
        self.sizes = {camera: kitti.stated_size(perspective, f"S_rect_{camera[-2:]}") for camera in cameras}
        for camera in cameras:
            number = camera[-2:]
            # The fourth column of P_rect_01 repeats the baseline that calib_cam_to_pose has: as the set's kit, K only.
            self.K[camera], _ = kitti.split_projection(kitti.entry(perspective, f"P_rect_{number}", (3, 4)))
            T_rect_cam = kitti.rotation(kitti.entry(perspective, f"R_rect_{number}", (3, 3)))
            T_pose_cam = kitti.homogeneous(kitti.entry(to_pose, camera, (3, 4)))
            self.T_cam_ego[camera] = T_rect_cam @ kitti.inverse(camera, T_pose_cam) @ _T_EGO_POSE


def _one_line(path: Path) -> Float[np.ndarray, " 12"]:
    if not path.is_file():
        raise DamagedError("calibration-missing", str(path))
    rows = read_numbers(path, 12)
    if len(rows) != 1:
        raise DamagedError("calibration-missing", f"{path}: {len(rows)} lines, expected 1")
    return np.asarray(rows[0])
