"""Draws a world: street, buildings, plants, furniture, parked and moving objects, and the ego's drive.

Everything is placed in street coordinates (s along, t to the left). Rare classes are dealt from shuffled decks, so that
each stretch of street has all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.street import buildings, furniture, plants
from data.street.classes import Label
from data.street.config import StreetConfig
from data.street.mesh import Mesh, merge
from data.street.motion import Drive
from data.street.planner import Planner, along, dealt
from data.street.road import Street, Strip
from data.street.things import Things, columns
from data.street.traffic import drive_lanes, park, ride, walk


@dataclass(frozen=True, kw_only=True)
class StreetWorld:
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


def draw_world(config: StreetConfig, rng: np.random.Generator) -> StreetWorld:
    """Draw the world of one log."""
    plan = Planner(config, rng)
    drive = Drive(
        s=0.0, t=plan.street.lanes[0][0], speed_mps=rng.uniform(3.5, 10.0), sway_phase=rng.uniform(0, 2 * np.pi)
    )
    # The order of all that follows matters: it draws from one stream of random numbers.
    for side in (-1, 1):
        bands = plan.street.bands(side)
        _plots(plan, side, bands[-1])
        for band in bands[:-1]:
            if band.label is Label.PARKING:
                park(plan, side, band)
            elif band.label is Label.TERRAIN:
                _trees(plan, (band.t0 + band.t1) / 2, 8.0)
        sidewalk = next(band for band in bands if band.label is Label.SIDEWALK)
        raised = next(band for band in bands if band.label is not Label.PARKING)
        _furniture(plan, side, raised)
        walk(plan, side, sidewalk)
        ride(plan, side, sidewalk)
    drive_lanes(plan, drive)
    _backdrop(plan)
    return _finish(plan, drive)


def _finish(plan: Planner, drive: Drive) -> StreetWorld:
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
    empty = static.take(np.arange(0))  # for a world in which nothing moves
    return StreetWorld(street=plan.street, static=static, moving=merge([empty, *moving]), things=things, drive=drive)


def _plots(plan: Planner, side: int, band: Strip) -> None:
    """Building plots behind the last strip: fence or hedge at the line, garden, building."""
    rng, edge = plan.rng, band.t0 if side > 0 else -band.t1
    setback = rng.uniform(2.5, 11.0)
    borders = dealt(rng, ("railing", "boards", "hedge", "railing", "boards", "none"))
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
                plan.place(plan.pick(plan.trees), centre + rng.uniform(-7, 7), t, rng.uniform(0, 6.3))
        for _ in range(rng.poisson(1.2 * plan.config.density)):
            t = side * rng.uniform(line + 0.8, max(front - 0.8, line + 1.0))
            where = centre + rng.uniform(-0.5, 0.5) * length
            plan.place(plan.pick(plan.bushes), where, t, rng.uniform(0, 6.3), shade=rng.uniform(0.7, 1.2))
        if front - line > 4.5:
            for _ in range(rng.poisson(0.7 * plan.config.density)):
                where, t = centre + rng.uniform(-0.5, 0.5) * length, side * rng.uniform(line + 1.5, front - 2.2)
                plan.place(plan.pick(plan.trees), where, t, rng.uniform(0, 6.3), scale=rng.uniform(0.75, 1.0))


def _border(plan: Planner, side: int, kind: str, line: float, start: float, length: float) -> None:
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


def _trees(plan: Planner, t: float, spacing: float) -> None:
    rng = plan.rng
    for s in plan.stations(spacing, 2.0):
        mesh = plan.pick(plan.trees)
        plan.place(mesh, s, t, rng.uniform(0, 6.3), scale=rng.uniform(0.8, 1.1), shade=rng.uniform(0.8, 1.15))


def _furniture(plan: Planner, side: int, band: Strip) -> None:
    """Lamps, signs, poles and bollards along the kerb."""
    rng, edge = plan.rng, band.t0 if side > 0 else -band.t1
    kinds = dealt(rng, ("sign", "sign", "pole", "lamp", "sign", "pole", "bollard"))
    for s in plan.stations(6.0, 0.3):
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


def _backdrop(plan: Planner) -> None:
    """Far buildings and trees that close the view across, and at both ends of the street."""
    rng, street = plan.rng, plan.street
    for side in (-1, 1):
        for s in along(rng, street.start_m + 10, street.end_m - 10, 22.0, 1.0):
            house = buildings.build_building(rng, rng.uniform(14, 20), 10.0)
            plan.place(house, s, side * rng.uniform(46, 55), 0.0 if side > 0 else np.pi)
    for t in np.arange(-30, 31, 10.0):  # across the far end of the street
        plan.place(plan.pick(plan.trees), street.end_m - 3, float(t), rng.uniform(0, 6.3), scale=1.6)
