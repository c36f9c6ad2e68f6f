"""SLIC as scikit-image cuts, pixel by pixel in double precision, after its documentation and the description in
`data.preparing.slic`."""

from __future__ import annotations

from collections import deque

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy import ndimage

_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)


def lab_of(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """CIELAB of sRGB, D65 and 2 degrees."""
    grey = image / 255
    linear = np.where(grey > 0.04045, ((grey + 0.055) / 1.055) ** 2.4, grey / 12.92)
    xyz = linear @ np.transpose(_TO_XYZ) / _WHITE
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def cut(
    image: UInt8[np.ndarray, "H W 3"],
    *,
    num_segments: int,
    compactness: float,
    sigma_px: float,
    iterations: int,
    smallest: float,
    largest: float = 3.0,
) -> Int[np.ndarray, "H W"]:
    """Ids of an image that is at least a cell wide in both directions; arguments as those of the fast version."""
    height, width = image.shape[:2]
    colours = ndimage.gaussian_filter(lab_of(image), (sigma_px, sigma_px, 0)) / compactness
    rows, columns = np.mgrid[:height, :width]
    side = (height * width / num_segments) ** 0.5
    step, first = round(side), int(side // 2)
    seeds = [(y, x, 0, 0, 0) for y in range(first, height, step) for x in range(first, width, step)]
    centres = np.array(seeds, dtype=np.float64)
    reach = 2 * round((height * width / len(seeds)) ** 0.5)
    labels = np.zeros((height, width), dtype=np.int64)
    for _ in range(iterations):
        best = np.full(labels.shape, np.inf)
        for number, (y, x, *colour) in enumerate(centres):
            distance = ((rows - y) ** 2 + (columns - x) ** 2) / step**2 + ((colours - colour) ** 2).sum(axis=2)
            for at, place in ((rows, y), (columns, x)):
                distance[(at < np.floor(place - reach)) | (at > np.floor(place + reach))] = np.inf
            nearer = distance < best
            best[nearer], labels[nearer] = distance[nearer], number
        found = labels.copy()
        for number in np.unique(labels):
            own = labels == number
            centres[number] = [rows[own].mean(), columns[own].mean(), *colours[own].mean(axis=0)]
    mean = height * width / len(seeds)
    return joined(found, int(smallest * mean), int(largest * mean))


def joined(labels: Int[np.ndarray, "H W"], min_pixels: int, max_pixels: int) -> Int[np.ndarray, "H W"]:
    """Pieces in reading order, each grown breadth first up to a size; a small one joins what it met last."""
    height, width = labels.shape
    ids = np.full(labels.shape, -1)
    following = 0
    for start in np.ndindex(height, width):
        if ids[start] >= 0:
            continue
        piece, queue, met = [start], deque([start]), 0
        ids[start] = following
        while queue and len(piece) < max_pixels:
            y, x = queue.popleft()
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                at = (y + dy, x + dx)
                if not (0 <= at[0] < height and 0 <= at[1] < width):
                    continue
                if ids[at] >= 0 and ids[at] != following:
                    met = int(ids[at])
                elif ids[at] < 0 and labels[at] == labels[start] and len(piece) < max_pixels:
                    ids[at] = following
                    piece.append(at)
                    queue.append(at)
        if len(piece) < min_pixels:
            ids[tuple(np.transpose(piece))] = met
        else:
            following += 1
    return ids
