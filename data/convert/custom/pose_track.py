"""A track of ego poses, read from a table and interpolated to any time on it."""

from __future__ import annotations

import bisect
import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from data.convert.poses import pose_between
from data.convert.raw_files import read_bytes
from data.geometry import rigid
from data.storage.damage import DamagedError

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
        damage: before which pose lines of the table were left out (the number of poses: after the last), and why.
            They count as absent.
    """

    times_us: Int[np.ndarray, " n"]
    positions_m: Float[np.ndarray, "n 3"]
    quaternions: Float[np.ndarray, "n 4"]
    max_gap_us: int
    damage: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def at(self, time_us: int) -> Float[np.ndarray, "4 4"]:
        """T_world_ego at a time: position linear, rotation spherically linear between the two neighbours.

        Raises:
            DamagedError: the time is before the first or after the last pose, or in a gap.
        """
        first, last = int(self.times_us[0]), int(self.times_us[-1])
        right = int(np.searchsorted(self.times_us, time_us))
        if right < len(self.times_us) and int(self.times_us[right]) == time_us:
            return self._pose(right)
        why = f"; {self.damage[right]}" if right in self.damage else ""
        if not first <= time_us <= last:
            detail = f"no ego pose at {time_us}: poses reach from {first} to {last} (microseconds)"
            raise DamagedError("calibration-missing", f"{detail}{why}")
        start, end = (int(time) for time in self.times_us[right - 1 : right + 1])
        if end - start > self.max_gap_us:
            detail = f"no ego pose at {time_us}: its neighbours are {(end - start) / 1e3:.0f} ms apart"
            raise DamagedError("calibration-missing", f"{detail}, allowed are {self.max_gap_us / 1e3:.0f} ms{why}")
        before, after = (self._pose(number) for number in (right - 1, right))
        return pose_between(before, after, (time_us - start) / (end - start))

    def _pose(self, number: int) -> Float[np.ndarray, "4 4"]:
        return rigid(Rotation.from_quat(self.quaternions[number]).as_matrix(), self.positions_m[number])


def read_pose_track(path: Path, max_gap_us: int) -> PoseTrack:
    """A table of poses; the world's origin moves to the first one, so that far coordinates keep their precision.

    A damaged line, one out of order or two different ones of one time are left out, as if they were missing;
    `PoseTrack.damage` says why. A line that is there twice counts once.

    Args:
        path: CSV with the header `COLUMNS`.
        max_gap_us: see `PoseTrack`.

    Raises:
        DamagedError: the file is missing, has another header or no line that is a pose.
    """
    header, *lines = read_bytes(path).decode("utf-8-sig", errors="replace").split("\n")
    names = tuple(name.strip() for name in header.split(","))
    if names != COLUMNS:
        raise DamagedError("meta-broken", f"{path}: first line {header.strip()!r:.200}, expected {','.join(COLUMNS)!r}")
    entries = _entries(path, lines)
    kept = _longest_rising([None if isinstance(entry, str) else entry[0] for entry in entries])
    poses: list[_Row] = []
    damage: dict[int, str] = {}
    for index, entry in enumerate(entries):
        if isinstance(entry, str):
            damage.setdefault(len(poses), entry)
        elif index in kept:
            poses.append(entry)
        else:
            damage.setdefault(len(poses), f"{path}: time {entry[0]} is out of order")
    if not poses:
        raise DamagedError(
            "calibration-missing", f"{path} holds no pose{''.join(f' ({why})' for why in damage.values())}"
        )
    table = np.array([row for _, row in poses], dtype=np.float64)
    return PoseTrack(
        times_us=np.array([time_us for time_us, _ in poses], dtype=np.int64),
        positions_m=table[:, 0:3] - table[0, 0:3],
        quaternions=np.roll(table[:, 3:7], -1, axis=1),
        max_gap_us=max_gap_us,
        damage=damage,
    )


_Row = tuple[int, tuple[float, ...]]
"""Time and pose of a line."""


def _entries(path: Path, lines: Sequence[str]) -> list[_Row | str]:
    """What each line after the header says, each pose once; what is wrong where a line is none."""
    parsed = [_parsed(path, number, line) for number, line in enumerate(lines, start=2) if line.strip()]
    poses_at: dict[int, set[tuple[float, ...]]] = {}
    for row in parsed:
        if not isinstance(row, str):
            poses_at.setdefault(row[0], set()).add(row[1])
    entries: dict[_Row | str, None] = {}  # in order; a line that is there twice counts once
    for row in parsed:
        if not isinstance(row, str) and len(poses_at[row[0]]) > 1:
            entries[f"{path}: time {row[0]} has {len(poses_at[row[0]])} different poses"] = None
        else:
            entries[row] = None
    return list(entries)


def _parsed(path: Path, number: int, line: str) -> _Row | str:
    """Time and pose of a line; what is wrong where it is none."""
    try:
        cells = next(csv.reader([line]))
        time_us, row = int(cells[0]), tuple(float(cell) for cell in cells[1:])
    except (ValueError, csv.Error) as error:
        return f"{path}, line {number}: {error}"
    if len(row) != len(COLUMNS) - 1 or not np.isfinite(row).all():
        return f"{path}, line {number}: expected {len(COLUMNS)} finite numbers"
    if not -(1 << 63) <= time_us < 1 << 63:
        return f"{path}, line {number}: time {cells[0]:.40} does not fit 64 bits"
    if abs(float(np.linalg.norm(row[3:])) - 1) > 0.01:
        return f"{path}, line {number}: quaternion {list(row[3:])} has not length 1"
    return time_us, row


def _longest_rising(times: Sequence[int | None]) -> set[int]:
    """Indices of the most times that rise: one wrong time, too early or too late, does not spoil those after it."""
    ends: list[int] = []  # the least last time of a rising part of each length
    last: list[int] = []  # the index of that time
    before: dict[int, int] = {}
    for index, time_us in enumerate(times):
        if time_us is None:
            continue
        length = bisect.bisect_left(ends, time_us)
        before[index] = last[length - 1] if length else -1
        if length == len(ends):
            ends.append(time_us)
            last.append(index)
        else:
            ends[length], last[length] = time_us, index
    kept: set[int] = set()
    index = last[-1] if last else -1
    while index >= 0:
        kept.add(index)
        index = before[index]
    return kept
