"""Cars, trucks and buses: lofted side outlines with windows, wheels, lights and number plates.

Trucks and buses have nearly the same size and outline; what tells them apart is the row of windows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data.street.classes import Label
from data.street.layers import Layer
from data.street.mesh import Color, Mesh, MeshBuilder
from data.street.tiles import linear_hsv

_DARK: Color = (0.02, 0.02, 0.022)
_GREY: Color = (0.25, 0.25, 0.26)


class _Body(NamedTuple):
    """A car's upper outline, nine points from the front bumper over the roof to the rear, and its sizes.

    Points are in lengths and heights of the car. Below the belt line everything is bodywork.
    """

    x: tuple[float, ...]
    z: tuple[float, ...]
    belt: float
    lengths_m: tuple[float, float]
    heights_m: tuple[float, float]


_WINDOWS = (2, 5)
"""Segments of an outline that are windscreen and rear window."""

_BODIES = {
    "sedan": _Body(
        x=(0.5, 0.47, 0.24, 0.07, -0.06, -0.2, -0.37, -0.48, -0.5),
        z=(0.4, 0.52, 0.63, 0.96, 1.0, 0.96, 0.67, 0.63, 0.4),
        belt=0.63,
        lengths_m=(4.3, 4.9),
        heights_m=(1.40, 1.50),
    ),
    "hatch": _Body(
        x=(0.5, 0.46, 0.27, 0.1, -0.1, -0.36, -0.47, -0.5, -0.5),
        z=(0.38, 0.52, 0.61, 0.96, 1.0, 0.95, 0.62, 0.58, 0.38),
        belt=0.61,
        lengths_m=(3.7, 4.3),
        heights_m=(1.45, 1.55),
    ),
    "estate": _Body(
        x=(0.5, 0.47, 0.24, 0.08, -0.1, -0.4, -0.48, -0.5, -0.5),
        z=(0.4, 0.52, 0.62, 0.96, 1.0, 0.97, 0.64, 0.6, 0.4),
        belt=0.62,
        lengths_m=(4.4, 4.9),
        heights_m=(1.43, 1.52),
    ),
    "suv": _Body(
        x=(0.5, 0.48, 0.26, 0.13, -0.1, -0.42, -0.48, -0.5, -0.5),
        z=(0.42, 0.58, 0.64, 0.96, 1.0, 0.97, 0.64, 0.6, 0.4),
        belt=0.63,
        lengths_m=(4.3, 4.9),
        heights_m=(1.62, 1.85),
    ),
    "van": _Body(
        x=(0.5, 0.48, 0.38, 0.24, 0.0, -0.47, -0.5, -0.5, -0.5),
        z=(0.36, 0.46, 0.54, 0.95, 1.0, 0.99, 0.6, 0.56, 0.34),
        belt=0.56,
        lengths_m=(4.6, 5.4),
        heights_m=(1.85, 2.2),
    ),
}


def paint_color(rng: np.random.Generator) -> Color:
    """A car's colour: mostly white, grey and black, some bright (linear RGB)."""
    if rng.random() < 0.6:
        grey = float(rng.choice([0.02, 0.06, 0.2, 0.4, 0.75]) * rng.uniform(0.8, 1.2))
        return (grey, grey, grey * 1.03)
    hue = rng.choice([0.0, 0.02, 0.08, 0.14, 0.35, 0.55, 0.6, 0.62])
    return linear_hsv(hue, rng.uniform(0.5, 0.9), rng.uniform(0.3, 0.8))


def _wheel_pair(builder: MeshBuilder, x: float, half_width: float, radius: float) -> None:
    for side in (-1.0, 1.0):
        outer = side * (half_width + 0.012)
        arch = (x, outer - side * 0.006, radius)
        builder.disc(arch, (0, side, 0), radius * 1.16, tint=_DARK, sides=5, span=(0.0, np.pi))
        builder.disc((x, outer, radius), (0, side, 0), radius, Layer.WHEEL, sides=10)
        builder.tube((x, outer - side * 0.24, radius), (x, outer, radius), radius, tint=_DARK, sides=6)


def _half_width(
    x: Float[np.ndarray, " n"], z: Float[np.ndarray, " n"], width: float, belt: float
) -> Float[np.ndarray, " n"]:
    """Half the body's width at outline points, both coordinates in lengths and heights: rounded nose, leaning glass."""
    nose = 1 - 0.12 * np.clip((np.abs(x) - 0.38) / 0.12, 0, 1) ** 2
    lean = 1 - 0.24 * np.clip((z - belt) / (1 - belt), 0, 1)
    return np.asarray(width / 2 * nose * lean)


def _loft(builder: MeshBuilder, body: _Body, size: tuple[float, float, float], paint: Color, low: float) -> None:
    belt = body.belt
    length, width, height = size
    x, z = np.array(body.x), np.array(body.z)
    top = np.stack([x * length, _half_width(x, z, width, belt), z * height], axis=-1)
    z_belt = np.minimum(z, belt)
    sill = np.stack([x * length, _half_width(x, z_belt, width, belt), z_belt * height], axis=-1)
    floor = sill.copy()
    floor[:, 2] = low
    mirror = np.array([1, -1, 1])
    for i in range(len(x) - 1):
        glass = i in _WINDOWS
        roof = np.stack([top[i], top[i + 1], top[i + 1] * mirror, top[i] * mirror])[None]
        builder.quads(roof, Layer.GLASS if glass else Layer.PAINT, tint=(1, 1, 1) if glass else paint)
        for flip in (np.ones(3), mirror):
            panel = np.stack([floor[i], floor[i + 1], sill[i + 1], sill[i]]) * flip
            builder.quads(panel[None], Layer.PAINT, tint=paint)
            if max(z[i], z[i + 1]) > belt + 1e-6:
                rail = top[[i, i + 1]] * 0.88 + sill[[i, i + 1]] * 0.12
                builder.quads((np.stack([sill[i], sill[i + 1], rail[1], rail[0]]) * flip)[None], Layer.GLASS)
                rim = np.stack([rail[0], rail[1], top[i + 1], top[i]]) * flip
                builder.quads(rim[None], Layer.PAINT, tint=paint)
    for end in (0, -1):
        face = np.stack([floor[end], floor[end] * mirror, top[end] * mirror, top[end]])[None]
        builder.quads(face, Layer.PAINT, tint=paint)
    under = np.stack([floor[0], floor[-1], floor[-1] * mirror, floor[0] * mirror])[None]
    builder.quads(under, Layer.PLAIN, tint=_DARK)


def _pillars(builder: MeshBuilder, kind: str, size: tuple[float, float, float], paint: Color) -> None:
    """Pillars between the side windows, and a painted side panel at the back of vans."""
    belt = _BODIES[kind].belt
    length, width, height = size
    spans = [(0.12, -0.47)] if kind == "van" else [(0.0, -0.025), (-0.2, -0.23)]
    for x0, x1 in spans:
        for side in (-1, 1):
            y0, y1 = width / 2 + 0.006, width / 2 * 0.785 + 0.012
            low, high = (side * y0, belt * height), (side * y1, 0.95 * height)
            quad = [[x0 * length, *low], [x1 * length, *low], [x1 * length, *high], [x0 * length, *high]]
            builder.quads(np.array([quad]), Layer.PAINT, tint=paint)


def _lights(builder: MeshBuilder, length: float, width: float, z: float) -> None:
    """Head and tail lights, number plates and grille, just off both ends."""
    for end, tint in ((1.0, (0.9, 0.9, 0.85)), (-1.0, (0.55, 0.02, 0.02))):
        x = end * (length / 2 + 0.012)
        for side in (-1.0, 1.0):
            _plate(builder, x, side * (width / 2 - 0.26), (0.16, 0.075), z - 0.02, tint)
        _plate(builder, x + end * 0.004, 0.0, (0.26, 0.055), z - 0.2, (0.8, 0.8, 0.7))
        if end > 0:
            _plate(builder, x, 0.0, (0.4, 0.065), z - 0.03, _DARK)


def _plate(builder: MeshBuilder, x: float, y: float, half: tuple[float, float], z: float, tint: Color) -> None:
    """A rectangle across the vehicle, of given half width and half height."""
    dy, dz = half
    quad = [[x, y - dy, z - dz], [x, y + dy, z - dz], [x, y + dy, z + dz], [x, y - dy, z + dz]]
    builder.quads(np.array([quad]), Layer.PLAIN, tint=tint)


def build_car(rng: np.random.Generator) -> Mesh:
    """A car of a random kind, size and colour."""
    kind = str(rng.choice(list(_BODIES), p=[0.26, 0.28, 0.16, 0.2, 0.1]))
    body = _BODIES[kind]
    length, height = rng.uniform(*body.lengths_m), rng.uniform(*body.heights_m)
    size = (length, rng.uniform(1.72, 1.9), height)
    paint = paint_color(rng)
    builder = MeshBuilder(Label.CAR, reflectivity=rng.uniform(0.15, 0.7))
    low = 0.2 * rng.uniform(0.85, 1.2)
    _loft(builder, body, size, paint, low)
    _pillars(builder, kind, size, paint)
    _lights(builder, length, size[1] * 0.9, 0.36 * height + 0.08)
    radius = 0.225 * min(height, 1.7)
    for x in (0.31, -0.3):
        _wheel_pair(builder, x * length, size[1] / 2, radius)
    for side in (-1.0, 1.0):  # mirrors and a dark skirt
        y0, y1 = sorted((side * size[1] / 2 * 0.92, side * (size[1] / 2 + 0.14)))
        builder.box((0.17 * length, y0, 0.62 * height), (0.17 * length + 0.1, y1, 0.62 * height + 0.14), tint=paint)
        x, y = 0.22 * length, side * (size[1] / 2 + 0.006)
        skirt = [[-x, y, low - 0.02], [x, y, low - 0.02], [x, y, low + 0.07], [-x, y, low + 0.07]]
        builder.quads(np.array([skirt]), Layer.PLAIN, tint=_GREY)
    return builder.build()


def _front_window(builder: MeshBuilder, x: float, half: float, z0: float, z1: float) -> None:
    side = np.array([[x, -half, z0], [x, half, z0], [x, half, z1], [x, -half, z1]])
    builder.quads(side[None], Layer.GLASS)


def _side_windows(builder: MeshBuilder, x: tuple[float, float], half_width: float, z: tuple[float, float]) -> None:
    for side in (-1, 1):
        y = side * (half_width + 0.012)
        quad = [[x[0], y, z[0]], [x[1], y, z[0]], [x[1], y, z[1]], [x[0], y, z[1]]]
        builder.quads(np.array([quad]), Layer.GLASS)


def build_truck(rng: np.random.Generator) -> Mesh:
    """A box truck: painted cab with windscreen, windowless box nearly as high, wheels, chassis."""
    length, width, height = rng.uniform(7.0, 10.5), rng.uniform(2.35, 2.5), rng.uniform(2.95, 3.5)
    cab_length, cab_height = rng.uniform(1.7, 2.1), height * rng.uniform(0.86, 1.0)
    low = rng.uniform(0.4, 0.55)
    builder = MeshBuilder(Label.TRUCK, reflectivity=rng.uniform(0.2, 0.7))
    cab = paint_color(rng)
    grey = float(rng.uniform(0.45, 0.9))
    box_tint: Color = (grey, grey, grey) if rng.random() < 0.6 else paint_color(rng)
    front, half = length / 2, width / 2
    builder.box((front - cab_length, -half, low), (front, half, cab_height), Layer.PAINT, tint=cab)
    builder.box((-front, -half, low + 0.25), (front - cab_length - 0.12, half, height), Layer.CARGO, tint=box_tint)
    builder.box((-front + 0.1, -half * 0.8, low - 0.05), (front - 0.1, half * 0.8, low + 0.3), tint=_DARK)
    z0, z1 = cab_height * 0.55, cab_height * 0.88
    _front_window(builder, front + 0.012, half * 0.9, z0, z1)
    _side_windows(builder, (front - 0.35, front - 1.2), half, (z0 + 0.05, z1 - 0.05))
    _lights(builder, length, width, low + 0.42)
    builder.box((front - 0.05, -half * 0.6, low + 0.6), (front + 0.012, half * 0.6, low + 0.85), tint=_DARK)
    radius = rng.uniform(0.44, 0.52)
    for x in (front - cab_length * 0.6, -front + 1.6, -front + 2.7)[: 3 if length > 8.5 else 2]:
        _wheel_pair(builder, x, half, radius)
    return builder.build()


def build_bus(rng: np.random.Generator) -> Mesh:
    """A city bus: window bays along both sides, large windscreen, destination board."""
    bays = int(rng.integers(5, 8))
    length, width, height = bays * rng.uniform(1.4, 1.6), rng.uniform(2.38, 2.52), rng.uniform(2.9, 3.3)
    low = rng.uniform(0.28, 0.38)
    builder = MeshBuilder(Label.BUS, reflectivity=rng.uniform(0.2, 0.7))
    hue = rng.choice([0.0, 0.02, 0.07, 0.13, 0.15, 0.3, 0.4, 0.5, 0.57, 0.6, 0.64])
    tint = linear_hsv(hue, rng.uniform(0.1, 0.85), rng.uniform(0.45, 0.92))
    front, half = length / 2, width / 2
    builder.box((-front, -half, low), (front, half, height), Layer.PAINT, tint=tint)
    for side in (-1, 1):
        y = side * (half + 0.012)
        quad = np.array([[[-front, y, low], [front, y, low], [front, y, height], [-front, y, height]]])
        uv = np.array([[[0.0, 0.0], [bays, 0], [bays, 1], [0, 1]]])
        builder.quads(quad, Layer.BUS_SIDE, tint=tint, uvs=uv)
    _front_window(builder, front + 0.012, half * 0.93, height * 0.4, height * 0.86)
    _front_window(builder, -front - 0.012, half * 0.85, height * 0.5, height * 0.84)
    board = (front + 0.004, -half * 0.6, height * 0.88), (front + 0.016, half * 0.6, height * 0.97)
    builder.box(*board, tint=(0.5, 0.25, 0.01))
    _lights(builder, length, width, low + 0.4)
    builder.box((-front + 0.6, -half * 0.7, height), (-0.1 * length, half * 0.7, height + 0.18), tint=_GREY)
    for x in (front - 1.9, -front + 2.0):
        _wheel_pair(builder, x, half + 0.02, 0.47)
    return builder.build()
