"""Segmentation metrics from a confusion matrix: exact over any number of batches, in a few kilobytes.

Letters: K classes, N points.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

AbsentClass = Literal["left-out", "zero", "one"]
"""What a class counts as in the mean that neither the ground truth nor the predictions have anywhere."""

_ABSENT_IOU: dict[AbsentClass, float] = {"left-out": float("nan"), "zero": 0.0, "one": 1.0}


def absent_class_of(dataset: str) -> AbsentClass:
    """What a set's own tool takes such a class for, by the set's name.

    Sources: nuscenes-devkit leaves an absent class out of the mean, semantic-kitti-api counts it as 0. Sets without an
    official tool leave it out.
    """
    return "zero" if dataset == "semantickitti" else "left-out"


class LabelError(ValueError):
    """A set's labels are missing or do not fit the task."""


class ConfusionMatrix:
    """Counts of (true class, predicted class) over all points seen.

    Attributes:
        counts: row = true class, column = predicted class.
        ignore_label: points with this true label are not counted.
        absent: see `AbsentClass`.
    """

    counts: Int[Tensor, "K K"]

    def __init__(self, num_classes: int, ignore_label: int, *, absent: AbsentClass = "left-out") -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes = {num_classes}: a segmentation metric needs at least 2 classes")
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.ignore_label = ignore_label
        self.absent = absent

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.counts.shape[0])

    def update(self, predicted: Int[Tensor, " N"], labels: Int[Tensor, " N"]) -> None:
        """Count a batch of points.

        Args:
            predicted: class of each point, 0 to K - 1; negative where no prediction was asked for (not counted).
            labels: true class of each point, or the ignore label.

        Raises:
            LabelError: a label is neither a class nor the ignore label, or a prediction is no class.
        """
        keep = (labels != self.ignore_label) & (predicted >= 0)
        true, guess = labels[keep].long(), predicted[keep].long()
        check_class_range(true, self.num_classes, "label")
        check_class_range(guess, self.num_classes, "prediction")
        flat = torch.bincount(true * self.num_classes + guess, minlength=self.num_classes**2)
        self.counts += flat.view_as(self.counts).cpu()

    def iou(self) -> Float[Tensor, " K"]:
        """Intersection over union of each class, 0 to 1.

        A class that is predicted but never true has 0, as in the official tools of nuScenes and SemanticKITTI and in
        SLidR's code; for one that is neither, they differ: `absent` decides, "left-out" as NaN.
        """
        counts = self.counts.double()
        intersection = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - intersection
        return torch.where(union > 0, intersection / union, _ABSENT_IOU[self.absent])

    def miou(self) -> float:
        """Mean of `iou` over the classes that are not left out, 0 to 1.

        Raises:
            LabelError: no labelled point was counted.
        """
        if not self.counts.any():
            raise LabelError("mIoU of nothing: not one labelled point was counted; is the split labelled?")
        return float(self.iou().nanmean())

    def accuracy(self) -> float:
        """Share of points whose class was right, 0 to 1; NaN before any was counted."""
        total = int(self.counts.sum())
        return float(self.counts.diagonal().sum()) / total if total else float("nan")


def check_class_range(classes: Int[Tensor, " N"], num_classes: int, what: str) -> None:
    """Refuse values outside of 0 to K - 1.

    Raises:
        LabelError: names the offending value.
    """
    if classes.numel() == 0:
        return
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= num_classes:
        bad = high if high >= num_classes else low
        raise LabelError(
            f"{what} {bad} is outside of the {num_classes} classes (0 to {num_classes - 1}); "
            "do the class names of the set and its labels belong together?"
        )
