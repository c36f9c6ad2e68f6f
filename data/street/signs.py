"""Tiles of traffic signs."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8

from data.street.tiles import TILE, Tile, noise, tile


def sign(draw: Callable[[UInt8[np.ndarray, "256 256 3"]], None]) -> Callable[[np.random.Generator], Tile]:
    """Painter of a sign's tile from a drawing function, a little bleached."""

    def paint(rng: np.random.Generator) -> Tile:
        # Drawn with the first row on top, stored with v up.
        image = np.zeros((TILE, TILE, 3), np.uint8)
        draw(image)
        rgb = image[::-1].astype(np.float32) / 255 * rng.uniform(0.85, 1.0)
        return tile(rgb * (1 + 0.04 * noise(rng, 8))[..., None])

    return paint


_RED, _WHITE, _BLACK, _BLUE, _YELLOW = (200, 20, 25), (240, 240, 240), (20, 20, 20), (20, 70, 170), (250, 200, 20)


def draw_limit(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    """Speed limit."""
    image[:] = _RED
    cv2.circle(image, (128, 128), 92, _WHITE, -1)
    cv2.putText(image, "50", (62, 162), cv2.FONT_HERSHEY_SIMPLEX, 3.2, _BLACK, 14)


def draw_warning(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    """Danger triangle."""
    image[:] = _RED
    inner = np.array([[128, 52], [196, 166], [60, 166]], np.int32)
    cv2.fillPoly(image, [inner], _WHITE)
    cv2.line(image, (128, 90), (128, 140), _BLACK, 12)


def draw_stop(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    """Stop."""
    image[:] = _RED
    cv2.putText(image, "STOP", (36, 154), cv2.FONT_HERSHEY_SIMPLEX, 2.2, _WHITE, 12)


def draw_parking(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    """Parking."""
    image[:] = _BLUE
    cv2.rectangle(image, (8, 8), (247, 247), _WHITE, 6)
    cv2.putText(image, "P", (76, 186), cv2.FONT_HERSHEY_SIMPLEX, 5.2, _WHITE, 22)


def draw_priority(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    """Priority road."""
    image[:] = _WHITE
    diamond = np.array([[128, 40], [216, 128], [128, 216], [40, 128]], np.int32)
    cv2.fillPoly(image, [diamond], _YELLOW)


def draw_direction(image: UInt8[np.ndarray, "256 256 3"]) -> None:
    """Direction board."""
    image[:] = _BLUE
    cv2.rectangle(image, (6, 6), (249, 249), _WHITE, 5)
    for y in (70, 130, 190):
        cv2.line(image, (80, y), (225, y), _WHITE, 16)
    cv2.arrowedLine(image, (45, 210), (45, 50), _WHITE, 14, tipLength=0.3)
