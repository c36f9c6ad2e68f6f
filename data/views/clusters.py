"""Points to objects without labels: radius clustering and DBSCAN, exact, in the loader's workers.

Points that are near each other are found as in `common.components`. Figures: `python -m benchmarks.segments`.

Letters: N points, K clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from common.components import Cells, components
from data.batch_spec import PointClusterConfig

if TYPE_CHECKING:  # scipy takes a third of a second, and few methods ask for clusters
    from scipy.spatial import cKDTree


def clusters(points: Float[np.ndarray, "N 3"], config: PointClusterConfig) -> Int[np.ndarray, " N"]:
    """Cluster of each point, -1 for none; consecutive from 0 in the order of each cluster's first point.

        "radius": the connected components of the graph that joins points at most radius_m apart
        "dbscan": those of the graph of core points (at least min_points points, itself included, within radius_m);
                  other points join the cluster of the nearest core point within radius_m

    In DBSCAN's definition a point that two clusters reach belongs to the one found first; the nearest core point does
    not depend on the order of the points. Afterwards clusters that are too small, large or elongated are dropped.

    Source: Klasing et al., "A clustering method for efficient segmentation of 3D laser data" (ICRA 2008); Ester et al.,
    "A density-based algorithm for discovering clusters" (KDD 1996).

    Raises:
        ValueError: a coordinate is not finite, or the cloud is too wide for the radius.
    """
    if not np.isfinite(points).all():
        raise ValueError("a point has a coordinate that is not finite: drop it before clustering")
    if len(points) == 0:
        return np.zeros(0, dtype=np.int64)
    points = points.astype(np.float64)
    cluster = components(points, config.radius_m) if config.kind == "radius" else _dbscan(points, config)
    return _in_order(_filtered(points, cluster, config))


def _dbscan(points: Float[np.ndarray, "N 3"], config: PointClusterConfig) -> Int[np.ndarray, " N"]:
    core = _core_points(points, config)
    cluster = np.full(len(points), -1)
    if not core.any():
        return cluster
    cluster[core] = components(points[core], config.radius_m)
    tree = _tree(points[core])
    distance, nearest = _nth_nearest(tree, points[~core], 1, config.radius_m)
    reached = np.isfinite(distance)
    cluster[np.flatnonzero(~core)[reached]] = cluster[core][nearest[reached]]
    return cluster


def _core_points(points: Float[np.ndarray, "N 3"], config: PointClusterConfig) -> Bool[np.ndarray, " N"]:
    cells = Cells.of(points, config.radius_m / np.sqrt(3))
    core = np.asarray((cells.count >= config.min_points)[cells.cell])  # a full cell needs no comparison
    rest = np.flatnonzero(~core)
    tree = _tree(points)
    core[rest] = np.isfinite(_nth_nearest(tree, points[rest], config.min_points, config.radius_m)[0])
    return core


def _tree(points: Float[np.ndarray, "N 3"]) -> cKDTree:
    from scipy.spatial import cKDTree

    return cKDTree(points, balanced_tree=False, compact_nodes=False)


def _nth_nearest(
    tree: cKDTree, queries: Float[np.ndarray, "Q 3"], n: int, radius_m: float
) -> tuple[Float[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    """Distance to and row of each query's n-th nearest point; infinite where it is farther than `radius_m`."""
    # The tree's bound is not included, ours is.
    distance, row = tree.query(queries, k=[n], distance_upper_bound=float(np.nextafter(radius_m, np.inf)))
    return np.asarray(distance)[:, 0], np.asarray(row)[:, 0]


# ---- which ones are kept
def _filtered(
    points: Float[np.ndarray, "N 3"], cluster: Int[np.ndarray, " N"], config: PointClusterConfig
) -> Int[np.ndarray, " N"]:
    """-1 for the points of clusters that are too small, large or elongated."""
    inside = np.flatnonzero(cluster >= 0)
    if len(inside) == 0:
        return cluster
    ids = cluster[inside]
    count = np.bincount(ids)
    good = count >= config.min_points
    if config.max_points is not None:
        good &= count <= config.max_points
    if config.max_extent_m is not None or config.max_aspect is not None:
        length, width, height = _boxes(points[inside], ids, count)
        if config.max_extent_m is not None:
            good &= np.maximum(np.maximum(length, width), height) <= config.max_extent_m
        if config.max_aspect is not None:
            good &= length <= config.max_aspect * width
    return np.where((cluster >= 0) & good[cluster], cluster, -1)


def _boxes(
    points: Float[np.ndarray, "n 3"], ids: Int[np.ndarray, " n"], count: Int[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Length, width and height of each cluster; length and width along the principal axes of its footprint."""
    x, y = (points[:, i] - (np.bincount(ids, points[:, i], len(count)) / np.maximum(count, 1))[ids] for i in range(2))
    xx, xy, yy = (np.bincount(ids, product, len(count)) for product in (x * x, x * y, y * y))
    angle = (0.5 * np.arctan2(2 * xy, xx - yy))[ids]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    sides = [_extent(values, ids, count) for values in (along, across, points[:, 2])]
    return np.maximum(sides[0], sides[1]), np.minimum(sides[0], sides[1]), sides[2]


def _extent(
    values: Float[np.ndarray, " n"], ids: Int[np.ndarray, " n"], count: Int[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    low, high = np.full(len(count), np.inf), np.full(len(count), -np.inf)
    np.minimum.at(low, ids, values)
    np.maximum.at(high, ids, values)
    return np.where(count > 0, high - low, 0.0)


def _in_order(cluster: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Numbered from 0 in the order of first points; -1 stays."""
    inside = np.flatnonzero(cluster >= 0)
    _, first, inverse = np.unique(cluster[inside], return_index=True, return_inverse=True)
    numbers = np.empty(len(first), dtype=np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    numbered = np.full(len(cluster), -1)
    numbered[inside] = numbers[inverse.reshape(-1)]
    return numbered
