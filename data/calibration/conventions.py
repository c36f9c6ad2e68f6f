"""Points that meet no image: which of the usual mistakes in the extrinsics would explain it?

Extrinsics are written down in many ways: from the camera or to it, with a camera's axes (x right, y down, z forward) or
a vehicle's (x forward, y left, z up), as quaternions with the scalar first or last, in degrees or radians. A set that
was written the wrong way round is not damaged, so no check of single numbers finds it; but hardly any of its points lie
in an image. Here each of the usual mistakes is undone in turn, for all cameras of a few samples. Several may bring
points into images: the right one also makes the images upright, and the sweep's borders meet the images' edges.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from data.calibration.check import check_samples
from data.calibration.heading import degrees_as_radians_undone, rolled_quaternion, turned
from data.geometry import project, rigid, transform, visible, yaw_rotation
from data.sample import CameraView, Sample

LEAST_SHARE = 1e-3
"""Pairs for each point and sample below which a set's images and points do not meet: a 10 by 5 degree camera beside a
scanner of 64 beams has five times as many."""

_FITS_SHARE = 5e-3
"""Pairs for each point that a mistake must bring back to be named."""

_UPRIGHT = 0.5
"""Least cosine between a camera's y axis and down, in the ego frame: 60 degrees of roll or pitch."""

_SHOWN = 3

_ANGLE_RAD = 2e-3
_RIGHT = np.pi / 2
_VEHICLE_OPTICAL = rigid(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), np.zeros(3))
"""A camera's axes (x right, y down, z forward) to a vehicle's (x forward, y left, z up)."""

_GRAPHICS = np.diag([1.0, -1.0, -1.0, 1.0])
"""Axes of a camera in computer graphics (x right, y up, z backward) to ours; its own inverse."""

Pose = Float[np.ndarray, "4 4"]


# ---- mistakes
def _whole_degrees(T: Pose) -> Pose:
    """The pose whose yaw, pitch and roll in degrees were taken for radians.

    Only multiples of five degrees are looked for, which whole turns leave apart; other poses stay as they are.
    """
    tried = np.arange(-180, 181, 5)
    angles = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pitched by 90 degrees, yaw and roll are one angle: it is yaw
        yaw_pitch_roll = Rotation.from_matrix(T[:3, :3]).as_euler("ZYX")
    for angle in yaw_pitch_roll:
        off = np.abs((tried - angle + np.pi) % (2 * np.pi) - np.pi)
        if off.min() > _ANGLE_RAD:
            return T
        angles.append(np.radians(tried[off.argmin()]))
    return turned(T, Rotation.from_euler("ZYX", angles).as_matrix())


_SENSOR: dict[str, Callable[[Pose], Pose]] = {
    "quaternion was written scalar first (w x y z) and read scalar last (x y z w)": lambda T: rolled_quaternion(T, -1),
    "quaternion was written scalar last (x y z w) and read scalar first (w x y z)": lambda T: rolled_quaternion(T, 1),
    "angles are radians and were read as degrees": degrees_as_radians_undone,
    "angles are degrees and were read as radians": _whole_degrees,
    "place is in millimetres: give metres": lambda T: rigid(T[:3, :3], T[:3, 3] / 1000),
}
"""What may be wrong with T_ego_camera and with T_ego_lidar -> the pose with it undone."""

_CAMERA: dict[str, Callable[[Pose], Pose]] = {
    "pose is the wrong way round (ego to camera in the place of camera to ego): give its inverse": np.linalg.inv,
    "axes are a vehicle's (x forward, y left, z up): give x right, y down, z forward": lambda T: T @ _VEHICLE_OPTICAL,
    "pose is the wrong way round and has a vehicle's axes: give its inverse, x right, y down, z forward": lambda T: (
        np.linalg.inv(T) @ _VEHICLE_OPTICAL
    ),
    "axes are those of computer graphics (x right, y up, z backward): give x right, y down, z forward": lambda T: (
        T @ _GRAPHICS
    ),
    **_SENSOR,
}

_LIDAR: dict[str, Callable[[Pose], Pose]] = {
    "pose is the wrong way round (ego to LiDAR in the place of LiDAR to ego): give its inverse": np.linalg.inv,
    "frame has x right, y forward: turn it to x forward, y left": lambda T: turned(
        T, T[:3, :3] @ yaw_rotation(-_RIGHT)
    ),
    "frame has x left, y backward: turn it to x forward, y left": lambda T: turned(T, T[:3, :3] @ yaw_rotation(_RIGHT)),
    "frame has x backward: turn it to x forward, y left": lambda T: turned(T, T[:3, :3] @ yaw_rotation(2 * _RIGHT)),
    **_SENSOR,
}


def with_cameras(sample: Sample, change: Callable[[Pose], Pose]) -> Sample:
    """The sample with each camera's T_ego_camera changed."""
    views = (
        dataclasses.replace(view, T_cam_ego=np.linalg.inv(change(np.linalg.inv(view.T_cam_ego))))
        for view in sample.cameras
    )
    return dataclasses.replace(sample, cameras=tuple(views))


def with_lidar(sample: Sample, change: Callable[[Pose], Pose]) -> Sample:
    """The sample with T_ego_lidar changed."""
    return dataclasses.replace(sample, T_ego_lidar=change(sample.T_ego_lidar))


_MISTAKES = [
    *((f"the camera's {what}", with_cameras, change) for what, change in _CAMERA.items()),
    *((f"the LiDAR's {what}", with_lidar, change) for what, change in _LIDAR.items()),
]


@dataclass(frozen=True, kw_only=True)
class _Fit:
    mistake: str
    num_pairs: int
    num_upright: int
    edge_gain: float  # of edge strength under projected borders over that anywhere, mean of the cameras


def points_meet_images(samples: Sequence[Sample]) -> bool | None:
    """Whether points of these samples lie in images, however near; None where there is too little to tell."""
    num_points = sum(len(sample.points_lidar) for sample in samples)
    if num_points * LEAST_SHARE < 1 or not any(sample.cameras for sample in samples):
        return None
    return _num_pairs(samples) >= LEAST_SHARE * num_points


def stands_upright(view: CameraView) -> bool:
    """Whether down in the image is down for the vehicle, to 60 degrees."""
    return float(-view.T_cam_ego[1, 2]) > _UPRIGHT


def explain(samples: Sequence[Sample]) -> str:
    """Which usual mistakes in the extrinsics would explain that the points of these samples meet no (upright) images.

    Mistakes that leave more images upright come first, then those after which borders meet edges better.

    Args:
        samples: a few, with images where there are any.

    Returns:
        The likeliest with what undoing them would give; or that none of them fits.
    """
    fits = sorted(filter(None, (_fit(*mistake, samples) for mistake in _MISTAKES)), key=_order)
    fits = [fit for fit in fits if fit.num_upright == fits[0].num_upright][:_SHOWN]
    if not fits:
        return (
            "none of the usual mistakes (inverse, axes, quaternion order, degrees, millimetres) explains it; compare "
            "the poses of the sensors with 'Frames' in docs/custom_data.md"
        )
    listed = "; or ".join(f"{fit.mistake} ({fit.num_pairs / len(samples):,.0f} pairs per sample)" for fit in fits)
    return f"likely, {listed}"


def _num_pairs(samples: Sequence[Sample]) -> int:
    total = 0
    for sample in samples:
        for view in sample.cameras:
            uv, depth = project(view.K, transform(sample.T_cam_lidar(view), sample.points_lidar))
            total += int(visible(uv, depth, view.image_size, min_depth_m=0.0).sum())
    return total


def _order(fit: _Fit) -> tuple[int, float]:
    return -fit.num_upright, -fit.edge_gain


def _fit(
    mistake: str,
    changed: Callable[[Sample, Callable[[Pose], Pose]], Sample],
    undo: Callable[[Pose], Pose],
    samples: Sequence[Sample],
) -> _Fit | None:
    """How well the samples fit with this mistake undone; None where that brings hardly a point into an image."""
    undone = [changed(sample, undo) for sample in samples]
    num_pairs = _num_pairs(undone)
    if num_pairs < _FITS_SHARE * sum(len(sample.points_lidar) for sample in samples):
        return None
    gains = [verdict.score / verdict.background for verdict in check_samples(undone) if verdict.background > 0]
    return _Fit(
        mistake=mistake,
        num_pairs=num_pairs,
        num_upright=sum(stands_upright(view) for sample in undone for view in sample.cameras),
        edge_gain=float(np.mean(gains)) if gains else 0.0,
    )
