"""Precision over recall, and errors over recall, of one class at one limit of distance, as nuScenes reads them off.

Letters: D found objects, by falling score; M matches among them; 101 recalls from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, kw_only=True)
class RecallCurve:
    """Values at each of `RECALLS`; all 0 where nothing matches.

    Attributes:
        precision: linear between found objects, no envelope; 0 beyond the recall that is reached.
        scores: confidence at which the recall is reached, 0 beyond.
    """

    precision: Float64[np.ndarray, "101"]
    scores: Float64[np.ndarray, "101"]

    def average(self, min_recall: float, min_precision: float) -> float:
        """Mean of the precision beyond a recall that exceeds a precision, 1 for a perfect detector."""
        counted = self.precision[_first(min_recall) :] - min_precision
        return float(np.mean(np.maximum(counted, 0))) / (1 - min_precision)


def _first(min_recall: float) -> int:
    """Row of the first recall that counts: the one after the least."""
    return round(100 * min_recall) + 1


def recall_curve(matched: Bool[np.ndarray, " D"], scores: Float64[np.ndarray, " D"], num_true: int) -> RecallCurve:
    """Precision and score over recall.

    Args:
        matched: whether each found object matches a true one, by falling score.
        scores: of the found objects.
        num_true: true objects.
    """
    if num_true == 0 or not matched.any():
        return RecallCurve(precision=np.zeros(101), scores=np.zeros(101))
    right = np.cumsum(matched).astype(np.float64)
    recall, precision = right / num_true, right / np.arange(1, len(matched) + 1)
    return RecallCurve(
        precision=np.interp(RECALLS, recall, precision, right=0),
        scores=np.interp(RECALLS, recall, scores, right=0),
    )


def mean_error(
    errors: Float64[np.ndarray, " M"],
    scores: Float64[np.ndarray, " M"],
    curve: RecallCurve,
    min_recall: float,
) -> float:
    """Mean over recalls of the mean error of what was found up to there.

    1 where the recall that counts is not reached, or a score of 0 stands for it; also where no error is known.

    Args:
        errors: of the matches, by falling score; NaN where one is not known, which leaves it out.
        scores: of the matches.
        curve: of the class.
        min_recall: errors count beyond it.
    """
    reached = np.flatnonzero(curve.scores)
    first, last = _first(min_recall), int(reached[-1]) if reached.size else 0
    if last < first or np.isnan(errors).all():
        return 1.0
    known = ~np.isnan(errors)
    # Before the first error that is known the mean is 0: it pulls the figure down, as in the official tool.
    running = np.cumsum(np.where(known, errors, 0)) / np.maximum(np.cumsum(known), 1)
    over_recall = np.interp(curve.scores[::-1], scores[::-1], running[::-1])[::-1]
    return float(np.mean(over_recall[first : last + 1]))
