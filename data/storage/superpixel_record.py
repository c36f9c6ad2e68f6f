"""How the superpixels of a prepared set were made: recorded in its manifest, and compared with what a run expects."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from common.ranges import below, between, positive


@dataclass(frozen=True, kw_only=True)
class SuperpixelRecord:
    """Settings that superpixels were made with.

    In a manifest, None: the method has no such setting. In a run's config, None: any value will do.

    Attributes:
        method: the algorithm, e.g. "slic".
        num_segments: upper bound of superpixels an image.
        compactness: weight of distance against colour, as in scikit-image.
        smoothing: standard deviation of the blur before, as a share of a superpixel's side.
        iterations: of k-means.
        min_fragment_percent: smallest connected piece, percent of the mean superpixel.
        max_pixels: images with more pixels were shrunk to about this many before they were cut.
    """

    method: str | None = None
    num_segments: int | None = None
    compactness: float | None = None
    smoothing: float | None = None
    iterations: int | None = None
    min_fragment_percent: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        between(self, "ids are stored in 16 bits", num_segments=(1, 65536))
        positive(self, "compactness")
        below(self, compactness=math.inf)
        between(self, "share of a superpixel's side", smoothing=(0, 1))
        between(self, min_fragment_percent=(0, 100))
        # Above as well: a manifest may come from anybody, and OpenCV takes 32-bit numbers of iterations.
        between(self, iterations=(1, 10_000), max_pixels=(1, 1 << 40))

    def __str__(self) -> str:
        """The settings that are known, in one line."""
        return ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(self).items() if value is not None)

    def differences(self, expected: SuperpixelRecord) -> list[str]:
        """One text for each setting that is another one than expected, with both values."""
        asked, recorded = dataclasses.asdict(expected), dataclasses.asdict(self)
        return [
            f"{name} {recorded[name]} (expected {value})"
            for name, value in asked.items()
            if value is not None and recorded[name] != value
        ]
