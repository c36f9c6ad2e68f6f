"""From scored boxes to detections: threshold, non-maximum suppression, and the samples of a batch one after another.

Letters: K boxes, R boxes that stay, D detections of all samples.
"""

from __future__ import annotations

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


def joined(samples: Sequence[Detections]) -> Detections:
    """The detections of a batch from those of each of its samples: by falling score within a sample."""
    orders = [part.scores.argsort(descending=True, stable=True) for part in samples]

    def rows(name: str) -> Tensor:
        return torch.cat([getattr(part, name)[order] for part, order in zip(samples, orders, strict=True)])

    return Detections(
        boxes=rows("boxes"),
        velocities_mps=rows("velocities_mps"),
        classes=rows("classes"),
        scores=rows("scores"),
        sample=rows("sample"),
    )
