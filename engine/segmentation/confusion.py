"""Overlap of predicted and true points by class, from counts that can be added up over frames.

Letters: N points, K classes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64


def confusion_of(
    true_class: Int64[np.ndarray, " N"], found_class: Int64[np.ndarray, " N"], num_classes: int
) -> Int64[np.ndarray, "K K_and_1"]:
    """Counts of labelled points: a row a true class, a column a found one, the last for points where nothing was found.

    Of the classes, -1 is "unlabelled" and "nothing found".
    """
    labelled = true_class >= 0
    found = np.where(found_class < 0, num_classes, found_class)[labelled]
    flat = np.bincount(true_class[labelled] * (num_classes + 1) + found, minlength=num_classes * (num_classes + 1))
    return flat.reshape(num_classes, num_classes + 1)


def iou_of(confusion: Int64[np.ndarray, "K K_and_1"]) -> Float64[np.ndarray, " K"]:
    """Intersection over union of each class, 0 to 1; NaN for a class that is neither true nor found anywhere.

    A point where nothing was found is a missed one of its class.
    """
    found = confusion[:, :-1]
    right = np.diagonal(found).astype(np.float64)
    union = confusion.sum(axis=1) + found.sum(axis=0) - right
    return np.asarray(np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0))
