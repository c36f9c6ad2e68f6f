"""Heads on single points: whether a point lies on an object (PV-RCNN), and which box it lies in (PointRCNN).

Source: Shi, Wang, Li, "PointRCNN", CVPR 2019, section 3.2; Shi et al., "PV-RCNN", CVPR 2020, section 3.2 (predicted
keypoint weighting). The box of a point is coded against its class's mean size, as in OpenPCDet (released code), instead
of in the paper's bins.

Letters: N points of all samples, K true boxes, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from common.boxes.points import first_box_of_points
from data.sample import BatchBoxes
from models.detection.losses import BETA, focal_loss, mean_over_ranks
from models.lidar.ball_pooling import point_layers
from models.pairing import full_precision


@dataclass(frozen=True, kw_only=True)
class PointLabels:
    """What each point lies on.

    Attributes:
        box: index of the true box, -1 outside of all.
        ignored: near a box, but not inside one: not clearly background.
    """

    box: Int64[Tensor, " N"]
    ignored: Bool[Tensor, " N"]


@torch.no_grad()
def label_points(
    points: Float[Tensor, "N 3"], sample: Int[Tensor, " N"], truth: BatchBoxes, num_samples: int, margin_m: float
) -> PointLabels:
    """Labels by the true boxes of each point's sample; of overlapping boxes the first.

    Points are ignored that only a box with each dimension larger by `margin_m` holds.
    """
    box = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    ignored = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for number in range(num_samples):
        rows = (sample == number).nonzero().squeeze(1)
        true = (truth.sample == number).nonzero().squeeze(1)
        if len(rows) == 0 or len(true) == 0:
            continue
        boxes = truth.boxes[true].to(points.dtype)
        larger = torch.cat([boxes[:, :3], boxes[:, 3:6] + margin_m, boxes[:, 6:]], dim=1)
        inside = first_box_of_points(points[rows], boxes)
        box[rows] = torch.where(inside >= 0, true[inside.clamp(min=0)], -1)
        ignored[rows] = (inside < 0) & (first_box_of_points(points[rows], larger) >= 0)
    return PointLabels(box=box, ignored=ignored)


def point_class_loss(logits: Float[Tensor, "N classes"], labels: PointLabels, truth: BatchBoxes) -> Float[Tensor, ""]:
    """Focal loss over all points that are not ignored, divided by the number of points in boxes (at least 1).

    With one channel it is whether a point lies in any box.
    """
    on_object = labels.box >= 0
    is_class = torch.zeros_like(logits, dtype=torch.bool)
    classes = truth.classes.long()[labels.box[on_object]] if logits.shape[1] > 1 else 0
    is_class[on_object, classes] = True
    focal = focal_loss(logits, is_class) * ~labels.ignored[:, None]
    return focal.sum() / mean_over_ranks(on_object.sum().to(logits.dtype))


def point_box_loss(
    codes: Float[Tensor, "N 8"],
    points: Float[Tensor, "N 3"],
    labels: PointLabels,
    truth: BatchBoxes,
    mean_sizes_m: Float[Tensor, "classes 3"],
) -> Float[Tensor, ""]:
    """Smooth L1 loss of the codes of points in boxes, summed over code and points, divided by their number."""
    rows = (labels.box >= 0).nonzero().squeeze(1)
    box = labels.box[rows]
    sizes = mean_sizes_m[truth.classes.long()[box]]
    target = encode_point_box(truth.boxes[box].to(codes.dtype), points[rows].to(codes.dtype), sizes)
    loss = F.smooth_l1_loss(codes[rows], target, beta=BETA, reduction="sum")
    return loss / mean_over_ranks(codes.new_tensor(len(rows)))


def encode_point_box(
    boxes: Float[Tensor, "N 7"], points: Float[Tensor, "N 3"], sizes_m: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 8"]:
    """Code of a box as its point sees it.

    offset of the centre / (diagonal of the mean footprint, twice, and mean height), log of the ratio of sizes,
    cos and sin of the heading
    """
    offsets = (boxes[:, :3] - points) / _scale(sizes_m)
    heading = boxes[:, 6:]
    return torch.cat([offsets, (boxes[:, 3:6] / sizes_m).log(), heading.cos(), heading.sin()], dim=1)


def decode_point_box(
    codes: Float[Tensor, "N 8"], points: Float[Tensor, "N 3"], sizes_m: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 7"]:
    """Inverse of `encode_point_box`, headings from -pi to pi."""
    centres = codes[:, :3] * _scale(sizes_m) + points
    heading = torch.atan2(codes[:, 7], codes[:, 6])
    return torch.cat([centres, codes[:, 3:6].exp() * sizes_m, heading[:, None]], dim=1)


def _scale(sizes_m: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    diagonal = sizes_m[:, :2].norm(dim=1)
    return torch.stack([diagonal, diagonal, sizes_m[:, 2]], dim=1)


class PointBranch(nn.Module):
    """Layers on each point alone, the last one linear with a bias."""

    def __init__(self, in_features: int, hidden: Sequence[int], out: int) -> None:
        super().__init__()
        self.layers = point_layers((in_features, *hidden))
        self.last = nn.Linear(hidden[-1], out)

    def forward(self, features: Float[Tensor, "N C"]) -> Float[Tensor, "N out"]:
        """Values of each point, in float32 or longer."""
        return full_precision(self.last(self.layers(features)))
