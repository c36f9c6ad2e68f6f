"""The loops of `data.preparing.fast_slic` in numpy, for machines without a compiler.

Results are those of `fast_slic.c`: all numbers are integers.

Letters: H, W image; K centres.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, UInt8, UInt16

ROOT_BITS = 15
"""Of the roots' fractions."""
_NONE_YET = np.uint16(65535)


def lab(
    image: UInt8[np.ndarray, "H W 3"],
    linear: Int32[np.ndarray, "3 3 256"],
    root: UInt16[np.ndarray, " roots"],
    fine: int,
    scale: int,
) -> UInt16[np.ndarray, "3 H W"]:
    """Colours as L, a + 128, b + 128 of CIELAB.

    Args:
        image: RGB.
        linear: what each grey level of R, G, B adds to X, Y, Z.
        root: CIELAB's f in 2^-15, by X, Y, Z without their last `fine` bits.
        fine: see there.
        scale: bits that are dropped of L, a, b in 2^-15.
    """
    x, y, z = (
        root[sum(to[channel][image[..., channel]] for channel in range(3)) >> fine].astype(np.int32) for to in linear
    )
    middle = np.int32(128 << ROOT_BITS)
    parts = 116 * y - np.int32(16 << ROOT_BITS), 500 * (x - y) + middle, 200 * (y - z) + middle
    half = np.int32(1 << (scale - 1))
    return np.stack([(part + half) >> scale for part in parts]).astype(np.uint16)


def cluster(
    planes: UInt16[np.ndarray, "3 H W"],
    centres: Int32[np.ndarray, "K 5"],
    far: UInt16[np.ndarray, " far"],
    home_row: Int32[np.ndarray, " H"],
    home_column: Int32[np.ndarray, " W"],
    iterations: int,
    stride: int,
) -> Int32[np.ndarray, "H W"]:
    """k-means of places and colours by sums of absolute differences.

    Args:
        planes: colours.
        centres: the seeds' rows, columns, colours.
        far: distances of pixels left of (above) a centre, of its own, and of as many to the right (below), from the
            farthest to the farthest; pixels beyond are not compared with it.
        home_row: plus `home_column`: the seed in whose cell a pixel lies, which it keeps where no centre is so near.
        home_column: see there.
        iterations: assignments to the nearest centre.
        stride: all but the last look at every `stride`-th row, in turn.

    Returns:
        The centre of each pixel, the first of several at the same distance.
    """
    for turn in range(iterations - 1):
        rows = np.arange(turn % stride, planes.shape[1], stride)
        labels = _assign(planes[:, rows], rows, centres, far, home_row[rows], home_column)
        centres = _means(planes[:, rows], rows, labels, centres)
    every = np.arange(planes.shape[1])
    return _assign(planes, every, centres, far, home_row, home_column)


def _assign(
    planes: UInt16[np.ndarray, "3 h W"],
    rows: np.ndarray,
    centres: Int32[np.ndarray, "K 5"],
    far: UInt16[np.ndarray, " far"],
    home_row: Int32[np.ndarray, " h"],
    home_column: Int32[np.ndarray, " W"],
) -> Int32[np.ndarray, "h W"]:
    """The nearest centre of each pixel of some rows."""
    labels: Int32[np.ndarray, "h W"] = home_row[:, None] + home_column
    least = np.full(labels.shape, _NONE_YET)
    reach, width = len(far) // 2, labels.shape[1]
    for number, (row, column, *colour) in enumerate(centres.tolist()):
        top, bottom = np.searchsorted(rows, (row - reach, row + reach + 1))
        left, right = max(column - reach, 0), min(column + reach + 1, width)
        window = slice(top, bottom), slice(left, right)
        distance = far[rows[top:bottom] - row + reach][:, None] + far[left - column + reach : right - column + reach]
        for plane, own in zip(planes, colour, strict=True):
            seen, same = plane[window], np.uint16(own)
            distance += np.maximum(seen, same) - np.minimum(seen, same)
        nearer = distance < least[window]
        np.copyto(least[window], distance, where=nearer)
        np.copyto(labels[window], np.int32(number), where=nearer)
    return labels


def _means(
    planes: UInt16[np.ndarray, "3 h W"],
    rows: np.ndarray,
    labels: Int32[np.ndarray, "h W"],
    centres: Int32[np.ndarray, "K 5"],
) -> Int32[np.ndarray, "K 5"]:
    """Rounded means of the centres' pixels; a centre without any stays where it is."""
    columns = np.arange(labels.shape[1])
    parts = np.broadcast_to(rows[:, None], labels.shape), np.broadcast_to(columns, labels.shape), *planes
    size = np.bincount(labels.ravel(), minlength=len(centres))
    # Sums in double precision are exact below 2^53.
    sums = np.stack([np.bincount(labels.ravel(), part.ravel(), len(centres)) for part in parts], axis=1)
    means = (sums.astype(np.int64) + size[:, None] // 2) // np.maximum(size, 1)[:, None]
    return np.where(size[:, None] > 0, means, centres).astype(np.int32)
