"""PointRCNN: boxes from every point on an object, then refined by the points inside each.

Paper: Shi, Wang, Li, "PointRCNN: 3D object proposal generation and detection from point cloud", CVPR 2019. The 3D
network gives each point features; a first head says whether the point lies on an object, and which box it lies in. A
second stage looks at the points of each of the best boxes, in that box's own frame, and gives score and corrections.

Any 3D network will do as the first stage's: PointNet++ is the paper's, MinkUNet the one of SLidR's detection runs
(Sautier et al., CVPR 2022). Points are the voxels that come in, at the mean place of what was measured in each: cells
of 0.05 m keep nearly every point.

Details are those of OpenPCDet (released code), in which the detector got its published numbers there, not the paper's:
boxes by their differences to mean sizes instead of bins, one second stage for all classes. Deviations from it:
- A cloud of fewer points than wanted is not filled up with copies, nor is a RoI.
- Points of a RoI and neighbours in balls are chosen by a hash of their cells, not by the order in the file.

Letters: N points of all samples, R RoIs, P pairs of a RoI and a point in it, C channels, B samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from common.ranges import at_least, expect, one_of, positive, weights
from data.sample import Batch
from models.detection.anchor_head import AnchorHeadConfig, AnchorSet
from models.detection.base import Detections, Detector, DetectorConfig
from models.detection.point_head import PointBranch, decode_point_box, label_points, point_box_loss, point_class_loss
from models.detection.refinement import (
    RefinementBranches,
    RefinementConfig,
    decode_in_roi,
    detections,
    drawing,
    proposals,
    refinement_losses,
    xavier,
)
from models.detection.roi import Proposals, points_of_rois, propose, to_roi_frame
from models.detection.roi_targets import ScoreTargetConfig, draw_rois
from models.lidar.ball_pooling import PointSet, Scale, point_layers, scattered
from models.lidar.base import BackboneConfig
from models.lidar.neighbors import pack
from models.lidar.pointnet2 import AbstractionLayout, PointNet2Config, SetAbstraction
from models.methods.base import LossTerms
from models.pairing import full_precision, segment_max, segment_mean

Preset = Literal["point_rcnn", "point_rcnn_tiny"]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    point_hidden: tuple[int, int]  # of the first stage's heads
    roi_points: int  # of each RoI at most
    local: tuple[int, int]  # layers on place, score and distance of a RoI's point
    abstraction: tuple[AbstractionLayout, ...]  # among the points of a RoI
    pooled: tuple[int, ...]  # layers before the maximum over all of them
    hidden: tuple[int, int]  # of the second stage's branches


def _layer(centres: int, scale: Scale) -> AbstractionLayout:
    return AbstractionLayout(samplers=(("D-FPS", centres),), scales=(scale,))


_LAYOUTS: dict[str, _Layout] = {
    "point_rcnn": _Layout(
        point_hidden=(256, 256),
        roi_points=512,
        local=(128, 128),
        abstraction=(_layer(128, Scale(0.2, 16, (128, 128, 128))), _layer(32, Scale(0.4, 16, (128, 128, 256)))),
        pooled=(256, 256, 512),
        hidden=(256, 256),
    ),
    "point_rcnn_tiny": _Layout(
        point_hidden=(64, 64),
        roi_points=64,
        local=(32, 32),
        abstraction=(_layer(16, Scale(0.6, 8, (32, 48))),),
        pooled=(64, 96),
        hidden=(64, 64),
    ),
}


@dataclass(frozen=True, kw_only=True)
class PointRcnnConfig(DetectorConfig):
    """Settings of PointRCNN; the defaults are OpenPCDet's (released code) on KITTI.

    Attributes:
        backbone: 3D network; `backbone.name` chooses: pointnet2, or res16unet as in SLidR's runs.
        preset: widths of the heads: "point_rcnn"; "point_rcnn_tiny": for the CPU.
        num_points: of each sample that are looked at.
        far_m: points from here on are all among them where `num_points` allows; only nearer ones are left out.
        anchor_set: where the mean size of each class is taken from, see `AnchorHeadConfig`.
        mean_sizes_m: length, width, height of each class, in the order of `classes`; (): those of `anchor_set`.
        margin_m: points that only a box larger by this along each axis holds are neither object nor background.
        distance_scale_m: the second stage sees a point's distance from the sensor divided by this.
        point_class_weight: of the focal loss of points.
        point_box_weight: of the smooth L1 loss of points in boxes.
        refinement: the second stage.
    """

    backbone: BackboneConfig = field(default_factory=PointNet2Config)
    preset: Preset = "point_rcnn"
    num_points: int = 16384
    far_m: float = 40.0
    anchor_set: AnchorSet = "kitti"
    mean_sizes_m: tuple[tuple[float, float, float], ...] = ()
    margin_m: float = 0.2
    distance_scale_m: float = 70.0
    point_class_weight: float = 1.0
    point_box_weight: float = 1.0
    refinement: RefinementConfig = field(
        default_factory=lambda: RefinementConfig(
            train_proposals=proposals(max_iou=0.8, before=9000, after=512),
            test_proposals=proposals(max_iou=0.85, before=9000, after=100),
            scores=ScoreTargetConfig(kind="class", low_iou=0.45, high_iou=0.6),
            dropout=0.0,
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, preset=Preset)
        at_least(self, num_points=1, far_m=0, margin_m=0)
        positive(self, "distance_scale_m")
        weights(self, "point_class_weight", "point_box_weight")
        positive_sizes = all(edge > 0 for size in self.mean_sizes_m for edge in size)
        expect(self, "mean_sizes_m", positive_sizes, "lengths above 0")
        expect(
            self,
            "mean_sizes_m",
            len(self.mean_sizes_m) in (0, len(self.classes)),
            f"{len(self.classes)} entries, one for each class, or none",
        )
        self.sizes_m()

    def sizes_m(self) -> tuple[tuple[float, float, float], ...]:
        """Mean size of each class.

        Raises:
            ValueError: `anchor_set` does not know a class.
        """
        if self.mean_sizes_m:
            return self.mean_sizes_m
        return tuple(kind.size_m for kind in AnchorHeadConfig(anchor_set=self.anchor_set).of_classes(self.classes))

    def build(self) -> PointRcnn:
        """Assemble the detector with fresh weights."""
        return PointRcnn(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class _FirstStage:
    points: Float[Tensor, "N 3"]
    sample: Int64[Tensor, " N"]
    features: Float[Tensor, "N C"]
    logits: Float[Tensor, "N classes"]
    codes: Float[Tensor, "N 8"]


class PointRcnn(Detector):
    """Network, heads and losses of PointRCNN."""

    mean_sizes_m: Tensor

    def __init__(self, config: PointRcnnConfig) -> None:
        super().__init__()
        self.config = config
        self.nms = config.refinement.detections
        layout = _LAYOUTS[config.preset]
        self.backbone = config.backbone.build()
        width = self.backbone.num_features
        self.point_class = PointBranch(width, layout.point_hidden, len(config.classes))
        self.point_box = PointBranch(width, layout.point_hidden, 8)
        self.refiner = PointRefiner(width, layout, config.refinement.dropout)
        self.register_buffer("mean_sizes_m", torch.tensor(config.sizes_m()), persistent=False)

    def forward(self, batch: Batch) -> LossTerms:
        """Losses of both stages. A batch without boxes has those of background only; nothing is NaN.

            class + box (of each point)              `models.detection.point_head`
            + roi_score + roi_box + roi_corner       `models.detection.refinement`

        The second stage's gradients end at the features that it pools, as in the released code.

        Raises:
            ValueError: the batch has no boxes.

        Source: PointRCNN, sections 3.2 to 3.4.
        """
        config, truth = self.config, batch.need("boxes", by="PointRCNN")
        first = self._first_stage(batch)
        labels = label_points(first.points, first.sample, truth, batch.num_samples, config.margin_m)
        parts = {
            "class": config.point_class_weight * point_class_loss(first.logits, labels, truth),
            "box": config.point_box_weight
            * point_box_loss(first.codes, first.points, labels, truth, self.mean_sizes_m),
        }
        rois, targets = draw_rois(
            self._proposals(first, batch.num_samples),
            truth,
            batch.num_samples,
            config.refinement.targets,
            generator=drawing(self),
        )
        logits, codes = self._refined(first, rois, batch.num_samples)
        parts |= refinement_losses(logits, codes, rois.boxes, targets, config.refinement)
        return LossTerms(
            total=torch.stack(list(parts.values())).sum(),
            parts={name: part.detach() for name, part in parts.items()},
            watch={"roi_iou": targets.ious.sum() / max(len(targets.ious), 1)},
        )

    def detect(self, batch: Batch) -> Detections:
        """See `Detector.detect`."""
        first = self._first_stage(batch)
        rois = self._proposals(first, batch.num_samples)
        logits, codes = self._refined(first, rois, batch.num_samples)
        boxes = decode_in_roi(codes, rois.boxes)
        return detections(boxes, logits, rois, batch.num_samples, self.nms)

    def _first_stage(self, batch: Batch) -> _FirstStage:
        places = segment_mean(batch.points, batch.point_voxel, len(batch.voxel_coords))[0]
        rows = self._rows(batch, places)
        coords = batch.voxel_coords[rows]
        features = self.backbone(coords, batch.voxel_features[rows], batch.num_samples)
        return _FirstStage(
            points=places[rows],
            sample=coords[:, 0].long(),
            features=features,
            logits=self.point_class(features),
            codes=self.point_box(features),
        )

    def _rows(self, batch: Batch, places: Float[Tensor, "M 3"]) -> Int64[Tensor, " N"]:
        """Voxels that are looked at, sample by sample, in an order that has nothing to do with their places."""
        order = scattered(pack(batch.voxel_coords))
        sample, far = batch.voxel_coords[order, 0], places[order].norm(dim=1) >= self.config.far_m
        kept = []
        for number in range(batch.num_samples):
            mine = (sample == number).nonzero().squeeze(1)
            kept.append(order[mine[choose_points(far[mine], self.config.num_points, drawing(self))]])
        return torch.cat(kept)

    def _proposals(self, first: _FirstStage, num_samples: int) -> Proposals:
        sizes = self.mean_sizes_m[first.logits.argmax(dim=1)].to(first.codes.dtype)
        boxes = decode_point_box(first.codes, first.points.to(sizes.dtype), sizes)
        config = self.config.refinement
        chosen = config.train_proposals if self.training else config.test_proposals
        return propose(boxes, first.logits, first.sample, num_samples, chosen)

    def _refined(
        self, first: _FirstStage, rois: Proposals, num_samples: int
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, "R 7"]]:
        scores = first.logits.detach().sigmoid().amax(dim=1)
        distances = first.points.norm(dim=1) / self.config.distance_scale_m - 0.5
        counts = torch.bincount(first.sample, minlength=num_samples)
        roi, point = points_of_rois(
            first.points, counts, rois.boxes, rois.counts(num_samples), self.refiner.layout.roi_points
        )
        local = to_roi_frame(first.points[point, None], rois.boxes[roi])[:, 0]
        seen = torch.cat([local, scores[point, None], distances[point, None]], dim=1)
        found: tuple[Tensor, Tensor] = self.refiner(seen, first.features[point].detach(), roi, len(rois.boxes))
        return found


class PointRefiner(nn.Module):
    """From the points in each RoI to the logit of its score and the code of its box.

    Source: PointRCNN, section 3.3 (RoI point pooling, canonical box refinement).
    """

    def __init__(self, in_features: int, layout: _Layout, dropout: float) -> None:
        super().__init__()
        self.layout = layout
        first, second = layout.local
        self.local = nn.Sequential(nn.Linear(5, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU())
        self.merge = nn.Sequential(nn.Linear(second + in_features, second), nn.ReLU())
        width, abstraction = second, []
        for level in layout.abstraction:
            abstraction.append(SetAbstraction(width, level, bn_momentum=0.1))
            width = abstraction[-1].num_features
        self.abstraction = nn.ModuleList(abstraction)
        self.pooled = point_layers((width + 3, *layout.pooled))
        self.branches = RefinementBranches(layout.pooled[-1], layout.hidden, dropout)
        xavier(self)

    def forward(
        self, seen: Float[Tensor, "P 5"], features: Float[Tensor, "P C"], roi: Int64[Tensor, " P"], num_rois: int
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, "R 7"]]:
        """Logits and codes of the RoIs; one without points has zeros in place of features.

        Args:
            seen: place of the point in the RoI's frame, score of the first stage, scaled distance.
            features: of the point.
            roi: of each row, non-decreasing.
            num_rois: R.
        """
        local = self.local(seen)
        merged = self.merge(torch.cat([local, features.to(local.dtype)], dim=1))
        points = PointSet(seen[:, :3], merged, torch.bincount(roi, minlength=num_rois))
        for level in self.abstraction:
            assert isinstance(level, SetAbstraction)
            points = level.forward(points)  # ZeRO-3's hooks, which look for tensors, would warn of `PointSet`
        rois = torch.repeat_interleave(torch.arange(num_rois, device=roi.device), points.counts)
        values = self.pooled(torch.cat([points.points, points.features.to(seen.dtype)], dim=1))
        found: tuple[Tensor, Tensor] = self.branches(segment_max(full_precision(values), rois, num_rois))
        return found


def choose_points(far: Bool[Tensor, " N"], number: int, generator: torch.Generator | None) -> Int64[Tensor, " n"]:
    """Rows of one sample, ascending: all where few enough; else all far ones and random near ones.

    Where more than `number` are far, random ones of all.

    Source: OpenPCDet (released code), sampling of points.
    """
    if len(far) <= number:
        return torch.arange(len(far), device=far.device)
    near = (~far).nonzero().squeeze(1)
    from_near = number - (len(far) - len(near))
    if from_near <= 0:
        return torch.randperm(len(far), generator=generator)[:number].to(far.device).sort().values
    drawn = near[torch.randperm(len(near), generator=generator)[:from_near].to(far.device)]
    return torch.cat([far.nonzero().squeeze(1), drawn]).sort().values
