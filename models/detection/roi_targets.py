"""Which proposals the second stage learns from, and what each should become.

Source: Shi et al., "PV-RCNN", CVPR 2020, section 3.3 and appendix; shares and limits as in OpenPCDet (released code),
which its configs of PointRCNN use, too.

Letters: R RoIs, K true boxes, B samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from common.boxes.overlap import iou_3d
from common.ranges import at_least, expect, one_of, share
from data.sample import BatchBoxes
from models.detection.roi import Proposals
from models.points.ragged import bounds


@dataclass(frozen=True, kw_only=True)
class RoiTargetConfig:
    """How RoIs are drawn for training, and from which overlap with its true box (IoU in space) a RoI counts as what.

    Attributes:
        num_rois: drawn of each frame.
        foreground_share: RoIs of the foreground are at most this share, where there is background.
        foreground_iou: from it on a RoI is foreground; above it, it learns its box.
        hard_iou: background from it on is hard.
        hard_share: of the drawn background, at most.
    """

    num_rois: int = 128
    foreground_share: float = 0.5
    foreground_iou: float = 0.55
    hard_iou: float = 0.1
    hard_share: float = 0.8

    def __post_init__(self) -> None:
        at_least(self, num_rois=1)
        share(self, "foreground_share", "hard_share", "foreground_iou", "hard_iou")
        expect(self, "hard_iou", self.hard_iou <= self.foreground_iou, f"at most foreground_iou {self.foreground_iou}")


@dataclass(frozen=True, kw_only=True)
class ScoreTargetConfig:
    """What the second stage's score should be, by the overlap of the RoI with its true box.

    Attributes:
        kind: "iou": 0 up to `low_iou`, rising to 1 at `high_iou`; "class": 1 above `high_iou`, 0 up to `low_iou`,
            ignored between.
        low_iou: see `kind`.
        high_iou: see `kind`.
    """

    kind: Literal["iou", "class"] = "iou"
    low_iou: float = 0.25
    high_iou: float = 0.75

    def __post_init__(self) -> None:
        one_of(self, kind=("iou", "class"))
        share(self, "low_iou", "high_iou")
        expect(self, "low_iou", self.low_iou < self.high_iou, f"below high_iou {self.high_iou}")

    def targets(self, ious: Float[Tensor, " R"]) -> tuple[Float[Tensor, " R"], Bool[Tensor, " R"]]:
        """Score to learn, and whether a RoI counts."""
        if self.kind == "iou":
            score = (ious - self.low_iou) / (self.high_iou - self.low_iou)
            return score.clamp(0, 1), torch.ones_like(ious, dtype=torch.bool)
        return (ious > self.high_iou).to(ious.dtype), (ious <= self.low_iou) | (ious >= self.high_iou)


@dataclass(frozen=True, kw_only=True)
class RoiTargets:
    """Of each RoI the true box of its class that it overlaps most, and by how much.

    Attributes:
        boxes: the RoI itself where its sample has no box of its class.
        ious: in space; 0 there.
    """

    boxes: Float[Tensor, "R 7"]
    ious: Float[Tensor, " R"]


@torch.no_grad()
def draw_rois(
    proposals: Proposals,
    truth: BatchBoxes,
    num_samples: int,
    config: RoiTargetConfig,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Proposals, RoiTargets]:
    """RoIs to learn from, those of one sample after another; a sample without proposals gives none.

    Draws from `generator`, None: torch's CPU generator, whose state checkpoints hold.
    """
    matched = match(proposals, truth, num_samples)
    spans = bounds(proposals.counts(num_samples), len(proposals.boxes), "proposals")
    ious = matched.ious.cpu()
    rows = torch.cat([start + choose(ious[start:end], config, generator) for start, end in spans])
    rows = rows.to(proposals.boxes.device)
    return proposals.select(rows), RoiTargets(boxes=matched.boxes[rows], ious=matched.ious[rows])


def match(proposals: Proposals, truth: BatchBoxes, num_samples: int) -> RoiTargets:
    """The true box of each proposal, the first one of equals."""
    boxes, ious = proposals.boxes.clone(), proposals.boxes.new_zeros(len(proposals.boxes))
    for number in range(num_samples):
        rows = (proposals.sample == number).nonzero().squeeze(1)
        true = (truth.sample == number).nonzero().squeeze(1)
        if len(rows) == 0 or len(true) == 0:
            continue
        true_boxes = truth.boxes[true].to(boxes.dtype)
        same = proposals.classes[rows, None] == truth.classes[true]
        # Other classes lose against every one of the same class, also where nothing overlaps.
        best, which = iou_3d(proposals.boxes[rows], true_boxes).masked_fill(~same, -1).max(dim=1)
        known = best >= 0
        boxes[rows[known]], ious[rows[known]] = true_boxes[which[known]], best[known].to(ious.dtype)
    return RoiTargets(boxes=boxes, ious=ious)


def choose(
    ious: Float[Tensor, " R"], config: RoiTargetConfig, generator: torch.Generator | None
) -> Int64[Tensor, " drawn"]:
    """Rows of one frame: foreground without repetition, then background with it.

    Where there is no background, the foreground fills all places, with repetition.
    """
    foreground = (ious >= config.foreground_iou).nonzero().squeeze(1)
    hard = ((ious < config.foreground_iou) & (ious >= config.hard_iou)).nonzero().squeeze(1)
    easy = (ious < min(config.hard_iou, config.foreground_iou)).nonzero().squeeze(1)
    if len(ious) == 0:
        return foreground
    if len(hard) + len(easy) == 0:
        return _drawn(foreground, config.num_rois, generator)
    wanted = min(round(config.foreground_share * config.num_rois), len(foreground))
    chosen = foreground[torch.randperm(len(foreground), generator=generator)[:wanted]]
    left = config.num_rois - wanted
    num_hard = left if len(easy) == 0 else min(int(left * config.hard_share), len(hard))
    return torch.cat([chosen, _drawn(hard, num_hard, generator), _drawn(easy, left - num_hard, generator)])


def _drawn(rows: Int64[Tensor, " n"], number: int, generator: torch.Generator | None) -> Int64[Tensor, " drawn"]:
    """With repetition."""
    if number == 0:
        return rows[:0]
    return rows[torch.randint(len(rows), (number,), generator=generator)]
