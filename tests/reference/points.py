"""Slow, obvious forms of `models.points` and `models.contrast.matching`: loops over points."""

import itertools

import numpy as np


def farthest_loop(rows: np.ndarray, num: int, start: int) -> list[int]:
    """Each time the unused point whose nearest used one is farthest; the first of equals."""
    rows = rows.astype(np.float64)
    chosen = [start]
    while len(chosen) < min(num, len(rows)):
        rest = [i for i in range(len(rows)) if i not in chosen]
        nearest = [min(np.linalg.norm(rows[i] - rows[j]) for j in chosen) for i in rest]
        chosen.append(rest[int(np.argmax(nearest))])
    return chosen


def neighbors_loop(query: np.ndarray, points: np.ndarray, radius: float = np.inf) -> list[tuple[float, int]]:
    """All points within the radius of one query, nearest first."""
    distances = [float(np.linalg.norm(query.astype(np.float64) - p)) for p in points.astype(np.float64)]
    return sorted((d, i) for i, d in enumerate(distances) if d < radius)


def interpolate_loop(query: np.ndarray, points: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    """Inverse squared distances of the k nearest as weights."""
    near = neighbors_loop(query, points)[:k]
    if not near:
        return np.zeros(features.shape[1])
    weights = np.array([1 / (d * d + 1e-8) for d, _ in near])
    return (weights[:, None] * features[[i for _, i in near]]).sum(0) / weights.sum()


def best_total(cost: np.ndarray, gate: float) -> float:
    """Least sum over all ways to match, where an unmatched row of the smaller side costs `gate`."""
    if cost.shape[0] > cost.shape[1]:
        cost = cost.T
    rows, columns = cost.shape
    ways = itertools.permutations(range(columns), rows)
    return min(sum(min(cost[i, j], gate) for i, j in enumerate(way)) for way in ways)


def greedy_loop(cost: np.ndarray, gate: float) -> list[tuple[int, int]]:
    """Cheapest pair first, then the cheapest of what is left."""
    pairs, rows, columns = [], set(), set()
    for value, i, j in sorted((cost[i, j], i, j) for i in range(cost.shape[0]) for j in range(cost.shape[1])):
        if value < gate and i not in rows and j not in columns:
            pairs.append((i, j))
            rows.add(i)
            columns.add(j)
    return sorted(pairs)
