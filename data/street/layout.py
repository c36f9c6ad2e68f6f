"""Draws a world: street, buildings, plants, furniture, parked and moving objects, and the ego's drive.

Everything is placed in street coordinates (s along, t to the left). Rare classes are dealt from shuffled decks, so that
each stretch of street has all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from data.street import buildings, furniture, people, plants, vehicles
from data.street.classes import Label
from data.street.config import StreetConfig
from data.street.mesh import Mesh, merge
from data.street.road import Street, Strip, draw_street, ground_mesh
from data.street.things import Thing, Things, columns

_T = TypeVar("_T")
# How many different objects of a class a world has; more copies than that are placed.
_POOLS = {
    Label.CAR: (vehicles.build_car, 16),
    Label.TRUCK: (vehicles.build_truck, 4),
    Label.BUS: (vehicles.build_bus, 4),
    Label.PEDESTRIAN: (people.build_pedestrian, 14),
    Label.CYCLIST: (people.build_cyclist, 7),
}


@dataclass(frozen=True, kw_only=True)
class Drive:
    """The ego's motion: constant t, s growing by `speed_mps` a second from `s` at time 0, and a gentle sway."""

    s: float
    t: float
    speed_mps: float
    sway_phase: float


@dataclass(frozen=True, kw_only=True)
class World:
    """Geometry and objects of one log.

    Attributes:
        street: the road.
        static: triangles that do not move, in the world frame.
        moving: triangles of the moving objects, each in its object's frame, with its instance id.
        things: parked and moving objects.
        drive: the ego's motion.
    """

    street: Street
    static: Mesh
    moving: Mesh
    things: Things
    drive: Drive


def _dealt(rng: np.random.Generator, deck: Sequence[_T]) -> Iterator[_T]:
    """Cards of a deck in random order, reshuffled whenever it is empty."""
    while True:
        for i in rng.permutation(len(deck)):
            yield deck[int(i)]


def _stations(rng: np.random.Generator, start: float, end: float, spacing: float, density: float) -> Iterator[float]:
    """Positions along s with a jittered spacing; none at zero density."""
    if density <= 0:
        return
    step = spacing / density
    s = start + rng.uniform(0, step)
    while s < end:
        yield s
        s += step * rng.uniform(0.6, 1.4)


class _Planner:
    """Collects static meshes and things while a world is drawn."""

    def __init__(self, config: StreetConfig, rng: np.random.Generator) -> None:
        self.config = config
        self.rng = rng
        travel = 12.0 * (config.duration_s + 2.0)
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

    def object_mesh(self, label: Label) -> Mesh:
        """One of the world's objects of a class."""
        pool = self.pools[label]
        return pool[int(self.rng.integers(len(pool)))]

    def stations(self, spacing: float, *, margin: float = 0.0, density: float | None = None) -> Iterator[float]:
        """Positions along the whole street, off the crossing."""
        density = self.config.density if density is None else density
        for s in _stations(self.rng, self.street.start_m + 2, self.street.end_m - 2, spacing, density):
            if not self.street.blocked(s, margin):
                yield s


def draw_world(config: StreetConfig, rng: np.random.Generator) -> World:
    """Draw the world of one log."""
    plan = _Planner(config, rng)
    drive = Drive(
        s=0.0, t=plan.street.lanes[0][0], speed_mps=rng.uniform(3.5, 10.0), sway_phase=rng.uniform(0, 2 * np.pi)
    )
    for side in (-1, 1):
        bands = plan.street.bands(side)
        _plots(plan, side, bands[-1])
        for band in bands[:-1]:
            if band.label is Label.PARKING:
                _parked(plan, side, band)
            elif band.label is Label.TERRAIN:
                _trees(plan, (band.t0 + band.t1) / 2, 8.0)
        walk = next(band for band in bands if band.label is Label.SIDEWALK)
        raised = next(band for band in bands if band.label is not Label.PARKING)
        _furniture(plan, side, raised)
        _walkers(plan, side, walk)
        _cyclists(plan, side, walk)
    _traffic(plan, drive)
    _backdrop(plan)
    return _finish(plan, drive)


def _finish(plan: _Planner, drive: Drive) -> World:
    things = columns(plan.street, plan.things)
    moving = []
    positions, yaws = things.poses(0.0)
    for i, thing in enumerate(plan.things):
        if thing.speed == 0:
            x, y, z = positions[i].tolist()
            plan.meshes.append(thing.mesh.placed((x, y, z), float(yaws[i]), instance=i + 1))
        else:
            moving.append(thing.mesh.placed((0.0, 0.0, 0.0), instance=i + 1))
    static = merge(plan.meshes)
    empty = static.take(np.arange(0))
    return World(street=plan.street, static=static, moving=merge([empty, *moving]), things=things, drive=drive)


def _plots(plan: _Planner, side: int, band: Strip) -> None:
    """Building plots behind the last strip: fence or hedge at the line, garden, building."""
    rng, edge = plan.rng, band.t0 if side > 0 else -band.t1
    setback = rng.uniform(2.5, 11.0)
    borders = _dealt(rng, ("railing", "boards", "hedge", "railing", "boards", "none"))
    s = plan.street.start_m + 4
    while s < plan.street.end_m - 24:
        length, gap = rng.uniform(9, 19), rng.choice([0.05, 2.0, 5.0]) * rng.uniform(1, 1.6)
        centre = s + length / 2
        s += length + gap
        if plan.street.blocked(centre, length / 2 + 1):
            continue
        border = next(borders)
        line = edge + rng.uniform(0.25, 0.9)
        _border(plan, side, border, line, centre - length / 2, length)
        front = edge + setback + rng.uniform(-0.8, 1.5)
        if rng.random() < 0.82:
            house = buildings.build_building(rng, length, rng.uniform(8, 13))
            # Its front faces -y: on the left side that is towards the road already.
            plan.place(house, centre, side * front, 0.0 if side > 0 else np.pi, shade=rng.uniform(0.85, 1.1))
        else:
            for _ in range(4):
                t = side * (front + rng.uniform(0, 12))
                plan.place(_pick(plan, plan.trees), centre + rng.uniform(-7, 7), t, rng.uniform(0, 6.3))
        for _ in range(rng.poisson(1.2 * plan.config.density)):
            t = side * rng.uniform(line + 0.8, max(front - 0.8, line + 1.0))
            where = centre + rng.uniform(-0.5, 0.5) * length
            plan.place(_pick(plan, plan.bushes), where, t, rng.uniform(0, 6.3), shade=rng.uniform(0.7, 1.2))
        if front - line > 4.5:
            for _ in range(rng.poisson(0.7 * plan.config.density)):
                where, t = centre + rng.uniform(-0.5, 0.5) * length, side * rng.uniform(line + 1.5, front - 2.2)
                plan.place(_pick(plan, plan.trees), where, t, rng.uniform(0, 6.3), scale=rng.uniform(0.75, 1.0))


def _pick(plan: _Planner, meshes: Sequence[Mesh]) -> Mesh:
    return meshes[int(plan.rng.integers(len(meshes)))]


def _border(plan: _Planner, side: int, kind: str, line: float, start: float, length: float) -> None:
    """A fence or hedge along the plot, in straight pieces, with a gate left open."""
    rng = plan.rng
    if kind == "none":
        return
    piece, height = 5.5, rng.uniform(0.9, 1.8)
    num = max(1, int(length / piece))
    gate = int(rng.integers(num + 1))
    one = {
        "railing": lambda: furniture.build_railing(rng, piece),
        "boards": lambda: furniture.build_board_fence(rng, piece, height),
        "hedge": lambda: plants.build_hedge(rng, piece, height),
    }[kind]()
    for i in range(num):
        if i != gate:
            plan.place(one, start + i * piece, side * line, 0.0)


def _trees(plan: _Planner, t: float, spacing: float) -> None:
    rng = plan.rng
    for s in plan.stations(spacing, margin=2.0):
        mesh = _pick(plan, plan.trees)
        plan.place(mesh, s, t, rng.uniform(0, 6.3), scale=rng.uniform(0.8, 1.1), shade=rng.uniform(0.8, 1.15))


def _parked(plan: _Planner, side: int, band: Strip) -> None:
    """Vehicles in the stalls; long ones take two stalls."""
    rng, stall = plan.rng, band.tile_m[0]
    across = stall < 4
    deck = (Label.CAR,) * 6 if across else (Label.CAR,) * 8 + (Label.TRUCK, Label.BUS)
    kinds = _dealt(rng, deck)
    fill = min(0.95, 0.5 * plan.config.density)
    k, last = int(plan.street.start_m / stall) + 2, int(plan.street.end_m / stall) - 2
    while k < last:
        kind = next(kinds) if rng.random() < fill else None
        stalls = 2 if kind in (Label.TRUCK, Label.BUS) else 1
        centre = (k + stalls / 2) * stall
        k += stalls
        if kind is None or plan.street.blocked(centre, stalls * stall / 2 + 3.5):
            continue
        t = (band.t0 + band.t1) / 2 + rng.uniform(-0.1, 0.1)
        turn = rng.choice([-1, 1]) * np.pi / 2 if across else (0.0 if rng.random() < 0.8 else np.pi)
        yaw = turn + (np.pi if side > 0 else 0.0) + rng.normal(0, 0.02)
        mesh = plan.object_mesh(kind)
        plan.things.append(Thing(label=kind, mesh=mesh, s=centre, t=t, z=band.z, speed=0.0, yaw=yaw))


def _furniture(plan: _Planner, side: int, band: Strip) -> None:
    """Lamps, signs, poles and bollards along the kerb."""
    rng, edge = plan.rng, band.t0 if side > 0 else -band.t1
    kinds = _dealt(rng, ("sign", "sign", "pole", "lamp", "sign", "pole", "bollard"))
    for s in plan.stations(6.0, margin=0.3):
        kind = next(kinds)
        t = side * (edge + rng.uniform(0.3, 0.55))
        facing = np.pi if rng.random() < 0.75 else 0.0
        yaw = facing + rng.normal(0, 0.25)
        if kind == "lamp":
            plan.place(furniture.build_lamp(rng), s, t, -side * np.pi / 2)
        elif kind == "bollard":
            one = furniture.build_bollard(rng)
            for i in range(int(rng.integers(2, 4))):
                plan.place(one, s + 1.3 * i, t, 0.0)
        else:
            build = furniture.build_sign if kind == "sign" else furniture.build_pole
            plan.place(build(rng), s, t, yaw)


def _walkers(plan: _Planner, side: int, walk: Strip) -> None:
    """Pedestrians on the sidewalk, alone or in pairs; some stand."""
    rng, low, high = plan.rng, walk.t0 + 0.7, walk.t1 - 0.4
    if side < 0:
        low, high = walk.t0 + 0.4, walk.t1 - 0.7
    for s in _stations(rng, plan.street.start_m, plan.street.end_m, 7.0, plan.config.density):
        direction = rng.choice([-1.0, 1.0])
        speed = 0.0 if rng.random() < 0.2 and not plan.street.blocked(s) else rng.uniform(0.8, 1.8) * direction
        for i in range(1 + int(rng.random() < 0.3)):
            yaw = (0.0 if direction > 0 else np.pi) + (rng.uniform(-1.5, 1.5) if speed == 0 else 0.0)
            mesh = plan.object_mesh(Label.PEDESTRIAN)
            t = rng.uniform(low, high)
            where = s + 0.9 * i
            thing = Thing(label=Label.PEDESTRIAN, mesh=mesh, s=where, t=t, z=walk.z, speed=speed, yaw=yaw)
            plan.things.append(thing)


def _cyclists(plan: _Planner, side: int, walk: Strip) -> None:
    """Cyclists along the road's edge where there is room beside the lane, else on the sidewalk."""
    rng, street = plan.rng, plan.street
    lane_t = max(abs(t) for t, _ in street.lanes)
    beside = street.half_road_m - lane_t - 1.3 > 0.9
    t = side * (street.half_road_m - 0.45) if beside else (walk.t0 + walk.t1) / 2
    z = 0.0 if beside else walk.z
    direction = -side  # traffic keeps right
    speed = rng.uniform(2.5, 5.5) * direction
    travel = speed * plan.config.duration_s
    start, end = street.start_m - max(travel, 0), street.end_m - min(travel, 0)
    for s in _stations(rng, start, end, 13.0, plan.config.density):
        yaw = 0.0 if direction > 0 else np.pi
        mesh = plan.object_mesh(Label.CYCLIST)
        offset = rng.uniform(-0.15, 0.15)
        plan.things.append(Thing(label=Label.CYCLIST, mesh=mesh, s=s, t=t + offset, z=z, speed=speed, yaw=yaw))


def _traffic(plan: _Planner, drive: Drive) -> None:
    """Vehicles in the lanes; all of a lane have one speed, so none runs into another."""
    rng, street = plan.rng, plan.street
    kinds = _dealt(rng, (Label.CAR,) * 3 + (Label.TRUCK, Label.BUS))
    for i, (t, direction) in enumerate(street.lanes):
        speed = drive.speed_mps * (1.0 if i == 0 else rng.uniform(0.7, 1.3)) * direction
        travel = speed * plan.config.duration_s
        start, end = street.start_m - max(travel, 0), street.end_m - min(travel, 0)
        clear = drive.s + 16 if i == 0 else start
        behind = drive.s - 16 if i == 0 else start
        for s in _stations(rng, start, end, 24.0 if direction > 0 else 30.0, plan.config.density):
            if i == 0 and behind < s < clear:
                continue
            kind = next(kinds)
            yaw = 0.0 if direction > 0 else np.pi
            mesh = plan.object_mesh(kind)
            offset = rng.uniform(-0.2, 0.2)
            plan.things.append(Thing(label=kind, mesh=mesh, s=s, t=t + offset, z=0.0, speed=speed, yaw=yaw))


def _backdrop(plan: _Planner) -> None:
    """Far buildings and trees that close the view across, and at both ends of the street."""
    rng, street = plan.rng, plan.street
    for side in (-1, 1):
        for s in _stations(rng, street.start_m + 10, street.end_m - 10, 22.0, 1.0):
            house = buildings.build_building(rng, rng.uniform(14, 20), 10.0)
            plan.place(house, s, side * rng.uniform(46, 55), 0.0 if side > 0 else np.pi)
    for t in np.arange(-30, 31, 10.0):
        plan.place(_pick(plan, plan.trees), street.end_m - 3, float(t), rng.uniform(0, 6.3), scale=1.6)
