"""Trees, bushes and hedges. Crowns are clouds of leaf cards around a dark core: rough to the LiDAR, leafy in images."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from data.street.classes import Label
from data.street.layers import Layer
from data.street.mesh import Color, Mesh, MeshBuilder, Point
from data.street.tiles import linear_hsv


def leaf_color(rng: np.random.Generator) -> Color:
    """Green, sometimes yellowish or red-brown (linear RGB)."""
    hue = rng.uniform(0.2, 0.36) if rng.random() < 0.85 else rng.uniform(0.03, 0.14)
    r, g, b = linear_hsv(hue, rng.uniform(0.4, 0.75), rng.uniform(0.5, 0.8))
    return (r * 1.5, g * 1.5, b * 1.5)


def _cards(
    builder: MeshBuilder, rng: np.random.Generator, points: Float[np.ndarray, "n 3"], size_m: float, tint: Color
) -> None:
    """Randomly turned cards at the given points, each of its own shade."""
    n = len(points)
    axes = rng.normal(size=(2, n, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    half = axes * (0.5 * size_m * rng.uniform(0.6, 1.3, (2, n, 1)))
    # Triangles: half as many as squares, and at this size as leafy.
    signs = np.array([[-1.1, -0.9], [1.1, -0.9], [0.0, 1.3]])
    corners = points[:, None] + np.einsum("ka,anj->nkj", signs, half)
    shades = rng.uniform(0.55, 1.3, (n, 1)) * np.array(tint)
    uvs = rng.uniform(0, 1, (n, 1, 2)) + np.array([[0, 0], [1, 0], [0.5, 1]]) * 0.3
    builder.triangles(corners, Layer.LEAVES, tint=shades, uvs=uvs)


def _clump(builder: MeshBuilder, rng: np.random.Generator, center: Point, radii: Point, tint: Color) -> None:
    """One ball of foliage."""
    c, r = np.array(center), np.array(radii)
    dark: Color = (tint[0] * 0.5, tint[1] * 0.5, tint[2] * 0.5)
    rx, ry, rz = (0.72 * r).tolist()
    builder.ball(center, (rx, ry, rz), Layer.LEAVES, tint=dark, sides=6)
    n = int(np.clip(30 * np.prod(r) ** (2 / 3), 14, 130))
    direction = rng.normal(size=(n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    shell = c + r * direction * rng.uniform(0.68, 1.02, (n, 1))
    _cards(builder, rng, shell, 0.5 * float(np.prod(r)) ** (1 / 3) + 0.12, tint)


def build_tree(rng: np.random.Generator) -> Mesh:
    """A tree: trunk with two boughs, crown of a few clumps, round or conical."""
    builder = MeshBuilder(Label.VEGETATION, reflectivity=rng.uniform(0.2, 0.6))
    clear, radius = rng.uniform(1.9, 2.9), float(rng.uniform(0.12, 0.26))
    tint = leaf_color(rng)
    top = clear + rng.uniform(0.6, 1.2)
    builder.tube((0, 0, 0), (0.04, 0.03, 0.35), (radius * 1.35, radius), Layer.BARK, sides=7, label=Label.TRUNK)
    builder.tube((0.04, 0.03, 0.35), (0, 0, top), (radius, radius * 0.75), Layer.BARK, sides=7, label=Label.TRUNK)
    if rng.random() < 0.25:
        for level in range(4):
            width = 1.5 - 0.33 * level
            _clump(builder, rng, (0, 0, clear + 0.2 + 1.05 * level), (width, width, 0.9), tint)
        return builder.build()
    spread = rng.uniform(0.7, 1.3)
    for _ in range(int(rng.integers(3, 6))):
        x, y = rng.normal(0, 0.55 * spread, 2).tolist()
        size = rng.uniform(0.9, 1.5) * spread**0.5
        centre = (x, y, clear + 0.75 * size + rng.uniform(0.0, 1.6))
        builder.tube((0, 0, clear * 0.9), centre, (radius * 0.5, 0.04), Layer.BARK, sides=4, label=Label.TRUNK)
        _clump(builder, rng, centre, (size, size, size * rng.uniform(0.75, 1.0)), tint)
    return builder.build()


def build_bush(rng: np.random.Generator) -> Mesh:
    """One to three low clumps."""
    builder = MeshBuilder(Label.VEGETATION, reflectivity=rng.uniform(0.2, 0.6))
    tint = leaf_color(rng)
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.normal(0, 0.4, 2).tolist()
        size = rng.uniform(0.4, 0.8)
        _clump(builder, rng, (x, y, size * 0.7), (size, size, size * 0.8), tint)
    return builder.build()


def build_hedge(rng: np.random.Generator, length_m: float, height_m: float) -> Mesh:
    """A clipped hedge along x from 0 to `length_m`, of the size of a board fence."""
    builder = MeshBuilder(Label.VEGETATION, reflectivity=rng.uniform(0.2, 0.6))
    tint, half = leaf_color(rng), rng.uniform(0.15, 0.35)
    builder.box((0, -half, 0), (length_m, half, height_m), Layer.LEAVES, tile_m=1.0, tint=tint)
    n = int(10 * length_m)
    side = rng.choice([-1.0, 1.0], n)
    high = rng.random(n) < 0.3
    y = np.where(high, rng.uniform(-half, half, n), side * half)
    z = np.where(high, height_m, rng.uniform(0.1, height_m, n))
    _cards(builder, rng, np.stack([rng.uniform(0, length_m, n), y, z], axis=-1), 0.22, tint)
    return builder.build()
