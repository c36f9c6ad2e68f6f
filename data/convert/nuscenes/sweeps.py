"""Several turns of the LiDAR as one cloud: earlier ones moved by the ego poses to where they are seen from now.

Detectors on nuScenes see ten sweeps, half a second: a single one of its 32 beams is sparse. What moves by itself leaves
a trail, which the points' times tell apart.

Source: Caesar et al., nuScenes (CVPR 2020), section 4; `LidarPointCloud.from_file_multisweep` of the development kit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped

from data.geometry import transform

CLOSE_M = 1.0
"""Points nearer than this to the scanner in both x and y are of the vehicle itself."""


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Points of one or more sweeps.

    Attributes:
        points: x forward, y left, z up in the LiDAR frame at the sample's time, metres; those of its own sweep first.
        intensity: as stored, 0 to 255.
        times_s: how long before the sample's sweep each point's sweep was, seconds.
    """

    points: Float32[np.ndarray, "N 3"]
    intensity: Float32[np.ndarray, " N"]
    times_s: Float32[np.ndarray, " N"]


def points_of(records: Float32[np.ndarray, "N 5"]) -> Float32[np.ndarray, "N 3"]:
    """Points of a sweep's file, turned to x forward, y left without leaving float32."""
    return np.stack([records[:, 1], -records[:, 0], records[:, 2]], axis=1)


def of_surroundings(records: Float32[np.ndarray, "N 5"]) -> Bool[np.ndarray, " N"]:
    """Which points of a sweep's file are not of the vehicle itself."""
    return np.asarray((np.abs(records[:, :2]) >= CLOSE_M).any(axis=1))


def earlier(rows: Shaped[np.ndarray, " n"], row: np.void, count: int) -> list[np.void]:
    """Up to so many rows of a scene (in order of time) before one of them, the latest first."""
    end = int(np.searchsorted(rows["time_us"], row["time_us"]))
    return list(rows[max(end - count, 0) : end][::-1])


def gathered(
    now: Float32[np.ndarray, "N 5"],
    before: Sequence[np.void],
    read: Callable[[np.void], Float32[np.ndarray, "M 5"]],
    T_now_then: Callable[[np.void], Float[np.ndarray, "4 4"]],
    time_us: int,
) -> Cloud:
    """The sweep of a sample and earlier ones in its frame.

    Args:
        now: records of the sample's own sweep, without the points that shall not be in the cloud.
        before: rows of earlier sweeps.
        read: the records of one of them.
        T_now_then: LiDAR frame at its time to that of the sample.
        time_us: of the sample's sweep.
    """
    points, intensity, times = [points_of(now)], [now[:, 3]], [np.zeros(len(now), np.float32)]
    for row in before:
        records = read(row)
        records = records[of_surroundings(records)]
        points.append(transform(T_now_then(row), points_of(records)).astype(np.float32))
        intensity.append(records[:, 3])
        times.append(np.full(len(records), (time_us - int(row["time_us"])) * 1e-6, np.float32))
    return Cloud(points=np.concatenate(points), intensity=np.concatenate(intensity), times_s=np.concatenate(times))
