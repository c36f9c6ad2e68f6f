"""Does the vehicle drive the way that it looks? Directions of travel in the ego frame, and what explains wrong ones.

A vehicle that drives moves along its x axis. Poses whose heading is reversed, or whose rotation was written down in
another convention, let it drive backwards or sideways all day: no sample is damaged by that, but each image is moved
the wrong way between its own time and the sweep's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from common.printable import listed
from data.geometry import rigid, yaw_rotation
from data.sample import Sample

LEAST_SPEED_MPS = 2.0
"""Slower, a vehicle manoeuvres, and people who carry a sensor walk: nothing is said about them."""

_LONGEST_S = 2.5
_LEAST_STEPS = 10
_FORWARD = 0.7
"""Least mean cosine between the direction of travel and x of poses that are right: 45 degrees."""
_STEADY = 0.8
"""Least length of the mean direction (1: always the same) before anything is said."""
_EXPLAINED = 0.95
"""Least mean cosine that another reading of the poses must reach to be named."""

Pose = Float[np.ndarray, "4 4"]


def turned(T: Pose, R: Float[np.ndarray, "3 3"]) -> Pose:
    """The pose with another rotation."""
    return rigid(R, T[:3, 3])


def rolled_quaternion(T: Pose, places: int) -> Pose:
    """The pose whose quaternion has its numbers moved on: 1 undoes x y z w read as w x y z, -1 the reverse."""
    quaternion = Rotation.from_matrix(T[:3, :3]).as_quat()
    return turned(T, Rotation.from_quat(np.roll(quaternion, places)).as_matrix())


def degrees_as_radians_undone(T: Pose) -> Pose:
    """The pose with its angle 57 times as large: it is in radians, and was read as degrees."""
    return turned(T, Rotation.from_rotvec(np.degrees(Rotation.from_matrix(T[:3, :3]).as_rotvec())).as_matrix())


def _compass_undone(T: Pose) -> Pose:
    return turned(T, yaw_rotation(np.pi / 2 - float(np.arctan2(T[1, 0], T[0, 0]))))


_READINGS: dict[str, Callable[[Pose], Pose]] = {
    "as stated": lambda T: T,
    "the poses are the wrong way round (world to ego in the place of ego to world)": np.linalg.inv,
    "the rotations are the wrong way round (world to ego axes in the place of ego to world axes)": lambda T: turned(
        T, T[:3, :3].T
    ),
    "quaternions were written scalar last (x y z w) and read scalar first (w x y z)": lambda T: rolled_quaternion(T, 1),
    "quaternions were written scalar first (w x y z) and read scalar last (x y z w)": lambda T: rolled_quaternion(
        T, -1
    ),
    "angles are radians and were read as degrees": degrees_as_radians_undone,
    "headings are those of a compass (clockwise from north): give 90 degrees less them": _compass_undone,
}
"""How poses may be meant -> the pose that is meant. The first is what the set says."""

_SIDES = (
    ("forward", "backwards", "its heading is turned by 180 degrees"),
    ("to its left", "to its right", "its heading is turned by 90 degrees"),
    ("up", "down", "the axes of the ego frame are swapped"),
)


class Heading:
    """Takes the samples of a log in order of time, and adds up the directions of travel.

    Attributes:
        steps: between two samples that were fast enough.
        sums: of the unit vectors of travel in the ego frame, for each of the ways in which poses may be meant.
    """

    def __init__(self, steps: int = 0, sums: Float[np.ndarray, "readings 3"] | None = None) -> None:
        self.steps = steps
        self.sums = np.zeros((len(_READINGS), 3)) if sums is None else sums
        self._last: Sample | None = None

    @property
    def record(self) -> tuple[float, ...]:
        """All that was added, as numbers; `of_records` takes them back."""
        return (float(self.steps), *self.sums.reshape(-1).tolist())

    @staticmethod
    def is_record(numbers: Sequence[float]) -> bool:
        """Whether these may be what `record` gives."""
        return len(numbers) == 1 + 3 * len(_READINGS) and bool(np.isfinite(numbers).all())

    @classmethod
    def of_records(cls, records: Sequence[Sequence[float]]) -> Heading:
        """What all of these say together."""
        table = np.array(records, dtype=np.float64).reshape(-1, 1 + 3 * len(_READINGS)).sum(axis=0)
        return cls(round(float(table[0])), table[1:].reshape(-1, 3))

    def add(self, sample: Sample) -> None:
        """Take the step from the sample before it."""
        before, self._last = self._last, _without_data(sample)
        if before is not None:
            self._add_step(before, sample)

    def add_way(self, direction: Float[np.ndarray, " 3"]) -> None:
        """Take a direction of travel as a unit vector in the ego frame; what else the poses may mean stays open."""
        self.sums[0] += direction
        self.steps += 1

    def _add_step(self, before: Sample, after: Sample) -> None:
        seconds = (after.timestamp_us - before.timestamp_us) / 1e6
        if not 0 < seconds <= _LONGEST_S:
            return
        distance = np.linalg.norm(after.T_world_ego[:3, 3] - before.T_world_ego[:3, 3])
        if not distance / seconds >= LEAST_SPEED_MPS:
            return
        for row, meant in enumerate(_READINGS.values()):
            T, T_next = meant(before.T_world_ego), meant(after.T_world_ego)
            step = T[:3, :3].T @ (T_next[:3, 3] - T[:3, 3])
            self.sums[row] += step / max(float(np.linalg.norm(step)), 1e-9)
        self.steps += 1

    def trouble(self) -> str | None:
        """What is wrong with the poses, in words; None where nothing is, or too little was driven to tell."""
        if self.steps < _LEAST_STEPS:
            return None
        means = self.sums / self.steps
        if means[0, 0] > _FORWARD:
            return None
        steady = _steady_side(means[0])
        fitting = [name for name, mean in zip(_READINGS, means, strict=True) if mean[0] > _EXPLAINED]
        if steady is None and not fitting:  # a sensor that is carried, a drone, a vehicle that can drive any way
            return None
        moves = steady or "does not move the way that it looks; x of the ego frame must look forward"
        causes = f": {'; or '.join(fitting)}" if fitting else ""
        return f"the vehicle {moves}{causes}"


def troubles(headings: Mapping[str, Heading]) -> tuple[str, ...]:
    """What is wrong with the poses of which logs, one line for each kind of trouble.

    Each log is judged alone, since the mean of many hides a single one; those of too few steps are judged together.
    """
    short = {log: heading for log, heading in headings.items() if heading.steps < _LEAST_STEPS}
    parts: list[tuple[tuple[str, ...], Heading]] = [
        ((log,), heading) for log, heading in headings.items() if log not in short
    ]
    parts.append((tuple(short), Heading.of_records([heading.record for heading in short.values()])))
    found: dict[str, tuple[list[str], int]] = {}
    for logs, heading in parts:
        trouble = heading.trouble()
        if trouble is not None:
            names, steps = found.get(trouble, ([], 0))
            found[trouble] = [*names, *logs], steps + heading.steps
    return tuple(f"by the poses of {listed(logs)} ({steps} steps) {what}" for what, (logs, steps) in found.items())


def _steady_side(mean: Float[np.ndarray, " 3"]) -> str | None:
    axis = int(np.abs(mean).argmax())
    if abs(float(mean[axis])) < _STEADY:
        return None
    ahead, back, turn = _SIDES[axis]
    return f"moves {ahead if mean[axis] > 0 else back}: {turn}, x must look forward"


def _without_data(sample: Sample) -> Sample:
    """The sample's pose and time: what is kept of it until the next one comes, no view of its arrays."""
    empty: Any = {
        "points_lidar": sample.points_lidar[:0].copy(),
        "intensity": sample.intensity[:0].copy(),
        "cameras": (),
    }
    return Sample(
        key=sample.key,
        log=sample.log,
        timestamp_us=sample.timestamp_us,
        T_ego_lidar=sample.T_ego_lidar,
        T_world_ego=sample.T_world_ego,
        **empty,
    )
