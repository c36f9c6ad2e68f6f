"""PV-RCNN: SECOND's boxes, refined from a few keypoints that gather what points, voxels and map know around them.

Paper: Shi, Guo, Jiang, Wang, Shi, Wang, Li, "PV-RCNN: point-voxel feature set abstraction for 3D object detection",
CVPR 2020. First stage: SECOND (`models.detection.second`). Second stage: keypoints by farthest point sampling; each
gathers the points and the voxels of strides 1, 2, 4, 8 in balls around it, and reads the map (voxel set abstraction); a
head that learns whether a keypoint lies on an object weighs it; the keypoints around a grid of places in each of the
best boxes give score and corrections.

Details are those of OpenPCDet (released code). Deviations from it:
- A cloud of fewer points than keypoints is not filled up with copies.
- The centre of a coarse voxel is that of the cells it was made of, and the map is read there; released, both are half a
  coarse cell off, in opposite directions.
- The intensity of a point is that of its voxel (the mean of a 5 cm cell).
- Which points of a fuller ball count is decided by a hash of their cells, not by the order in the file.

Letters: N points of all samples, Q keypoints, R RoIs, C channels, B samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from common.ranges import at_least, expect, one_of
from data.sample import Batch
from models.detection.anchor_head import AnchorHead, AnchorHeadConfig, AnchorOutputs
from models.detection.base import Detections, Detector, DetectorConfig
from models.detection.point_head import PointBranch, label_points, point_class_loss
from models.detection.refinement import (
    RefinementBranches,
    RefinementConfig,
    decode_in_roi,
    detections,
    drawing,
    refinement_losses,
    xavier,
)
from models.detection.roi import Proposals, grid_points, propose
from models.detection.roi_targets import draw_rois
from models.detection.second import kitti_voxelnet
from models.lidar.ball_pooling import BallPooling, PointSet, Scale, scattered
from models.lidar.base import BackboneConfig
from models.lidar.bev import read_bev
from models.lidar.layers import PointLayer
from models.lidar.neighbors import pack
from models.lidar.voxelnet import VoxelLevels, VoxelNet, VoxelNetConfig
from models.methods.base import LossTerms
from models.points.sampling import farthest_points

Preset = Literal["pv_rcnn", "pv_rcnn_tiny"]
Scales = tuple[Scale, ...]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    points: Scales  # balls among the points around a keypoint
    levels: tuple[Scales, ...]  # among the voxels of strides 1, 2, 4, 8
    keypoint: int  # features of a keypoint
    weighting: tuple[int, int]  # hidden widths of the head that weighs keypoints
    grid: int  # places along each axis of a RoI
    around: Scales  # balls among the keypoints around a place
    shared: tuple[int, int]  # widths before the branches
    hidden: tuple[int, int]  # of the branches


def _balls(radii: tuple[float, float], neighbors: tuple[int, int], width: int) -> Scales:
    return tuple(Scale(r, n, (width, width)) for r, n in zip(radii, neighbors, strict=True))


_LAYOUTS: dict[str, _Layout] = {
    "pv_rcnn": _Layout(
        points=_balls((0.4, 0.8), (16, 16), 16),
        levels=(
            _balls((0.4, 0.8), (16, 16), 16),
            _balls((0.8, 1.2), (16, 32), 32),
            _balls((1.2, 2.4), (16, 32), 64),
            _balls((2.4, 4.8), (16, 32), 64),
        ),
        keypoint=128,
        weighting=(256, 256),
        grid=6,
        around=_balls((0.8, 1.6), (16, 16), 64),
        shared=(256, 256),
        hidden=(256, 256),
    ),
    # Voxels of the street world are larger than KITTI's, and so are the balls.
    "pv_rcnn_tiny": _Layout(
        points=(Scale(0.8, 8, (16,)),),
        levels=((Scale(0.8, 8, (16,)),), (Scale(1.6, 8, (16,)),), (Scale(2.4, 8, (32,)),), (Scale(4.8, 8, (32,)),)),
        keypoint=48,
        weighting=(48, 48),
        grid=3,
        around=(Scale(1.6, 8, (48,)),),
        shared=(96, 96),
        hidden=(64, 64),
    ),
}


@dataclass(frozen=True, kw_only=True)
class PvRcnnConfig(DetectorConfig):
    """Settings of PV-RCNN; the defaults are those on KITTI.

    Attributes:
        backbone: voxelnet, whose `voxel_size_m` is set.
        preset: balls and widths of the second stage: "pv_rcnn"; "pv_rcnn_tiny": for the CPU.
        head: the first stage's anchors and losses.
        num_keypoints: of each sample.
        margin_m: keypoints that only a box larger by this along each axis holds are neither object nor background.
        keypoint_weight: of the focal loss of keypoints.
        refinement: the second stage.
    """

    backbone: BackboneConfig = field(default_factory=kitti_voxelnet)
    preset: Preset = "pv_rcnn"
    head: AnchorHeadConfig = field(default_factory=AnchorHeadConfig)
    num_keypoints: int = 2048
    margin_m: float = 0.2
    keypoint_weight: float = 1.0
    refinement: RefinementConfig = field(default_factory=RefinementConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, preset=Preset)
        at_least(self, num_keypoints=1, margin_m=0, keypoint_weight=0)
        told = isinstance(self.backbone, VoxelNetConfig) and self.backbone.voxel_size_m is not None
        expect(
            self,
            "backbone",
            told,
            "a voxelnet with voxel_size_m, the edges of a cell in metres (set backbone.name=voxelnet and "
            "backbone.voxel_size_m to data.voxel.size): keypoints look at its voxels",
        )
        self.head.of_classes(self.classes)

    def build(self) -> PvRcnn:
        """Assemble the detector with fresh weights."""
        return PvRcnn(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class _FirstStage:
    outputs: AnchorOutputs
    keypoints: PointSet  # features are those after fusion, weighted
    on_object: Float[Tensor, "Q 1"]  # logit of each keypoint


class PvRcnn(Detector):
    """Network, heads and losses of PV-RCNN."""

    def __init__(self, config: PvRcnnConfig) -> None:
        super().__init__()
        self.config = config
        self.nms = config.refinement.detections
        layout = _LAYOUTS[config.preset]
        assert isinstance(config.backbone, VoxelNetConfig)
        self.backbone: VoxelNet = config.backbone.build()
        classes, grid = config.classes, self.backbone.bird_eye_grid
        self.dense_head = AnchorHead(config.head, classes, self.backbone.num_features, grid)
        encoder = self.backbone.encoder
        self.set_abstraction = VoxelSetAbstraction(
            point_features(config.backbone), encoder.level_features, encoder.num_features, layout
        )
        self.keypoint_head = PointBranch(self.set_abstraction.num_joined, layout.weighting, 1)
        self.refiner = GridRefiner(layout, config.refinement.dropout)

    def forward(self, batch: Batch) -> LossTerms:
        """Losses of both stages. A batch without boxes has those of background only; nothing is NaN.

            losses of SECOND                             `models.detection.anchor_head`
            + keypoints                                  `models.detection.point_head`
            + roi_score + roi_box + roi_corner           `models.detection.refinement`

        Raises:
            ValueError: the batch has no boxes.

        Source: PV-RCNN, section 3.4.
        """
        config, truth = self.config, batch.need("boxes", by="PV-RCNN")
        first = self._first_stage(batch)
        anchors = self.dense_head.loss(first.outputs, truth)
        keypoints = first.keypoints
        sample = torch.repeat_interleave(torch.arange(batch.num_samples, device=batch.points.device), keypoints.counts)
        labels = label_points(keypoints.points, sample, truth, batch.num_samples, config.margin_m)
        keypoint_loss = config.keypoint_weight * point_class_loss(first.on_object, labels, truth)
        rois, targets = draw_rois(
            self._proposals(first.outputs),
            truth,
            batch.num_samples,
            config.refinement.targets,
            generator=drawing(self),
        )
        logits, codes = self.refiner.forward(first.keypoints, rois)
        refined = refinement_losses(logits, codes, rois.boxes, targets, config.refinement)
        parts = {"keypoints": keypoint_loss, **refined}
        return LossTerms(
            total=anchors.total + torch.stack(list(parts.values())).sum(),
            parts={**anchors.parts, **{name: part.detach() for name, part in parts.items()}},
            watch={**anchors.watch, "roi_iou": targets.ious.sum() / max(len(targets.ious), 1)},
        )

    def detect(self, batch: Batch) -> Detections:
        """See `Detector.detect`."""
        first = self._first_stage(batch)
        rois = self._proposals(first.outputs)
        logits, codes = self.refiner.forward(first.keypoints, rois)
        boxes = decode_in_roi(codes, rois.boxes)
        return detections(boxes, logits, rois, batch.num_samples, self.nms)

    def _first_stage(self, batch: Batch) -> _FirstStage:
        levels = self.backbone.levels(batch.voxel_coords, batch.voxel_features, batch.num_samples)
        # `forward`, here and below, of modules without weights of their own that take or give something else than plain
        # tensors: ZeRO-3's hooks, which look for tensors, warn of it. The layers inside have theirs.
        outputs = self.dense_head.forward(levels.bev)
        raw = self._raw_points(batch)
        rows, counts = farthest_points(raw.points, raw.counts, self.config.num_keypoints)
        places = raw.points[rows]
        joined, fused = self.set_abstraction.forward(
            places, counts, raw, levels, self._from_map(places, counts, levels)
        )
        on_object = self.keypoint_head(joined)
        return _FirstStage(
            outputs=outputs, keypoints=PointSet(places, fused * on_object.sigmoid(), counts), on_object=on_object
        )

    def _raw_points(self, batch: Batch) -> PointSet:
        """The points inside the network's range, in an order that has nothing to do with their places."""
        low, high = self.backbone.limits_m
        edges = batch.points.new_tensor(low), batch.points.new_tensor(high)
        order = scattered(pack(batch.voxel_coords))
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        rows = torch.argsort(rank[batch.point_voxel], stable=True)
        rows = rows[((batch.points[rows] >= edges[0]) & (batch.points[rows] < edges[1])).all(dim=1)]
        features = batch.voxel_features[batch.point_voxel[rows]]
        counts = torch.bincount(batch.point_sample[rows], minlength=batch.num_samples)
        return PointSet(
            batch.points[rows], features[:, features.shape[1] - self.set_abstraction.raw_features :], counts
        )

    def _from_map(self, places: Float[Tensor, "Q 3"], counts: Int64[Tensor, " B"], levels: VoxelLevels) -> Tensor:
        sample = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        return read_bev(levels.folded, sample, self.backbone.map_cells(places[:, :2]))

    def _proposals(self, outputs: AnchorOutputs) -> Proposals:
        boxes, config = self.dense_head.decode(outputs), self.config.refinement
        num_samples, num_anchors, num_classes = outputs.logits.shape
        sample = torch.arange(num_samples, device=boxes.device).repeat_interleave(num_anchors)
        chosen = config.train_proposals if self.training else config.test_proposals
        return propose(boxes.view(-1, 7), outputs.logits.view(-1, num_classes), sample, num_samples, chosen)


def point_features(backbone: BackboneConfig) -> int:
    """Features of a point beside its place: of x, y, z and what comes after them, the latter."""
    return backbone.in_channels - 3 if backbone.in_channels > 3 else backbone.in_channels


class VoxelSetAbstraction(nn.Module):
    """What surrounds a keypoint among the points and the voxels of each level, and the map at its place.

    Source: PV-RCNN, section 3.1.

    Attributes:
        raw_features: of a point, beside its place.
        num_joined: channels of all sources together.
    """

    def __init__(self, raw_features: int, level_features: tuple[int, ...], map_features: int, layout: _Layout) -> None:
        super().__init__()
        self.raw_features = raw_features
        self.points = BallPooling(raw_features, layout.points)
        self.levels = nn.ModuleList(
            BallPooling(width, scales) for width, scales in zip(level_features, layout.levels, strict=True)
        )
        of_levels = sum(scale.widths[-1] for scales in layout.levels for scale in scales)
        self.num_joined = map_features + self.points.num_features + of_levels
        self.fusion = PointLayer(self.num_joined, layout.keypoint, bn_momentum=0.1)

    def forward(
        self,
        places: Float[Tensor, "Q 3"],
        counts: Int64[Tensor, " B"],
        raw: PointSet,
        levels: VoxelLevels,
        from_map: Float[Tensor, "Q C"],
    ) -> tuple[Float[Tensor, "Q joined"], Float[Tensor, "Q fused"]]:
        """Features of keypoints from all sources side by side, and made fewer."""
        found = [from_map, self.points.around(places, counts, raw)]
        for pooling, level in zip(self.levels, levels.levels, strict=True):
            assert isinstance(pooling, BallPooling)
            found.append(pooling.around(places, counts, level))
        joined = torch.cat([part.to(places.dtype) for part in found], dim=1)
        return joined, self.fusion(joined)


class GridRefiner(nn.Module):
    """From the keypoints around a grid of places in each RoI to the logit of its score and the code of its box.

    Source: PV-RCNN, section 3.3 (RoI-grid pooling).
    """

    def __init__(self, layout: _Layout, dropout: float) -> None:
        super().__init__()
        self.grid = layout.grid
        self.around = BallPooling(layout.keypoint, layout.around)
        first, second = layout.shared
        self.shared = nn.Sequential(
            PointLayer(layout.grid**3 * self.around.num_features, first, bn_momentum=0.1),
            nn.Dropout(dropout),
            PointLayer(first, second, bn_momentum=0.1),
        )
        self.branches = RefinementBranches(second, layout.hidden, dropout)
        xavier(self)

    def forward(self, keypoints: PointSet, rois: Proposals) -> tuple[Float[Tensor, " R"], Float[Tensor, "R 7"]]:
        """Logits and codes of the RoIs."""
        places = grid_points(rois.boxes.to(keypoints.points.dtype), self.grid)
        counts = rois.counts(len(keypoints.counts)) * self.grid**3
        pooled = self.around.around(places.view(-1, 3), counts, keypoints)
        # Channels, then places: the released order.
        rows = pooled.view(len(places), self.grid**3, self.around.num_features).transpose(1, 2).flatten(1)
        found: tuple[Tensor, Tensor] = self.branches(self.shared(rows))
        return found
