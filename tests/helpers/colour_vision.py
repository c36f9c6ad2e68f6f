"""How far apart colours look, with normal and with red-green-blind vision."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float

# Linear RGB as seen without red and without green cones: Machado, Oliveira and Fernandes, "A Physiologically-based
# Model for Simulation of Color Vision Deficiency", IEEE TVCG 2009, table 1, severity 1.0.
_VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
_XYZ_OF_RGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def least_distances(colours: Float[np.ndarray, "n 3"]) -> dict[str, float]:
    """Smallest CIELAB distance (CIE 1976) between any two of some sRGB colours, 0 to 255, for each kind of vision."""
    share = np.asarray(colours, dtype=np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    least = {}
    for name, matrix in _VISIONS.items():
        lab = _lab(np.clip(linear @ matrix.T, 0, 1))
        least[name] = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(lab, 2))
    return least


def _lab(linear: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    xyz = linear @ _XYZ_OF_RGB.T / _XYZ_OF_RGB.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
