"""What RGB-D sets have in common: depth images become points, colours become intensity.

Our `lidar` frame is that of the depth camera with its axes turned: x forward, y left, z up in the image. It is also our
`ego`. Where a set says which way is up, its converter levels the frame.
Intensity is the pixel's luminance, 0 to 1: networks that read intensity see brightness here, reflectance in LiDAR sets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from data.convert.raw_files import read_plane
from data.geometry import rigid

T_CAM_LIDAR = rigid(np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]), np.zeros(3))
"""Axes of a camera (x right, y down, z forward) from those of our LiDAR frame."""

MIN_DEPTH_M = 0.1
"""Of pairs: nearer than any depth camera measures, as each of its points was seen by it."""

_LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue (ITU-R BT.601)."""


def read_depth(path: Path, *, unit_m: float, invalid: tuple[int, ...]) -> Float32[np.ndarray, "H W"]:
    """A 16-bit depth image in metres, 0 where nothing was measured.

    Raises:
        DamagedError: the file is missing, or no 16-bit image of one channel.
    """
    stored = read_plane(path, "a 16-bit depth image", np.uint16)
    depth: Float32[np.ndarray, "H W"] = np.asarray(stored.astype(np.float32) * np.float32(unit_m))
    depth[np.isin(stored, invalid)] = 0
    return depth


def depth_points(
    depth_m: Float32[np.ndarray, "H W"],
    image: UInt8[np.ndarray, "H W 3"],
    K: Float[np.ndarray, "3 3"],
    *,
    every: int,
    max_depth_m: float,
) -> tuple[Float32[np.ndarray, "N 3"], Float32[np.ndarray, " N"], UInt8[np.ndarray, "N 3"]]:
    """Points of every `every`-th row and column with a depth, in our LiDAR frame, their luminance and their colours.

    The depth is along the optical axis, 0 where unknown. Points beyond `max_depth_m` are left out: the error of such
    sensors grows with the square of the depth.
    """
    v, u = measured(depth_m, every=every, max_depth_m=max_depth_m)
    depth = depth_m[v, u].astype(np.float64)
    rays = np.stack([u, v, np.ones_like(u)], axis=1) @ np.linalg.inv(K).T
    points = (rays * depth[:, None]) @ T_CAM_LIDAR[:3, :3]  # of row vectors: turned back by the inverse
    return points.astype(np.float32), luminance(image[v, u]), image[v, u]


def measured(
    depth_m: Float32[np.ndarray, "H W"], *, every: int, max_depth_m: float
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Row and column of the pixels that `depth_points` makes points of, in its order."""
    v, u = np.mgrid[0 : depth_m.shape[0] : every, 0 : depth_m.shape[1] : every]
    known = (depth_m[v, u] > 0) & (depth_m[v, u] <= max_depth_m)
    return v[known], u[known]


def colour_bytes(rgb: Float[np.ndarray, "N 3"]) -> UInt8[np.ndarray, "N 3"]:
    """Colours given as numbers from 0 to 255, beyond which they are cut off, as they are stored."""
    return np.asarray(np.rint(rgb).clip(0, 255).astype(np.uint8))


def luminance(rgb: UInt8[np.ndarray, "N 3"] | Float[np.ndarray, "N 3"]) -> Float32[np.ndarray, " N"]:
    """Brightness, 0 to 1, of colours given as bytes or as 0 to 1."""
    scale = 1 / 255 if rgb.dtype == np.uint8 else 1.0
    return np.asarray((rgb.astype(np.float64) @ _LUMINANCE * scale).clip(0, 1).astype(np.float32))
