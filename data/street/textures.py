"""Procedural texture tiles, painted for each world: the kind of a material stays, its hues and pattern vary.

A tile is 256 x 256, tiles seamlessly, and has four channels: sRGB colour and relative LiDAR reflectivity (128 = 1).
In a tile, columns are u (along the road or wall) and rows are v (across the road; up the wall).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8

from data.street import signs
from data.street.layers import Layer
from data.street.tiles import TILE, Gray, Image, Rgb, Tile, flat, grain, hsv, noise, slabs, tile


def _asphalt(rng: np.random.Generator) -> Tile:
    base = rng.uniform(0.24, 0.43)
    hue = rng.uniform(0.55, 0.75) if rng.random() < 0.6 else 0.09
    rgb = grain(rng, hsv(hue, rng.uniform(0, 0.1), base), 0.09, 0.05)
    lines = np.zeros((TILE, TILE), np.uint8)
    for _ in range(rng.integers(0, 4)):  # sealed cracks
        walk = np.cumsum(rng.normal(0, 9, (14, 2)) + rng.normal(0, 9, 2), axis=0) + TILE / 2
        cv2.polylines(lines, [walk.astype(np.int32)], False, 255, int(rng.integers(1, 3)))
    if rng.random() < 0.5:  # a patch of newer asphalt
        x, y = rng.integers(0, 150, 2)
        rgb[y : y + rng.integers(40, 100), x : x + rng.integers(40, 100)] *= rng.uniform(0.78, 0.9)
    rgb[lines > 0] *= 0.62
    return tile(rgb, 1 + 0.12 * noise(rng, 128))


def _marking(rng: np.random.Generator, road: Tile, paint: Gray) -> Tile:
    """White paint, a little worn, over the road's own texture."""
    tone = np.array(hsv(0.12, rng.uniform(0, 0.06), rng.uniform(0.82, 0.95)))
    cover = paint * np.clip(0.9 + 0.18 * noise(rng, 64), 0, 1)
    rgb = road[..., :3] / 255 * (1 - cover[..., None]) + tone * cover[..., None]
    return tile(rgb, road[..., 3] / 128 * (1 + 0.7 * cover))


def _parking(rng: np.random.Generator) -> Tile:
    kind = rng.random()
    if kind < 0.5:  # reddish or ochre setts
        color = hsv(rng.uniform(0.99, 1.1), rng.uniform(0.25, 0.45), rng.uniform(0.38, 0.55))
    elif kind < 0.8:  # grass pavers: grey-green grid
        color = hsv(rng.uniform(0.17, 0.3), rng.uniform(0.15, 0.3), rng.uniform(0.36, 0.5))
    else:  # dark bluish concrete
        color = hsv(rng.uniform(0.55, 0.65), rng.uniform(0.12, 0.25), rng.uniform(0.35, 0.5))
    shade, joint = slabs(rng, int(rng.integers(16, 26)), int(rng.integers(10, 18)), bond=True, joint=2)
    rgb = grain(rng, color, 0.07, 0.05) * (1 + 0.12 * shade - 0.4 * joint)[..., None]
    line = np.zeros((TILE, TILE))
    line[:, :6] = line[:, -1:] = 1  # stall line across the parking strip
    return _marking(rng, tile(rgb, 1 + 0.1 * noise(rng, 128)), line)


def _sidewalk(rng: np.random.Generator) -> Tile:
    warm = rng.random() < 0.6
    color = hsv(rng.uniform(0.07, 0.13) if warm else 0.6, rng.uniform(0.02, 0.16), rng.uniform(0.56, 0.76))
    n = int(rng.integers(3, 6))
    shade, joint = slabs(rng, n, n if rng.random() < 0.6 else 2 * n, bond=bool(rng.random() < 0.5), joint=3)
    rgb = grain(rng, color, 0.05, 0.04) * (1 + 0.06 * shade - 0.38 * joint)[..., None]
    return tile(rgb, 1 + 0.1 * noise(rng, 128) - 0.1 * joint)


def _terrain(rng: np.random.Generator) -> Tile:
    dry = rng.random() < 0.25
    hue = rng.uniform(0.11, 0.16) if dry else rng.uniform(0.2, 0.31)
    grass = grain(rng, hsv(hue, rng.uniform(0.4, 0.62), rng.uniform(0.33, 0.5)), 0.16, 0.1)
    grass *= (1 + 0.15 * noise(rng, 64))[..., None]
    soil = grain(rng, hsv(rng.uniform(0.06, 0.1), 0.45, rng.uniform(0.3, 0.45)), 0.12, 0.08)
    bare = np.clip(noise(rng, 16) + 0.6 * noise(rng, 4) - rng.uniform(0.9, 2.0), 0, 1)[..., None]
    return tile(grass * (1 - bare) + soil * bare, 1 + 0.15 * noise(rng, 128))


def _wall_base(rng: np.random.Generator) -> tuple[Image, Gray]:
    if rng.random() < 0.45:  # brick
        color = hsv(rng.uniform(-0.02, 0.09), rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.65))
        shade, joint = slabs(rng, 12, 36, bond=True, joint=2)
        rgb = grain(rng, color, 0.05, 0.05) * (1 + 0.12 * shade)[..., None]
        return np.asarray(rgb * (1 - joint[..., None]) + 0.62 * joint[..., None]), 1 + 0.1 * shade
    # Plaster is mostly white, cream, ochre or terracotta, now and then of any hue.
    hue = rng.uniform(0.02, 0.16) if rng.random() < 0.75 else rng.uniform(0, 1)
    color = hsv(hue, rng.uniform(0.02, 0.35), rng.uniform(0.5, 0.9))
    streaks = noise(rng, 32).mean(axis=0, keepdims=True)
    return np.asarray(grain(rng, color, 0.03, 0.04) * (1 + 0.12 * streaks)[..., None]), np.ones((TILE, TILE))


def _pane(rng: np.random.Generator, rgb: Image, refl: Gray, rect: tuple[int, int, int, int], frame: Rgb) -> None:
    """One window: frame, dark glass with a bright reflection or a curtain, sill. Rect: u0, v0, u1, v1 (v up)."""
    u0, v0, u1, v1 = rect
    rgb[v0 - 5 : v0, u0 - 4 : u1 + 4] = np.clip(np.array(frame) * 1.05, 0, 1)
    rgb[v0:v1, u0:u1] = frame
    glass = np.array(hsv(rng.uniform(0.5, 0.65), rng.uniform(0.2, 0.5), rng.uniform(0.12, 0.35)))
    height = np.linspace(0.8, 1.5, v1 - v0 - 8)[:, None, None]
    rgb[v0 + 4 : v1 - 4, u0 + 4 : u1 - 4] = glass * height
    if rng.random() < 0.4:  # curtain or blind
        drop = int((v1 - v0) * rng.uniform(0.2, 0.7))
        rgb[v1 - drop : v1 - 4, u0 + 4 : u1 - 4] = hsv(rng.uniform(0, 1), 0.12, rng.uniform(0.5, 0.85))
    rgb[v0:v1, (u0 + u1) // 2 - 2 : (u0 + u1) // 2 + 2] = frame
    refl[v0 + 4 : v1 - 4, u0 + 4 : u1 - 4] = 0.6


def _facade(rng: np.random.Generator) -> Tile:
    rgb, refl = _wall_base(rng)
    columns, rows = int(rng.integers(2, 4)), 2
    frame = hsv(rng.uniform(0, 1), rng.uniform(0, 0.3), rng.choice([0.25, 0.85, 0.93]))
    share_u, share_v = rng.uniform(0.4, 0.68), rng.uniform(0.45, 0.62)
    for row in range(rows):
        for column in range(columns):
            u = (column + 0.5 - share_u / 2) * TILE / columns
            v = (row + 0.28) * TILE / rows
            rect = (int(u), int(v), int(u + share_u * TILE / columns), int(v + share_v * TILE / rows))
            _pane(rng, rgb, refl, rect, frame)
    if rng.random() < 0.5:  # string course between the storeys
        rgb[:7] = rgb[TILE // 2 : TILE // 2 + 7] = np.clip(rgb.mean(axis=(0, 1)) * 1.25, 0, 1)
    return tile(rgb, refl)


def _shop(rng: np.random.Generator) -> Tile:
    rgb, refl = _wall_base(rng)
    frame = hsv(rng.uniform(0, 1), rng.uniform(0.1, 0.6), rng.uniform(0.25, 0.6))
    _pane(rng, rgb, refl, (20, 40, 120, 190), frame)
    rgb[0:195, 145:195] = frame  # door
    rgb[100:180, 155:185] = (0.15, 0.18, 0.2)
    _pane(rng, rgb, refl, (208, 70, 246, 190), frame)
    if rng.random() < 0.6:  # fascia board
        rgb[208:236, 10:246] = hsv(rng.uniform(0, 1), rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.8))
    return tile(rgb, refl)


def _boards(rng: np.random.Generator) -> Tile:
    kind = rng.random()
    if kind < 0.65:  # brown or reddish wood
        color = hsv(rng.uniform(0.04, 0.1), rng.uniform(0.3, 0.6), rng.uniform(0.35, 0.62))
    else:  # grey concrete-post panels or white paint
        color = hsv(0.1, 0.06, rng.uniform(0.5, 0.85))
    shade, joint = slabs(rng, int(rng.integers(10, 20)), 1, bond=False, joint=4)
    streaks = noise(rng, 128).mean(axis=0, keepdims=True)
    rgb = grain(rng, color, 0.05, 0.05) * (1 + 0.12 * shade + 0.5 * streaks - 0.55 * joint)[..., None]
    return tile(rgb, 1 + 0.1 * shade)


def _leaves(rng: np.random.Generator) -> Tile:
    shade = 1 + 0.3 * noise(rng, 32) + 0.25 * noise(rng, 64) + 0.12 * noise(rng, 128)
    rgb = flat((1.0, 1.0, 1.0)) * np.clip(shade, 0.25, 1.8)[..., None] * 0.55
    return tile(rgb, 1 + 0.2 * noise(rng, 64))


def _bark(rng: np.random.Generator) -> Tile:
    color = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.2, 0.5), rng.uniform(0.25, 0.45))
    ridges = noise(rng, 32).mean(axis=0, keepdims=True)
    return tile(grain(rng, color, 0.12, 0.1) * (1 + 0.8 * ridges)[..., None], 1 + 0.1 * noise(rng, 64))


def _smooth(rng: np.random.Generator, value: float, fine: float, coarse: float) -> Tile:
    return tile(grain(rng, (value, value, value), fine, coarse))


def _roof(rng: np.random.Generator) -> Tile:
    color = hsv(rng.uniform(0, 0.08), rng.uniform(0.1, 0.6), rng.uniform(0.3, 0.55))
    shade, joint = slabs(rng, 16, 16, bond=True, joint=3)
    return tile(grain(rng, color, 0.05, 0.06) * (1 + 0.08 * shade - 0.3 * joint)[..., None])


def _glass(rng: np.random.Generator) -> Tile:
    v = np.linspace(0.7, 1.5, TILE)[:, None, None]
    rgb = flat(hsv(0.58, 0.3, 0.2)) * v * (1 + 0.1 * noise(rng, 4))[..., None]
    return tile(rgb)


def _wheel(rng: np.random.Generator) -> Tile:
    v, u = np.mgrid[0:TILE, 0:TILE] / (TILE / 2) - 1
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    rgb = flat((0.07, 0.07, 0.075))
    spokes = int(rng.integers(5, 8))
    rim = (radius < 0.62) & ((np.cos(spokes * angle) > -0.35) | (radius < 0.2) | (radius > 0.54))
    rgb[radius < 0.62] = 0.16
    rgb[rim] = rng.uniform(0.5, 0.75)
    return tile(rgb)


def _cargo(rng: np.random.Generator) -> Tile:
    rgb = grain(rng, (0.95, 0.95, 0.95), 0.02, 0.03)
    rgb[:, :: TILE // int(rng.integers(4, 9))] *= 0.7
    rgb[:10] *= 0.5
    rgb[-10:] *= 0.6
    if rng.random() < 0.6:  # a company's stripe
        v0 = int(rng.integers(60, 140))
        rgb[v0 : v0 + int(rng.integers(15, 60))] *= hsv(rng.uniform(0, 1), 0.6, 0.8)
    return tile(rgb)


def _bus_side(rng: np.random.Generator) -> Tile:
    """One bay of a bus: painted skirt, large window, painted roof edge (v up)."""
    rgb = grain(rng, (0.95, 0.95, 0.95), 0.02, 0.02)
    rgb[104:222, 8:248] = np.array((0.1, 0.13, 0.16)) * np.linspace(0.8, 1.6, 118)[:, None, None]
    rgb[104:222, 8:248] *= (1 + 0.15 * noise(rng, 8))[104:222, 8:248, None]
    rgb[:26] *= 0.45
    if rng.random() < 0.7:
        rgb[70:84] *= hsv(rng.uniform(0, 1), 0.8, 0.8)
    return tile(rgb, 1.0)


# The order matters: every painter draws from the same stream of random numbers.
_PAINTERS: dict[Layer, Callable[[np.random.Generator], Tile]] = {
    Layer.PLAIN: lambda rng: _smooth(rng, 0.95, 0.02, 0.02),
    Layer.ASPHALT: _asphalt,
    **dict.fromkeys((Layer.PARKING_LEFT, Layer.PARKING_RIGHT), _parking),
    Layer.SIDEWALK: _sidewalk,
    Layer.KERB: lambda rng: _smooth(rng, rng.uniform(0.5, 0.75), 0.06, 0.05),
    Layer.TERRAIN: _terrain,
    **dict.fromkeys((Layer.FACADE_0, Layer.FACADE_1, Layer.FACADE_2, Layer.FACADE_3), _facade),
    **dict.fromkeys((Layer.SHOP_0, Layer.SHOP_1), _shop),
    Layer.ROOF: _roof,
    Layer.WALL: lambda rng: tile(*_wall_base(rng)),
    Layer.BOARDS: _boards,
    Layer.LEAVES: _leaves,
    Layer.BARK: _bark,
    Layer.METAL: lambda rng: _smooth(rng, 0.85, 0.03, 0.06),
    Layer.PAINT: lambda rng: _smooth(rng, 0.97, 0.01, 0.02),
    Layer.GLASS: _glass,
    Layer.WHEEL: _wheel,
    Layer.CARGO: _cargo,
    Layer.BUS_SIDE: _bus_side,
    Layer.CLOTH: lambda rng: _smooth(rng, 0.9, 0.05, 0.12),
    Layer.SIGN_LIMIT: signs.sign(signs.draw_limit),
    Layer.SIGN_WARNING: signs.sign(signs.draw_warning),
    Layer.SIGN_STOP: signs.sign(signs.draw_stop),
    Layer.SIGN_PARKING: signs.sign(signs.draw_parking),
    Layer.SIGN_PRIORITY: signs.sign(signs.draw_priority),
    Layer.SIGN_DIRECTION: signs.sign(signs.draw_direction),
}


def paint_layers(rng: np.random.Generator) -> UInt8[np.ndarray, "layers 256 256 4"]:
    """All tiles of one world, indexed by `Layer`."""
    tiles = np.empty((len(Layer), TILE, TILE, 4), np.uint8)
    for layer, paint in _PAINTERS.items():
        tiles[layer] = paint(rng)
    road = tiles[Layer.ASPHALT]
    along = np.arange(TILE) / TILE
    solid = np.ones((TILE, TILE))
    tiles[Layer.LINE_SOLID] = _marking(rng, road, solid)
    tiles[Layer.LINE_DASHED] = _marking(rng, road, solid * (along < 0.4))
    tiles[Layer.ZEBRA] = _marking(rng, road, solid * (along[:, None] < 0.5))
    return tiles
