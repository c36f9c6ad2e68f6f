"""From scored boxes to detections: threshold, non-maximum suppression, and the samples of a batch one after another.

Letters: K boxes, R boxes that stay, D detections of all samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from common.boxes.nms import rotated_nms
from common.ranges import at_least, share
from models.detection.base import Detections


@dataclass(frozen=True, kw_only=True)
class SuppressionConfig:
    """Which of a sample's scored boxes become detections. The defaults are SECOND's and PointPillars' on KITTI.

    Attributes:
        min_score: lower scores are dropped.
        max_iou: of the footprints of two detections.
        num_before: so many boxes of highest score are compared with each other.
        num_after: so many detections are kept.
    """

    min_score: float = 0.1
    max_iou: float = 0.01
    num_before: int = 4096
    num_after: int = 500

    def __post_init__(self) -> None:
        share(self, "min_score", "max_iou")
        at_least(self, num_before=1, num_after=1)

    def rows(self, boxes: Float[Tensor, "K 7"], scores: Float[Tensor, " K"]) -> Int[Tensor, " R"]:
        """Those of a sample's boxes that stay, by falling score, whatever their class.

        Boxes of diverged weights, which are not finite, are dropped.
        """
        usable = ((scores >= self.min_score) & boxes.isfinite().all(dim=1)).nonzero()[:, 0]
        kept = rotated_nms(
            boxes[usable],
            scores[usable],
            self.max_iou,
            num_before=self.num_before,
            num_after=self.num_after,
        )
        return usable[kept]

    def rows_by_class(
        self, boxes: Float[Tensor, "K 7"], scores: Float[Tensor, " K"], classes: Int[Tensor, " K"]
    ) -> Int[Tensor, " R"]:
        """As `rows`, but boxes of different classes do not meet; `num_before` is of each class, `num_after` of all."""
        kept = [classes.new_zeros(0)]
        for number in classes.unique().tolist():
            own = (classes == number).nonzero()[:, 0]
            kept.append(own[self.rows(boxes[own], scores[own])])
        rows = torch.cat(kept)
        return rows[scores[rows].argsort(descending=True, stable=True)][: self.num_after]


def joined(parts: Sequence[Detections]) -> Detections:
    """The detections of a batch from those of its parts: one sample after another, by falling score within each."""
    names = [field.name for field in dataclasses.fields(Detections)]
    all_of = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    order = all_of["scores"].argsort(descending=True, stable=True)
    order = order[all_of["sample"][order].argsort(stable=True)]
    return Detections(**{name: values[order] for name, values in all_of.items()})
