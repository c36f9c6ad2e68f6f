"""Poses as data sets write them, and whether axes point where a set's description says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from data.geometry import rigid
from data.storage.damage import DamagedError

_FORWARD = 0.7
"""Least cosine between a front camera's optical axis and the vehicle's x axis: 45 degrees."""


def pose(what: str, quaternion_wxyz: Sequence[Any], position_m: Sequence[Any]) -> Float[np.ndarray, "4 4"]:
    """The transform that turns by a unit quaternion and then moves, of values as a file has them.

    Raises:
        DamagedError: numbers are missing or not finite, or the quaternion has another length.
    """
    try:
        quaternion = np.array(quaternion_wxyz, dtype=np.float64).reshape(4)
        position = np.array(position_m, dtype=np.float64).reshape(3)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise DamagedError("calibration-missing", f"{what}: {error!r:.200}") from error
    length = float(np.linalg.norm(quaternion))
    if not (np.isfinite(position).all() and abs(length - 1) < 0.01):
        detail = f"{what}: quaternion {quaternion.tolist()}, position {position.tolist()}"
        raise DamagedError("calibration-singular", detail)
    return rigid(Rotation.from_quat(np.roll(quaternion, -1)).as_matrix(), position)


def pose_between(
    first: Float[np.ndarray, "4 4"], second: Float[np.ndarray, "4 4"], share: float
) -> Float[np.ndarray, "4 4"]:
    """The pose on the way from the first (share 0) to the second (share 1) at constant speed and turn rate.

    Shares below 0 and above 1 extrapolate the motion.
    """
    turn = Rotation.from_matrix(first[:3, :3].T @ second[:3, :3])
    rotation = first[:3, :3] @ Rotation.from_rotvec(share * turn.as_rotvec()).as_matrix()
    return rigid(rotation, first[:3, 3] + share * (second[:3, 3] - first[:3, 3]))


def nearest_rotation(R: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation closest to a matrix that a file gives with few digits, so that the inverse is the transpose."""
    left, _, right = np.linalg.svd(R)
    return np.asarray(left @ right)


def looks_forward(T_cam_ego: Float[np.ndarray, "4 4"]) -> bool:
    """Whether a camera's optical axis points along the ego frame's x axis, to 45 degrees."""
    return float(T_cam_ego[2, 0]) > _FORWARD


def track_id(name: str) -> int:
    """A number for an object that a set names by text: the same in every frame and process, 0 to 2**31 - 1.

    Two objects of a log get the same one with a probability of 1 in 48,000 where there are 300 of them.
    """
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=4).digest(), "little") >> 1
