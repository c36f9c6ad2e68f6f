"""Planes of few values as runs, of which windows can be read without making the whole plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int64, Shaped, UInt8, UInt16


@dataclass(frozen=True)
class Runs:
    """A plane as it is stored, of which parts are read without making the whole.

    Attributes:
        values: of each run, in 8 bits where they hold all of them and in 16 elsewhere.
        ends: pixels up to the end of each run, row by row.
        size: height, width.
    """

    values: UInt8[np.ndarray, " runs"] | UInt16[np.ndarray, " runs"]
    ends: Int64[np.ndarray, " runs"]
    size: tuple[int, int]

    @property
    def largest(self) -> int:
        """The largest value."""
        return int(self.values.max())

    def plane(self) -> Shaped[np.ndarray, "H W"]:
        """All of it."""
        return np.repeat(self.values, np.diff(self.ends, prepend=0)).reshape(self.size)

    def window(self, rows: Int[np.ndarray, " h"], left: int, right: int) -> Shaped[np.ndarray, "h w"]:
        """The columns `left` to `right` - 1 of some rows, as `plane()[rows, left:right]`."""
        begin = rows * self.size[1] + left
        end = begin + (right - left)
        # Of each row the runs from the first that ends behind its first pixel to the one that holds its last pixel.
        first, last = np.searchsorted(self.ends, begin, "right"), np.searchsorted(self.ends, end)
        counts = last - first + 1
        before = np.cumsum(counts) - counts
        run = np.repeat(first - before, counts) + np.arange(counts.sum())
        bounds = self.ends.take(run)
        bounds[before + counts - 1] = end
        starts = np.empty_like(bounds)
        starts[1:] = bounds[:-1]
        starts[before] = begin
        return np.repeat(self.values.take(run), bounds - starts).reshape(len(rows), right - left)
