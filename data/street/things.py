"""Labelled objects (vehicles and people): where each one is at a time, and its box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from data.street.classes import Label
from data.street.mesh import Mesh
from data.street.road import Street


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object, in street coordinates. It keeps its t, and its s grows by `speed` a second.

    Attributes:
        label: class.
        mesh: in the object's frame.
        s: at time 0.
        t: metres left of the curve.
        z: height of the ground below it.
        speed: along s, negative against it, 0 for what is parked.
        yaw: heading relative to the curve.
    """

    label: Label
    mesh: Mesh
    s: float
    t: float
    z: float
    speed: float
    yaw: float


@dataclass(frozen=True)
class Things:
    """All objects of a world as columns; row i has instance id i + 1."""

    street: Street
    labels: Int[np.ndarray, " n"]
    s: Float[np.ndarray, " n"]
    t: Float[np.ndarray, " n"]
    z: Float[np.ndarray, " n"]
    speed: Float[np.ndarray, " n"]
    yaw: Float[np.ndarray, " n"]
    sizes_m: Float[np.ndarray, "n 3"]
    centers_m: Float[np.ndarray, "n 3"]
    """Box centre in the object's frame."""

    def poses(self, time_s: float) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
        """World position of each object's origin, and heading."""
        s = self.s + self.speed * time_s
        xy = self.street.curve.position(s, self.t)
        z = self.z
        crossing = self.street.crossing
        if crossing is not None:  # who walks over the crossing steps down from the kerb
            z = np.where(np.abs(s - crossing.s) < crossing.half_width_m, 0.0, z)
        return np.concatenate([xy, z[:, None]], axis=1), self.street.curve.yaw_at(s) + self.yaw

    def velocities(self, time_s: float) -> Float[np.ndarray, "n 2"]:
        """World velocity over ground, by central difference over 20 ms."""
        before, _ = self.poses(time_s - 0.01)
        after, _ = self.poses(time_s + 0.01)
        return np.asarray((after - before)[:, :2] / 0.02)

    def present(self, time_s: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which objects are on the mapped stretch of street."""
        s = self.s + self.speed * time_s
        return (s > self.street.start_m + 8) & (s < self.street.end_m - 8)


def columns(street: Street, things: Sequence[Thing]) -> Things:
    """Gather objects into columns."""
    low_high = [thing.mesh.bounds() for thing in things]
    low = np.array([low for low, _ in low_high], np.float64).reshape(-1, 3)
    high = np.array([high for _, high in low_high], np.float64).reshape(-1, 3)
    low[:, 2] = np.minimum(low[:, 2], 0.0)  # boxes stand on the ground

    names = ("s", "t", "z", "speed", "yaw")
    values = {name: np.array([getattr(thing, name) for thing in things], np.float64) for name in names}
    return Things(
        street=street,
        labels=np.array([thing.label for thing in things], np.int64),
        **values,
        sizes_m=high - low,
        centers_m=(high + low) / 2,
    )
