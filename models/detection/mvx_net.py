"""MVX-Net: SECOND on points that know what the cameras see of them.

Paper: Sindagi, Zhou, Tuzel, "MVX-Net: multimodal VoxelNet for 3D object detection", ICRA 2019 (PointFusion), as SimIPU
(Li et al., AAAI 2022) trains it with dynamic voxels in mmdetection3d. Learnt: image network, fusion, 3D network and
head. In: points with labelled boxes, and the images that show them.

An image network with its pyramid sees every image of a sample, each point reads it where it is seen
(`models.detection.point_fusion`), all points of a voxel make its features, and SECOND does the rest. The clouds may be
turned, scaled and mirrored: pairs of points and pixels are those of the recorded sweep.

Deviations: those of SECOND and of `models.detection.point_fusion`; the intensity of a point, and whatever else it has
beside its place, is that of its voxel; boxes suppress each other whatever their class (there: within a class); the
pyramid's coarser levels have no 3 x 3 convolution of their own before the lateral one (`models.image.fpn`).
No objects of other sweeps are put into a sweep (MoCa): an image would not show them.

Letters: B samples, N points, F features of a point, C channels, X Y cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from common.ranges import at_least
from data.batch_spec import BatchSpec, VoxelConfig
from data.sample import Batch
from models.detection.anchor_head import AnchorHead, AnchorHeadConfig
from models.detection.base import Detections
from models.detection.bird_eye import BirdEyeDetector, BirdEyeDetectorConfig
from models.detection.point_fusion import FusedVoxelEncoder, PointFusionConfig
from models.detection.suppression import SuppressionConfig
from models.image.base import ImageEncoderConfig
from models.image.fpn import ResNetFpnConfig
from models.lidar.base import BackboneConfig
from models.lidar.voxelnet import VoxelNetConfig
from models.methods.base import LossTerms
from models.pairing import segment_mean


def _kitti_voxelnet() -> BackboneConfig:
    return VoxelNetConfig(
        preset="second",
        in_channels=128,
        grid_min=(0, -800, -30),
        grid_max=(1408, 800, 10),
        voxel_size_m=(0.05, 0.05, 0.1),
    )


@dataclass(frozen=True, kw_only=True)
class MvxNetConfig(BirdEyeDetectorConfig):
    """Settings of MVX-Net; the defaults are SimIPU's on KITTI.

    Attributes:
        backbone: voxelnet, fed with `fusion.channels` channels a voxel.
        image_backbone: image network with a pyramid of levels.
        fusion: from points and pyramid to voxels.
        point_channels: features of a point, x, y and z first: those of `data.voxel.features`.
        head: anchors and weights of the losses.
        nms: which boxes become detections.
    """

    FED_BY_METHOD: ClassVar[Mapping[str, str]] = {"backbone": "encoder.layers.0"}

    classes: tuple[str, ...] = ("pedestrian", "cyclist", "car")
    backbone: BackboneConfig = field(default_factory=_kitti_voxelnet)
    image_backbone: ImageEncoderConfig = field(default_factory=ResNetFpnConfig)
    fusion: PointFusionConfig = field(default_factory=PointFusionConfig)
    point_channels: int = 4
    head: AnchorHeadConfig = field(default_factory=lambda: AnchorHeadConfig(anchor_set="kitti_fusion"))
    nms: SuppressionConfig = field(default_factory=lambda: SuppressionConfig(num_before=100, num_after=50))

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "x, y and z", point_channels=3)
        self.head.of_classes(self.classes)
        if not isinstance(self.backbone, VoxelNetConfig):
            raise ValueError(
                "backbone: got pillars, expected voxels with features of their own: set backbone.name to voxelnet"
            )
        if self.backbone.in_channels != self.fusion.channels:
            raise ValueError(
                f"backbone.in_channels: got {self.backbone.in_channels}, expected fusion.channels="
                f"{self.fusion.channels}: the network is fed with fused points; set one of them to the other"
            )

    def check_voxels(self, voxels: VoxelConfig) -> None:
        """See `MethodConfig.check_voxels`: points need coordinates, and the grid must be the network's."""
        if not voxels.features.startswith("xyz") or voxels.num_features != self.point_channels:
            raise ValueError(
                f"point_channels: got {self.point_channels}, but data.voxel.features={voxels.features!r} makes "
                f"{voxels.num_features} features; expected x, y, z and whatever follows: set data.voxel.features="
                "xyz_intensity and point_channels=4, or longer ones"
            )
        try:
            self.backbone.check_voxels(voxels)
        except ValueError as error:
            raise ValueError(f"backbone: {error}") from error

    def batch_spec(self) -> BatchSpec:
        """Points, boxes and images; also sweeps none of whose points an image shows."""
        return BatchSpec(need_pairs=False, boxes=self.classes)

    def build(self) -> MvxNet:
        """Assemble networks and head."""
        return MvxNet(self)


class MvxNet(BirdEyeDetector):
    """Networks, fusion, head and loss of MVX-Net."""

    LOOKS_AT_IMAGES = True

    def __init__(self, config: MvxNetConfig) -> None:
        super().__init__(config)
        assert isinstance(config.backbone, VoxelNetConfig)
        assert config.backbone.voxel_size_m is not None
        self.nms, self.voxel_size_m = config.nms, config.backbone.voxel_size_m
        self.image_backbone = config.image_backbone.build()
        # Beside its features a point has its offsets to the mean of its voxel's points and to the voxel's centre.
        self.voxel_encoder = FusedVoxelEncoder(
            config.fusion, config.point_channels + 6, self.image_backbone.level_features
        )
        self.dense_head = AnchorHead(config.head, config.classes, self.backbone.num_features, self.grid)

    def bird_eye_view(self, batch: Batch) -> Float[Tensor, "B C Y X"]:
        """The map that the head works on.

        Raises:
            ValueError: the batch has no images, or no pairs of points and pixels.
        """
        levels = self.image_backbone.pyramid(batch.need("images", by="MVX-Net"))
        voxels = self.voxel_encoder(
            self.decorated(batch),
            batch.point_voxel,
            len(batch.voxel_coords),
            levels,
            batch.need("pairs", by="MVX-Net"),
        )
        bev: Tensor = self.backbone.bird_eye_view(batch.voxel_coords, voxels, batch.num_samples)  # type: ignore[operator]
        return bev

    def decorated(self, batch: Batch) -> Float[Tensor, "N F_and_6"]:
        """Each point with its offsets to the mean of its voxel's points and to the voxel's centre, metres."""
        points, voxel = batch.points, batch.point_voxel
        mean = segment_mean(points, voxel, len(batch.voxel_coords))[0]
        centre = (batch.voxel_coords[:, 1:] + 0.5) * points.new_tensor(self.voxel_size_m)
        rest = batch.voxel_features[voxel, 3:]
        return torch.cat([points, rest, points - mean[voxel], points - centre[voxel]], dim=1)

    def forward(self, batch: Batch) -> LossTerms:
        """Loss of a labelled batch, see `AnchorHead.loss`.

        Raises:
            ValueError: the batch has no boxes, or see `bird_eye_view`.
        """
        boxes = batch.need("boxes", by="MVX-Net")
        return self.dense_head.loss(self.dense_head(self.bird_eye_view(batch)), boxes)

    def detect(self, batch: Batch) -> Detections:
        """See `Detector.detect`."""
        return self.dense_head.detect(self.dense_head(self.bird_eye_view(batch)), self.nms)
