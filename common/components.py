"""Connected components of points at most a radius apart: exact, without listing the pairs.

A sweep is dense near the sensor: with 0.5 m most points have hundreds of neighbours there, and listing all pairs takes
seconds. Points are sorted into cubic cells whose diagonal is the radius instead: those of one cell are neighbours
without being compared, and cells are joined through pairs of points only where that is still open. The result is that
of the definition, not an approximation. Figures: `python -m benchmarks.segments`.

Letters: N points, M cells, E pairs of cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

_PAIRS_AT_A_TIME = 1 << 20
"""Point pairs that are compared at once: 50 MB."""


def components(points: Float[np.ndarray, "N 3"], radius_m: float) -> Int[np.ndarray, " N"]:
    """Connected component of each point in the graph of points at most `radius_m` apart, in no order.

    Raises:
        ValueError: the cloud is too wide for the radius.
    """
    if len(points) == 0:
        return np.zeros(0, dtype=np.int64)
    cells = Cells.of(points, radius_m / np.sqrt(3))
    a, b = _neighbor_cells(cells)
    # One point a cell settles most pairs of neighbouring cells; what is left is between different components.
    joined = _within(points[cells.order[cells.first[a]]], points[cells.order[cells.first[b]]], radius_m)
    label = _connected(len(cells.first), a[joined], b[joined])
    open_ = label[a] != label[b]
    more_a, more_b = _pairs_that_touch(points, cells, a[open_], b[open_], radius_m)
    label = _connected(len(cells.first), np.concatenate([a[joined], more_a]), np.concatenate([b[joined], more_b]))
    return np.asarray(label[cells.cell])


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Points sorted into cubic cells.

    Attributes:
        key: of each cell, ascending: (x, y, z) packed, z fastest.
        strides: of x and y in the key.
        cell: of each point.
        order: points sorted by cell.
        first: where each cell begins in `order`.
        count: points of each cell.
    """

    key: Int[np.ndarray, " M"]
    strides: tuple[int, int]
    cell: Int[np.ndarray, " N"]
    order: Int[np.ndarray, " N"]
    first: Int[np.ndarray, " M"]
    count: Int[np.ndarray, " M"]

    @classmethod
    def of(cls, points: Float[np.ndarray, "N 3"], side_m: float) -> Cells:
        """Cells of this side.

        Raises:
            ValueError: the cloud is too wide for them.
        """
        # Two empty cells around the cloud, so that the neighbours of its cells have keys of their own.
        place = np.stack([points[:, i] - points[:, i].min() for i in range(3)], axis=1) / side_m
        spans = [int(place[:, i].max()) + 5 for i in range(3)]
        if spans[0] * spans[1] * spans[2] >= 2**62:
            raise ValueError(f"a cloud of {spans} cells of {side_m:.3g} m is too wide for clustering; crop it")
        x, y, z = (place.astype(np.int64) + 2).T
        strides = (spans[1] * spans[2], spans[2])
        packed = x * strides[0] + y * strides[1] + z
        order = np.argsort(packed, kind="stable")
        sorted_key = packed[order]
        first = np.flatnonzero(np.concatenate([[True], sorted_key[1:] != sorted_key[:-1]]))
        count = np.diff(np.append(first, len(points)))
        cell = np.empty(len(points), dtype=np.int64)
        cell[order] = np.repeat(np.arange(len(first)), count)
        return cls(key=sorted_key[first], strides=strides, cell=cell, order=order, first=first, count=count)


def _neighbor_cells(cells: Cells) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"]]:
    """Pairs of occupied cells that can hold points a diagonal apart: up to two cells away along each axis, once each.

    For each offset in x and y the cells of a column stand together in the sorted keys: two searches find them.
    """
    every_cell = np.arange(len(cells.key))
    firsts, seconds = [], []
    columns = [(dx, dy) for dx in range(3) for dy in range(-2, 3) if (dx, dy) >= (0, 0)]
    for dx, dy in columns:
        shift = dx * cells.strides[0] + dy * cells.strides[1]
        reach = 1 if (dx, abs(dy)) == (2, 2) else 2  # two cells away along all axes is farther than the diagonal
        low = np.searchsorted(cells.key, cells.key + (shift - reach if shift else 1))
        high = np.searchsorted(cells.key, cells.key + shift + reach, side="right")
        first, second = _ranges(every_cell, low, high)
        firsts.append(first)
        seconds.append(second)
    return np.concatenate(firsts), np.concatenate(seconds)


def _ranges(
    owner: Int[np.ndarray, " M"], low: Int[np.ndarray, " M"], high: Int[np.ndarray, " M"]
) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"]]:
    """Every whole number from low[i] to high[i] - 1, beside its owner[i]."""
    sizes = high - low
    starts = np.cumsum(sizes) - sizes
    number = np.arange(int(sizes.sum())) - np.repeat(starts - low, sizes)
    return np.repeat(owner, sizes), number


def _pairs_that_touch(
    points: Float[np.ndarray, "N 3"],
    cells: Cells,
    a: Int[np.ndarray, " E"],
    b: Int[np.ndarray, " E"],
    radius_m: float,
) -> tuple[Int[np.ndarray, " touching"], Int[np.ndarray, " touching"]]:
    """Those pairs of cells of which some two points are at most `radius_m` apart; all their points are compared."""
    touching = [np.zeros(0, dtype=np.int64)]
    total = np.cumsum(cells.count[a] * cells.count[b])
    parts = np.searchsorted(total, np.arange(_PAIRS_AT_A_TIME, int(total[-1]) if len(total) else 0, _PAIRS_AT_A_TIME))
    for pairs in np.split(np.arange(len(a)), parts):
        pair, p = _ranges(pairs, cells.first[a[pairs]], (cells.first + cells.count)[a[pairs]])
        row, q = _ranges(np.arange(len(pair)), cells.first[b[pair]], (cells.first + cells.count)[b[pair]])
        near = _within(points[cells.order[p[row]]], points[cells.order[q]], radius_m)
        touching.append(np.unique(pair[row[near]]))
    rows = np.concatenate(touching)
    return a[rows], b[rows]


def _within(
    first: Float[np.ndarray, "pairs 3"], second: Float[np.ndarray, "pairs 3"], radius_m: float
) -> Bool[np.ndarray, " pairs"]:
    # Axis by axis: numpy's sums over rows of three cost several times as much.
    squared = sum((first[:, i] - second[:, i]) ** 2 for i in range(3))
    return np.asarray(squared <= radius_m**2)


def _connected(num: int, a: Int[np.ndarray, " E"], b: Int[np.ndarray, " E"]) -> Int[np.ndarray, " M"]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(num, num))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
