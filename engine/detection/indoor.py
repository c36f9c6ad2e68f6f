"""Average precision of boxes in rooms, as ScanNet and SUN RGB-D are judged since VoteNet: AP at IoU .25 and .5.

Found objects of a class take their turn by falling score over all frames; of equal scores the one of the earlier frame,
then of the lower row comes first. Each looks at the true object of its class and frame that it overlaps most in space.
It is right where that overlap is *more* than the limit and nobody better had that true object; else it is wrong, a
second box on one object included, which does not go on to the next true object. Precision is that of the best later
recall, and AP the area under it at all recalls that are reached ("all points", as PASCAL VOC has had it since 2010).

The classes are the set's own. A class without true objects has no figure and is in no mean; one of which nothing was
found has 0. Boxes are turned about z as they say: those along the axes (ScanNet) have the heading 0.

Source: Qi et al., VoteNet (ICCV 2019), section 5.1, released code; Everingham et al., "The PASCAL VOC challenge: a
retrospective" (IJCV 2015), section 2.2. IoUs are exact; the released code's are those of polygons clipped in single
steps, equal within rounding.

Letters: K true, D found objects of all frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from engine.detection.failures import best_threshold, errors_by_frame
from engine.detection.pairs import FramePair, Overlaps, Stacked, box_overlaps, stacked
from engine.scores import MEAN, Curve, Score, Scores

LIMITS = (0.25, 0.5)
"""Overlaps that a match exceeds; the first one is what a run is chosen by."""
_NONE = -1


def score_indoor(frames: Sequence[FramePair], classes: Sequence[str] | None = None) -> Scores:
    """All figures.

    Args:
        frames: true and found objects of each frame.
        classes: that are judged, without regard to case; None: all that true objects have.
    """
    objects = stacked(frames)
    names = sorted({*objects.categories.tolist()} - {""}) if classes is None else [*dict.fromkeys(classes)]
    turn = _turns(objects.scores)
    best = _best_true(objects, box_overlaps(objects)[1])
    cells = [_Class(objects, turn, best, name, limit) for limit in LIMITS for name in names]
    means = [_mean([cell for cell in cells if cell.limit == limit], limit) for limit in LIMITS]
    outcomes = [cell.errors() for cell in cells if cell.limit == LIMITS[0]]
    return Scores(
        benchmark="boxes in rooms (VoteNet)",
        headline={f"m{_metric(limit)}": mean.value for limit, mean in zip(LIMITS, means, strict=True)},
        unit="%",
        rows=(*[cell.row() for cell in cells], *means),
        curves=tuple(cell.curve() for cell in cells if cell.num_true),
        frames=errors_by_frame(frames, *(zip(*outcomes, strict=True) if outcomes else ((), (), ()))),
        notes=_notes(cells),
    )


def _metric(limit: float) -> str:
    return f"AP@{limit:g}"


def _turns(scores: Float64[np.ndarray, " D"]) -> Int64[np.ndarray, " D"]:
    """Rows of found objects by falling score, equal ones in their order."""
    return np.argsort(-scores, kind="stable")


@dataclass(frozen=True, kw_only=True)
class _Best:
    """The true object of its frame and class that each found one overlaps most.

    Attributes:
        true: its row, -1 for none: the first of equals.
        overlap: 0 for none.
    """

    true: Int64[np.ndarray, " D"]
    overlap: Float64[np.ndarray, " D"]


def _best_true(objects: Stacked, overlaps: Overlaps) -> _Best:
    """Of all found objects."""
    pairs = overlaps.where(objects.categories[overlaps.true] == objects.classes[overlaps.found])
    order = np.lexsort((pairs.true, -pairs.value, pairs.found))
    found, first = np.unique(pairs.found[order], return_index=True)
    true, overlap = np.full(len(objects.scores), _NONE), np.zeros(len(objects.scores))
    true[found], overlap[found] = pairs.true[order][first], pairs.value[order][first]
    return _Best(true=true, overlap=overlap)


class _Class:
    """One class at one limit."""

    def __init__(self, objects: Stacked, turn: Int64[np.ndarray, " D"], best: _Best, name: str, limit: float) -> None:
        self.category, self.limit = name, limit
        self._true = np.flatnonzero(objects.categories == name.lower())
        self._found = turn[objects.classes[turn] == name.lower()]
        self._scores = objects.scores[self._found]
        self._taken, self._is_right = best.true[self._found], self._matches(best)
        right = np.cumsum(self._is_right)
        self._right, self._wrong = right, np.arange(1, len(right) + 1) - right

    @property
    def num_true(self) -> int:
        """True objects."""
        return len(self._true)

    def _matches(self, best: _Best) -> Bool[np.ndarray, " d"]:
        """Found objects, by their turn, that are the first over the limit at their true object."""
        over = np.flatnonzero(best.overlap[self._found] > self.limit)
        first = np.unique(best.true[self._found][over], return_index=True)[1]
        right = np.zeros(len(self._found), dtype=np.bool_)
        right[over[first]] = True
        return right

    def _steps(self) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, " d"]]:
        """Recall after each turn, and the best precision from there on."""
        precision = self._right / np.maximum(self._right + self._wrong, 1)
        return self._right / self.num_true, np.maximum.accumulate(precision[::-1])[::-1]

    def row(self) -> Score:
        """Area under the precision."""
        value = math.nan
        if self.num_true:
            recall, precision = self._steps()
            value = 100 * float(np.sum(np.diff(recall, prepend=0.0) * precision))
        return Score(
            category=self.category, subset="", metric=_metric(self.limit), value=value, unit="%", num_true=self.num_true
        )

    def curve(self) -> Curve:
        """Best precision from each recall on, where recall rises."""
        recall, precision = self._steps()
        return Curve(
            category=self.category,
            subset="",
            metric=_metric(self.limit),
            recall=recall[self._is_right],
            precision=precision[self._is_right],
            scores=self._scores[self._is_right],
        )

    def errors(self) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " f"], Int64[np.ndarray, " r"]]:
        """Rows missed, false and right, of found objects from the score of best F1 on; none where nothing is right."""
        missed = self.num_true - self._right
        # A threshold takes all objects of its score.
        ends = np.flatnonzero(np.append(self._scores[1:] != self._scores[:-1], True)[: len(self._scores)])
        best = best_threshold(self._right[ends], self._wrong[ends], missed[ends])
        count = 0 if best is None else int(ends[best]) + 1
        found, is_right = self._found[:count], self._is_right[:count]
        return np.setdiff1d(self._true, self._taken[:count][is_right]), found[~is_right], found[is_right]


def _mean(cells: Sequence[_Class], limit: float) -> Score:
    """Over the classes that have true objects; NaN where none has."""
    rows = [cell.row() for cell in cells if cell.num_true]
    return Score(
        category=MEAN,
        subset="",
        metric=_metric(limit),
        value=float(np.mean([row.value for row in rows])) if rows else math.nan,
        unit="%",
        num_true=sum(row.num_true for row in rows),
    )


def _notes(cells: Sequence[_Class]) -> tuple[str, ...]:
    absent = [cell.category for cell in cells if cell.limit == LIMITS[0] and not cell.num_true]
    if not absent:
        return ()
    return (f"without true objects, and so in no mean: {', '.join(absent)}",)
