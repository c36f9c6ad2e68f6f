"""Pixel to point: a frozen image network that was trained without labels gives each point its pixel's feature.

Paper: Janda et al., "Contrastive Learning for Self-Supervised Pre-Training of Point Cloud Segmentation Networks With
Image Data", CRV 2023; its second stage. The first stage is `pixel_contrast`, which trains the image network; a config
with a section `first` runs both (`configs/pretrain/pixel_to_point_street.yaml`).
Learnt: the 3D network and a linear layer to the width of the image network's features. The image network stays as it
is, and there is no head on its side: points learn to speak its language. In: one sweep and its images with pairs.

Deviations from the paper: `docs/methods/pixel_to_point.md`.

Letters: I images, M voxels, P pairs, K sampled pairs, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float, UInt8
from torch import Tensor

from common.ranges import at_least
from data.batch_spec import BatchSpec
from data.sample import Batch, PointPixelPairs
from models.heads import PointHead, unit, unit_pixels
from models.image.base import ImageEncoderConfig
from models.image.frozen import frozen_encoder
from models.image.unet import ResNetUnetConfig
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import LossTerms, RowContrastConfig, contrast_terms
from models.methods.pixel_pairs import PixelPairs, features_at_pairs


@dataclass(frozen=True, kw_only=True)
class PixelToPointConfig(RowContrastConfig):
    """Settings of the second stage. See `RowContrastConfig` for the rest.

    Attributes:
        backbone: 3D network; `backbone.name` chooses.
        pixel_network: frozen image network; `weights: tandem:first` takes that of the first stage.
        num_pairs: point-pixel pairs drawn from a batch; None: all.
    """

    backbone: BackboneConfig = field(default_factory=Res16UNetConfig)
    pixel_network: ImageEncoderConfig = field(default_factory=ResNetUnetConfig)
    num_pairs: int | None = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, num_pairs=2)

    def batch_spec(self) -> BatchSpec:
        """Images with pairs."""
        return BatchSpec()

    def build(self) -> PixelToPoint:
        """Assemble towers and head."""
        return PixelToPoint(self)


class PixelToPoint(PixelPairs):
    """Towers, head and loss."""

    def __init__(self, config: PixelToPointConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.pixel_network = frozen_encoder(config.pixel_network)
        self.point_head = PointHead(self.backbone.num_features, self.pixel_network.num_features)

    def forward(self, batch: Batch) -> LossTerms:
        """Contrast points with pixels.

            k_i = unit(linear(3D feature of pair i's point)),  q_i = unit(image feature at pair i's pixel)
            loss = mean over sampled pairs i of -log softmax over sampled j of (k_i . q_j / temperature) at j = i

        Without pairs, or with one, the loss and its gradient are 0.

        Raises:
            ValueError: the batch lacks images or pairs.

        Source: Janda et al., section III-B.
        """
        points, pixels = self.rows(batch, "pixel_to_point", self.config.num_pairs)
        loss = self.config.info_nce(points, pixels)
        return contrast_terms(loss, points, pixels, watch_rows=self.config.watch_rows)

    def pixel_embeddings(self, images: UInt8[Tensor, "I 3 H W"]) -> Float[Tensor, "I D H W"]:
        """Unit feature of each pixel."""
        return unit_pixels(self.pixel_network.feature_map(images), (images.shape[-2], images.shape[-1]))

    def pixels_at(self, images: UInt8[Tensor, "I 3 H W"], pairs: PointPixelPairs) -> Float[Tensor, "K D"]:
        """Unit feature of each pair's pixel."""
        return unit(features_at_pairs(self.pixel_network, images, pairs))
