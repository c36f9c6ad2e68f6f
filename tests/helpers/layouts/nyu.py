"""NYU Depth v2 as works on depth unpack it: pairs of a JPEG and a 16-bit PNG of millimetres, 480 x 640 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt16


def write_nyu(
    root: Path, *, scenes: Sequence[str] = ("sync/bathroom_0001", "official_splits/test/bathroom"), frames: int = 2
) -> UInt16[np.ndarray, "480 640"]:
    """Frames 00000, 00001, ... of each scene.

    Returns:
        Their depth in millimetres, which rises from left to right, with a hole.
    """
    depth = np.tile(np.linspace(1000, 6000, 640).astype(np.uint16), (480, 1))
    depth[100, 200] = 0
    image = np.zeros((480, 640, 3), np.uint8)
    image[:240] = 255
    for scene in scenes:
        folder = root / scene
        folder.mkdir(parents=True)
        for number in range(frames):
            cv2.imwrite(str(folder / f"rgb_{number:05d}.jpg"), image)
            cv2.imwrite(str(folder / f"sync_depth_{number:05d}.png"), depth)
    return depth
