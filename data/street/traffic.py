"""Parked vehicles, pedestrians, cyclists, vehicles in the lanes."""

from __future__ import annotations

import numpy as np

from data.street.classes import Label
from data.street.motion import Drive
from data.street.planner import Planner, along, dealt
from data.street.road import Strip
from data.street.things import Thing


def park(plan: Planner, side: int, band: Strip) -> None:
    """Vehicles in the stalls; long ones take two stalls."""
    rng, stall = plan.rng, band.tile_m[0]
    across = stall < 4
    deck = (Label.CAR,) * 6 if across else (Label.CAR,) * 8 + (Label.TRUCK, Label.BUS)
    kinds = dealt(rng, deck)
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


def walk(plan: Planner, side: int, sidewalk: Strip) -> None:
    """Pedestrians on the sidewalk, alone or in pairs; some stand."""
    rng, low, high = plan.rng, sidewalk.t0 + 0.7, sidewalk.t1 - 0.4
    if side < 0:
        low, high = sidewalk.t0 + 0.4, sidewalk.t1 - 0.7
    for s in along(rng, plan.street.start_m, plan.street.end_m, 7.0, plan.config.density):
        direction = rng.choice([-1.0, 1.0])
        speed = 0.0 if rng.random() < 0.2 and not plan.street.blocked(s) else rng.uniform(0.8, 1.8) * direction
        for i in range(1 + int(rng.random() < 0.3)):
            yaw = (0.0 if direction > 0 else np.pi) + (rng.uniform(-1.5, 1.5) if speed == 0 else 0.0)
            mesh = plan.object_mesh(Label.PEDESTRIAN)
            t = rng.uniform(low, high)
            place = {"s": s + 0.9 * i, "t": t, "z": sidewalk.z}
            plan.things.append(Thing(label=Label.PEDESTRIAN, mesh=mesh, speed=speed, yaw=yaw, **place))


def ride(plan: Planner, side: int, sidewalk: Strip) -> None:
    """Cyclists along the road's edge where there is room beside the lane, else on the sidewalk."""
    rng, street = plan.rng, plan.street
    lane_t = max(abs(t) for t, _ in street.lanes)
    beside = street.half_road_m - lane_t - 1.3 > 0.9
    t = side * (street.half_road_m - 0.45) if beside else (sidewalk.t0 + sidewalk.t1) / 2
    z = 0.0 if beside else sidewalk.z
    direction = -side  # traffic keeps right
    speed = rng.uniform(2.5, 5.5) * direction
    travel = speed * plan.config.duration_s  # some start beyond the street and enter it during the log
    start, end = street.start_m - max(travel, 0), street.end_m - min(travel, 0)
    for s in along(rng, start, end, 13.0, plan.config.density):
        yaw = 0.0 if direction > 0 else np.pi
        mesh = plan.object_mesh(Label.CYCLIST)
        offset = rng.uniform(-0.15, 0.15)
        plan.things.append(Thing(label=Label.CYCLIST, mesh=mesh, s=s, t=t + offset, z=z, speed=speed, yaw=yaw))


def drive_lanes(plan: Planner, drive: Drive) -> None:
    """Vehicles in the lanes; all of a lane have one speed, so none runs into another."""
    rng, street = plan.rng, plan.street
    kinds = dealt(rng, (Label.CAR,) * 3 + (Label.TRUCK, Label.BUS))
    for i, (t, direction) in enumerate(street.lanes):
        speed = drive.speed_mps * (1.0 if i == 0 else rng.uniform(0.7, 1.3)) * direction
        travel = speed * plan.config.duration_s
        start, end = street.start_m - max(travel, 0), street.end_m - min(travel, 0)
        # The ego drives in the first lane and needs room before and behind it.
        clear = drive.s + 16 if i == 0 else start
        behind = drive.s - 16 if i == 0 else start
        for s in along(rng, start, end, 24.0 if direction > 0 else 30.0, plan.config.density):
            if i == 0 and behind < s < clear:
                continue
            kind = next(kinds)
            yaw = 0.0 if direction > 0 else np.pi
            mesh = plan.object_mesh(kind)
            offset = rng.uniform(-0.2, 0.2)
            plan.things.append(Thing(label=kind, mesh=mesh, s=s, t=t + offset, z=0.0, speed=speed, yaw=yaw))
