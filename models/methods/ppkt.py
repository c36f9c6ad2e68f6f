"""PPKT: a frozen image network teaches a 3D network, point by point.

Paper: Liu et al., "Learning from 2D: Contrastive Pixel-to-Point Knowledge Transfer for 3D Pretraining", 2021, in the
form that SLidR (Sautier et al., CVPR 2022) compares itself with.
Learnt: the 3D network with its linear head, and the linear head on the image network's features. The image network
stays as it is. In: voxels, images, point-pixel pairs; no superpixels.

With `teacher.dilated=true` it is SLidR's ablation "without superpixels".

Deviations from the paper and its released code: `docs/methods/ppkt.md`.

Letters: I images, M voxels, P pairs, K drawn pairs, C channels, D embedding, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float, UInt8
from torch import Tensor

from common.ranges import RangeError, at_least
from data.batch_spec import BatchSpec
from data.sample import Batch, PointPixelPairs
from models.heads import PixelHead, PointHead
from models.image.resnet import ResNetTeacherConfig
from models.image.teacher import TeacherConfig
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import LossTerms, RowContrastConfig, contrast_terms
from models.methods.pixel_pairs import PixelPairs


@dataclass(frozen=True, kw_only=True)
class PpktConfig(RowContrastConfig):
    """Settings of PPKT; defaults are those of SLidR's comparison. See `RowContrastConfig` for the rest.

    Attributes:
        backbone: 3D network; `backbone.name` chooses.
        teacher: frozen image network. The paper's is `name: resnet50, weights: moco_v2:<path>`, at its normal stride.
        num_pairs: point-pixel pairs drawn from a rank's batch; None: all.
        embedding_dim: D, dimensions of the common space.
        symmetric: also pixels as anchors and points as targets, mean of both.
    """

    backbone: BackboneConfig = field(default_factory=Res16UNetConfig)
    teacher: TeacherConfig = field(default_factory=lambda: ResNetTeacherConfig(dilated=False))
    num_pairs: int | None = 4096
    embedding_dim: int = 64
    symmetric: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, num_pairs=2, embedding_dim=1)
        if self.teacher.cache:
            why = "PPKT reads single pixels, the cache holds means over superpixels"
            raise RangeError(f"teacher.cache: got True, expected false: {why}")

    def batch_spec(self) -> BatchSpec:
        """Images with pairs."""
        return BatchSpec()

    def build(self) -> Ppkt:
        """Assemble towers and heads."""
        return Ppkt(self)


class Ppkt(PixelPairs):
    """Towers, heads and loss of PPKT."""

    def __init__(self, config: PpktConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.teacher = config.teacher.build()
        self.point_head = PointHead(self.backbone.num_features, config.embedding_dim)
        self.pixel_head = PixelHead(self.teacher.num_features, config.embedding_dim)

    def forward(self, batch: Batch) -> LossTerms:
        """Contrast points with pixels.

            k_i = unit(linear(3D feature of pair i's point)),  q_i = unit(linear(image feature at pair i's pixel))
            loss = mean over drawn pairs i of -log softmax over drawn j of (k_i . q_j / temperature) at j = i

        Without pairs, or with one, the loss and its gradient are 0.

        Raises:
            ValueError: the batch lacks images or pairs.

        Source: SLidR, section 4 and released code.
        """
        points, pixels = self.rows(batch, "PPKT", self.config.num_pairs)
        loss = self.config.info_nce(points, pixels, symmetric=self.config.symmetric)
        return contrast_terms(loss, points, pixels, watch_rows=self.config.watch_rows)

    def pixel_embeddings(self, images: UInt8[Tensor, "I 3 H W"]) -> Float[Tensor, "I D H W"]:
        """Unit embedding of each pixel."""
        embeddings: Tensor = self.pixel_head(self.teacher.feature_map(images), (images.shape[-2], images.shape[-1]))
        return embeddings

    def pixels_at(self, images: UInt8[Tensor, "I 3 H W"], pairs: PointPixelPairs) -> Float[Tensor, "K D"]:
        """Unit embedding of each pair's pixel."""
        return self.pixel_head.read(self.teacher.feature_map(images), pairs.image, pairs.uv)
