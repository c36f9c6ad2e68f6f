"""SLIC superpixels in integers: the default for new sets.

After the design of fast-slic: colours and distances are 16-bit integers, of which a processor compares 16 or 32 at
once; a pixel is compared only with the centres that are at most a superpixel's side away in rows and in columns; all
iterations but the last look at every third row. Distances are sums of absolute differences, in colour as in place,
where the paper has roots of sums of squares. Its own: colours are CIELAB by its definition, to an eighth of a unit
(fast-slic: 8 bits), from tables of integers; the image may be blurred before; small pieces are joined as scikit-image
does (`data.preparing.slic`).

The loops are compiled (`fast_slic.c`); without a compiler numpy does the same (`fast_slic_numpy.py`), to the last
pixel.

Source: Achanta et al., SLIC (TPAMI 2012); Kim, fast-slic 0.4.0, for the integers and the rows that are left out.

Letters: H, W image; K centres.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, Int32, UInt8, UInt16

from common.native import array_type, library
from data.preparing import fast_slic_numpy
from data.preparing.slic import joined

_SOURCE = Path(__file__).with_suffix(".c")
_INSTEAD = "numpy, with the same superpixels in some twenty times the time"
_STRIDE = 3
_LEAST_ROWS = 4
"""Rows of a superpixel that are looked at in each iteration, at least: small ones are seen whole."""
_XYZ_BITS, _INDEX_BITS, _ROOT_BITS = 24, 15, 15  # the last one also in fast_slic.c
_COLOUR_BITS = 6
"""A unit of CIELAB is 64: colours of sRGB are at most 486 apart, so 31,104."""
_FARTHEST = 16_383
"""Largest distance in rows or in columns: with 31,104 it fits twice into 16 bits."""
_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]], dtype=np.float64
)
"""Linear sRGB to XYZ of D65; each row is divided by its sum, which makes white (1, 1, 1)."""


class Tables(NamedTuple):
    """CIELAB in integers.

    Attributes:
        linear: what each grey level of R, G, B adds to X, Y, Z, in 2^-24 of white.
        root: of the first 15 bits of X, Y, Z: CIELAB's f (a cube root), in 2^-15.
    """

    linear: Int32[np.ndarray, "3 3 256"]
    root: UInt16[np.ndarray, " roots"]


class Grid(NamedTuple):
    """Seeds: the middles of equal cells.

    Attributes:
        seeds: row and column of each.
        home_row: the first seed of each pixel row's cells.
        home_column: place of each pixel column's cell within its row of cells.
        side: mean side of a cell, pixels.
    """

    seeds: Int32[np.ndarray, "K 2"]
    home_row: Int32[np.ndarray, " H"]
    home_column: Int32[np.ndarray, " W"]
    side: float


def cut(
    image: UInt8[np.ndarray, "H W 3"],
    *,
    num_segments: int,
    compactness: float,
    smoothing: float,
    iterations: int,
    smallest: float,
) -> Int[np.ndarray, "H W"]:
    """Cut an RGB image.

    Args:
        image: RGB.
        num_segments: about so many seeds.
        compactness: weight of a distance of one superpixel's side against one unit of CIELAB.
        smoothing: standard deviation of the blur, in superpixel's sides.
        iterations: assignments to the nearest centre.
        smallest: smallest segment, in mean segments.

    Returns:
        int32 ids, consecutive from 0 in reading order, at most `num_segments` of them; each segment is 4-connected.
    """
    size = image.shape[0], image.shape[1]
    grid = grid_of(*size, num_segments)
    if smoothing > 0:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), smoothing * grid.side))
    bits = _colour_bits(compactness)
    native = library(_SOURCE, _INSTEAD)
    lab = fast_slic_numpy.lab if native is None else functools.partial(_lab, native)
    cluster = fast_slic_numpy.cluster if native is None else functools.partial(_cluster, native)
    planes = lab(np.ascontiguousarray(image), *lab_tables(), _XYZ_BITS - _INDEX_BITS, _ROOT_BITS - bits)
    rows, columns = grid.seeds.T
    centres = np.concatenate([grid.seeds, planes[:, rows, columns].T.astype(np.int32)], axis=1)
    reach = math.ceil(grid.side)
    far = np.abs(np.arange(-reach, reach + 1)) * ((1 << bits) * compactness / grid.side)
    far = np.minimum(np.rint(far), _FARTHEST).astype(np.uint16)
    stride = min(max(int(grid.side) // _LEAST_ROWS, 1), _STRIDE)
    labels = cluster(planes, centres, far, grid.home_row, grid.home_column, iterations, stride)
    return joined(labels, num_segments, len(centres), smallest, float(len(centres)))


def grid_of(height: int, width: int, num_segments: int) -> Grid:
    """About square cells, at most `num_segments` of them."""
    rows = min(max(round(math.sqrt(num_segments * height / width)), 1), num_segments, height)
    columns = min(num_segments // rows, width)
    (middle_row, row), (middle_column, column) = (_cells(*each) for each in ((height, rows), (width, columns)))
    seeds = np.stack(np.meshgrid(middle_row, middle_column, indexing="ij"), axis=-1).reshape(-1, 2)
    side = math.sqrt(height * width / len(seeds))
    return Grid(seeds=seeds, home_row=row * np.int32(columns), home_column=column, side=side)


def _cells(pixels: int, count: int) -> tuple[Int32[np.ndarray, " cells"], Int32[np.ndarray, " pixels"]]:
    """The middle pixel of each of `count` equal stretches, and the stretch of each pixel."""
    middles = (2 * np.arange(count) + 1) * pixels // (2 * count)
    return middles.astype(np.int32), (np.arange(pixels) * count // pixels).astype(np.int32)


def _colour_bits(compactness: float) -> int:
    """Binary digits after the point of colours: fewer where distances in space, of about the compactness, need room."""
    return min(max(int(math.log2(_FARTHEST / compactness)), 0), _COLOUR_BITS)


@functools.cache
def lab_tables() -> Tables:
    """CIELAB of 8-bit sRGB."""
    grey = np.arange(256) / 255
    light = np.where(grey > 0.04045, ((grey + 0.055) / 1.055) ** 2.4, grey / 12.92)
    linear = (_TO_XYZ / _TO_XYZ.sum(axis=1, keepdims=True))[..., None] * light
    share = (np.arange((1 << _INDEX_BITS) + 1) + 0.5) / (1 << _INDEX_BITS)
    root = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return Tables(
        linear=np.rint(linear * (1 << _XYZ_BITS)).astype(np.int32),
        root=np.minimum(np.rint(root * (1 << _ROOT_BITS)), 1 << _ROOT_BITS).astype(np.uint16),
    )


def _lab(
    native: ctypes.CDLL,
    image: UInt8[np.ndarray, "H W 3"],
    linear: Int32[np.ndarray, "3 3 256"],
    root: UInt16[np.ndarray, " roots"],
    fine: int,
    scale: int,
) -> UInt16[np.ndarray, "3 H W"]:
    """See `fast_slic_numpy.lab`."""
    function = native.tandem_fast_slic_lab
    whole: Any = ctypes.c_int64
    words = array_type(np.uint16)
    function.argtypes = [array_type(np.uint8), whole, array_type(np.int32), words, whole, whole, words]
    function.restype = None
    planes = np.empty((3, *image.shape[:2]), np.uint16)
    function(image, planes[0].size, linear, root, fine, scale, planes)
    return planes


def _cluster(
    native: ctypes.CDLL,
    planes: UInt16[np.ndarray, "3 H W"],
    centres: Int32[np.ndarray, "K 5"],
    far: UInt16[np.ndarray, " far"],
    home_row: Int32[np.ndarray, " H"],
    home_column: Int32[np.ndarray, " W"],
    iterations: int,
    stride: int,
) -> Int32[np.ndarray, "H W"]:
    """See `fast_slic_numpy.cluster`."""
    function = native.tandem_fast_slic_cluster
    whole: Any = ctypes.c_int64
    words, numbers = array_type(np.uint16), array_type(np.int32)
    places = [words, whole, whole, numbers, whole, whole]
    function.argtypes = [*places, words, numbers, numbers, whole, whole, numbers]
    _, height, width = planes.shape
    labels = np.empty((height, width), np.int32)
    moving, reach = centres.copy(), len(far) // 2
    seeds = moving, len(centres), reach, far, home_row, home_column
    if function(planes, height, width, *seeds, iterations, stride, labels):
        raise MemoryError(f"no memory to cut an image of {height} x {width} pixels")
    return labels
