"""Elastic distortion: points move along with a smooth random field, so that walls bend and legs of chairs lean.

Source: Simard et al., "Best practices for convolutional neural networks" (ICDAR 2003), for images; Choy et al., "4D
spatio-temporal ConvNets" (CVPR 2019), released code, for clouds: indoors (cell, size) of (0.2, 0.4), then (0.8, 1.6) m.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from data.storage.damage import DamagedError

_BLURS = 2
"""Passes of a mean over three nodes along each axis: the noise of neighbouring nodes becomes alike."""
_MOST_NODES = 1 << 23
"""Of the field: 100 MB of it in single precision."""


def elastic_distortion(
    rng: np.random.Generator, points: Float[np.ndarray, "N 3"], cell_m: float, size_m: float
) -> Float[np.ndarray, "N 3"]:
    """The points, each moved by a field that is trilinear between the nodes of a grid.

    The field at a node is Gaussian noise of standard deviation `size_m`, averaged twice over three nodes along each of
    the three axes (0 beyond the grid): displacements of a node have a standard deviation of 0.11 `size_m`.

    Args:
        rng: where the noise comes from.
        points: metres.
        cell_m: distance between nodes.
        size_m: see above.

    Raises:
        DamagedError: the cloud has too many cells of this size for any memory.
    """
    from scipy import ndimage  # not before it is needed: it takes most of a second

    if len(points) == 0:
        return points
    low = points.min(axis=0).astype(np.float64)
    extent = points.max(axis=0) - low
    # One node before the first point and two behind, so that all points are between nodes.
    nodes = (np.floor(extent / cell_m) + 4).astype(np.int64)
    if nodes.astype(np.float64).prod() > _MOST_NODES:
        raise DamagedError("too-large", f"elastic distortion in cells of {cell_m:g} m of a cloud of {extent} m")
    field = rng.normal(0.0, size_m, (3, *nodes)).astype(np.float32)
    for axis in (1, 2, 3) * _BLURS:
        field = ndimage.uniform_filter1d(field, 3, axis=axis, mode="constant")
    place = ((points - low) / cell_m + 1).T
    moved = [ndimage.map_coordinates(part, place, order=1) for part in field]
    return np.asarray(points + np.stack(moved, axis=1).astype(points.dtype))
