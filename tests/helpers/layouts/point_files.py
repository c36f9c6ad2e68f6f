"""Writes sweeps and surveys as files of points, by the writers of other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import laspy
import numpy as np
from pypcd4 import Encoding, PointCloud

from data.sample import Sample
from tests.helpers.layouts.custom import write_custom

EASTING, NORTHING = 412_300.0, 5_678_900.0
"""A corner of blocks of 50 m; float32 has steps of half a metre there."""
_ENCODINGS = (Encoding.ASCII, Encoding.BINARY, Encoding.BINARY_COMPRESSED)
_SWEEP_NAMES = ("x", "y", "z", "intensity")


def write_pcd_logs(root: Path, log: Sequence[Sample]) -> None:
    """A log in the plain layout whose sweeps are .pcd, each in another encoding in turn."""
    write_custom(root, [log])
    for number, path in enumerate(sorted(root.glob("*/lidar/*.npy"))):
        columns = [np.ascontiguousarray(column) for column in np.load(path).T]
        cloud = PointCloud.from_points(columns, _SWEEP_NAMES, [column.dtype for column in columns])
        cloud.save(path.with_suffix(".pcd"), encoding=_ENCODINGS[number % len(_ENCODINGS)])
        path.unlink()


def survey(points: int = 4000, extent_m: float = 100.0) -> dict[str, np.ndarray]:
    """Ground with things on it over 2 x 2 blocks of 50 m; coordinates are whole millimetres."""
    rng = np.random.default_rng(0)
    x, y = (np.floor(rng.uniform(0, extent_m, points) * 1000) / 1000 for _ in range(2))
    return {
        "x": EASTING + x,
        "y": NORTHING + y,
        "z": np.round(300 + 0.02 * x + rng.uniform(0, 5, points), 3),
        "intensity": rng.integers(100, 65535, points).astype(np.uint16),
        "classification": rng.choice([1, 2, 5, 6, 17, 64], points).astype(np.uint8),
        "gps_time": 250_000.0 + np.arange(points) * 1e-3,
    }


def write_tile(path: Path, columns: dict[str, np.ndarray], *, point_format: int = 6, version: str = "1.4") -> None:
    """A file of a survey; its ending says whether it is compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = laspy.LasHeader(point_format=point_format, version=version)
    header.offsets, header.scales = [EASTING, NORTHING, 0], [0.001] * 3
    data = laspy.LasData(header)
    for name, values in columns.items():
        setattr(data, name, values)
    data.write(path)
