"""Rigid transforms and pinhole projection: pure functions on numpy arrays, metres and pixels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from common.constants import MIN_DEPTH_M


def rigid(rotation: Float[np.ndarray, "3 3"], translation_m: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "4 4"]:
    """Homogeneous matrix of x -> rotation @ x + translation."""
    T = np.eye(4)
    T[:3, :3] = rotation
    T[:3, 3] = translation_m
    return T


def yaw_rotation(yaw: float) -> Float[np.ndarray, "3 3"]:
    """Rotation by `yaw` radians about z, counter-clockwise seen from above."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def transform(T: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Apply a homogeneous transform to points, in double precision."""
    return np.asarray(points.astype(np.float64) @ T[:3, :3].T + T[:3, 3])


def project(
    K: Float[np.ndarray, "3 3"], points_cam: Float[np.ndarray, "N 3"]
) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, " N"]]:
    """Pinhole projection.

    Returns:
        pixels (u, v), the centre of the top-left pixel being (0, 0), NaN where the depth is not positive, and the
        depth along the optical axis in metres.
    """
    depth = points_cam[:, 2]
    safe = np.where(depth > 0, depth, np.nan)
    uv = (points_cam @ K.T)[:, :2] / safe[:, None]
    return uv, depth


def visible(
    pixels_uv: Float[np.ndarray, "N 2"],
    depth_m: Float[np.ndarray, " N"],
    image_size: tuple[int, int],
    *,
    min_depth_m: float = MIN_DEPTH_M,
    border_px: float = 1.0,
) -> Bool[np.ndarray, " N"]:
    """Which projected points make a pair: deeper than `min_depth_m` and at least `border_px` inside the image.

    `image_size` is height, width.

    Source: Sautier et al., SLidR (CVPR 2022), released data loader (1 m, 1 px).
    """
    height, width = image_size
    u, v = pixels_uv[:, 0], pixels_uv[:, 1]
    with np.errstate(invalid="ignore"):
        inside = (u >= border_px) & (u <= width - 1 - border_px) & (v >= border_px) & (v <= height - 1 - border_px)
        return np.asarray((depth_m > min_depth_m) & inside)
