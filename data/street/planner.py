"""What the parts of a world's drawing share: the street, random placement, pools of meshes, and what was placed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from data.street import people, plants, vehicles
from data.street.classes import Label
from data.street.config import StreetConfig
from data.street.mesh import Mesh
from data.street.road import draw_street, ground_mesh
from data.street.things import Thing

_T = TypeVar("_T")
# How many different objects of a class a world has; more copies than that are placed.
_POOLS = {
    Label.CAR: (vehicles.build_car, 16),
    Label.TRUCK: (vehicles.build_truck, 4),
    Label.BUS: (vehicles.build_bus, 4),
    Label.PEDESTRIAN: (people.build_pedestrian, 14),
    Label.CYCLIST: (people.build_cyclist, 7),
}


def dealt(rng: np.random.Generator, deck: Sequence[_T]) -> Iterator[_T]:
    """Cards of a deck in random order, reshuffled whenever it is empty."""
    while True:
        for i in rng.permutation(len(deck)):
            yield deck[int(i)]


def along(rng: np.random.Generator, start: float, end: float, spacing: float, density: float) -> Iterator[float]:
    """Positions along s with a jittered spacing; none at zero density."""
    if density <= 0:
        return
    step = spacing / density
    s = start + rng.uniform(0, step)
    while s < end:
        yield s
        s += step * rng.uniform(0.6, 1.4)


class Planner:
    """Collects static meshes and things while a world is drawn."""

    def __init__(self, config: StreetConfig, rng: np.random.Generator) -> None:
        self.config = config
        self.rng = rng
        travel = 12.0 * (config.duration_s + 2.0)  # more than any ego drives
        self.street = draw_street(rng, -config.view_range_m, config.view_range_m + travel)
        self.meshes = [ground_mesh(self.street, rng)]
        self.things: list[Thing] = []
        self.trees = [plants.build_tree(rng) for _ in range(5)]
        self.pools = {label: [build(rng) for _ in range(n)] for label, (build, n) in _POOLS.items()}
        self.bushes = [plants.build_bush(rng) for _ in range(3)]

    def place(self, mesh: Mesh, s: float, t: float, yaw: float, *, scale: float = 1.0, shade: float = 1.0) -> None:
        """Put a static mesh at (s, t), turned relative to the curve."""
        x, y = self.street.curve.position(np.array(s), np.array(t)).tolist()
        heading = float(self.street.curve.yaw_at(np.array(s))) + yaw
        z = self.street.height(t)
        self.meshes.append(mesh.placed((x, y, z), heading, scale=scale, tint=(shade, shade, shade)))

    def pick(self, meshes: Sequence[Mesh]) -> Mesh:
        """One of the meshes at random."""
        return meshes[int(self.rng.integers(len(meshes)))]

    def object_mesh(self, label: Label) -> Mesh:
        """One of the world's objects of a class."""
        return self.pick(self.pools[label])

    def stations(self, spacing: float, margin: float) -> Iterator[float]:
        """Positions along the whole street, off the crossing."""
        for s in along(self.rng, self.street.start_m + 2, self.street.end_m - 2, spacing, self.config.density):
            if not self.street.blocked(s, margin):
                yield s
