"""Which points of a sweep lie on the ground: line fits in polar sectors, or one plane by RANSAC.

Both work in the recorded LiDAR frame (z up to within a few degrees), before augmentation, in the loader's workers.
Vectorised numpy: a loop runs over radial steps with all sectors at once, never over points. Figures:
`python -m benchmarks.segments`.

Letters: N points, A sectors (azimuth), R radial steps, T trials.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from data.batch_spec import GroundConfig

_SCORED = 4096
"""Points that planes are compared on; the final fit uses all."""
_NEAR_M = 30.0
"""Radius within which the height of the ground is estimated."""
_HEIGHT_BIN_M = 0.2


def ground_mask(
    points_lidar: Float[np.ndarray, "N 3"], config: GroundConfig, rng: np.random.Generator
) -> Bool[np.ndarray, " N"]:
    """Whether each point lies on the ground.

    A sweep without anything flat and low gives False everywhere, fewer than 3 points likewise. Points are metres in the
    recorded LiDAR frame; only "plane" draws random numbers.

    Raises:
        ValueError: a coordinate is not finite.
    """
    if not np.isfinite(points_lidar).all():
        raise ValueError("a point has a coordinate that is not finite: drop it before the ground is looked for")
    if len(points_lidar) < 3:
        return np.zeros(len(points_lidar), dtype=bool)
    points = points_lidar.astype(np.float64)
    return _lines(points, config) if config.kind == "lines" else _plane(points, config, rng)


# ---- lines
@dataclass(frozen=True, kw_only=True)
class _Profile:
    """The lowest point of each occupied (sector, bin), inside a sector from the sensor outwards.

    Attributes:
        radius: of that point, metres.
        height: its z, metres.
        bin: its radial bin.
        filled: which entries are real; they stand at the beginning of each row.
    """

    radius: Float[np.ndarray, "A R"]
    height: Float[np.ndarray, "A R"]
    bin: Int[np.ndarray, "A R"]
    filled: Bool[np.ndarray, "A R"]


def _lines(points: Float[np.ndarray, "N 3"], config: GroundConfig) -> Bool[np.ndarray, " N"]:
    """Himmelsbach's ground: lines through the lowest points, sector by sector; what is near its line is ground.

        for each sector, over its lowest points p from near to far:
            fits(p): the line through the current points and p is flat and passes close to them, and to p
            no current points:  begin with p if p continues the last line (or, without one, lies where ground can be)
            fits(p):            p joins
            else:               the line ends; p begins the next one if it continues the one that ended
        a point is ground if it is less than distance_m above or below the radially nearest line of its sector

    Source: Himmelsbach et al., "Fast segmentation of 3D point clouds for ground vehicles" (IV 2010), section III.
    The paper bounds where a flat line may cross the sensor's axis (T_b); here a sector's first line must begin inside
    a cone of slope `max_slope` around the expected ground instead, which also holds for lines that begin far away.
    Where two first points do not make a flat line, the lower one is kept. The paper's bound on the error of all points
    lets a long line run on straight where a hill begins, until the hill has left the line's reach; therefore the new
    point's own error is bounded too, at twice that of all. For the same reason the distance at which a point still
    continues the last line, `step_m` in the paper, grows with the gap.
    """
    radius = np.hypot(points[:, 0], points[:, 1])
    sector = ((np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) + 0.5) * config.sectors).astype(np.int64)
    sector = np.minimum(sector, config.sectors - 1)
    bins = (radius / config.bin_m).astype(np.int64)
    profile = _lowest(sector, bins, radius, points[:, 2], config.sectors)
    expected = -config.sensor_height_m if config.sensor_height_m is not None else _expected_height(profile)
    slope, offset, member = _fit_lines(profile, expected, config)
    line = _nearest_line(profile, member, int(bins.max()) + 1)[sector, bins]
    above = points[:, 2] - (slope[sector, line] * radius + offset[sector, line])
    return np.asarray((line >= 0) & (np.abs(above) < config.distance_m))


def _lowest(
    sector: Int[np.ndarray, " N"],
    bins: Int[np.ndarray, " N"],
    radius: Float[np.ndarray, " N"],
    height: Float[np.ndarray, " N"],
    sectors: int,
) -> _Profile:
    num_bins = int(bins.max()) + 1
    cell = sector * num_bins + bins
    low = np.full(sectors * num_bins, np.inf)
    np.minimum.at(low, cell, height)
    far = np.full(sectors * num_bins, -np.inf)
    lowest = height == low[cell]
    np.maximum.at(far, cell[lowest], radius[lowest])
    occupied = np.flatnonzero(np.isfinite(low))
    row, column = np.divmod(occupied, num_bins)
    rank = np.arange(len(occupied)) - np.searchsorted(row, row)
    shape = (sectors, int(rank.max()) + 1)
    radii, heights, places = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int64)
    filled = np.zeros(shape, dtype=bool)
    radii[row, rank], heights[row, rank], places[row, rank] = far[occupied], low[occupied], column
    filled[row, rank] = True
    return _Profile(radius=radii, height=heights, bin=places, filled=filled)


def _expected_height(profile: _Profile) -> float:
    """Where most of the near lowest points lie: the median of those around the fullest height."""
    near = profile.filled & (profile.radius < _NEAR_M)
    heights = profile.height[near if near.any() else profile.filled]
    levels = np.floor((heights - heights.min()) / _HEIGHT_BIN_M).astype(np.int64)
    counts = np.bincount(levels)
    fullest = int(np.argmax(np.convolve(counts, np.ones(3), mode="same")))
    return float(np.median(heights[np.abs(levels - fullest) <= 1]))


def _fit_lines(
    profile: _Profile, expected: float, config: GroundConfig
) -> tuple[Float[np.ndarray, "A R"], Float[np.ndarray, "A R"], Int[np.ndarray, "A R"]]:
    """Slope and height at radius 0 of each sector's lines, and the line of each lowest point (-1: none)."""
    sectors, steps = profile.radius.shape
    slope, offset = np.zeros((sectors, steps)), np.zeros((sectors, steps))
    member = np.full((sectors, steps), -1)
    done = np.zeros(sectors, dtype=np.int64)  # lines that have ended
    last = np.stack([np.zeros(sectors), np.full(sectors, expected)])  # slope, offset of the last line that ended
    now = last.copy()  # of the current points
    end, until = np.zeros(sectors), np.zeros(sectors)  # radius up to which the last line, and the current one, run
    sums = np.zeros((6, sectors))  # n, r, z, r r, r z, z z of the current points
    every = np.arange(sectors)
    for step in range(steps):
        r, z, here = profile.radius[:, step], profile.height[:, step], profile.filled[:, step]
        one = np.stack([np.ones(sectors), r, z, r * r, r * z, z * z])
        fit_slope, fit_offset, error = _regression(sums + one)
        off = np.abs(z - (fit_slope * r + fit_offset))
        flat = (np.abs(fit_slope) <= config.max_slope) & (error <= config.fit_error_m) & (off <= 2 * config.fit_error_m)
        n = sums[0]
        joins = here & (n >= 1) & flat
        ends = here & (n >= 2) & ~flat
        last[:, ends] = now[:, ends]
        slope[every[ends], done[ends]], offset[every[ends], done[ends]] = now[0, ends], now[1, ends]
        done[ends] += 1
        sums[:, ends] = 0.0
        end[ends] = until[ends]
        # Over a gap the ground may bend, on average half as steeply as the steepest line.
        reach = np.where(
            done > 0, config.step_m + config.max_slope / 2 * (r - end), config.distance_m + config.max_slope * r
        )
        continues = np.abs(z - (last[0] * r + last[1])) <= reach
        lower = (sums[0] == 1) & ~flat & (z < sums[2])
        begins = here & ~joins & continues & ((sums[0] == 0) | lower)
        dropped = begins & lower
        member[dropped] = np.where(member[dropped] == done[dropped, None], -1, member[dropped])
        sums = np.where(begins, one, np.where(joins, sums + one, sums))
        now = np.where(joins, np.stack([fit_slope, fit_offset]), now)
        until = np.where(joins, r, until)
        member[:, step] = np.where(joins | begins, done, -1)
    whole = sums[0] >= 2
    slope[every[whole], done[whole]], offset[every[whole], done[whole]] = now[0, whole], now[1, whole]
    done[whole] += 1
    return slope, offset, np.where(member < done[:, None], member, -1)


def _regression(
    sums: Float[np.ndarray, "6 A"],
) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, " A"], Float[np.ndarray, " A"]]:
    """Slope, offset and root mean square error of z over r, from sums; slope 0 where all r are the same."""
    n, r, z, rr, rz, zz = sums
    mean_r, mean_z = r / n, z / n
    var_r, cov, var_z = rr / n - mean_r**2, rz / n - mean_r * mean_z, zz / n - mean_z**2
    slope = np.where(var_r > 1e-9, cov / np.maximum(var_r, 1e-9), 0.0)
    error = np.sqrt(np.maximum(var_z - slope * cov, 0.0))
    return slope, mean_z - slope * mean_r, error


def _nearest_line(profile: _Profile, member: Int[np.ndarray, "A R"], num_bins: int) -> Int[np.ndarray, "A bins"]:
    """The line of each (sector, bin): its own, else that of the nearest bin that has one; -1 in sectors without."""
    sectors = len(member)
    table = np.full((sectors, num_bins), -1)
    row, step = np.nonzero(member >= 0)
    place = profile.bin[row, step]
    table[row, place] = member[row, step]
    column = np.arange(num_bins)[None, :]
    known = table >= 0
    before = np.maximum.accumulate(np.where(known, column, -num_bins * 2), axis=1)
    after = np.minimum.accumulate(np.where(known, column, num_bins * 3)[:, ::-1], axis=1)[:, ::-1]
    nearest = np.where(column - before <= after - column, before, after)
    line = np.take_along_axis(table, np.clip(nearest, 0, num_bins - 1), axis=1)
    return np.where(known.any(axis=1, keepdims=True), line, -1)


# ---- plane
def _plane(points: Float[np.ndarray, "N 3"], config: GroundConfig, rng: np.random.Generator) -> Bool[np.ndarray, " N"]:
    """The flat plane that most points are close to, fitted again to those by least squares.

    Planes are z = a x + b y + c through three random points; steeper ones than `max_slope` do not count. Distances
    are along the normal.

    Source: Fischler & Bolles, "Random sample consensus" (CACM 1981).
    """
    few = points[rng.choice(len(points), min(_SCORED, len(points)), replace=False)]
    planes = _through_three(points[rng.integers(0, len(points), (config.trials, 3))])
    planes = planes[_steepness(planes) <= config.max_slope]
    if len(planes) == 0:
        return np.zeros(len(points), dtype=bool)
    heights = planes[:, :2] @ few[:, :2].T + planes[:, 2:]
    near = np.abs(few[:, 2] - heights) < config.distance_m * np.sqrt(1 + _steepness(planes) ** 2)[:, None]
    best = planes[int(near.sum(axis=1).argmax())]
    for _ in range(2):  # the second time with what the first fit found
        again = _least_squares(points[_close(points, best, config.distance_m)])
        if again is None or _steepness(again[None])[0] > config.max_slope:
            break
        best = again
    return _close(points, best, config.distance_m)


def _through_three(corners: Float[np.ndarray, "T 3 3"]) -> Float[np.ndarray, "planes 3"]:
    """(a, b, c) of z = a x + b y + c; upright planes and three points in a line are left out."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    size = np.linalg.norm(normal, axis=1)
    usable = np.abs(normal[:, 2]) > 1e-6 * np.maximum(size, 1e-6)
    normal, corner = normal[usable], corners[usable, 0]
    slopes = -normal[:, :2] / normal[:, 2:]
    return np.column_stack([slopes, corner[:, 2] - (slopes * corner[:, :2]).sum(axis=1)])


def _steepness(planes: Float[np.ndarray, "planes 3"]) -> Float[np.ndarray, " planes"]:
    return np.asarray(np.hypot(planes[:, 0], planes[:, 1]))


def _close(
    points: Float[np.ndarray, "N 3"], plane: Float[np.ndarray, " 3"], distance_m: float
) -> Bool[np.ndarray, " N"]:
    upright = points[:, 2] - points[:, :2] @ plane[:2] - plane[2]
    return np.asarray(np.abs(upright) < distance_m * np.sqrt(1 + plane[0] ** 2 + plane[1] ** 2))


def _least_squares(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " 3"] | None:
    """The plane of least vertical squares; None where the points' footprint is a line or a point."""
    center = points.mean(axis=0) if len(points) else np.zeros(3)
    local = points - center
    gram = local[:, :2].T @ local[:, :2]
    if len(points) < 3 or np.linalg.det(gram) <= 1e-9 * max(float(np.trace(gram)), 1e-9) ** 2:
        return None
    slopes = np.linalg.solve(gram, local[:, :2].T @ local[:, 2])
    return np.array([*slopes, center[2] - slopes @ center[:2]])
