"""SLIC superpixels: patches of similar colour, the units between which SLidR contrasts.

Three implementations, of one meaning of their parameters and with superpixels of their own: in integers, after the
design of fast-slic (`data.preparing.fast_slic`), the default; scikit-image's (`data.preparing.slic`), which SLidR's
preparation used; and OpenCV's (`cv2.ximgproc`), the default of earlier versions. OpenCV's is driven so that its
parameters mean what they mean in scikit-image: the image is blurred, converted to CIELAB in its natural scale (L from 0
to 100, which takes float input; 8-bit Lab stretches L by 2.55), and OpenCV's "ruler" is then scikit-image's
"compactness", the weight of distance in units of the superpixel's side against colour difference.

Cost: linear in pixels and iterations, of which images of more than `max_pixels` therefore have fewer: they are cut at
that size and the ids brought back to all pixels. The blur takes more from the borders than shrinking does, as long as a
superpixel keeps some 2000 pixels (`benchmarks/superpixels.py` compares borders and purity with cutting all pixels).

Source: Achanta et al., SLIC (TPAMI 2012); Sautier et al., SLidR (CVPR 2022), section 3.1.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from data.preparing import fast_slic, slic
from data.storage.superpixel_record import SuperpixelRecord

_METHODS: dict[str | None, str] = {
    None: "slic",
    "scikit-image": "slic of scikit-image",
    "fast-slic": "slic like fast-slic",
}
"""`SuperpixelConfig.like` -> `SuperpixelRecord.method`."""
_GROWTH = 1.2
"""Factor by which the smallest allowed fragment grows while there are too many segments."""


@dataclass(frozen=True, kw_only=True)
class SuperpixelConfig:
    """How an image is cut.

    Attributes:
        like: "fast-slic": in integers, the fastest. "scikit-image": the superpixels of scikit-image's `slic`, which
            SLidR used; SLidR's are num_segments 150, compactness 6, smoothing 0.0306, 10 iterations,
            min_fragment_percent 50 at full size. null: OpenCV's, the default of earlier versions with smoothing 0.05
            and 5 iterations.
        num_segments: upper bound, and about the number, of superpixels an image; SLidR uses 150 (30 with VoxelNet).
        compactness: larger gives squarer superpixels, smaller follows colour more closely. SLidR uses 6; at the small
            images of the street world 10 keeps textured ground from fraying.
        smoothing: standard deviation of the Gaussian blur before, as a share of a superpixel's side, so that it
            suits any resolution. SLidR blurs by 3 pixels at a side of 98 (0.03).
        iterations: of k-means.
        min_fragment_percent: connected pieces smaller than this share of the mean superpixel join a neighbour.
        max_pixels: larger images are shrunk to about this size, cut, and the ids enlarged; raise it with
            `num_segments`.
    """

    like: Literal["fast-slic", "scikit-image"] | None = "fast-slic"
    num_segments: int = 150
    compactness: float = 10.0
    smoothing: float = 0.03
    iterations: int = 8
    min_fragment_percent: int = 25
    max_pixels: int = 360_000

    def __post_init__(self) -> None:
        """Check ranges, which are those of the record."""
        self.record()

    def record(self) -> SuperpixelRecord:
        """What a set's manifest says about superpixels that were made like this."""
        settings = dataclasses.asdict(self)
        like = settings.pop("like")
        return SuperpixelRecord(method=_METHODS[like], **settings)


def segment(image: UInt8[np.ndarray, "H W 3"], config: SuperpixelConfig) -> Int[np.ndarray, "H W"]:
    """Cut an RGB image into connected superpixels.

    Returns:
        The superpixel of each pixel: int32 ids, consecutive from 0, at most `config.num_segments` of them.
    """
    height, width = image.shape[:2]
    scale = math.sqrt(config.max_pixels / (height * width))
    if scale >= 1:
        return _slic(image, config)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    ids = _slic(cv2.resize(image, size, interpolation=cv2.INTER_AREA), config)
    # Each small pixel becomes a rectangle of at least one pixel, so that ids stay consecutive and segments connected.
    rows = (np.arange(height) * 2 + 1) * size[1] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * size[0] // (2 * width)
    enlarged: Int[np.ndarray, "H W"] = ids[rows][:, columns]
    return enlarged


def _slic(image: UInt8[np.ndarray, "H W 3"], config: SuperpixelConfig) -> Int[np.ndarray, "H W"]:
    """Cut at the image's own size."""
    if config.like is None:
        return _opencv(image, config)
    cut = fast_slic.cut if config.like == "fast-slic" else slic.cut
    return cut(
        image,
        num_segments=config.num_segments,
        compactness=config.compactness,
        smoothing=config.smoothing,
        iterations=config.iterations,
        smallest=config.min_fragment_percent / 100,
    )


def _opencv(image: UInt8[np.ndarray, "H W 3"], config: SuperpixelConfig) -> Int[np.ndarray, "H W"]:
    height, width = image.shape[:2]
    side = superpixel_side(height, width, config.num_segments)
    if min(height, width) < 2 * side:  # OpenCV needs room for seeds in both directions
        return _grid(height, width, side)
    found = cv2.ximgproc.createSuperpixelSLIC(
        _smooth_lab(image, config.smoothing * side), cv2.ximgproc.SLIC, side, float(config.compactness)
    )
    found.iterate(config.iterations)
    percent = float(config.min_fragment_percent)
    found.enforceLabelConnectivity(int(percent))
    # A cluster that lies in several pieces becomes several segments, so the bound can be passed by a few.
    while found.getNumberOfSuperpixels() > config.num_segments:
        if percent >= 100:
            return _grid(height, width, side)
        percent = min(100.0, max(percent, 1.0) * _GROWTH)
        found.enforceLabelConnectivity(int(percent))
    return _consecutive(np.asarray(found.getLabels(), dtype=np.int32))


def _consecutive(ids: Int[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
    """OpenCV 5.0 leaves gaps in the ids of images of a few pixels."""
    used = np.bincount(ids.ravel()) > 0
    return ids if used.all() else (np.cumsum(used) - 1).astype(np.int32)[ids]


def superpixel_side(height: int, width: int, num_segments: int) -> int:
    """Smallest side in pixels at which a grid of squares over the image has at most `num_segments` cells."""
    side = max(1, int(np.sqrt(height * width / num_segments)))
    while -(-height // side) * -(-width // side) > num_segments:
        side += 1
    return side


def _smooth_lab(image: UInt8[np.ndarray, "H W 3"], sigma_px: float) -> np.ndarray:
    blurred = cv2.GaussianBlur(image, (0, 0), sigma_px) if sigma_px > 0 else image
    return np.asarray(cv2.cvtColor(blurred.astype(np.float32) / 255, cv2.COLOR_RGB2Lab))


def _grid(height: int, width: int, side: int) -> Int[np.ndarray, "H W"]:
    """Squares: what SLIC starts from."""
    columns = -(-width // side)
    ids = np.arange(height)[:, None] // side * columns + np.arange(width)[None, :] // side
    return ids.astype(np.int32)
