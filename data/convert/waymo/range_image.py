"""Range images of the Waymo Open Dataset to points, in double precision.

A cell's row is a beam (the highest first), its column an azimuth, turning clockwise from the direction in which the
*vehicle* looks back; the ray lies in the laser's frame. Cells of the top laser carry the vehicle pose of their own
firing, which takes the vehicle's motion during the turn out of the sweep.

    azimuth(column) = pi (2 (W - column - 1/2) / W - 1) - yaw of the laser in the vehicle
    p_laser         = range (cos inclination cos azimuth, cos inclination sin azimuth, sin inclination)
    p_vehicle       = inv(T_world_vehicle of the frame) T_world_vehicle(cell) T_vehicle_laser p_laser

Precision: the files hold ranges and the cells' poses in float32. World coordinates of 40 km then have steps of 4 mm,
which all readers of the set share; nothing is lost here.

Source: Sun et al., Waymo Open Dataset (CVPR 2020), section 3; dataset.proto; the official range_image_utils for the
centre of a column, the order of rows, and evenly spaced beams.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from data.convert.waymo.frame import LaserCalibration, RawLaser
from data.storage.damage import DamagedError

_RANGE, _INTENSITY, _ELONGATION, _NO_LABEL_ZONE = range(4)
_INSTANCE, _CLASS = 0, 1


@dataclass(frozen=True, kw_only=True)
class LaserPoints:
    """Points of one or more lasers, laser by laser, return by return, row by row.

    Attributes:
        points_vehicle: in the vehicle frame of the frame's pose, metres.
        intensity: as the laser gives it, without an upper limit.
        elongation: of the pulse beyond its nominal width, as the laser gives it.
        no_label_zone: whether boxes are not labelled at this place.
        classes: number in the files, 0 where undefined or without segmentation.
        instances: object in the files, 0 for none.
        segmented: whether any return has segmentation.
    """

    points_vehicle: Float[np.ndarray, "N 3"]
    intensity: Float[np.ndarray, " N"]
    elongation: Float[np.ndarray, " N"]
    no_label_zone: Bool[np.ndarray, " N"]
    classes: Int[np.ndarray, " N"]
    instances: Int[np.ndarray, " N"]
    segmented: bool


def laser_points(laser: RawLaser, T_world_vehicle: Float[np.ndarray, "4 4"], what: str) -> LaserPoints:
    """Points of all returns of one laser, in the vehicle frame of the frame's pose.

    Raises:
        DamagedError: images, poses, labels or calibration disagree in size.
    """
    parts = []
    for image, segmentation in zip(laser.returns, laser.segmentation, strict=True):
        _same_grid("poses", image, laser.pose, what)
        _same_grid("segmentation", image, segmentation, what)
        rows, columns = np.nonzero(image[..., _RANGE] > 0)
        cells = (rows, columns)
        values = image[cells]
        labels = np.zeros((len(values), 2), np.int64) if segmentation is None else segmentation[cells]
        parts.append(
            LaserPoints(
                points_vehicle=_cell_points(laser, image.shape[:2], cells, values[:, _RANGE], T_world_vehicle, what),
                intensity=values[:, _INTENSITY].astype(np.float64),
                elongation=values[:, _ELONGATION].astype(np.float64),
                no_label_zone=values[:, _NO_LABEL_ZONE] > 0,
                classes=labels[:, _CLASS].astype(np.int64),
                instances=labels[:, _INSTANCE].astype(np.int64),
                segmented=segmentation is not None,
            )
        )
    return merge(parts)


def merge(parts: list[LaserPoints]) -> LaserPoints:
    """All points, in the order given."""
    names = [field.name for field in dataclasses.fields(LaserPoints) if field.name != "segmented"]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return LaserPoints(**joined, segmented=any(part.segmented for part in parts))


def _same_grid(name: str, image: np.ndarray, other: np.ndarray | None, what: str) -> None:
    if other is not None and other.shape[:2] != image.shape[:2]:
        raise DamagedError("array-broken", f"{what}: {name} {other.shape[:2]} for a range image {image.shape[:2]}")


def _cell_points(
    laser: RawLaser,
    shape: tuple[int, int],
    cells: tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]],
    ranges: Float[np.ndarray, " N"],
    T_world_vehicle: Float[np.ndarray, "4 4"],
    what: str,
) -> Float[np.ndarray, "N 3"]:
    rows, columns = cells
    T_vehicle_laser = laser.calibration.T_vehicle_laser
    inclination = row_inclinations(laser.calibration, shape[0], what)
    azimuth = column_azimuths(T_vehicle_laser, shape[1])
    # Sines of each row and column once, not of each cell.
    flat, up = np.cos(inclination)[rows], np.sin(inclination)[rows]
    rays = np.stack([flat * np.cos(azimuth)[columns], flat * np.sin(azimuth)[columns], up], axis=1)
    points = rays * ranges[:, None].astype(np.float64)
    points = points @ T_vehicle_laser[:3, :3].T + T_vehicle_laser[:3, 3]
    if laser.pose is None:
        return np.asarray(points)
    poses = laser.pose[cells].astype(np.float64)
    # Differences of positions first: 40 km times a rotation would cost five digits.
    turned = rotate_rpy(poses[:, :3], points) + (poses[:, 3:] - T_world_vehicle[:3, 3])
    return np.asarray(turned @ T_world_vehicle[:3, :3])


def row_inclinations(calibration: LaserCalibration, height: int, what: str) -> Float[np.ndarray, " H"]:
    """Inclination of each row of a range image, the highest first.

    Raises:
        DamagedError: beams are listed, but not as many as the image has rows.
    """
    if calibration.inclinations.size == 0:
        low, high = calibration.inclination_range
        return ((np.arange(height) + 0.5) / height * (high - low) + low)[::-1]
    if calibration.inclinations.size != height:
        detail = f"{what}: {calibration.inclinations.size} beam inclinations for {height} rows"
        raise DamagedError("calibration-missing", detail)
    return calibration.inclinations[::-1]


def column_azimuths(T_vehicle_laser: Float[np.ndarray, "4 4"], width: int) -> Float[np.ndarray, " W"]:
    """Azimuth of the centre of each column in the laser's frame."""
    yaw = np.arctan2(T_vehicle_laser[1, 0], T_vehicle_laser[0, 0])
    return np.asarray(np.pi * (2 * (width - np.arange(width) - 0.5) / width - 1) - yaw)


def rotate_rpy(rpy: Float[np.ndarray, "N 3"], points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Each point turned by its own roll, pitch and yaw: Rz(yaw) Ry(pitch) Rx(roll)."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy).T, np.sin(rpy).T
    x, y, z = points.T
    y, z = cr * y - sr * z, sr * y + cr * z
    x, z = cp * x + sp * z, cp * z - sp * x
    return np.stack([cy * x - sy * y, sy * x + cy * y, z], axis=1)
