"""Headings of boxes whose rotation is a quaternion, as nuScenes' and Argoverse 2's files have them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64


def yaws_of(rotations: Float64[np.ndarray, "D 4"]) -> Float64[np.ndarray, " D"]:
    """Where rotations turn the x axis to, seen from above.

    Args:
        rotations: quaternions w, x, y, z of any length.

    Returns:
        Radians from +x counter-clockwise about z; NaN where a quaternion is all zeros.
    """
    largest = np.abs(rotations).max(axis=1, keepdims=True)
    # Products of very short or very long ones would leave the range of a double.
    w, x, y, z = (rotations / np.where(largest > 0, largest, np.nan)).T
    return np.asarray(np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z))
