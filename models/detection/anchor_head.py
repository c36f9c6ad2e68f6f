"""The anchor head of SECOND, PointPillars and of PV-RCNN's first stage.

At each cell of the bird's-eye view stand boxes of typical sizes, lengthways and across: the anchors. Three 1 x 1
convolutions say of each anchor which class it is, how a box differs from it (`models.detection.box_coding`), and which
way that box points.

Source: Yan, Mao, Li, "SECOND", Sensors 2018, sections 3.3 and 3.4; Lang et al., "PointPillars", CVPR 2019, section 2.3;
sizes, thresholds, places of the anchors and initial weights are those of OpenPCDet's released configurations.

Letters: B samples, A anchors (y slowest, then x, class, rotation), X Y cells, C classes, P anchors with a box.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.nearby import nearest
from common.ranges import at_least, expect, one_of, positive, share
from data.sample import BatchBoxes
from models.detection.base import Detections
from models.detection.box_coding import decode, encode, heading_bin, turned_into_bin
from models.detection.losses import BETA, focal_loss
from models.detection.suppression import SuppressionConfig, joined
from models.detection.targets_anchors import IGNORED, assign
from models.lidar.base import BirdEyeGrid
from models.methods.base import LossTerms
from models.pairing import full_precision

AnchorSet = Literal["kitti", "kitti_fusion", "waymo", "street"]


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Anchors of one class.

    Attributes:
        size_m: length, width, height.
        bottom_m: height of the anchors' lower faces in the frame of the points.
        matched_iou: from this overlap with a box on, an anchor has to find it.
        unmatched_iou: below this overlap with every box, an anchor is background; in between it is not counted.
    """

    size_m: tuple[float, float, float]
    bottom_m: float
    matched_iou: float
    unmatched_iou: float

    def __post_init__(self) -> None:
        positive(self, "size_m", "matched_iou")
        share(self, "matched_iou", "unmatched_iou")
        expect(self, "bottom_m", math.isfinite(self.bottom_m), "a finite number of metres")
        expect(self, "unmatched_iou", self.unmatched_iou <= self.matched_iou, f"at most {self.matched_iou}")


def _anchor(
    length: float, width: float, height: float, bottom: float, matched: float, unmatched: float
) -> AnchorConfig:
    return AnchorConfig(size_m=(length, width, height), bottom_m=bottom, matched_iou=matched, unmatched_iou=unmatched)


ANCHORS: Mapping[AnchorSet, Mapping[str, AnchorConfig]] = {
    "kitti": {
        "car": _anchor(3.9, 1.6, 1.56, -1.78, 0.6, 0.45),
        "pedestrian": _anchor(0.8, 0.6, 1.73, -0.6, 0.5, 0.35),
        "cyclist": _anchor(1.76, 0.6, 1.73, -0.6, 0.5, 0.35),
    },
    # Those of MVX-Net in mmdetection3d, which differ in the thresholds of small objects.
    "kitti_fusion": {
        "car": _anchor(3.9, 1.6, 1.56, -1.78, 0.6, 0.45),
        "pedestrian": _anchor(0.8, 0.6, 1.73, -0.6, 0.35, 0.2),
        "cyclist": _anchor(1.76, 0.6, 1.73, -0.6, 0.35, 0.2),
    },
    # OpenPCDet's of SECOND, in the frame of the top laser, 2.2 m above the vehicle's.
    "waymo": {
        "vehicle": _anchor(4.7, 2.1, 1.7, -2.2, 0.55, 0.4),
        "pedestrian": _anchor(0.91, 0.86, 1.73, -2.2, 0.5, 0.35),
        "cyclist": _anchor(1.78, 0.84, 1.78, -2.2, 0.5, 0.35),
    },
    # Means over the objects with at least five points in two sweeps of each of its first twelve logs. The overlaps are
    # lower than KITTI's where objects are as small as the cells of a small network's map.
    "street": {
        "car": _anchor(4.56, 2.09, 1.62, -1.84, 0.6, 0.45),
        "truck": _anchor(9.0, 2.44, 3.22, -1.84, 0.6, 0.45),
        "bus": _anchor(9.06, 2.52, 3.28, -1.84, 0.6, 0.45),
        "pedestrian": _anchor(0.6, 0.59, 1.71, -1.84, 0.35, 0.2),
        "cyclist": _anchor(1.74, 0.62, 1.81, -1.84, 0.35, 0.2),
    },
}
"""Set -> class -> its anchors."""


@dataclass(frozen=True, kw_only=True)
class AnchorHeadConfig:
    """Settings of the anchor head; the defaults are those of all three detectors on KITTI.

    Attributes:
        anchor_set: where the anchors of each class are taken from, by its name without regard to case, unless `anchors`
            gives them: "kitti", "kitti_fusion" (the same with MVX-Net's thresholds), "waymo" or "street" (the built-in
            street world).
        anchors: one entry a class, in the order of the detector's classes; (): those of `anchor_set`.
        rotations: headings of the anchors at each place, radians.
        class_weight: of the focal loss in the sum.
        box_weight: of the smooth L1 loss.
        direction_weight: of the cross-entropy over the two halves of the circle.
    """

    anchor_set: AnchorSet = "kitti"
    anchors: tuple[AnchorConfig, ...] = ()
    rotations: tuple[float, ...] = (0.0, 1.57)
    class_weight: float = 1.0
    box_weight: float = 2.0
    direction_weight: float = 0.2

    def __post_init__(self) -> None:
        one_of(self, anchor_set=AnchorSet)
        expect(self, "rotations", len(self.rotations) > 0, "at least one heading")
        at_least(self, class_weight=0, box_weight=0, direction_weight=0)

    def of_classes(self, classes: tuple[str, ...]) -> tuple[AnchorConfig, ...]:
        """The anchors of each class.

        Raises:
            ValueError: `anchors` has another number of entries, or the set does not know a class.
        """
        if self.anchors:
            expect(self, "anchors", len(self.anchors) == len(classes), f"{len(classes)} entries, one for each class")
            return self.anchors
        known = ANCHORS[self.anchor_set]
        for name in classes:
            if name.lower() not in known:
                near = nearest(name.lower(), known)
                raise ValueError(
                    f"anchor_set: {self.anchor_set!r} has no anchors for the class {name!r}, only for "
                    f"{', '.join(known)}{near}; give the anchors of all classes in `anchors`, or use another set"
                )
        return tuple(known[name.lower()] for name in classes)


@dataclass(frozen=True, kw_only=True)
class AnchorOutputs:
    """What the head says of each anchor, in float32.

    Attributes:
        logits: of each class.
        codes: the box against the anchor, see `models.detection.box_coding`.
        directions: logits of the two halves of the circle.
    """

    logits: Float[Tensor, "B A C"]
    codes: Float[Tensor, "B A 7"]
    directions: Float[Tensor, "B A 2"]


class AnchorHead(nn.Module):
    """Convolutions, targets, losses and decoding. The names of its parameters are those of OpenPCDet's."""

    def __init__(self, config: AnchorHeadConfig, classes: tuple[str, ...], in_channels: int, grid: BirdEyeGrid) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.kinds = config.of_classes(classes)
        self.per_cell = len(self.kinds) * len(config.rotations)
        self.conv_cls = nn.Conv2d(in_channels, self.per_cell * len(classes), 1)
        self.conv_box = nn.Conv2d(in_channels, self.per_cell * 7, 1)
        self.conv_dir_cls = nn.Conv2d(in_channels, self.per_cell * 2, 1)
        assert self.conv_cls.bias is not None
        nn.init.constant_(self.conv_cls.bias, -math.log(99))  # a score of 0.01 everywhere
        nn.init.normal_(self.conv_box.weight, std=0.001)

    def forward(self, bev: Float[Tensor, "B F Y X"]) -> AnchorOutputs:
        """Outputs at the cells of a map."""
        maps = (self.conv_cls(bev), self.conv_box(bev), self.conv_dir_cls(bev))
        rows = [full_precision(m.permute(0, 2, 3, 1)) for m in maps]
        logits, codes, directions = (
            r.reshape(len(r), -1, size) for r, size in zip(rows, (len(self.kinds), 7, 2), strict=True)
        )
        return AnchorOutputs(logits=logits, codes=codes, directions=directions)

    def anchors(self, device: torch.device) -> Float[Tensor, "A 7"]:
        """All anchors. As in the released code, the outermost ones stand on the rim of the map."""
        (low_x, low_y), (high_x, high_y), (x_size, y_size) = self.grid.low_m, self.grid.high_m, self.grid.size
        y, x = torch.meshgrid(
            torch.linspace(low_y, high_y, y_size), torch.linspace(low_x, high_x, x_size), indexing="ij"
        )
        kinds = [
            (kind.bottom_m + kind.size_m[2] / 2, *kind.size_m, rotation)
            for kind, rotation in itertools.product(self.kinds, self.config.rotations)
        ]
        rest = torch.tensor(kinds).expand(y_size, x_size, -1, -1)
        place = torch.stack([x, y], dim=-1)[:, :, None].expand(-1, -1, self.per_cell, -1)
        return torch.cat([place, rest], dim=-1).view(-1, 7).to(device)

    @torch.no_grad()
    def targets(self, boxes: BatchBoxes, num_samples: int) -> Int[Tensor, "B A"]:
        """Which row of `boxes` each anchor has to find, `BACKGROUND` or `IGNORED`; each class for itself."""
        anchors = self.anchors(boxes.boxes.device)
        by_kind = anchors.view(-1, len(self.kinds), len(self.config.rotations), 7)
        found = torch.empty(num_samples, *by_kind.shape[:3], dtype=torch.long, device=anchors.device)
        for sample, (number, kind) in itertools.product(range(num_samples), enumerate(self.kinds)):
            rows = ((boxes.sample == sample) & (boxes.classes == number)).nonzero()[:, 0]
            own = assign(
                by_kind[:, number].reshape(-1, 7),
                boxes.boxes[rows],
                matched_iou=kind.matched_iou,
                unmatched_iou=kind.unmatched_iou,
            )
            if len(rows):
                own = torch.where(own >= 0, rows[own.clamp(min=0)], own)
            found[sample, :, number] = own.view(len(by_kind), -1)
        return found.view(num_samples, -1)

    def loss(self, outputs: AnchorOutputs, boxes: BatchBoxes) -> LossTerms:
        """The mean over samples of the three losses, each divided by the number of the sample's anchors with a box.

            class_weight * focal(logits)                                          over anchors that are not ignored
            + box_weight * smooth_l1(codes - encode(box), the heading's as sine)  over anchors with a box
            + direction_weight * cross_entropy(directions, half of the circle)    over anchors with a box

        A sample without boxes has only the focal loss, divided by 1; nothing is NaN, every parameter has a gradient.

        Source: SECOND, section 3.3; divisors and weights as in OpenPCDet's released code.
        """
        num_samples = len(outputs.logits)
        box = self.targets(boxes, num_samples)
        sample, anchor = (box >= 0).nonzero().unbind(1)
        truth = boxes.boxes[box[sample, anchor]].to(outputs.codes.dtype)
        weight = 1 / (box >= 0).sum(dim=1).clamp(min=1).to(outputs.codes.dtype) / num_samples

        is_class = torch.zeros_like(outputs.logits, dtype=torch.bool)
        is_class[sample, anchor, boxes.classes[box[sample, anchor]]] = True
        counted = (box != IGNORED)[..., None]
        focal = (focal_loss(outputs.logits, is_class) * counted).sum(dim=(1, 2))

        wanted = encode(truth, self.anchors(truth.device)[anchor])
        codes = outputs.codes[sample, anchor]
        difference = torch.cat([codes[:, :6] - wanted[:, :6], (codes[:, 6:] - wanted[:, 6:]).sin()], dim=1)
        smooth = F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=BETA, reduction="none").sum(dim=1)
        half = F.cross_entropy(outputs.directions[sample, anchor], heading_bin(truth[:, 6]), reduction="none")

        parts = {
            "class": self.config.class_weight * (focal * weight).sum(),
            "box": self.config.box_weight * (smooth * weight[sample]).sum(),
            "direction": self.config.direction_weight * (half * weight[sample]).sum(),
        }
        total = torch.stack(list(parts.values())).sum()
        positives = torch.tensor(len(sample) / num_samples, device=total.device)
        return LossTerms(
            total=total, parts={name: part.detach() for name, part in parts.items()}, watch={"positives": positives}
        )

    def decode(self, outputs: AnchorOutputs) -> Float[Tensor, "B A 7"]:
        """The box of each anchor."""
        num_samples, num_anchors, _ = outputs.codes.shape
        anchors = self.anchors(outputs.codes.device).repeat(num_samples, 1)
        boxes = decode(outputs.codes.reshape(-1, 7), anchors)
        heading = turned_into_bin(boxes[:, 6], outputs.directions.argmax(dim=2).flatten())
        return torch.cat([boxes[:, :6], heading[:, None]], dim=1).view(num_samples, num_anchors, 7)

    def detect(self, outputs: AnchorOutputs, suppression: SuppressionConfig) -> Detections:
        """Boxes with the score of their likeliest class, after suppression among all classes."""
        found = []
        for sample, boxes in enumerate(self.decode(outputs)):
            scores, classes = outputs.logits[sample].sigmoid().max(dim=1)
            rows = suppression.rows(boxes, scores)
            found.append(
                Detections(
                    boxes=boxes[rows],
                    velocities_mps=boxes.new_full((len(rows), 2), torch.nan),
                    classes=classes[rows],
                    scores=scores[rows],
                    sample=torch.full_like(rows, sample),
                )
            )
        return joined(found)
