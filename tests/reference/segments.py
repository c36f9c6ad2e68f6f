"""Ground and clusters the slow and obvious way: one point, one sector at a time."""

from __future__ import annotations

import math

import numpy as np

from data.batch_spec import GroundConfig, PointClusterConfig


def radius_clusters_loop(points: np.ndarray, radius_m: float) -> list[set[int]]:
    """Flood fill over all points."""
    left = set(range(len(points)))
    found = []
    while left:
        frontier = [min(left)]
        members = set(frontier)
        left -= members
        while frontier:
            here = frontier.pop()
            near = {p for p in left if math.dist(points[here], points[p]) <= radius_m}
            left -= near
            members |= near
            frontier += near
        found.append(members)
    return found


def dbscan_loop(points: np.ndarray, config: PointClusterConfig) -> list[set[int]]:
    """Clusters of core points, then every other point to its nearest core point."""
    near = [np.flatnonzero(np.linalg.norm(points - here, axis=1) <= config.radius_m).tolist() for here in points]
    core = [p for p in range(len(points)) if len(near[p]) >= config.min_points]
    found = [{core[p] for p in members} for members in radius_clusters_loop(points[core], config.radius_m)]
    for p in sorted(set(range(len(points))) - set(core)):
        reached = [q for q in near[p] if q in set(core)]
        if reached:
            nearest = min(reached, key=lambda q: math.dist(points[p], points[q]))
            next(members for members in found if nearest in members).add(p)
    return found


def ground_lines_loop(points: np.ndarray, config: GroundConfig) -> np.ndarray:
    """`data.views.ground` "lines" with a known sensor height, following its docstring sector by sector."""
    radius = np.hypot(points[:, 0], points[:, 1])
    sector = np.floor((np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) + 0.5) * config.sectors) % config.sectors
    ground = np.zeros(len(points), dtype=bool)
    for number in np.unique(sector):
        rows = np.flatnonzero(sector == number)
        lowest: dict[int, int] = {}
        for row in map(int, rows):
            place = int(radius[row] / config.bin_m)
            if place not in lowest or points[row, 2] < points[lowest[place], 2]:
                lowest[place] = row
        lines = _lines_loop([(place, radius[row], points[row, 2]) for place, row in sorted(lowest.items())], config)
        covered = [(place, line) for line in lines for place, _, _ in line]
        for row in map(int, rows):
            if covered:
                place = int(radius[row] / config.bin_m)
                # The nearer one, of two equally near ones the inner one.
                line = min(covered, key=lambda entry: (abs(entry[0] - place), entry[0]))[1]
                slope, offset, _ = _fit(line)
                ground[row] = abs(points[row, 2] - slope * radius[row] - offset) < config.distance_m
    return ground


def _lines_loop(profile: list[tuple[int, float, float]], config: GroundConfig) -> list[list[tuple[int, float, float]]]:
    lines: list[list[tuple[int, float, float]]] = []
    current: list[tuple[int, float, float]] = []
    sensor_height_m = config.sensor_height_m
    assert sensor_height_m is not None

    def continues(entry: tuple[int, float, float]) -> bool:
        _, r, z = entry
        if not lines:
            return abs(z + sensor_height_m) <= config.distance_m + config.max_slope * r
        slope, offset, _ = _fit(lines[-1])
        return abs(z - slope * r - offset) <= config.step_m + config.max_slope / 2 * (r - lines[-1][-1][1])

    for entry in profile:
        if current:
            slope, offset, error = _fit([*current, entry])
            own = abs(entry[2] - slope * entry[1] - offset)
            if abs(slope) <= config.max_slope and error <= config.fit_error_m and own <= 2 * config.fit_error_m:
                current.append(entry)
                continue
        if len(current) >= 2:
            lines.append(current)
            current = []
        if continues(entry) and (not current or entry[2] < current[0][2]):
            current = [entry]
    return [*lines, current] if len(current) >= 2 else lines


def _fit(line: list[tuple[int, float, float]]) -> tuple[float, float, float]:
    r, z = np.array([entry[1] for entry in line]), np.array([entry[2] for entry in line])
    design = np.stack([r, np.ones_like(r)], axis=1)
    (slope, offset), *_ = np.linalg.lstsq(design, z, rcond=None)
    return float(slope), float(offset), float(np.sqrt(np.mean((design @ [slope, offset] - z) ** 2)))
