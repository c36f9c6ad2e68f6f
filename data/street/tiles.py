"""What texture tiles are made of: colours, seamless noise, grain and stones."""

from __future__ import annotations

import colorsys
import functools

import cv2
import numpy as np
from jaxtyping import Float, UInt8

TILE = 256
"""Side of a tile in texels."""

Rgb = tuple[float, float, float]
Image = Float[np.ndarray, "256 256 3"]
Gray = Float[np.ndarray, "256 256"]
Tile = UInt8[np.ndarray, "256 256 4"]


def hsv(h: float, s: float, v: float) -> Rgb:
    """Color in sRGB of hue, saturation, value, all 0..1 (hue wraps)."""
    return colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0.0), 1.0), min(max(v, 0.0), 1.0))


def linear_hsv(h: float, s: float, v: float) -> Rgb:
    """Linear RGB of hue, saturation, value; the renderer's gamma is 2."""
    r, g, b = hsv(h, s, v)
    return (r**2, g**2, b**2)


def lookup(
    image: UInt8[np.ndarray, "rows columns channels"], x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]
) -> UInt8[np.ndarray, "n channels"]:
    """Bilinear values of an image at any number of places (column, row)."""
    # OpenCV's remap takes results below 32768 a side, so the queries are folded into rows.
    width = 1024
    rows = -(-len(x) // width)
    maps = np.zeros((2, rows * width), np.float32)
    maps[0, : len(x)], maps[1, : len(x)] = x, y
    folded = maps.reshape(2, rows, width)
    values = cv2.remap(image, folded[0], folded[1], cv2.INTER_LINEAR)
    return np.asarray(values.reshape(-1, image.shape[-1])[: len(x)])


@functools.lru_cache(maxsize=32)
def _noise_base(cells: int, variant: int) -> Gray:
    grid = np.random.default_rng([cells, variant]).standard_normal((cells, cells), np.float32)
    if cells < TILE:
        step = TILE // cells
        wrapped = np.pad(grid, 2, mode="wrap")
        large = cv2.resize(wrapped, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        grid = large[2 * step : 2 * step + TILE, 2 * step : 2 * step + TILE]
    return np.asarray((grid - grid.mean()) / grid.std(), np.float32)


def noise(rng: np.random.Generator, cells: int) -> Gray:
    """Seamless smooth noise of zero mean and unit deviation with `cells` blobs a side.

    Drawn from a few fixed fields, shifted and turned at random: drawing every field itself took half of a world's time.
    """
    base = _noise_base(cells, int(rng.integers(3)))
    du, dv = (int(x) for x in rng.integers(0, TILE, 2))
    rolled = np.roll(base, (dv, du), axis=(0, 1))
    return rolled.T if rng.random() < 0.5 else rolled


def flat(color: Rgb) -> Image:
    """A tile of one colour."""
    return np.tile(np.array(color, np.float32), (TILE, TILE, 1))


def tile(rgb: Image, reflectivity: Gray | float = 1.0) -> Tile:
    """Colour 0..1 and relative reflectivity as a stored tile."""
    out = np.empty((TILE, TILE, 4), np.uint8)
    out[..., :3] = np.clip(rgb * 255, 0, 255)
    out[..., 3] = np.clip(np.asarray(reflectivity) * 128, 0, 255)
    return out


def grain(rng: np.random.Generator, color: Rgb, fine: float, coarse: float) -> Image:
    """A colour with brightness noise of a texel and of some centimetres to decimetres."""
    shade = 1 + fine * noise(rng, 256) + coarse * noise(rng, 8) + 0.5 * coarse * noise(rng, 32)
    return np.asarray(flat(color) * shade[..., None])


def slabs(rng: np.random.Generator, columns: int, rows: int, *, bond: bool, joint: int) -> tuple[Gray, Gray]:
    """Stone index noise of each texel and a mask of joints, for rectangular stones."""
    v, u = np.mgrid[0:TILE, 0:TILE] / TILE
    row = np.floor(v * rows).astype(int)
    shifted = u * columns + (0.5 * (row % 2) if bond else 0.0)
    column = np.floor(shifted).astype(int) % columns
    shade = rng.standard_normal((rows, columns))[row, column]
    fu, fv = (shifted % 1) * TILE / columns, (v * rows % 1) * TILE / rows
    return shade, np.asarray((fu < joint) | (fv < joint), np.float64)
