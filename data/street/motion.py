"""Where the ego is at a time, and where the sensors sit on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data.geometry import rigid, yaw_rotation
from data.street.config import StreetCameraConfig, StreetLidarConfig
from data.street.road import Street

# Columns are the camera's axes (x right, y down, z forward) in a frame with x forward, y left, z up.
_CAMERA_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True, kw_only=True)
class Drive:
    """The ego's motion: constant t, s growing by `speed_mps` a second from `s` at time 0, and a gentle sway."""

    s: float
    t: float
    speed_mps: float
    sway_phase: float


def rotation_rpy(roll: float, pitch: float, yaw: float) -> Float[np.ndarray, "3 3"]:
    """Rotation by roll about x, then pitch about y, then yaw about z, radians."""
    cr, sr, cp, sp = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch)
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    return np.asarray(yaw_rotation(yaw) @ about_y @ about_x)


def ego_pose(street: Street, drive: Drive, time_s: float) -> Float[np.ndarray, "4 4"]:
    """T_world_ego: on its lane, with a sway of a few centimetres and a roll and pitch of tenths of a degree."""
    phase = 2 * np.pi * time_s / 3.1 + drive.sway_phase
    s, t = drive.s + drive.speed_mps * time_s, drive.t + 0.08 * np.sin(phase)
    x, y = street.curve.position(np.array(s), np.array(t)).tolist()
    roll, pitch = np.deg2rad(0.35) * np.sin(1.9 * phase), np.deg2rad(0.3) * np.sin(2.7 * phase + 1)
    yaw = float(street.curve.yaw_at(np.array(s))) + 0.01 * np.cos(phase)
    return rigid(rotation_rpy(roll, pitch, yaw), np.array([x, y, 0.02 * np.sin(2.3 * phase)]))


def lidar_mount(config: StreetLidarConfig) -> Float[np.ndarray, "4 4"]:
    """T_ego_lidar."""
    roll, pitch, yaw = np.deg2rad(config.mount_rpy_deg).tolist()
    return rigid(rotation_rpy(roll, pitch, yaw), np.array(config.mount_m))


def camera_mount(config: StreetCameraConfig, index: int) -> Float[np.ndarray, "4 4"]:
    """T_cam_ego of one camera."""
    yaw, pitch = np.deg2rad(config.yaws_deg[index]), np.deg2rad(config.pitch_deg)
    turned = rotation_rpy(0.0, float(pitch), float(yaw)) @ _CAMERA_AXES
    return np.asarray(np.linalg.inv(rigid(turned, np.array(config.mounts_m[index]))))


def intrinsics(config: StreetCameraConfig) -> Float[np.ndarray, "3 3"]:
    """K, the same for all cameras: square pixels, principal point in the image's middle."""
    height, width = config.image_size
    focal = width / 2 / np.tan(np.deg2rad(config.horizontal_fov_deg) / 2)
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])
