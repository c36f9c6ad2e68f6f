"""Buildings: a box with a shop or dwelling front, storeys of windows, bays, and a flat or pitched roof."""

from __future__ import annotations

import itertools

import numpy as np

from data.street.classes import Label
from data.street.layers import Layer
from data.street.mesh import Color, Mesh, MeshBuilder, Point

_FACADES = (Layer.FACADE_0, Layer.FACADE_1, Layer.FACADE_2, Layer.FACADE_3)
_SHOPS = (Layer.SHOP_0, Layer.SHOP_1)
_STOREY_M = 3.0


def _walls(builder: MeshBuilder, low: Point, high: Point, layer: Layer, rise: float) -> None:
    """Four walls; a tile is two storeys (`rise` metres) high and whole tiles fit into each wall."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    ring = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])
    for a, b in itertools.pairwise(ring):
        tiles = max(1, round(float(np.linalg.norm(b - a)) / 6.0))  # of about 6 m
        quad = np.array([[[*a, z0], [*b, z0], [*b, z1], [*a, z1]]])
        uv = np.array([[[0, 0], [tiles, 0], [tiles, (z1 - z0) / rise], [0, (z1 - z0) / rise]]])
        builder.quads(quad, layer, uvs=uv, tint=_shade(builder))


def _shade(builder: MeshBuilder) -> Color:
    value = 0.75 + 0.5 * builder.reflectivity
    return (value, value, value)


def _pitched_roof(builder: MeshBuilder, length: float, depth: float, base: float, rise: float) -> None:
    over = 0.35
    x0, x1, y0, y1 = -length / 2 - over, length / 2 + over, -over, depth + over
    eave, ridge, mid = base - 0.1, base + rise, depth / 2
    slopes = [
        [[x0, y0, eave], [x1, y0, eave], [x1, mid, ridge], [x0, mid, ridge]],
        [[x1, y1, eave], [x0, y1, eave], [x0, mid, ridge], [x1, mid, ridge]],
    ]
    spans = np.array([length / 4, depth / 8])
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * spans
    builder.quads(np.array(slopes), Layer.ROOF, uvs=np.stack([uv, uv]))
    for x in (-length / 2, length / 2):
        gable = np.array([[[x, 0, base], [x, depth, base], [x, mid, ridge - 0.05]]])
        builder.triangles(gable, Layer.WALL, tint=_shade(builder))


def build_building(rng: np.random.Generator, length_m: float, depth_m: float) -> Mesh:
    """A building whose front lies on y = 0, facing -y, centred on x."""
    builder = MeshBuilder(Label.BUILDING, reflectivity=rng.uniform(0.2, 0.6))
    storeys = int(rng.choice([1, 2, 3, 4, 5], p=[0.15, 0.3, 0.25, 0.2, 0.1]))
    facade = _FACADES[int(rng.integers(len(_FACADES)))]
    half = length_m / 2
    ground = 3.3 if rng.random() < 0.45 else 0.0
    top = ground + storeys * _STOREY_M
    if ground:
        shop = _SHOPS[int(rng.integers(len(_SHOPS)))]
        _walls(builder, (-half, 0, 0), (half, depth_m, ground), shop, ground)
    _walls(builder, (-half, 0, ground), (half, depth_m, top), facade, 2 * _STOREY_M)
    if rng.random() < 0.5:
        _pitched_roof(builder, length_m, depth_m, top, rng.uniform(1.8, 4.0))
    else:
        lid = np.array([[[-half, 0, top], [half, 0, top], [half, depth_m, top], [-half, depth_m, top]]])
        builder.quads(lid, Layer.PLAIN, tint=(0.2, 0.2, 0.2))
        builder.box((-half - 0.15, -0.15, top - 0.2), (half + 0.15, 0.1, top + 0.35), Layer.WALL, tile_m=3.0)
    if storeys >= 2 and rng.random() < 0.4:  # balconies
        for level in range(1, storeys):
            z = ground + level * _STOREY_M
            for x in np.arange(-half + 2, half - 1.5, 6.0):
                builder.box((x - 1.2, -0.9, z - 0.1), (x + 1.2, 0.0, z + 0.85), Layer.WALL, tile_m=3.0)
    if rng.random() < 0.3:  # an entrance porch or a bay
        x = rng.uniform(-half + 1.5, half - 1.5)
        builder.box((x - 1.3, -0.8, 0.0), (x + 1.3, 0.0, rng.uniform(2.6, 3.4)), Layer.WALL, tile_m=3.0)
    return builder.build()
