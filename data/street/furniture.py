"""Poles, signs and fences.

Signs and the plain boxes and boards that hang on poles have the same shapes and sizes: only their looks differ. Posts
count as pole, also those of signs.
"""

from __future__ import annotations

import numpy as np

from data.street.classes import Label
from data.street.layers import Layer
from data.street.mesh import Color, Mesh, MeshBuilder
from data.street.tiles import linear_hsv

_PLATES = (
    *((Layer.SIGN_LIMIT, 16), (Layer.SIGN_WARNING, 3), (Layer.SIGN_STOP, 8), (Layer.SIGN_PARKING, 4)),
    (Layer.SIGN_PRIORITY, 4),
)
"""Faces of signs and how many corners each plate has."""


def _metal(rng: np.random.Generator) -> Color:
    grey = float(rng.uniform(0.06, 0.35))
    return (grey, grey, grey * float(rng.uniform(0.95, 1.15)))


def _dull(rng: np.random.Generator) -> Color:
    """Grey, brown or dark green, as cabinets and bins are painted."""
    return linear_hsv(rng.choice([0.08, 0.1, 0.33, 0.6]), rng.uniform(0.0, 0.3), rng.uniform(0.3, 0.65))


def build_lamp(rng: np.random.Generator) -> Mesh:
    """A street lamp with an arm towards +x."""
    builder = MeshBuilder(Label.POLE, reflectivity=rng.uniform(0.2, 0.6))
    height, arm, tint = rng.uniform(4.5, 7.5), rng.uniform(0.6, 1.8), _metal(rng)
    builder.tube((0, 0, 0), (0, 0, 0.9), (0.11, 0.1), Layer.METAL, tint=tint, sides=8)
    builder.tube((0, 0, 0.9), (0, 0, height), (0.085, 0.06), Layer.METAL, tint=tint, sides=8)
    builder.tube((0, 0, height - 0.05), (arm, 0, height + 0.15), 0.045, Layer.METAL, tint=tint, sides=5)
    builder.box((arm - 0.1, -0.12, height + 0.08), (arm + 0.5, 0.12, height + 0.2), Layer.METAL, tint=tint)
    return builder.build()


def _post(builder: MeshBuilder, rng: np.random.Generator, height: float, y: float = 0.0) -> None:
    radius = float(rng.uniform(0.035, 0.06))
    builder.tube((0, y, 0), (0, y, height), radius, Layer.METAL, tint=_metal(rng), label=Label.POLE)


def build_sign(rng: np.random.Generator) -> Mesh:
    """A traffic sign facing +x: one or two plates on a post, or a low board on two posts."""
    builder = MeshBuilder(Label.SIGN, reflectivity=rng.uniform(0.3, 0.8))
    if rng.random() < 0.3:
        return _board(builder, rng, Layer.SIGN_DIRECTION, (1.0, 1.0, 1.0), Label.SIGN)
    z = rng.uniform(1.6, 2.6)
    for _ in range(1 + int(rng.random() < 0.45)):
        layer, sides = _PLATES[int(rng.integers(len(_PLATES)))]
        radius = rng.uniform(0.36, 0.52)
        turn = {3: np.pi / 2, 4: np.pi / 4}.get(sides, np.pi / 8)
        for x, face, tint in ((0.07, layer, (1.0, 1.0, 1.0)), (0.055, Layer.METAL, (0.3, 0.3, 0.3))):
            builder.disc((x, 0, z), (1, 0, 0), radius, face, sides=sides, tint=tint, span=(turn, turn + 2 * np.pi))
        z += 2 * radius
    _post(builder, rng, z - 0.3)
    return builder.build()


def _board(builder: MeshBuilder, rng: np.random.Generator, layer: Layer, tint: Color, label: Label) -> Mesh:
    width, low, high = rng.uniform(0.9, 1.7), rng.uniform(0.6, 1.3), rng.uniform(1.9, 2.5)
    for y in (-0.4 * width, 0.4 * width):
        _post(builder, rng, high, y)
    face = [[0.08, -width / 2, low], [0.08, width / 2, low], [0.08, width / 2, high], [0.08, -width / 2, high]]
    builder.quads(np.array([face]), layer, tint=tint, label=label)
    back = np.array([face]) - [0.015, 0, 0]
    builder.quads(back, Layer.METAL, tint=(0.3, 0.3, 0.3), label=label)
    return builder.build()


def build_pole(rng: np.random.Generator) -> Mesh:
    """A plain pole with the things that hang on poles: box, bin, bare back plate or board, of a sign's shape."""
    builder = MeshBuilder(Label.POLE, reflectivity=rng.uniform(0.3, 0.8))
    kind, tint = rng.random(), _dull(rng)
    if kind < 0.25:
        return _board(builder, rng, Layer.METAL, tint, Label.POLE)
    z = rng.uniform(1.0, 2.6)
    half = rng.uniform(0.2, 0.42)
    if kind < 0.5:
        sides = int(rng.choice([4, 8, 16]))
        span = (np.pi / 4, np.pi * 2.25)
        builder.disc((0.06, 0, z), (1, 0, 0), half * 1.2, Layer.METAL, sides=sides, tint=tint, span=span)
    elif kind < 0.85:
        builder.box((0.04, -half, z - half), (0.12, half, z + half), Layer.METAL, tint=tint)
    _post(builder, rng, max(z + half + 0.1, rng.uniform(2.2, 4.0)))
    return builder.build()


def build_bollard(rng: np.random.Generator) -> Mesh:
    """A knee- to hip-high post."""
    builder = MeshBuilder(Label.POLE, reflectivity=rng.uniform(0.2, 0.7))
    height, radius, tint = rng.uniform(0.8, 1.1), float(rng.uniform(0.07, 0.12)), _metal(rng)
    builder.tube((0, 0, 0), (0, 0, height), radius, Layer.METAL, tint=tint, sides=8)
    builder.disc((0, 0, height), (0, 0, 1), radius, Layer.METAL, sides=8, tint=tint)
    return builder.build()


def build_railing(rng: np.random.Generator, length_m: float) -> Mesh:
    """A metal railing along x from 0 to `length_m` with upright bars that let part of the beams through."""
    builder = MeshBuilder(Label.FENCE, reflectivity=rng.uniform(0.2, 0.6))
    height, tint, spacing = rng.uniform(1.0, 1.7), _metal(rng), rng.uniform(0.13, 0.2)
    x = np.arange(0.05, length_m, spacing)
    half = rng.uniform(0.018, 0.03)
    low, high = 0.08, height
    for dx, dy in ((half, 0.0), (0.0, half)):  # crossed slats, seen from every side
        bars = np.array([[-dx, -dy, low], [dx, dy, low], [dx, dy, high], [-dx, -dy, high]])
        builder.quads(bars + np.stack([x, 0 * x, 0 * x], axis=-1)[:, None], Layer.METAL, tint=tint)
    for z in (0.12, height - 0.08):
        builder.box((0, -0.02, z), (length_m, 0.02, z + 0.05), Layer.METAL, tint=tint)
    for post in np.arange(0, length_m + 0.1, 2.4):
        builder.box((post - 0.04, -0.04, 0), (post + 0.04, 0.04, height + 0.06), Layer.METAL, tint=tint)
    return builder.build()


def build_board_fence(rng: np.random.Generator, length_m: float, height_m: float) -> Mesh:
    """A closed fence of boards along x, of the size of a hedge."""
    builder = MeshBuilder(Label.FENCE, reflectivity=rng.uniform(0.2, 0.6))
    half = rng.uniform(0.03, 0.15)
    builder.box((0, -half, 0.03), (length_m, half, height_m), Layer.BOARDS, tile_m=1.8)
    tint: Color = (0.5, 0.5, 0.5)
    for post in np.arange(0, length_m + 0.1, 2.2):
        low, high = (post - 0.06, -half - 0.03, 0.0), (post + 0.06, half + 0.03, height_m + 0.1)
        builder.box(low, high, Layer.BOARDS, tile_m=1.8, tint=tint)
    return builder.build()
