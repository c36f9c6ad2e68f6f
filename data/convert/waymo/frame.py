"""One frame of the Waymo Open Dataset as both published formats hold it, before any geometry: the readers' result.

Matrices are those of the files: camera frame x forward, y left, z up; principal points count from the image's corner.

Source: Sun et al., Scalability in Perception for Autonomous Driving: Waymo Open Dataset (CVPR 2020); the comments of
the official dataset.proto, label.proto and v2 component definitions (waymo-open-dataset, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from data.storage.damage import DamagedError

LASERS = {"top": 1, "front": 2, "side_left": 3, "side_right": 4, "rear": 5}
"""Our name -> number in the files."""

CAMERAS = {"front": 1, "front_left": 2, "front_right": 3, "side_left": 4, "side_right": 5}
"""As of the lasers."""


@dataclass(frozen=True, kw_only=True)
class WaymoParts:
    """What is decoded; the rest of a frame costs no time.

    Attributes:
        lasers: names, in the order of the points.
        num_returns: 1 or 2.
        cameras: names.
        segmentation: the points' classes and instances.
    """

    lasers: tuple[str, ...]
    num_returns: int
    cameras: tuple[str, ...]
    segmentation: bool


@dataclass(frozen=True, kw_only=True)
class RawCamera:
    """One image.

    Attributes:
        jpeg: as stored.
        T_world_vehicle: vehicle pose at `time_s`.
        time_s: time of that pose, seconds since 1970: about the middle of the exposure of the middle column.
    """

    jpeg: bytes
    T_world_vehicle: Float[np.ndarray, "4 4"]
    time_s: float


@dataclass(frozen=True, kw_only=True)
class CameraCalibration:
    """One camera.

    Attributes:
        intrinsics: f_u, f_v, c_u, c_v in pixels, then k1, k2, p1, p2, k3 with OpenCV's meaning.
        T_vehicle_cam: extrinsics.
        image_size: height, width.
    """

    intrinsics: Float[np.ndarray, " 9"]
    T_vehicle_cam: Float[np.ndarray, "4 4"]
    image_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LaserCalibration:
    """One laser scanner.

    Attributes:
        T_vehicle_laser: extrinsics.
        inclinations: of each beam from the lowest up, radians; empty where they are evenly spaced.
        inclination_range: lower and upper limit of the evenly spaced ones.
    """

    T_vehicle_laser: Float[np.ndarray, "4 4"]
    inclinations: Float[np.ndarray, " beams"]
    inclination_range: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class RawLaser:
    """One laser scanner's range images, one entry a return.

    Attributes:
        calibration: of the scanner.
        returns: range in metres (not above 0: no return), intensity, elongation, in a no-label zone (1) or not (-1).
        segmentation: instance, class; None where the frame is not labelled.
        pose: roll, pitch, yaw, x, y, z of T_world_vehicle at each cell's firing (of both returns); None where the
            ranges belong to the frame's one vehicle pose already.
    """

    calibration: LaserCalibration
    returns: tuple[Float[np.ndarray, "H W 4"], ...]
    segmentation: tuple[Int[np.ndarray, "H W 2"] | None, ...]
    pose: Float[np.ndarray, "H W 6"] | None


@dataclass(frozen=True, kw_only=True)
class RawBoxes:
    """Labelled boxes in the vehicle frame of the frame's pose.

    Attributes:
        table: centre x y z, length, width, height (m), heading (rad).
        velocities: in the *world* frame, m/s; NaN where unknown.
        types: number in the files.
        ids: the same object has the same one through a segment.
        num_points: of all lasers inside; -1 where it is not stated.
        difficulties: detection level 1 or 2; -1 where the set leaves it to the number of points.
    """

    table: Float[np.ndarray, "boxes 7"]
    velocities: Float[np.ndarray, "boxes 3"]
    types: Int[np.ndarray, " boxes"]
    ids: tuple[str, ...]
    num_points: Int[np.ndarray, " boxes"]
    difficulties: Int[np.ndarray, " boxes"]


@dataclass(frozen=True, kw_only=True)
class RawFrame:
    """The parts of one frame that were asked for.

    Attributes:
        timestamp_us: start of the top laser's turn.
        T_world_vehicle: vehicle pose near the middle of the turn; the frame of boxes and points.
        top: calibration of the top laser, whichever lasers are read.
        lasers: by name; those without any range image are absent.
        cameras: by name.
        camera_calibrations: by name.
        boxes: labels; None where the source has none for any frame.
    """

    timestamp_us: int
    T_world_vehicle: Float[np.ndarray, "4 4"]
    top: LaserCalibration
    lasers: Mapping[str, RawLaser]
    cameras: Mapping[str, RawCamera]
    camera_calibrations: Mapping[str, CameraCalibration]
    boxes: RawBoxes | None


def name_of(names: Mapping[str, int], number: int | None) -> str:
    """Our name for a laser's or camera's number in the files."""
    return next((name for name, known in names.items() if known == number), f"unknown_{number}")


def matrix(name: str, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "4 4"]:
    """A transform from its 16 numbers.

    Raises:
        DamagedError: another count, or no rigid transform.
    """
    if values.size != 16:
        raise DamagedError("calibration-missing", f"{name}: {values.size} numbers, expected 16")
    T = values.reshape(4, 4)
    if not np.isfinite(T).all() or abs(np.linalg.det(T[:3, :3]) - 1) > 0.01:
        raise DamagedError("calibration-singular", f"{name}: {T.tolist()}")
    return T


def calibration_of(name: str, calibrations: Mapping[str, LaserCalibration]) -> LaserCalibration:
    """The entry of a laser.

    Raises:
        DamagedError: there is none.
    """
    if name not in calibrations:
        raise DamagedError("calibration-missing", f"laser {name!r}: only {', '.join(calibrations) or 'none'}")
    return calibrations[name]
