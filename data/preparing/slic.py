"""SLIC superpixels as scikit-image cuts them.

What scikit-image's `slic` fixes beyond the paper, and what is done here alike: seeds at the cell centres of a regular
grid, whose number is about the one asked for; the first assignment is by place alone; a pixel is compared with the
centres at most two grid steps away in rows and in columns, and keeps what it had where there is none; colour
differences are in CIELAB (D65, 2 degrees) over the compactness, distances in grid steps; afterwards the pieces of
clusters are taken in reading order, grown breadth first to at most three mean segments, and those of less than half a
mean segment join the segment that their growth met last. There are therefore fewer segments than seeds.

The loops are compiled (`slic.c`); without a compiler numpy does the same (`slic_numpy.py`), to the last bit: colours
are rounded to multiples of 2^-16, so that sums have no rounding and hence no order.

Source: Achanta et al., SLIC (TPAMI 2012); `skimage.segmentation.slic` of 0.18.2 (SLidR's) and 0.26 for what it fixes
beyond the paper.

Letters: H, W image; K centres.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, UInt8

from common.native import array_type, library
from data.preparing import slic_numpy

_SOURCE = Path(__file__).with_suffix(".c")
_REACH = 2
"""Grid steps between a pixel and the centres that it is compared with, at most."""
_LARGEST = 3.0
"""Largest segment, in mean segments."""
_GROWTH = 1.2
"""Factor by which the smallest segment grows while there are too many."""
_COLOUR_UNITS = np.float32(1 << 16)
"""Steps of a colour channel a unit of CIELAB: about the precision that single precision has at 100."""
_INSTEAD = "numpy, with the same superpixels in ten times the time"
_GREY = np.arange(256) / 255
_LINEAR = np.where(_GREY > 0.04045, ((_GREY + 0.055) / 1.055) ** 2.4, _GREY / 12.92).astype(np.float32)
"""Linear light of each grey level of sRGB; OpenCV converts from there exactly, but from sRGB by a coarse table."""


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
        num_segments: about so many seeds; fewer segments come out.
        compactness: weight of distance in grid steps against colour difference.
        smoothing: standard deviation of the blur, in grid steps.
        iterations: assignments to the nearest centre.
        smallest: smallest segment, in mean segments.

    Returns:
        int32 ids, consecutive from 0 in reading order, at most `num_segments` of them; each segment is 4-connected.
    """
    size = image.shape[0], image.shape[1]
    grid = _grid_cells(*size, num_segments)
    step = max(round(side) for side in grid)
    lab = _smooth_lab(image, smoothing * step)
    rows, columns = (np.arange(int(side // 2), n, round(side)) for side, n in zip(grid, size, strict=True))
    seeds = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float64)
    down, across = (_REACH * round(side) for side in _grid_cells(*size, len(seeds)))
    native = library(_SOURCE, _INSTEAD)
    cluster = slic_numpy.cluster if native is None else functools.partial(_cluster, native)
    labels = cluster(lab, seeds, (down, across), (compactness / step) ** 2, iterations)
    return joined(labels, num_segments, len(seeds), smallest, _LARGEST)


def joined(
    labels: Int32[np.ndarray, "H W"], num_segments: int, num_centres: int, smallest: float, largest: float
) -> Int32[np.ndarray, "H W"]:
    """Connected segments from centres of pixels, at most `num_segments` of them: where more are left, `smallest` grows.

    Args:
        labels: the centre of each pixel.
        num_segments: upper bound.
        num_centres: how many there were to choose from.
        smallest: smallest segment, in mean segments; smaller pieces join a neighbour.
        largest: largest segment, in mean segments.
    """
    native = library(_SOURCE, _INSTEAD)
    join = slic_numpy.join if native is None else functools.partial(_join, native)
    mean_pixels = labels.size / num_centres
    while True:
        ids = join(labels, int(smallest * mean_pixels), int(largest * mean_pixels))
        if ids.max() < num_segments:
            return ids
        smallest = _GROWTH * max(smallest, 0.01)


def _grid_cells(height: int, width: int, num_segments: int) -> tuple[float, float]:
    """Rows and columns of a seed's cell: about square, or as wide as a narrow image."""
    side = (height * width / num_segments) ** 0.5
    if side <= 1:
        return 1.0, 1.0
    longer = max(height, width) / num_segments
    if height < side:
        return float(height), longer
    return (longer, float(width)) if width < side else (side, side)


def _smooth_lab(image: UInt8[np.ndarray, "H W 3"], sigma_px: float) -> Float32[np.ndarray, "H W 3"]:
    lab = cv2.cvtColor(cv2.LUT(image, _LINEAR), cv2.COLOR_LRGB2Lab)
    if sigma_px > 0:
        kernel = 2 * int(4 * sigma_px + 0.5) + 1
        lab = cv2.GaussianBlur(lab, (kernel, kernel), sigma_px, borderType=cv2.BORDER_REFLECT)
    lab *= _COLOUR_UNITS
    np.rint(lab, out=lab)
    lab /= _COLOUR_UNITS
    return np.ascontiguousarray(lab)


def _cluster(
    native: ctypes.CDLL,
    lab: Float32[np.ndarray, "H W 3"],
    seeds: Float64[np.ndarray, "K 2"],
    reach: tuple[int, int],
    weight: float,
    iterations: int,
) -> Int32[np.ndarray, "H W"]:
    """See `slic_numpy.cluster`."""
    function = native.tandem_slic_cluster
    whole: Any = ctypes.c_int64
    image, places, found = array_type(np.float32), array_type(np.float64), array_type(np.int32)
    function.argtypes = [image, whole, whole, places, whole, whole, whole, ctypes.c_double, whole, found]
    height, width, _ = lab.shape
    labels = np.empty((height, width), np.int32)
    if function(lab, height, width, seeds, len(seeds), *reach, weight, iterations, labels):
        raise MemoryError(f"no memory to cut an image of {height} x {width} pixels")
    return labels


def _join(
    native: ctypes.CDLL, labels: Int32[np.ndarray, "H W"], min_pixels: int, max_pixels: int
) -> Int32[np.ndarray, "H W"]:
    """See `slic_numpy.join`."""
    function = native.tandem_slic_join
    function.argtypes = [array_type(np.int32), *[ctypes.c_int64] * 4, array_type(np.int32)]
    function.restype = ctypes.c_int64
    ids = np.empty_like(labels)
    if function(labels, *labels.shape, min_pixels, max_pixels, ids) < 0:
        raise MemoryError(f"no memory to cut an image of {labels.shape[0]} x {labels.shape[1]} pixels")
    return ids
