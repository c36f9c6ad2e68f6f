"""Regions of interest (RoIs): the boxes of a first stage, which a second one looks into and refines.

Boxes are as in `data.sample.BatchBoxes`. The frame of a RoI has its origin at the RoI's centre and x along its heading.

Source: Shi, Wang, Li, "PointRCNN", CVPR 2019, section 3.3 (RoI point pooling, canonical coordinates); Shi et al.,
"PV-RCNN", CVPR 2020, section 3.3 (RoI grid).

Letters: R RoIs of all samples, n points of one RoI, N points of all samples, P pooled points of all RoIs, B samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from common.boxes.points import points_in_boxes
from models.detection.suppression import SuppressionConfig
from models.points.ragged import bounds


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """RoIs of a batch, those of one sample after another.

    Attributes:
        boxes: in the frame of `Batch.points`.
        scores: of the class, 0 to 1.
        classes: the most likely class of each.
        sample: sample of each, non-decreasing.
    """

    boxes: Float[Tensor, "R 7"]
    scores: Float[Tensor, " R"]
    classes: Int64[Tensor, " R"]
    sample: Int64[Tensor, " R"]

    def select(self, rows: Int64[Tensor, " r"]) -> Proposals:
        """Some of them, in the order given."""
        boxes, scores, classes, sample = (x[rows] for x in (self.boxes, self.scores, self.classes, self.sample))
        return Proposals(boxes=boxes, scores=scores, classes=classes, sample=sample)

    def counts(self, num_samples: int) -> Int64[Tensor, " B"]:
        """RoIs of each sample."""
        return torch.bincount(self.sample, minlength=num_samples)


@torch.no_grad()
def propose(
    boxes: Float[Tensor, "N 7"],
    logits: Float[Tensor, "N classes"],
    sample: Int[Tensor, " N"],
    num_samples: int,
    suppression: SuppressionConfig,
) -> Proposals:
    """The first stage's best boxes, by falling score of their most likely class, without gradient.

    `sample` may be in any order.
    """
    boxes, sample = boxes.detach(), sample.long()
    scores, classes = logits.detach().sigmoid().max(dim=1)
    kept = []
    for number in range(num_samples):
        rows = (sample == number).nonzero().squeeze(1)
        kept.append(rows[suppression.rows(boxes[rows], scores[rows])])
    return Proposals(boxes=boxes, scores=scores, classes=classes, sample=sample).select(torch.cat(kept))


def turned(points: Float[Tensor, "R n 3"], angles: Float[Tensor, " R"]) -> Float[Tensor, "R n 3"]:
    """Points turned counter-clockwise about z, radians."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    x, y, z = points.unbind(2)
    return torch.stack([x * cos - y * sin, x * sin + y * cos, z], dim=2)


def to_roi_frame(points: Float[Tensor, "R n 3"], rois: Float[Tensor, "R 7"]) -> Float[Tensor, "R n 3"]:
    """Places seen from each RoI."""
    return turned(points - rois[:, None, :3], -rois[:, 6])


def from_roi_frame(points: Float[Tensor, "R n 3"], rois: Float[Tensor, "R 7"]) -> Float[Tensor, "R n 3"]:
    """Places seen from each RoI, in the frame of the RoIs."""
    return turned(points, rois[:, 6]) + rois[:, None, :3]


def grid_points(rois: Float[Tensor, "R 7"], size: int) -> Float[Tensor, "R n 3"]:
    """Centres of the `size`^3 equal cells of each RoI, x slowest, z fastest.

    Source: PV-RCNN, section 3.3; points at cell centres as in the released code (OpenPCDet).
    """
    steps = (torch.arange(size, device=rois.device, dtype=rois.dtype) + 0.5) / size - 0.5
    cells = torch.cartesian_prod(steps, steps, steps).view(-1, 3)
    return from_roi_frame(cells * rois[:, None, 3:6], rois)


def corners(boxes: Float[Tensor, "R 7"]) -> Float[Tensor, "R 8 3"]:
    """Corners, always in the same order as seen from the box."""
    signs = torch.tensor([-0.5, 0.5], device=boxes.device, dtype=boxes.dtype)
    return from_roi_frame(torch.cartesian_prod(signs, signs, signs) * boxes[:, None, 3:6], boxes)


def local_boxes(boxes: Float[Tensor, "R 7"], rois: Float[Tensor, "R 7"]) -> Float[Tensor, "R 7"]:
    """The box of each RoI in that RoI's frame, its heading folded to -pi/2 to pi/2: front and back are not told apart.

    Source: OpenPCDet (released code), targets of the second stage.
    """
    centres = to_roi_frame(boxes[:, None, :3], rois)[:, 0]
    heading = math.pi / 2 - torch.remainder(math.pi / 2 - (boxes[:, 6] - rois[:, 6]), math.pi)
    return torch.cat([centres, boxes[:, 3:6], heading[:, None]], dim=1)


def global_boxes(local: Float[Tensor, "R 7"], rois: Float[Tensor, "R 7"]) -> Float[Tensor, "R 7"]:
    """Inverse of `local_boxes`, up to half turns."""
    centres = from_roi_frame(local[:, None, :3], rois)[:, 0]
    return torch.cat([centres, local[:, 3:6], local[:, 6:] + rois[:, 6:]], dim=1)


def points_of_rois(
    points: Float[Tensor, "N 3"],
    point_counts: Int64[Tensor, " B"],
    rois: Float[Tensor, "R 7"],
    roi_counts: Int64[Tensor, " B"],
    limit: int,
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"]]:
    """Pairs of a RoI and a point of its sample inside it, RoI by RoI; of a fuller RoI the first `limit` by row.

    Returns:
        RoI and point of each pair. A RoI without points has no pair.
    """
    pairs_roi, pairs_point = [], []
    point_spans, roi_spans = bounds(point_counts, len(points)), bounds(roi_counts, len(rois), "RoIs")
    for (p0, p1), (r0, r1) in zip(point_spans, roi_spans, strict=True):
        inside = points_in_boxes(points[p0:p1], rois[r0:r1]).T
        inside = inside & (inside.cumsum(dim=1) <= limit)
        roi, point = inside.nonzero(as_tuple=True)
        pairs_roi.append(roi + r0)
        pairs_point.append(point + p0)
    return torch.cat(pairs_roi), torch.cat(pairs_point)
