"""Procedural texture tiles, painted anew for each world: the kind of a material stays, its hues and pattern vary.

A tile is 256 x 256, tiles seamlessly, and has four channels: sRGB colour and relative LiDAR reflectivity (128 = 1).
In a tile, columns are u (along the road or wall) and rows are v (across the road; up the wall).
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data.street.layers import Layer

TILE = 256
"""Side of a tile in texels."""

_Rgb = tuple[float, float, float]
_Image = Float[np.ndarray, "256 256 3"]
_Gray = Float[np.ndarray, "256 256"]
_Tile = UInt8[np.ndarray, "256 256 4"]


def hsv(h: float, s: float, v: float) -> _Rgb:
    """Color in sRGB of hue, saturation, value, all 0..1 (hue wraps)."""
    return colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0.0), 1.0), min(max(v, 0.0), 1.0))


@functools.lru_cache(maxsize=32)
def _noise_base(cells: int, variant: int) -> _Gray:
    grid = np.random.default_rng([cells, variant]).standard_normal((cells, cells), np.float32)
    if cells < TILE:
        step = TILE // cells
        wrapped = np.pad(grid, 2, mode="wrap")
        large = cv2.resize(wrapped, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        grid = large[2 * step : 2 * step + TILE, 2 * step : 2 * step + TILE]
    return np.asarray((grid - grid.mean()) / grid.std(), np.float32)


def noise(rng: np.random.Generator, cells: int) -> _Gray:
    """Seamless smooth noise of zero mean and unit deviation with `cells` blobs a side.

    Drawn from a few fixed fields, shifted and turned at random: drawing every field anew took half of a world's time.
    """
    base = _noise_base(cells, int(rng.integers(3)))
    du, dv = (int(x) for x in rng.integers(0, TILE, 2))
    rolled = np.roll(base, (dv, du), axis=(0, 1))
    return rolled.T if rng.random() < 0.5 else rolled


def _flat(color: _Rgb) -> _Image:
    return np.tile(np.array(color, np.float32), (TILE, TILE, 1))


def _tile(rgb: _Image, reflectivity: _Gray | float = 1.0) -> _Tile:
    out = np.empty((TILE, TILE, 4), np.uint8)
    out[..., :3] = np.clip(rgb * 255, 0, 255)
    out[..., 3] = np.clip(np.asarray(reflectivity) * 128, 0, 255)
    return out


def _grain(rng: np.random.Generator, color: _Rgb, fine: float, coarse: float) -> _Image:
    shade = 1 + fine * noise(rng, 256) + coarse * noise(rng, 8) + 0.5 * coarse * noise(rng, 32)
    return np.asarray(_flat(color) * shade[..., None])


def _slabs(rng: np.random.Generator, columns: int, rows: int, *, bond: bool, joint: int) -> tuple[_Gray, _Gray]:
    """Stone index noise of each texel and a mask of joints, for rectangular stones."""
    v, u = np.mgrid[0:TILE, 0:TILE] / TILE
    row = np.floor(v * rows).astype(int)
    shifted = u * columns + (0.5 * (row % 2) if bond else 0.0)
    column = np.floor(shifted).astype(int) % columns
    shade = rng.standard_normal((rows, columns))[row, column]
    fu, fv = (shifted % 1) * TILE / columns, (v * rows % 1) * TILE / rows
    return shade, np.asarray((fu < joint) | (fv < joint), np.float64)


def _asphalt(rng: np.random.Generator) -> _Tile:
    base = rng.uniform(0.24, 0.43)
    rgb = _grain(
        rng, hsv(rng.uniform(0.55, 0.75) if rng.random() < 0.6 else 0.09, rng.uniform(0, 0.1), base), 0.09, 0.05
    )
    lines = np.zeros((TILE, TILE), np.uint8)
    for _ in range(rng.integers(0, 4)):  # sealed cracks
        walk = np.cumsum(rng.normal(0, 9, (14, 2)) + rng.normal(0, 9, 2), axis=0) + TILE / 2
        cv2.polylines(lines, [walk.astype(np.int32)], False, 255, int(rng.integers(1, 3)))
    if rng.random() < 0.5:  # a patch of newer asphalt
        x, y = rng.integers(0, 150, 2)
        rgb[y : y + rng.integers(40, 100), x : x + rng.integers(40, 100)] *= rng.uniform(0.78, 0.9)
    rgb[lines > 0] *= 0.62
    return _tile(rgb, 1 + 0.12 * noise(rng, 128))


def _marking(rng: np.random.Generator, road: _Tile, paint: _Gray) -> _Tile:
    """White paint, a little worn, over the road's own texture."""
    tone = np.array(hsv(0.12, rng.uniform(0, 0.06), rng.uniform(0.82, 0.95)))
    cover = paint * np.clip(0.9 + 0.18 * noise(rng, 64), 0, 1)
    rgb = road[..., :3] / 255 * (1 - cover[..., None]) + tone * cover[..., None]
    return _tile(rgb, road[..., 3] / 128 * (1 + 0.7 * cover))


def _parking(rng: np.random.Generator) -> _Tile:
    kind = rng.random()
    if kind < 0.5:  # reddish or ochre setts
        color = hsv(rng.uniform(0.99, 1.1), rng.uniform(0.25, 0.45), rng.uniform(0.38, 0.55))
    elif kind < 0.8:  # grass pavers: grey-green grid
        color = hsv(rng.uniform(0.17, 0.3), rng.uniform(0.15, 0.3), rng.uniform(0.36, 0.5))
    else:  # dark bluish concrete
        color = hsv(rng.uniform(0.55, 0.65), rng.uniform(0.12, 0.25), rng.uniform(0.35, 0.5))
    shade, joint = _slabs(rng, int(rng.integers(16, 26)), int(rng.integers(10, 18)), bond=True, joint=2)
    rgb = _grain(rng, color, 0.07, 0.05) * (1 + 0.12 * shade - 0.4 * joint)[..., None]
    line = np.zeros((TILE, TILE))
    line[:, :6] = line[:, -1:] = 1  # stall line across the parking strip
    return _marking(rng, _tile(rgb, 1 + 0.1 * noise(rng, 128)), line)


def _sidewalk(rng: np.random.Generator) -> _Tile:
    warm = rng.random() < 0.6
    color = hsv(rng.uniform(0.07, 0.13) if warm else 0.6, rng.uniform(0.02, 0.16), rng.uniform(0.56, 0.76))
    n = int(rng.integers(3, 6))
    shade, joint = _slabs(rng, n, n if rng.random() < 0.6 else 2 * n, bond=bool(rng.random() < 0.5), joint=3)
    rgb = _grain(rng, color, 0.05, 0.04) * (1 + 0.06 * shade - 0.38 * joint)[..., None]
    return _tile(rgb, 1 + 0.1 * noise(rng, 128) - 0.1 * joint)


def _terrain(rng: np.random.Generator) -> _Tile:
    dry = rng.random() < 0.25
    hue = rng.uniform(0.11, 0.16) if dry else rng.uniform(0.2, 0.31)
    grass = _grain(rng, hsv(hue, rng.uniform(0.4, 0.62), rng.uniform(0.33, 0.5)), 0.16, 0.1)
    grass *= (1 + 0.15 * noise(rng, 64))[..., None]
    soil = _grain(rng, hsv(rng.uniform(0.06, 0.1), 0.45, rng.uniform(0.3, 0.45)), 0.12, 0.08)
    bare = np.clip(noise(rng, 16) + 0.6 * noise(rng, 4) - rng.uniform(0.9, 2.0), 0, 1)[..., None]
    return _tile(grass * (1 - bare) + soil * bare, 1 + 0.15 * noise(rng, 128))


def _wall_base(rng: np.random.Generator) -> tuple[_Image, _Gray]:
    if rng.random() < 0.45:  # brick
        color = hsv(rng.uniform(-0.02, 0.09), rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.65))
        shade, joint = _slabs(rng, 12, 36, bond=True, joint=2)
        rgb = _grain(rng, color, 0.05, 0.05) * (1 + 0.12 * shade)[..., None]
        return np.asarray(rgb * (1 - joint[..., None]) + 0.62 * joint[..., None]), 1 + 0.1 * shade
    # Plaster is mostly white, cream, ochre or terracotta, now and then of any hue.
    hue = rng.uniform(0.02, 0.16) if rng.random() < 0.75 else rng.uniform(0, 1)
    color = hsv(hue, rng.uniform(0.02, 0.35), rng.uniform(0.5, 0.9))
    streaks = noise(rng, 32).mean(axis=0, keepdims=True)
    return np.asarray(_grain(rng, color, 0.03, 0.04) * (1 + 0.12 * streaks)[..., None]), np.ones((TILE, TILE))


def _pane(rng: np.random.Generator, rgb: _Image, refl: _Gray, rect: tuple[int, int, int, int], frame: _Rgb) -> None:
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


def _facade(rng: np.random.Generator) -> _Tile:
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
    return _tile(rgb, refl)


def _shop(rng: np.random.Generator) -> _Tile:
    rgb, refl = _wall_base(rng)
    frame = hsv(rng.uniform(0, 1), rng.uniform(0.1, 0.6), rng.uniform(0.25, 0.6))
    _pane(rng, rgb, refl, (20, 40, 120, 190), frame)
    rgb[0:195, 145:195] = frame  # door
    rgb[100:180, 155:185] = (0.15, 0.18, 0.2)
    _pane(rng, rgb, refl, (208, 70, 246, 190), frame)
    if rng.random() < 0.6:  # fascia board
        rgb[208:236, 10:246] = hsv(rng.uniform(0, 1), rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.8))
    return _tile(rgb, refl)


def _boards(rng: np.random.Generator) -> _Tile:
    kind = rng.random()
    if kind < 0.65:  # brown or reddish wood
        color = hsv(rng.uniform(0.04, 0.1), rng.uniform(0.3, 0.6), rng.uniform(0.35, 0.62))
    else:  # grey concrete-post panels or white paint
        color = hsv(0.1, 0.06, rng.uniform(0.5, 0.85))
    shade, joint = _slabs(rng, int(rng.integers(10, 20)), 1, bond=False, joint=4)
    streaks = noise(rng, 128).mean(axis=0, keepdims=True)
    rgb = _grain(rng, color, 0.05, 0.05) * (1 + 0.12 * shade + 0.5 * streaks - 0.55 * joint)[..., None]
    return _tile(rgb, 1 + 0.1 * shade)


def _leaves(rng: np.random.Generator) -> _Tile:
    shade = 1 + 0.3 * noise(rng, 32) + 0.25 * noise(rng, 64) + 0.12 * noise(rng, 128)
    rgb = _flat((1.0, 1.0, 1.0)) * np.clip(shade, 0.25, 1.8)[..., None] * 0.55
    return _tile(rgb, 1 + 0.2 * noise(rng, 64))


def _bark(rng: np.random.Generator) -> _Tile:
    color = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.2, 0.5), rng.uniform(0.25, 0.45))
    ridges = noise(rng, 32).mean(axis=0, keepdims=True)
    return _tile(_grain(rng, color, 0.12, 0.1) * (1 + 0.8 * ridges)[..., None], 1 + 0.1 * noise(rng, 64))


def _smooth(rng: np.random.Generator, value: float, fine: float, coarse: float) -> _Tile:
    return _tile(_grain(rng, (value, value, value), fine, coarse))


def _roof(rng: np.random.Generator) -> _Tile:
    color = hsv(rng.uniform(0, 0.08), rng.uniform(0.1, 0.6), rng.uniform(0.3, 0.55))
    shade, joint = _slabs(rng, 16, 16, bond=True, joint=3)
    return _tile(_grain(rng, color, 0.05, 0.06) * (1 + 0.08 * shade - 0.3 * joint)[..., None])


def _glass(rng: np.random.Generator) -> _Tile:
    v = np.linspace(0.7, 1.5, TILE)[:, None, None]
    rgb = _flat(hsv(0.58, 0.3, 0.2)) * v * (1 + 0.1 * noise(rng, 4))[..., None]
    return _tile(rgb)


def _wheel(rng: np.random.Generator) -> _Tile:
    v, u = np.mgrid[0:TILE, 0:TILE] / (TILE / 2) - 1
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    rgb = _flat((0.07, 0.07, 0.075))
    spokes = int(rng.integers(5, 8))
    rim = (radius < 0.62) & ((np.cos(spokes * angle) > -0.35) | (radius < 0.2) | (radius > 0.54))
    rgb[radius < 0.62] = 0.16
    rgb[rim] = rng.uniform(0.5, 0.75)
    return _tile(rgb)


def _cargo(rng: np.random.Generator) -> _Tile:
    rgb = _grain(rng, (0.95, 0.95, 0.95), 0.02, 0.03)
    rgb[:, :: TILE // int(rng.integers(4, 9))] *= 0.7
    rgb[:10] *= 0.5
    rgb[-10:] *= 0.6
    if rng.random() < 0.6:  # a company's stripe
        v0 = int(rng.integers(60, 140))
        rgb[v0 : v0 + int(rng.integers(15, 60))] *= hsv(rng.uniform(0, 1), 0.6, 0.8)
    return _tile(rgb)


def _bus_side(rng: np.random.Generator) -> _Tile:
    """One bay of a bus: painted skirt, large window, painted roof edge (v up)."""
    rgb = _grain(rng, (0.95, 0.95, 0.95), 0.02, 0.02)
    pane = np.array((0.1, 0.13, 0.16)) * np.linspace(0.8, 1.6, 118)[:, None, None]
    rgb[104:222, 8:248] = pane
    rgb[104:222, 8:248] *= (1 + 0.15 * noise(rng, 8))[104:222, 8:248, None]
    rgb[:26] *= 0.45
    if rng.random() < 0.7:
        rgb[70:84] *= hsv(rng.uniform(0, 1), 0.8, 0.8)
    return _tile(rgb, 1.0)


def _cloth(rng: np.random.Generator) -> _Tile:
    return _tile(_grain(rng, (0.9, 0.9, 0.9), 0.05, 0.12))


def _sign(draw: Callable[[UInt8[np.ndarray, "256 256 3"]], None]) -> Callable[[np.random.Generator], _Tile]:
    def paint(rng: np.random.Generator) -> _Tile:
        # Drawn with the first row on top, stored with v up.
        image = np.zeros((TILE, TILE, 3), np.uint8)
        draw(image)
        rgb = image[::-1].astype(np.float32) / 255 * rng.uniform(0.85, 1.0)
        return _tile(rgb * (1 + 0.04 * noise(rng, 8))[..., None], 1.3)

    return paint


_RED, _WHITE, _BLACK, _BLUE, _YELLOW = (200, 20, 25), (240, 240, 240), (20, 20, 20), (20, 70, 170), (250, 200, 20)


def _draw_limit(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    image[:] = _RED
    cv2.circle(image, (128, 128), 92, _WHITE, -1)
    cv2.putText(image, "50", (62, 162), cv2.FONT_HERSHEY_SIMPLEX, 3.2, _BLACK, 14)


def _draw_warning(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    image[:] = _RED
    inner = np.array([[128, 52], [196, 166], [60, 166]], np.int32)
    cv2.fillPoly(image, [inner], _WHITE)
    cv2.line(image, (128, 90), (128, 140), _BLACK, 12)


def _draw_stop(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    image[:] = _RED
    cv2.putText(image, "STOP", (36, 154), cv2.FONT_HERSHEY_SIMPLEX, 2.2, _WHITE, 12)


def _draw_parking(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    image[:] = _BLUE
    cv2.rectangle(image, (8, 8), (247, 247), _WHITE, 6)
    cv2.putText(image, "P", (76, 186), cv2.FONT_HERSHEY_SIMPLEX, 5.2, _WHITE, 22)


def _draw_priority(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    image[:] = _WHITE
    diamond = np.array([[128, 40], [216, 128], [128, 216], [40, 128]], np.int32)
    cv2.fillPoly(image, [diamond], _YELLOW)


def _draw_direction(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    image[:] = _BLUE
    cv2.rectangle(image, (6, 6), (249, 249), _WHITE, 5)
    for y in (70, 130, 190):
        cv2.line(image, (80, y), (225, y), _WHITE, 16)
    cv2.arrowedLine(image, (45, 210), (45, 50), _WHITE, 14, tipLength=0.3)


_PAINTERS: dict[Layer, Callable[[np.random.Generator], _Tile]] = {
    Layer.PLAIN: lambda rng: _smooth(rng, 0.95, 0.02, 0.02),
    Layer.ASPHALT: _asphalt,
    Layer.PARKING_LEFT: _parking,
    Layer.PARKING_RIGHT: _parking,
    Layer.SIDEWALK: _sidewalk,
    Layer.KERB: lambda rng: _smooth(rng, rng.uniform(0.5, 0.75), 0.06, 0.05),
    Layer.TERRAIN: _terrain,
    Layer.FACADE_0: _facade,
    Layer.FACADE_1: _facade,
    Layer.FACADE_2: _facade,
    Layer.FACADE_3: _facade,
    Layer.SHOP_0: _shop,
    Layer.SHOP_1: _shop,
    Layer.ROOF: _roof,
    Layer.WALL: lambda rng: _tile(*_wall_base(rng)),
    Layer.BOARDS: _boards,
    Layer.LEAVES: _leaves,
    Layer.BARK: _bark,
    Layer.METAL: lambda rng: _smooth(rng, 0.85, 0.03, 0.06),
    Layer.PAINT: lambda rng: _smooth(rng, 0.97, 0.01, 0.02),
    Layer.GLASS: _glass,
    Layer.WHEEL: _wheel,
    Layer.CARGO: _cargo,
    Layer.BUS_SIDE: _bus_side,
    Layer.CLOTH: _cloth,
    Layer.SIGN_LIMIT: _sign(_draw_limit),
    Layer.SIGN_WARNING: _sign(_draw_warning),
    Layer.SIGN_STOP: _sign(_draw_stop),
    Layer.SIGN_PARKING: _sign(_draw_parking),
    Layer.SIGN_PRIORITY: _sign(_draw_priority),
    Layer.SIGN_DIRECTION: _sign(_draw_direction),
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
