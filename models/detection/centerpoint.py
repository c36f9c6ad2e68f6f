"""CenterPoint: a 3D network with a bird's-eye view, on voxels or pillars, and a centre head on it.

Paper: Yin, Zhou, Krähenbühl, "Center-based 3D object detection and tracking", CVPR 2021 (first stage). Learnt: 3D
network and head. In: points with labelled boxes.

Deviations: voxels and pillars are limited neither in number nor in points, so nothing of a sweep is lost; objects of a
sample are not limited to 500; losses are divided by the objects of all ranks (`models.detection.centre_head`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from data.sample import Batch
from models.detection.base import Detections
from models.detection.bird_eye import BirdEyeDetector, BirdEyeDetectorConfig
from models.detection.centre_head import CentreHead, CentreHeadConfig
from models.detection.suppression import SuppressionConfig
from models.lidar.base import BackboneConfig
from models.lidar.voxelnet import VoxelNetConfig
from models.methods.base import LossTerms


def _waymo_voxelnet() -> BackboneConfig:
    # The paper's -2 to 4 m are no whole number of cells of 0.15 m.
    return VoxelNetConfig(
        preset="centerpoint",
        in_channels=4,
        grid_min=(-752, -752, -14),
        grid_max=(752, 752, 26),
        voxel_size_m=(0.1, 0.1, 0.15),
    )


@dataclass(frozen=True, kw_only=True)
class CenterPointConfig(BirdEyeDetectorConfig):
    """Settings of CenterPoint; the defaults are those of its voxel form on Waymo (10 x 10 x 15 cm).

    Attributes:
        backbone: see `BirdEyeDetectorConfig`.
        head: groups of classes, candidates and weights of the losses.
        nms: which boxes become detections, within each group.
    """

    backbone: BackboneConfig = field(default_factory=_waymo_voxelnet)
    head: CentreHeadConfig = field(default_factory=CentreHeadConfig)
    nms: SuppressionConfig = field(default_factory=lambda: SuppressionConfig(max_iou=0.7))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.head.of_classes(self.classes)

    def build(self) -> CenterPoint:
        """Assemble network and head with fresh weights."""
        return CenterPoint(self)


class CenterPoint(BirdEyeDetector):
    """Network, head and loss of CenterPoint."""

    def __init__(self, config: CenterPointConfig) -> None:
        super().__init__(config)
        self.nms = config.nms
        self.dense_head = CentreHead(config.head, config.classes, self.backbone.num_features, self.grid)

    def forward(self, batch: Batch) -> LossTerms:
        """Loss of a labelled batch, see `CentreHead.loss`.

        Raises:
            ValueError: the batch has no boxes.
        """
        boxes = batch.need("boxes", by="CenterPoint")
        return self.dense_head.loss(self.dense_head.forward(self.bird_eye_view(batch)), boxes)

    def detect(self, batch: Batch) -> Detections:
        """See `Detector.detect`."""
        return self.dense_head.detect(self.dense_head.forward(self.bird_eye_view(batch)), self.nms)
