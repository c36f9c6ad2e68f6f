"""A track of ego poses, read from a table and interpolated to any time on it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from data.convert.poses import pose_between
from data.convert.raw_files import read_bytes
from data.geometry import rigid
from data.storage.encode import DamagedError

COLUMNS = ("timestamp_us", "x", "y", "z", "qw", "qx", "qy", "qz")
"""First line of a pose table. The quaternion turns ego axes into world axes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PoseTrack:
    """Ego poses in order of time.

    Attributes:
        times_us: strictly rising.
        positions_m: of the ego frame's origin in the world.
        quaternions: x, y, z, w of the rotation ego to world.
        max_gap_us: neighbours further apart than this are not interpolated between.
    """

    times_us: Int[np.ndarray, " n"]
    positions_m: Float[np.ndarray, "n 3"]
    quaternions: Float[np.ndarray, "n 4"]
    max_gap_us: int

    def at(self, time_us: int) -> Float[np.ndarray, "4 4"]:
        """T_world_ego at a time: position linear, rotation spherically linear between the two neighbours.

        Raises:
            DamagedError: the time is before the first or after the last pose, or in a gap.
        """
        first, last = int(self.times_us[0]), int(self.times_us[-1])
        if not first <= time_us <= last:
            raise DamagedError(
                "calibration-missing", f"no ego pose at {time_us}: poses reach from {first} to {last} (microseconds)"
            )
        right = int(np.searchsorted(self.times_us, time_us))
        if int(self.times_us[right]) == time_us:
            return self._pose(right)
        start, end = (int(time) for time in self.times_us[right - 1 : right + 1])
        if end - start > self.max_gap_us:
            detail = f"no ego pose at {time_us}: its neighbours are {(end - start) / 1e3:.0f} ms apart"
            raise DamagedError("calibration-missing", f"{detail}, allowed are {self.max_gap_us / 1e3:.0f} ms")
        before, after = (self._pose(number) for number in (right - 1, right))
        return pose_between(before, after, (time_us - start) / (end - start))

    def _pose(self, number: int) -> Float[np.ndarray, "4 4"]:
        return rigid(Rotation.from_quat(self.quaternions[number]).as_matrix(), self.positions_m[number])


def read_pose_track(path: Path, max_gap_us: int) -> PoseTrack:
    """A table of poses; the world's origin moves to the first one, so that far coordinates keep their precision.

    Args:
        path: CSV with the header `COLUMNS`.
        max_gap_us: see `PoseTrack`.

    Raises:
        DamagedError: the file is missing or a line has another form.
    """
    try:
        lines = list(csv.reader(read_bytes(path).decode("utf-8-sig", errors="replace").splitlines()))
    except csv.Error as error:
        raise DamagedError("meta-broken", f"{path}: {error}") from error
    header = tuple(name.strip() for name in lines[0]) if lines else ()
    if header != COLUMNS:
        raise DamagedError("meta-broken", f"{path}: first line {','.join(header)!r}, expected {','.join(COLUMNS)!r}")
    times: list[int] = []
    rows: list[list[float]] = []
    for number, line in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in line):
            continue
        try:
            time_us, row = int(line[0]), [float(cell) for cell in line[1:]]
        except ValueError as error:
            raise DamagedError("meta-broken", f"{path}, line {number}: {error}") from error
        if len(row) != len(COLUMNS) - 1 or not np.isfinite(row).all():
            raise DamagedError("meta-broken", f"{path}, line {number}: expected {len(COLUMNS)} finite numbers")
        if not -(1 << 63) <= time_us < 1 << 63:
            raise DamagedError("meta-broken", f"{path}, line {number}: time {line[0]:.40} does not fit 64 bits")
        if times and time_us <= times[-1]:
            raise DamagedError("meta-broken", f"{path}, line {number}: time {time_us} is not after {times[-1]}")
        if abs(float(np.linalg.norm(row[3:])) - 1) > 0.01:
            raise DamagedError("meta-broken", f"{path}, line {number}: quaternion {row[3:]} has not length 1")
        times.append(time_us)
        rows.append(row)
    if not rows:
        raise DamagedError("calibration-missing", f"{path} holds no pose")
    table = np.array(rows, dtype=np.float64)
    return PoseTrack(
        times_us=np.array(times, dtype=np.int64),
        positions_m=table[:, 0:3] - table[0, 0:3],
        quaternions=np.roll(table[:, 3:7], -1, axis=1),
        max_gap_us=max_gap_us,
    )
