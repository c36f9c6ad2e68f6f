"""Waymo's average precision of a curve with few points. Letters: C score cutoffs, R points of the curve."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

_STEP = 0.05
"""A wider gap in recall is filled with points this far apart."""
_SLACK = 1e-6


def average_precision(precision: Float64[np.ndarray, " C"], recall: Float64[np.ndarray, " C"]) -> float:
    """Area under the curve up to its largest recall.

    From the largest recall down, precision is the largest met so far. Between neighbours it is linear, but a gap of
    more than .05 is first filled with points at the precision of its upper end: there it is a step.

    Args:
        precision: at each score cutoff.
        recall: at each score cutoff, in any order.

    Source: waymo-open-dataset (released code), metrics/metrics_utils.cc.
    """
    at_recall = {0.0: 1.0}
    for r, p in zip(recall.tolist(), precision.tolist(), strict=True):
        at_recall[r] = max(at_recall.get(r, 0.0), p)
    recalls, precisions = [], []
    best, last = 0.0, 0.0
    for r in sorted(at_recall, reverse=True):
        while last - r > _STEP + _SLACK:
            last -= _STEP
            recalls.append(last)
            precisions.append(best)
        best = max(best, at_recall[r])
        recalls.append(r)
        precisions.append(best)
        last = r
    if len(precisions) > 1:
        precisions[-1] = precisions[-2]  # the point at recall 0 is made up
    widths = -np.diff(recalls)
    return float((widths * (np.add(precisions[1:], precisions[:-1]) / 2)).sum())
