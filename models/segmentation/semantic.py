"""Semantic segmentation: a sparse U-Net and a linear layer that scores the classes of each voxel.

Papers: Choy, Gwak, Savarese, "4D spatio-temporal ConvNets" (CVPR 2019), for the network; Xie et al., "PointContrast"
(ECCV 2020) and Hou et al., "Exploring data-efficient 3D scene understanding with contrastive scene contexts" (CVPR
2021) for the protocol on ScanNet and S3DIS. Learnt: the 3D network and the layer. In: points with classes.

Letters: M voxels, K classes, C features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.lovasz import lovasz_softmax
from common.ranges import at_least, below, expect
from data.sample import IGNORE_LABEL, Batch
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import LossTerms
from models.segmentation.base import Segmenter, SegmenterConfig, Segments
from models.segmentation.voxels import voxel_classes


def indoor_unet() -> BackboneConfig:
    """The 3D network on ScanNet and S3DIS: in go colours, BatchNorm forgets slowly."""
    return Res16UNetConfig(preset="res16unet34c", in_channels=3, bn_momentum=0.02)


@dataclass(frozen=True, kw_only=True)
class SemanticConfig(SegmenterConfig):
    """Settings of semantic segmentation; the defaults are those on ScanNet.

    Attributes:
        backbone: the 3D network.
        lovasz_weight: weight of the Lovász-softmax term beside the cross-entropy; 0 leaves it out, as in the papers.
    """

    TELLS_OBJECTS: ClassVar[bool] = False
    """Whether objects of classes are told apart."""

    backbone: BackboneConfig = field(default_factory=indoor_unet)
    lovasz_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "0: cross-entropy alone", lovasz_weight=0)
        below(self, lovasz_weight=math.inf)
        words = (
            "the classes whose objects are told apart; model.name=semantic tells none apart"
            if self.TELLS_OBJECTS
            else "(): model.name=instance has things"
        )
        expect(self, "things", bool(self.things) == self.TELLS_OBJECTS, words)

    def build(self) -> Segmenter:
        """Assemble network and layer with fresh weights."""
        return Semantic(self)


class Semantic(Segmenter):
    """Network, layer and loss."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.class_layer = nn.Linear(self.backbone.num_features, len(config.classes))

    def forward(self, batch: Batch) -> LossTerms:
        """Cross-entropy over the voxels whose labelled points agree, plus the Lovász term where it is asked for."""
        logits = self.class_layer(self.features(batch)).float()
        parts = class_losses(logits, voxel_classes(batch, "semantic segmentation"), self.config.lovasz_weight)
        total = torch.stack(list(parts.values())).sum()
        return LossTerms(total=total, parts={name: part.detach() for name, part in parts.items()})

    def segment(self, batch: Batch) -> Segments:
        """See `Segmenter.segment`; no objects."""
        classes = self.class_layer(self.features(batch)).argmax(1)
        nothing = classes.new_zeros(0)
        return Segments(
            point_class=classes[batch.point_voxel],
            point_object=torch.full_like(batch.point_voxel, -1),
            object_class=nothing,
            object_score=nothing.float(),
        )

    def features(self, batch: Batch) -> Float[Tensor, "M C"]:
        """Of each voxel."""
        features: Tensor = self.backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples)
        return features


def class_losses(
    logits: Float[Tensor, "M K"], classes: Int[Tensor, " M"], lovasz_weight: float
) -> dict[str, Float[Tensor, ""]]:
    """Weighted terms of the loss by name; 0, with gradient, where no voxel has a class.

    Args:
        logits: scores.
        classes: of each voxel; those with IGNORE_LABEL do not count.
        lovasz_weight: 0 leaves that term out.
    """
    known = classes != IGNORE_LABEL
    logits, classes = logits[known], classes[known]
    nothing = logits.sum() * 0.0
    parts = {"classes": F.cross_entropy(logits, classes) if len(classes) else nothing}
    if lovasz_weight > 0:
        parts["lovasz"] = lovasz_weight * lovasz_softmax(logits.softmax(1), classes)
    return parts
