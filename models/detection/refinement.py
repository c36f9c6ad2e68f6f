"""What the second stages of PV-RCNN and PointRCNN share: branches for score and box, and their losses.

Source: Shi et al., "PV-RCNN", CVPR 2020, section 3.3; the corner loss is of Qi et al., "Frustum PointNets", CVPR 2018,
section 4.3. Details as in OpenPCDet (released code).

Letters: R RoIs of all samples, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from common.ranges import at_least, below, weights
from models.detection.base import Detections
from models.detection.box_coding import decode, encode
from models.detection.losses import BETA, mean_over_ranks
from models.detection.roi import Proposals, corners, global_boxes, local_boxes
from models.detection.roi_targets import RoiTargetConfig, RoiTargets, ScoreTargetConfig
from models.detection.suppression import SuppressionConfig, joined
from models.lidar.layers import PointLayer
from models.pairing import full_precision


def proposals(*, max_iou: float, before: int, after: int) -> SuppressionConfig:
    """Suppression among the first stage's boxes, whatever their score."""
    return SuppressionConfig(min_score=0.0, max_iou=max_iou, num_before=before, num_after=after)


@dataclass(frozen=True, kw_only=True)
class RefinementConfig:
    """Settings of a second stage; the defaults are PV-RCNN's.

    Attributes:
        train_proposals: which boxes of the first stage are drawn from in training.
        test_proposals: which ones are refined in evaluation mode.
        targets: how proposals are drawn and matched.
        scores: what the score should be.
        dropout: share of the hidden values that is zeroed.
        score_weight: of the score's cross-entropy.
        box_weight: of the box's smooth L1 loss.
        corner_weight: of the corner loss.
        detections: which refined boxes are detections.
    """

    train_proposals: SuppressionConfig = field(default_factory=lambda: proposals(max_iou=0.8, before=9000, after=512))
    test_proposals: SuppressionConfig = field(default_factory=lambda: proposals(max_iou=0.7, before=1024, after=100))
    targets: RoiTargetConfig = field(default_factory=RoiTargetConfig)
    scores: ScoreTargetConfig = field(default_factory=ScoreTargetConfig)
    dropout: float = 0.3
    score_weight: float = 1.0
    box_weight: float = 1.0
    corner_weight: float = 1.0
    detections: SuppressionConfig = field(default_factory=lambda: SuppressionConfig(max_iou=0.1))

    def __post_init__(self) -> None:
        at_least(self, dropout=0)
        below(self, dropout=1)
        weights(self, "score_weight", "box_weight", "corner_weight")


class RefinementBranches(nn.Module):
    """From the pooled features of a RoI to the logit of its score and the code of its box, two hidden layers each.

    Initial weights as in OpenPCDet (released code): Xavier's, those of the box's last layer nearly 0, so that boxes
    begin as their RoIs.
    """

    def __init__(self, in_features: int, hidden: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.score = _branch(in_features, hidden, 1, dropout)
        self.box = _branch(in_features, hidden, 7, dropout)

    def forward(self, pooled: Float[Tensor, "R C"]) -> tuple[Float[Tensor, " R"], Float[Tensor, "R 7"]]:
        """Logits and codes, in float32 or longer."""
        return full_precision(self.score(pooled)).squeeze(1), full_precision(self.box(pooled))

    def reset_box(self) -> None:
        """Weights of the box's last layer back to nearly 0."""
        last = self.box[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.001)


def _branch(in_features: int, hidden: tuple[int, int], out: int, dropout: float) -> nn.Sequential:
    first, second = PointLayer(in_features, hidden[0], bn_momentum=0.1), PointLayer(*hidden, bn_momentum=0.1)
    return nn.Sequential(first, nn.Dropout(dropout), second, nn.Linear(hidden[1], out))


def xavier(module: nn.Module) -> None:
    """Xavier's normal weights for all linear layers of a second stage, biases 0. Source: OpenPCDet (released code)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, RefinementBranches):
            layer.reset_box()


def encode_in_roi(boxes: Float[Tensor, "R 7"], rois: Float[Tensor, "R 7"]) -> Float[Tensor, "R 7"]:
    """Code of the box of each RoI: `box_coding.encode` in the RoI's frame, against a box there of the RoI's size."""
    return encode(local_boxes(boxes, rois), _at_origin(rois))


def decode_in_roi(codes: Float[Tensor, "R 7"], rois: Float[Tensor, "R 7"]) -> Float[Tensor, "R 7"]:
    """Inverse of `encode_in_roi`, up to half turns."""
    return global_boxes(decode(codes, _at_origin(rois)), rois)


def _at_origin(rois: Float[Tensor, "R 7"]) -> Float[Tensor, "R 7"]:
    return torch.cat([torch.zeros_like(rois[:, :3]), rois[:, 3:6], torch.zeros_like(rois[:, 6:])], dim=1)


def refinement_losses(
    logits: Float[Tensor, " R"],
    codes: Float[Tensor, "R 7"],
    rois: Float[Tensor, "R 7"],
    targets: RoiTargets,
    config: RefinementConfig,
) -> dict[str, Float[Tensor, ""]]:
    """Weighted losses of the second stage by name; each is 0, with a gradient of 0, where no RoI takes part.

    score  = mean over the RoIs that count of cross-entropy(logit, target)
    box    = mean over the RoIs of the foreground of sum smoothL1(code - code of the true box)
    corner = mean over them of `corner_loss`
    """
    score, counted = config.scores.targets(targets.ious)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, score, reduction="none")
    score_loss = (cross_entropy * counted).sum() / mean_over_ranks(counted.sum().to(logits.dtype))

    rows = (targets.ious > config.targets.foreground_iou).nonzero().squeeze(1)
    codes, rois, true = codes[rows], rois[rows], targets.boxes[rows]
    number = mean_over_ranks(codes.new_tensor(len(rows)))
    box_loss = F.smooth_l1_loss(codes, encode_in_roi(true, rois), beta=BETA, reduction="sum") / number
    corner = corner_loss(decode_in_roi(codes, rois), true).sum() / number
    return {
        "roi_score": config.score_weight * score_loss,
        "roi_box": config.box_weight * box_loss,
        "roi_corner": config.corner_weight * corner,
    }


def corner_loss(boxes: Float[Tensor, "R 7"], true: Float[Tensor, "R 7"]) -> Float[Tensor, " R"]:
    """How far the corners of each box are from those of its true box, whichever way that one heads.

        mean over the 8 corners of huber(min over the true box and itself turned by pi of |corner - its corner|)

    where huber(d) = d^2 / 2 below 1 m, d - 1/2 above. As in the released code each corner takes the nearer one itself.
    """
    turned_round = true + true.new_tensor([0, 0, 0, 0, 0, 0, math.pi])
    found = corners(boxes)
    distance = torch.minimum((found - corners(true)).norm(dim=2), (found - corners(turned_round)).norm(dim=2))
    return F.smooth_l1_loss(distance, torch.zeros_like(distance), reduction="none", beta=1.0).mean(dim=1)


def drawing(module: nn.Module) -> torch.Generator | None:
    """What random choices are drawn from: in training torch's CPU generator (None), whose state checkpoints hold.

    In evaluation mode a generator of its own, always the same, so that looking at a run does not change what it draws.
    """
    return None if module.training else torch.Generator().manual_seed(0)


def detections(
    boxes: Float[Tensor, "R 7"],
    logits: Float[Tensor, " R"],
    rois: Proposals,
    num_samples: int,
    suppression: SuppressionConfig,
) -> Detections:
    """Refined boxes with the class of their RoIs, after suppression among all classes."""
    scores, found = logits.sigmoid(), []
    for number in range(num_samples):
        mine = (rois.sample == number).nonzero().squeeze(1)
        rows = mine[suppression.rows(boxes[mine], scores[mine])]
        found.append(
            Detections(
                boxes=boxes[rows],
                velocities_mps=boxes.new_full((len(rows), 2), torch.nan),
                classes=rois.classes[rows],
                scores=scores[rows],
                sample=rois.sample[rows],
            )
        )
    return joined(found)
