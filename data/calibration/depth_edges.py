"""Where a sweep's depth jumps, and how strong an image's edges are: what a calibration is judged by.

A depth jump seen by the LiDAR is an object's border, and most borders of objects are edges of the image. Points have no
known beam or firing order here: neighbours are found by direction, so that the sweeps of all sets can be used.

Source: Levinson, Thrun: Automatic Online Calibration of Cameras and Lasers (RSS 2013): the nearer point of a depth
jump along a beam should fall on an edge of the image. Here the jump is placed between its two points (the border lies
there on average), borders to the side and on top are distinguished and compared with the image's gradient along the one
direction that they say something about, and the gradient is divided by its local mean, so that foliage does not drown
the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy.spatial import KDTree

SIDE, TOP = 0, 1
"""Kinds of borders: to the left or right of an object (tells u), on top of it (tells v)."""

_SAME_BEAM_RAD = np.deg2rad(0.15)
_NEIGHBOURS = 12
_STRETCH = 3.0
"""Factor on distances across a beam, so that neighbours lie along it."""
_MAX_GAP = 4.0
"""Largest distance of neighbours along a beam, in typical spacings; beyond it, something was not measured."""
_MAX_BEAM_GAP_RAD = np.deg2rad(3.0)
_SIDE_JUMP = (0.4, 0.06)
_TOP_JUMP = (1.0, 0.15)
"""Least jump of range: metres, and share of the nearer range."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthEdges:
    """Borders of objects in a sweep.

    Attributes:
        points_lidar: on the border, at the range of the nearer side.
        gaps_rad: angle between the two points that the border lies between: it may be half of that away.
        top: which are on top of an object; the others are at its side.
    """

    points_lidar: Float[np.ndarray, "edges 3"]
    gaps_rad: Float[np.ndarray, " edges"]
    top: Bool[np.ndarray, " edges"]


def depth_edges(points_lidar: Float[np.ndarray, "N 3"]) -> DepthEdges:
    """Borders of the objects in (a part of) a sweep; empty where there are too few points to tell."""
    points = points_lidar.astype(np.float64)
    ranges = np.linalg.norm(points, axis=1)
    points, ranges = points[ranges > 0.5], ranges[ranges > 0.5]
    if len(points) <= _NEIGHBOURS:
        return DepthEdges(points_lidar=np.zeros((0, 3)), gaps_rad=np.zeros(0), top=np.zeros(0, dtype=bool))
    azimuth, elevation = np.arctan2(points[:, 1], points[:, 0]), np.arcsin(points[:, 2] / ranges)
    side, side_gaps = _side_edges(azimuth, elevation, ranges)
    top, top_gaps = _top_edges(points, azimuth, elevation, ranges)
    edges, gaps = np.concatenate([side, top]), np.concatenate([side_gaps, top_gaps])
    return DepthEdges(points_lidar=edges, gaps_rad=gaps, top=np.arange(len(edges)) >= len(side))


def _neighbours(along: Float[np.ndarray, " N"], across: Float[np.ndarray, " N"]) -> np.ndarray:
    """The nearest points by direction of each, itself left out."""
    directions = np.stack([along, across * _STRETCH], axis=1)
    _, nearest = KDTree(directions).query(directions, _NEIGHBOURS + 1)
    return np.asarray(nearest)[:, 1:]


def _nearest_on(
    offset: Float[np.ndarray, "N k"], allowed: Bool[np.ndarray, "N k"], sign: float
) -> tuple[np.ndarray, Bool[np.ndarray, " N"]]:
    """Column of each point's nearest allowed neighbour on one side, and whether there is one."""
    distance = np.where(allowed & (offset * sign > 0), np.abs(offset), np.inf)
    return distance.argmin(axis=1), np.isfinite(distance.min(axis=1))


def _side_edges(
    azimuth: Float[np.ndarray, " N"], elevation: Float[np.ndarray, " N"], ranges: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "edges 3"], Float[np.ndarray, " edges"]]:
    """Points halfway to a neighbour on the same beam that is much further away."""
    near = _neighbours(azimuth, elevation)
    d_azimuth, d_elevation = azimuth[near] - azimuth[:, None], elevation[near] - elevation[:, None]
    same_beam = (np.abs(d_elevation) < _SAME_BEAM_RAD) & (np.abs(d_azimuth) > 2 * np.abs(d_elevation))
    spacing = np.median(np.where(same_beam, np.abs(d_azimuth), np.inf).min(axis=1))
    edges, gaps = [], []
    rows = np.arange(len(ranges))
    for sign in (-1.0, 1.0):
        column, there = _nearest_on(d_azimuth, same_beam, sign)
        other = near[rows, column]
        gap = np.abs(d_azimuth[rows, column])
        far = ranges[other] - ranges > np.maximum(_SIDE_JUMP[0], _SIDE_JUMP[1] * ranges)
        edge = there & far & (gap < _MAX_GAP * spacing)
        edges.append(_ray(azimuth[edge] + sign * gap[edge] / 2, elevation[edge], ranges[edge]))
        gaps.append(gap[edge])
    return np.concatenate(edges), np.concatenate(gaps)


def _top_edges(
    points: Float[np.ndarray, "N 3"],
    azimuth: Float[np.ndarray, " N"],
    elevation: Float[np.ndarray, " N"],
    ranges: Float[np.ndarray, " N"],
) -> tuple[Float[np.ndarray, "edges 3"], Float[np.ndarray, " edges"]]:
    """Points on upright surfaces, halfway to a much further neighbour on the beam above.

    Upright: steep towards the beam below. On the ground each beam is much further than the one below it, too.
    """
    near = _neighbours(elevation, azimuth)
    d_azimuth, d_elevation = azimuth[near] - azimuth[:, None], elevation[near] - elevation[:, None]
    beside = (np.abs(d_azimuth) < np.deg2rad(0.3)) & (np.abs(d_elevation) > _SAME_BEAM_RAD)
    beside &= np.abs(d_elevation) < _MAX_BEAM_GAP_RAD
    rows = np.arange(len(ranges))
    above, has_above = _nearest_on(d_elevation, beside, 1.0)
    below, has_below = _nearest_on(d_elevation, beside, -1.0)
    higher, lower = near[rows, above], near[rows, below]
    flat = np.hypot(points[:, 0], points[:, 1])
    upright = np.abs(flat - flat[lower]) < np.abs(points[:, 2] - points[lower, 2])
    far = ranges[higher] - ranges > np.maximum(_TOP_JUMP[0], _TOP_JUMP[1] * ranges)
    edge = has_above & has_below & upright & far
    middle = (elevation[edge] + elevation[higher[edge]]) / 2
    return _ray(azimuth[edge], middle, ranges[edge]), elevation[higher[edge]] - elevation[edge]


def _ray(
    azimuth: Float[np.ndarray, " n"], elevation: Float[np.ndarray, " n"], ranges: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 3"]:
    flat = np.cos(elevation)
    direction = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1)
    return np.asarray(direction * ranges[:, None])


# ---- images
_LOCAL_PX = 41
"""Side of the window whose mean gradient is 1."""
_FLOOR = 4.0
"""Grey levels a pixel: gradients of noise alone count for little."""
_MOST = 4.0
"""Clip: one bright lamp is not worth a whole wall."""


def edge_strength(image: UInt8[np.ndarray, "H W 3"]) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
    """How strong the image's edges are across u and across v, as multiples of the gradient around."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0)

    def across(du: int, dv: int) -> Float32[np.ndarray, "H W"]:
        gradient = np.abs(cv2.Sobel(grey, cv2.CV_32F, du, dv, ksize=3, scale=0.125))
        around = cv2.blur(gradient, (_LOCAL_PX, _LOCAL_PX))
        return np.asarray(np.minimum(gradient / (around + _FLOOR / 4), _MOST))

    return across(1, 0), across(0, 1)
