"""Pedestrians and cyclists, mid-stride, in random clothes."""

from __future__ import annotations

import numpy as np

from data.street.classes import Label
from data.street.layers import Layer
from data.street.mesh import Color, Mesh, MeshBuilder, Point
from data.street.tiles import linear_hsv


def _cloth(rng: np.random.Generator) -> Color:
    return linear_hsv(rng.uniform(0, 1), rng.uniform(0.1, 0.85), rng.uniform(0.15, 0.9))


def _skin(rng: np.random.Generator) -> Color:
    return linear_hsv(rng.uniform(0.04, 0.09), rng.uniform(0.3, 0.6), rng.uniform(0.35, 0.9))


_BLACK: Color = (0.02, 0.02, 0.02)
_BROWN: Color = (0.04, 0.025, 0.015)


def _limb(builder: MeshBuilder, joints: tuple[Point, ...], radii: tuple[float, ...], tint: Color) -> None:
    for i in range(len(joints) - 1):
        builder.tube(joints[i], joints[i + 1], (radii[i], radii[i + 1]), Layer.CLOTH, tint=tint, sides=4)


def _head(builder: MeshBuilder, center: Point, rng: np.random.Generator, skin: Color, hair: Color) -> None:
    x, y, z = center
    builder.ball(center, (0.1, 0.085, 0.13), tint=skin, sides=6)
    if rng.random() < 0.8:
        builder.ball((x - 0.025, y, z + 0.035), (0.1, 0.095, 0.115), tint=hair, sides=6)


def build_pedestrian(rng: np.random.Generator) -> Mesh:
    """An adult or a child walking."""
    builder = MeshBuilder(Label.PEDESTRIAN, reflectivity=rng.uniform(0.2, 0.6))
    coat, trousers, skin = _cloth(rng), _cloth(rng), _skin(rng)
    stride, arm = rng.uniform(0.08, 0.28), rng.uniform(0.05, 0.22)
    for side in (-1.0, 1.0):
        step = side * stride
        hip, knee, foot = (0.0, side * 0.09, 0.88), (step * 0.75, side * 0.1, 0.48), (step, side * 0.1, 0.06)
        _limb(builder, (hip, knee, foot), (0.095, 0.07, 0.055), trousers)
        shoe = (step - 0.08, side * 0.1 - 0.045, 0.0), (step + 0.17, side * 0.1 + 0.045, 0.09)
        builder.box(*shoe, tint=(0.03, 0.02, 0.02))
        shoulder, hand = (0.0, side * 0.21, 1.42), (-side * arm, side * 0.25, 0.9)
        _limb(builder, (shoulder, (-side * arm * 0.5, side * 0.26, 1.14), hand), (0.06, 0.05, 0.045), coat)
    builder.tube((0, 0, 0.8), (0.02, 0, 1.2), (0.155, 0.17), Layer.CLOTH, tint=coat, sides=6)
    builder.tube((0.02, 0, 1.2), (0.02, 0, 1.46), (0.17, 0.2), Layer.CLOTH, tint=coat, sides=6)
    builder.tube((0.02, 0, 1.46), (0.02, 0, 1.55), (0.2, 0.05), Layer.CLOTH, tint=coat, sides=6)
    _head(builder, (0.04, 0, 1.65), rng, skin, _cloth(rng) if rng.random() < 0.3 else _BROWN)
    if rng.random() < 0.35:  # a bag on the back or in the hand
        builder.box((-0.3, -0.14, 1.05), (-0.15, 0.14, 1.45), Layer.CLOTH, tint=_cloth(rng))
    return builder.build().placed((0.0, 0.0, 0.0), scale=rng.uniform(0.92, 1.06) if rng.random() < 0.85 else 0.7)


def _ring(builder: MeshBuilder, x: float, radius: float) -> None:
    """A bicycle wheel: a rim, a tread, and two spokes wide enough to see."""
    angle = np.linspace(0, 2 * np.pi, 13)
    circle = np.stack([np.cos(angle), np.zeros(13), np.sin(angle)], axis=-1)
    centre = np.array([x, 0.0, radius])
    outer, inner = centre + radius * circle, centre + 0.86 * radius * circle
    rim = np.stack([outer[:-1], outer[1:], inner[1:], inner[:-1]], axis=1)
    builder.quads(rim, Layer.PLAIN, tint=_BLACK)
    builder.tube((x, -0.02, radius), (x, 0.02, radius), radius, tint=_BLACK, sides=8)
    for turn in (0.4, 2.0):
        dx, dz = radius * np.cos(turn), radius * np.sin(turn)
        builder.tube((x - dx, 0, radius - dz), (x + dx, 0, radius + dz), 0.008, tint=(0.5, 0.5, 0.5), sides=3)


def build_cyclist(rng: np.random.Generator) -> Mesh:
    """A rider on a bicycle, one object of one class."""
    builder = MeshBuilder(Label.CYCLIST, reflectivity=rng.uniform(0.2, 0.6))
    frame, coat, trousers, skin = _cloth(rng), _cloth(rng), _cloth(rng), _skin(rng)
    for x in (-0.53, 0.53):
        _ring(builder, x, 0.34)
    pedal, seat, head_tube, bar = (0.0, 0.0, 0.3), (-0.2, 0.0, 0.88), (0.38, 0.0, 0.85), (0.42, 0.0, 1.02)
    tubes = ((pedal, seat), (pedal, head_tube), (seat, head_tube), (seat, (-0.53, 0, 0.34)), (bar, (0.53, 0, 0.34)))
    for a, b in tubes:
        builder.tube(a, b, 0.024, tint=frame, sides=3)
    builder.tube((0.4, -0.27, 1.02), (0.4, 0.27, 1.02), 0.018, tint=_BLACK, sides=3)
    builder.box((-0.32, -0.07, 0.88), (-0.06, 0.07, 0.94), tint=_BLACK)
    for side in (-1.0, 1.0):
        knee, foot = (0.2, side * 0.11, 0.72 + side * 0.1), (0.05 + side * 0.1, side * 0.1, 0.3 + side * 0.14)
        _limb(builder, ((-0.16, side * 0.09, 0.97), knee, foot), (0.1, 0.075, 0.055), trousers)
        arm = ((0.12, side * 0.2, 1.42), (0.3, side * 0.26, 1.2), (0.4, side * 0.24, 1.05))
        _limb(builder, arm, (0.06, 0.05, 0.04), coat)
    lean = (-0.18, 0.0, 0.95), (0.1, 0.0, 1.48)
    builder.tube(*lean, (0.16, 0.2), Layer.CLOTH, tint=coat, sides=6)
    builder.tube(lean[1], (0.15, 0.0, 1.56), (0.2, 0.05), Layer.CLOTH, tint=coat, sides=6)
    helmet = _cloth(rng) if rng.random() < 0.7 else _BROWN
    _head(builder, (0.2, 0.0, 1.66), rng, skin, helmet)
    return builder.build()
