"""FCOS3D: 3D boxes from single images, by an image network with a pyramid and a head without anchors.

Paper: Wang, Zhu, Pang, Lin, "FCOS3D: fully convolutional one-stage monocular 3D object detection", ICCV Workshops 2021.
SimIPU (Li et al., AAAI 2022) fine-tunes its image network so. Learnt: image network, pyramid and head. In: images with
their calibration and labelled boxes; points are not looked at.

Deviations from MMDetection3D's released code, which SimIPU's is built on:

- A cell of the maps lies where its network's padding puts it, on a multiple of the stride, not half a stride further.
- Attributes are not predicted; nuScenes' are chosen by class and speed (`engine.detection.nuscenes_rules`).
- The image network's own last stages are ordinary convolutions, not deformable ones; those of the head's towers are
  deformable by option.
- Images are normalised as ImageNet's RGB; up-sampling in the pyramid is bilinear.
- Losses are divided by the locations of all ranks, see `Fcos3dHead.loss`.
- Footprints overlap in the points' ground plane, not in the camera's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from common.ranges import between
from data.batch_spec import BatchSpec
from data.sample import Batch
from models.detection.base import Detections, Detector, DetectorConfig
from models.detection.fcos3d_head import Fcos3dHead, Fcos3dHeadConfig, Fcos3dOutputs
from models.detection.image_pyramid import ImagePyramid
from models.detection.suppression import SuppressionConfig
from models.image.base import ImageEncoderConfig
from models.image.resnet_encoder import ResNetEncoder, ResNetEncoderConfig
from models.methods.base import LossTerms


@dataclass(frozen=True, kw_only=True)
class Fcos3dConfig(DetectorConfig):
    """Settings of FCOS3D; the defaults are those on nuScenes with the ResNet-50 of SimIPU.

    Attributes:
        image_backbone: a ResNet (`resnet`, not dilated), whose stages the pyramid is built on.
        frozen_stages: the stem and so many stages of it keep the weights that they start from, BatchNorm's statistics
            included; None: all of it is trained. 1 is the released code's, for networks that were trained before.
        head: levels, widths and weights of the losses.
        nms: which boxes of an image become detections, within each class.
        merge: which of those of a sample's images stay, within each class.
    """

    image_backbone: ImageEncoderConfig = field(default_factory=ResNetEncoderConfig)
    frozen_stages: int | None = None
    head: Fcos3dHeadConfig = field(default_factory=Fcos3dHeadConfig)
    nms: SuppressionConfig = field(
        default_factory=lambda: SuppressionConfig(min_score=0.05, max_iou=0.8, num_before=5000, num_after=200)
    )
    merge: SuppressionConfig = field(default_factory=lambda: SuppressionConfig(min_score=0.0, max_iou=0.05))

    def __post_init__(self) -> None:
        super().__post_init__()
        network = self.image_backbone
        plain = type(network) is ResNetEncoderConfig and not network.dilated
        if not plain:
            raise ValueError(
                "image_backbone: expected a plain ResNet, whose maps at strides 8 to 32 FCOS3D builds its own pyramid "
                "on: set image_backbone.name=resnet and image_backbone.dilated=false. The weights of a dilated ResNet "
                "and of one with a decoder fit into it"
            )
        between(self, frozen_stages=(0, 4))

    def batch_spec(self) -> BatchSpec:
        """Images, whether or not they show points, and boxes."""
        return BatchSpec(need_pairs=False, boxes=self.classes)

    def build(self) -> Fcos3d:
        """Assemble network, pyramid and head with fresh weights."""
        return Fcos3d(self)


class Fcos3d(Detector):
    """Image network, pyramid, head and loss of FCOS3D."""

    LOOKS_AT_IMAGES: ClassVar[bool] = True

    def __init__(self, config: Fcos3dConfig) -> None:
        super().__init__()
        self.config, self.nms = config, config.nms
        encoder = config.image_backbone.build()
        assert isinstance(encoder, ResNetEncoder)
        self.image_backbone = encoder
        self.pyramid = ImagePyramid(encoder.level_features, config.head.channels, config.head.num_levels)
        self.dense_head = Fcos3dHead(config.head, config.classes, self.pyramid.strides)
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Fcos3d:
        """As of every module; frozen stages stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def forward(self, batch: Batch) -> LossTerms:
        """Loss of a labelled batch, see `Fcos3dHead.loss`.

        Raises:
            ValueError: the batch has no boxes, images or calibration.
        """
        boxes, cameras = batch.need("boxes", by="FCOS3D"), batch.need("cameras", by="FCOS3D")
        images = batch.need("images", by="FCOS3D")
        return self.dense_head.loss(self.outputs(batch), boxes, cameras, (images.shape[-2], images.shape[-1]))

    def outputs(self, batch: Batch) -> Fcos3dOutputs:
        """What the head says of the images."""
        maps = self.image_backbone.pyramid(batch.need("images", by="FCOS3D"))
        return self.dense_head.forward(self.pyramid.forward(maps))

    def detect(self, batch: Batch) -> Detections:
        """See `Detector.detect`; nothing is found in a sample without images."""
        cameras = batch.need("cameras", by="FCOS3D")
        return self.dense_head.detect(
            self.outputs(batch), cameras, within_image=self.nms, within_sample=self.config.merge
        )

    def _frozen_parts(self) -> list[nn.Module]:
        """Looked up anew: distributed training puts other norms into their places."""
        network, stages = self.image_backbone.network, self.config.frozen_stages
        parts = network.named_children() if stages is not None else ()
        return [part for name, part in parts if network.layer_of(name) <= (stages or 0)]
