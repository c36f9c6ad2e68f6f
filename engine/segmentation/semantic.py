"""mIoU of points by the rule of the set for classes that do not occur. Letters: K classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from engine.downstream.confusion import absent_class_of
from engine.scores import MEAN, Score, Scores
from engine.segmentation.confusion import confusion_of, iou_of
from engine.segmentation.frames import SegmentedFrame, SegmentNames


def semantic_counts(frame: SegmentedFrame, names: SegmentNames) -> Int64[np.ndarray, "K K_and_1"]:
    """What mIoU keeps of a frame."""
    return confusion_of(frame.true_class, frame.found_class, len(names.classes))


def score_semantic(parts: Mapping[str, Int64[np.ndarray, "K K_and_1"]], names: SegmentNames) -> Scores:
    """Mean over the classes of intersection over union, counted over all frames together.

    A class that occurs neither in the truth nor in what was found counts as the set's own tool says
    (`engine.downstream.confusion.absent_class_of`).
    """
    confusion = np.sum(list(parts.values()), axis=0)
    iou = iou_of(confusion)
    absent = np.isnan(iou)
    as_zero = absent_class_of(names.dataset) == "zero"
    value = 100 * float(np.nan_to_num(iou).mean() if as_zero else iou[~absent].mean() if not absent.all() else np.nan)
    accuracy = 100 * float(np.trace(confusion) / total) if (total := confusion.sum()) else float("nan")
    points = confusion.sum(axis=1)
    rows = [
        Score(category=name, subset="", metric="IoU", value=100 * float(iou[c]), unit="%", num_true=int(points[c]))
        for c, name in enumerate(names.classes)
    ]
    means = {"mIoU": value, "accuracy": accuracy}
    rows += [
        Score(category=MEAN, subset="", metric=title.removeprefix("m"), value=mean, unit="%", num_true=int(total))
        for title, mean in means.items()
    ]
    return Scores(
        benchmark=f"mIoU of points, {len(names.classes)} classes",
        headline=means,
        unit="%",
        rows=tuple(rows),
        notes=absent_note(absent, names, as_zero=as_zero),
    )


def absent_note(absent: np.ndarray, names: SegmentNames, *, as_zero: bool) -> tuple[str, ...]:
    """What the means do with classes that are neither true nor found; nothing where there are none."""
    missing = [name for name, gone in zip(names.classes, absent.tolist(), strict=True) if gone]
    how = "count as 0" if as_zero else "are left out of the mean"
    return (f"neither true nor found in these frames, {how}: {', '.join(missing)}",) if missing else ()
