"""Mean shift with a flat kernel: points that drift to the same place are one cluster.

Source: Comaniciu and Meer, "Mean shift: a robust approach toward feature space analysis", PAMI 2002. What the paper
leaves open (seeds, stopping, which of near centres stays) is as in scikit-learn 1.8, `MeanShift(bin_seeding=True)`,
whose clusters these are, found for all seeds at once.

Letters: N points, S seeds, C centres.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

_MAX_ROUNDS = 300
_STOP = 1e-3
"""Share of the bandwidth: a seed that moves no farther has arrived."""
_MAX_PAIRS = 4_000_000
"""Of a seed and a point that may be near it, at a time: some 200 MB."""


def mean_shift(points: Float64[np.ndarray, "N 3"], bandwidth: float) -> Int64[np.ndarray, " N"]:
    """Cluster of each point, the one of most points first.

    Seeds lie on a grid of the bandwidth's width, one near each point, and move to the mean of the points within the
    bandwidth until they rest. Of centres nearer to each other than the bandwidth, the one with most points around stays
    (of equally many, the one of greater coordinates). Each point belongs to the nearest centre.

    Args:
        points: places.
        bandwidth: radius of the kernel.

    Raises:
        ValueError: a place is not finite.
    """
    from scipy.spatial import cKDTree  # not before it is needed: it takes long

    if len(points) == 0:
        return np.zeros(0, dtype=np.int64)
    if not np.isfinite(points).all():
        raise ValueError(
            "mean shift: got places that are not finite: the network's offsets have diverged, so lower optim.lr and "
            "start from an earlier checkpoint"
        )
    cells = np.round(points / bandwidth)
    bins = np.unique(cells, axis=0)
    # In single precision, as there; where no two points share a cell, the points themselves are the seeds.
    seeds = points if len(bins) == len(points) else (bins.astype(np.float32) * np.float32(bandwidth)).astype(np.float64)
    centres, weights = _at_rest(_Cells(points, bandwidth), seeds)
    kept = _apart(centres, weights, bandwidth)
    return np.asarray(cKDTree(kept).query(points)[1], dtype=np.int64)


def _at_rest(
    cells: _Cells, seeds: Float64[np.ndarray, "S 3"]
) -> tuple[Float64[np.ndarray, "S 3"], Int64[np.ndarray, " S"]]:
    """Where the seeds come to rest, and how many points were around them before their last step."""
    at, weights = seeds.copy(), np.zeros(len(seeds), dtype=np.int64)
    moving = np.arange(len(seeds))
    for _ in range(_MAX_ROUNDS + 1):
        sums, counts = cells.around(at[moving])
        near = counts > 0
        moving, counts = moving[near], counts[near]
        weights[moving] = counts
        means = sums[near] / counts[:, None]
        far = np.linalg.norm(means - at[moving], axis=1) > _STOP * cells.radius
        at[moving] = means
        moving = moving[far]
        if len(moving) == 0:
            break
    return at[weights > 0], weights[weights > 0]


def _apart(
    centres: Float64[np.ndarray, "S 3"], weights: Int64[np.ndarray, " S"], bandwidth: float
) -> Float64[np.ndarray, "C 3"]:
    """The centres that stay, that of most points first."""
    from scipy.spatial import cKDTree

    order = np.lexsort((centres[:, 2], centres[:, 1], centres[:, 0], weights))[::-1]
    ranked = centres[order]
    stays = np.ones(len(ranked), dtype=np.bool_)
    near = cKDTree(ranked).query_ball_point(ranked, bandwidth)
    for number, others in enumerate(near):
        if stays[number]:
            stays[others] = False
            stays[number] = True
    return ranked[stays]


class _Cells:
    """Points sorted by the cell of the radius' width that they lie in, so that those near a place are few ranges."""

    def __init__(self, points: Float64[np.ndarray, "N 3"], radius: float) -> None:
        self.radius = radius
        cells = np.floor(points / radius).astype(np.int64)
        self._low = cells.min(axis=0) - 1
        self._size = cells.max(axis=0) - self._low + 3
        keys = self._keys(cells)
        order = np.argsort(keys, kind="stable")
        self._keys_sorted, self._points = keys[order], points[order]

    def _keys(self, cells: Int64[np.ndarray, "n 3"]) -> Int64[np.ndarray, " n"]:
        x, y, z = (cells - self._low).T
        return np.asarray((x * self._size[1] + y) * self._size[2] + z)

    def around(self, places: Float64[np.ndarray, "S 3"]) -> tuple[Float64[np.ndarray, "S 3"], Int64[np.ndarray, " S"]]:
        """Sum and number of the points within the radius of each place."""
        cells = np.floor(places / self.radius).astype(np.int64)
        cells = np.clip(cells, self._low, self._low + self._size - 1)
        sums, counts = np.zeros_like(places), np.zeros(len(places), dtype=np.int64)
        # Three cells along z are one range of the sorted points.
        columns = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], [0], indexing="ij"), axis=-1).reshape(-1, 3)
        near = np.clip(cells[:, None] + columns, self._low, self._low + self._size - 1).reshape(-1, 3)
        below, above = near.copy(), near.copy()
        below[:, 2] = np.maximum(near[:, 2] - 1, self._low[2])
        above[:, 2] = np.minimum(near[:, 2] + 1, self._low[2] + self._size[2] - 1)
        start = np.searchsorted(self._keys_sorted, self._keys(below), side="left")
        stop = np.searchsorted(self._keys_sorted, self._keys(above), side="right")
        lengths = (stop - start).reshape(len(places), -1)
        ends = np.cumsum(lengths.sum(axis=1))
        first = 0
        while first < len(places):
            done = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, done + _MAX_PAIRS, side="right")))
            part = slice(first * lengths.shape[1], last * lengths.shape[1])
            rows = _ranges(start[part], stop[part])
            of_place = np.repeat(np.arange(last - first), lengths[first:last].sum(axis=1))
            candidates = self._points[rows]
            offset = candidates - places[first:last][of_place]
            inside = np.einsum("ij,ij->i", offset, offset) <= self.radius**2
            own = of_place[inside]
            counts[first:last] = np.bincount(own, minlength=last - first)
            for axis in range(3):
                sums[first:last, axis] = np.bincount(own, candidates[inside, axis], minlength=last - first)
            first = last
        return sums, counts


def _ranges(start: Int64[np.ndarray, " R"], stop: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " n"]:
    """All numbers of all ranges, one range after another."""
    lengths = stop - start
    before = np.cumsum(lengths) - lengths
    return np.asarray(np.arange(int(lengths.sum())) + np.repeat(start - before, lengths))
