"""Mean shift with a flat kernel, one seed after another and every point each time."""

from __future__ import annotations

import numpy as np


def mean_shift_by_loop(points: np.ndarray, bandwidth: float) -> np.ndarray:
    """Cluster of each point; the centre with most points around it is number 0."""
    cells = {tuple(cell) for cell in np.round(points / bandwidth).tolist()}
    seeds = np.array(sorted(cells), dtype=np.float32) * np.float32(bandwidth)
    if len(cells) == len(points):
        seeds = points
    centres: dict[tuple[float, ...], int] = {}
    for seed in seeds.astype(np.float64):
        at = seed
        for _ in range(301):
            near = points[np.linalg.norm(points - at, axis=1) <= bandwidth]
            before, at = at, near.mean(axis=0)
            if np.linalg.norm(at - before) <= 1e-3 * bandwidth:
                break
        centres[tuple(at.tolist())] = len(near)
    kept: list[np.ndarray] = []
    for centre, _ in sorted(centres.items(), key=lambda pair: (pair[1], pair[0]), reverse=True):
        if all(np.linalg.norm(np.array(centre) - other) > bandwidth for other in kept):
            kept.append(np.array(centre))
    return np.array([np.argmin([np.linalg.norm(point - centre) for centre in kept]) for point in points])
