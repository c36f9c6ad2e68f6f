"""What a metric of objects or points gives: headline figures, a table, curves, which objects of which frame went wrong.

Letters: K true objects, D found objects, C points of a curve.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

MEAN = "mean"
"""Stands for the class in rows that are a mean over classes."""


class JudgeError(ValueError):
    """Frames that a metric cannot judge; the message names the frame, what is wrong with it and what to do."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure, a row of the table.

    Attributes:
        category: class, or `MEAN`.
        subset: which objects count, in the benchmark's words: "moderate", "LEVEL_2", "< 30 m"; "" for all.
        metric: what is measured: "3D AP R40", "AP 2 m", "APH", "ATE".
        value: as the official tool gives it, NaN where that has none.
        unit: "%", "m", "rad", "m/s" or "" for a plain number.
        num_true: true objects behind it; for a mean, of all its classes.
    """

    category: str
    subset: str
    metric: str
    value: float
    unit: str
    num_true: int


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Precision over recall, as the figure of the same category, subset and metric is made of it.

    Attributes:
        category: class.
        subset: as of `Score`.
        metric: as of `Score`.
        recall: 0 to 1, rising.
        precision: 0 to 1.
        scores: confidence from which on objects count at each point; NaN where the recall is not reached.
    """

    category: str
    subset: str
    metric: str
    recall: Float64[np.ndarray, " C"]
    precision: Float64[np.ndarray, " C"]
    scores: Float64[np.ndarray, " C"]


@dataclass(frozen=True, kw_only=True)
class FrameErrors:
    """What went wrong in a frame, counting found objects from the score of best F1 of their class on.

    Objects that the benchmark counts neither way are in no list.

    Attributes:
        key: of the frame.
        missed: rows of the true objects that nothing matches.
        false: rows of the found objects that match nothing.
        right: rows of the found objects that match.
    """

    key: str
    missed: Int64[np.ndarray, " M"]
    false: Int64[np.ndarray, " F"]
    right: Int64[np.ndarray, " R"]

    @property
    def count(self) -> int:
        """Errors: missed and false objects."""
        return len(self.missed) + len(self.false)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A benchmark's verdict.

    Attributes:
        benchmark: in words, with the variant of the rules: what to write beside a figure.
        headline: the one or few figures that papers compare, by name; the first is the one that a run is chosen by.
        unit: of the headline figures.
        rows: all figures.
        curves: precision over recall.
        frames: of every frame.
        notes: what a reader of the figures must know: odd official rules, few objects, what was left out.
    """

    benchmark: str
    headline: Mapping[str, float]
    unit: str
    rows: tuple[Score, ...]
    curves: tuple[Curve, ...] = ()
    frames: tuple[FrameErrors, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def value(self, category: str, subset: str, metric: str) -> float:
        """The figure of one row.

        Raises:
            KeyError: there is no such row.
        """
        for row in self.rows:
            if (row.category, row.subset, row.metric) == (category, subset, metric):
                return row.value
        raise KeyError(f"no figure {metric!r} of {category!r}, {subset!r} in {self.benchmark}")

    def as_json(self) -> dict[str, Any]:
        """All of it in plain lists and numbers, NaN as None."""
        frames = [
            {"key": f.key, "missed": f.missed.tolist(), "false": f.false.tolist(), "right": f.right.tolist()}
            for f in self.frames
        ]
        curves = [
            {
                **{name: getattr(curve, name) for name in ("category", "subset", "metric")},
                **{name: _plain(getattr(curve, name).tolist()) for name in ("recall", "precision", "scores")},
            }
            for curve in self.curves
        ]
        return {
            "benchmark": self.benchmark,
            "unit": self.unit,
            "headline": dict(zip(self.headline, _plain(self.headline.values()), strict=True)),
            "notes": list(self.notes),
            "rows": [{**dataclasses.asdict(row), "value": _plain([row.value])[0]} for row in self.rows],
            "curves": curves,
            "frames": frames,
        }

    def worst_frames(self, count: int) -> tuple[FrameErrors, ...]:
        """Frames with most errors first, of equally many by their key; those without errors are left out."""
        wrong = [frame for frame in self.frames if frame.count]
        return tuple(sorted(wrong, key=lambda frame: (-frame.count, frame.key))[:count])


def _plain(values: Iterable[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]
