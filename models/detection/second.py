"""SECOND and PointPillars: a 3D network with a bird's-eye view, and an anchor head on it.

Papers: Yan, Mao, Li, "SECOND: sparsely embedded convolutional detection", Sensors 2018; Lang, Vora, Caesar, Zhou, Yang,
Beijbom, "PointPillars: fast encoders for object detection from point clouds", CVPR 2019. Learnt: 3D network and head.
In: points with labelled boxes. PointPillars is SECOND with `backbone.name: pillars`.

Deviations: voxels and pillars are not limited in number (16,000 in training, 40,000 in tests) nor in points (5 a voxel,
32 a pillar, chosen at random), so nothing of a sweep is lost; the rest of the networks' deviations are named in
`models.lidar.voxelnet` and `models.lidar.pillars`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from data.sample import Batch
from models.detection.anchor_head import AnchorHead, AnchorHeadConfig
from models.detection.base import Detections
from models.detection.bird_eye import BirdEyeDetector, BirdEyeDetectorConfig
from models.detection.suppression import SuppressionConfig
from models.lidar.base import BackboneConfig
from models.lidar.pillars import PillarsConfig
from models.lidar.voxelnet import VoxelNetConfig
from models.methods.base import LossTerms


def kitti_voxelnet() -> BackboneConfig:
    """The 3D network on KITTI."""
    return VoxelNetConfig(
        preset="second",
        in_channels=4,
        grid_min=(0, -800, -30),
        grid_max=(1408, 800, 10),
        voxel_size_m=(0.05, 0.05, 0.1),
    )


@dataclass(frozen=True, kw_only=True)
class SecondConfig(BirdEyeDetectorConfig):
    """Settings of SECOND; the defaults are those on KITTI (voxels of 5 x 5 x 10 cm).

    Attributes:
        backbone: see `BirdEyeDetectorConfig`.
        head: anchors and weights of the losses.
        nms: which boxes become detections.
    """

    backbone: BackboneConfig = field(default_factory=kitti_voxelnet)
    head: AnchorHeadConfig = field(default_factory=AnchorHeadConfig)
    nms: SuppressionConfig = field(default_factory=SuppressionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.head.of_classes(self.classes)

    def build(self) -> Second:
        """Assemble network and head with fresh weights."""
        return Second(self)


@dataclass(frozen=True, kw_only=True)
class PointPillarsConfig(SecondConfig):
    """Settings of PointPillars: those of SECOND, on pillars; the defaults are those on KITTI."""

    backbone: BackboneConfig = field(default_factory=PillarsConfig)


class Second(BirdEyeDetector):
    """Network, head and loss of SECOND and PointPillars."""

    def __init__(self, config: SecondConfig) -> None:
        super().__init__(config)
        self.nms = config.nms
        self.dense_head = AnchorHead(config.head, config.classes, self.backbone.num_features, self.grid)

    def forward(self, batch: Batch) -> LossTerms:
        """Loss of a labelled batch, see `AnchorHead.loss`.

        Raises:
            ValueError: the batch has no boxes.
        """
        boxes = batch.need("boxes", by="SECOND")
        return self.dense_head.loss(self.dense_head.forward(self.bird_eye_view(batch)), boxes)

    def detect(self, batch: Batch) -> Detections:
        """See `Detector.detect`."""
        return self.dense_head.detect(self.dense_head.forward(self.bird_eye_view(batch)), self.nms)
