"""SLidR: a frozen image network teaches a 3D network, superpixel by superpixel.

Paper: Sautier et al., "Image-to-Lidar Self-Supervised Distillation for Autonomous Driving Data", CVPR 2022.
Learnt: the 3D network with its linear head, and the linear head on the image network's features. The image network
stays as it is. In: voxels, point-pixel pairs, and either images with superpixels or the teacher's features pooled over
superpixels beforehand (`Superpixels.features`).

Deviations from the paper and its released code: `docs/methods/slidr.md`.

Option `tolerant`: negatives that look to the teacher like the anchor's own superpixel count less (ST-SLidR, Mahmoud et
al., CVPR 2023).

Letters: I images, M voxels, P pairs, S superpixels, C channels, D embedding, H W pixels, h w cells.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from common.ranges import at_least
from data.batch_spec import BatchSpec
from data.sample import Batch, Superpixels
from models.contrast.losses import info_nce
from models.contrast.tolerance import SemanticToleranceConfig, Tolerance, semantic_tolerance
from models.heads import PixelHead, PointHead
from models.image.resnet import ResNetTeacherConfig
from models.image.teacher import TeacherConfig
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import EmbedsPoints, LossTerms, PoolsTeacher, RowContrastConfig, contrast_terms
from models.pairing import FeatureMap, segment_mean
from models.pooling import segment_mean_of_map
from models.visuals import PixelSketch, Sketch


@dataclass(frozen=True, kw_only=True)
class SlidrConfig(RowContrastConfig):
    """Settings of SLidR; defaults are the paper's. See `RowContrastConfig` for the rest.

    Attributes:
        backbone: 3D network; `backbone.name` chooses.
        teacher: frozen image network. The paper's is `name: resnet50, weights: moco_v2:<path>`.
        embedding_dim: D, dimensions of the common space.
        symmetric: also superpixels as anchors and superpoints as targets, mean of both.
        chunk_rows: saves less memory with `tolerant`, whose weights are S x S anyway.
        tolerant: of negatives that the teacher finds similar; None: all negatives count alike, as in SLidR.
    """

    backbone: BackboneConfig = field(default_factory=Res16UNetConfig)
    teacher: TeacherConfig = field(default_factory=ResNetTeacherConfig)
    embedding_dim: int = 64
    symmetric: bool = False
    tolerant: SemanticToleranceConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, embedding_dim=1)
        if self.tolerant is not None and self.symmetric and self.gather_negatives:
            raise ValueError(
                "tolerant with symmetric and gather_negatives: the weights of the other direction would be held by "
                "other ranks; expected one of symmetric and gather_negatives off"
            )

    def batch_spec(self) -> BatchSpec:
        """Images with superpixels."""
        return BatchSpec(superpixels=True)

    def build(self) -> Slidr:
        """Assemble towers and heads."""
        return Slidr(self)


class Slidr(EmbedsPoints, PoolsTeacher):
    """Towers, heads and loss of SLidR."""

    def __init__(self, config: SlidrConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.teacher = config.teacher.build()
        self.point_head = PointHead(self.backbone.num_features, config.embedding_dim)
        self.pixel_head = PixelHead(self.teacher.num_features, config.embedding_dim)

    def forward(self, batch: Batch) -> LossTerms:
        """Contrast superpoints with superpixels.

            k_s = mean of the unit embeddings of the points paired with a pixel of superpixel s
            q_s = mean of the unit embeddings of the pixels of superpixel s
            loss = mean over s with points of -log softmax over all such s' of (k_s . q_s' / temperature) at s' = s

        The means are not normalised again. A batch without pairs gives a loss of 0 and gradients of 0, one with a
        single superpixel likewise (there is nothing to contrast).

        Raises:
            ValueError: the batch lacks pairs, superpixels, or both images and cached features.

        Source: SLidR, section 3.2, eq. 1 to 3.
        """
        pairs, superpixels = batch.need("pairs", by="SLidR"), batch.need("superpixels", by="SLidR")
        points = self.point_embeddings(batch)[batch.point_voxel[pairs.point]]
        superpoints, num_pairs = segment_mean(points, superpixels.of_pair, superpixels.num)
        cached = superpixels.features is not None
        maps = None if cached else self.teacher.feature_map(batch.need("images", by="SLidR"))

        seen = num_pairs > 0
        anchors, targets = superpoints[seen], self._embed_superpixels(superpixels, maps)[seen]
        tolerance = self._tolerance(superpixels, maps, seen)
        loss = info_nce(
            anchors,
            targets,
            temperature=self.config.temperature,
            symmetric=self.config.symmetric,
            excluded=tolerance.excluded,
            log_weights=tolerance.log_weights,
            row_weights=tolerance.row_weights,
            gather=self.config.gather_negatives,
            chunk_rows=self.config.chunk_rows,
        )
        return contrast_terms(loss, anchors, targets, watch_rows=self.config.watch_rows)

    def pixel_embeddings(self, images: UInt8[Tensor, "I 3 H W"]) -> Float[Tensor, "I D H W"]:
        """Unit embedding of each pixel."""
        embeddings: Tensor = self.pixel_head(self.teacher.feature_map(images), (images.shape[-2], images.shape[-1]))
        return embeddings

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """With `tolerant`: how much each superpixel of the first image counts as a negative of its middle one."""
        if self.config.tolerant is None or batch.images is None or batch.superpixels is None:
            return {}
        of_pixel = _of_pixel(batch.superpixels)[:1]
        ids = of_pixel[0].clamp(min=0)
        pooled, _ = segment_mean_of_map(self.teacher.feature_map(batch.images[:1]), of_pixel, batch.superpixels.num)
        tolerance = semantic_tolerance(pooled, dataclasses.replace(self.config.tolerant, balanced=False))
        query = int(ids[ids.shape[0] // 2, ids.shape[1] // 2])
        counts = torch.ones_like(pooled[:, 0])
        if tolerance.log_weights is not None:
            counts = tolerance.log_weights[query].exp()
        if tolerance.excluded is not None:
            counts = counts.masked_fill(tolerance.excluded[query], 0.0)
        counts[query] = torch.nan  # no negative of itself: drawn grey
        caption = "weight of each superpixel as a negative of the one in the middle"
        return {"negatives": PixelSketch(image=batch.images[0], values=counts[ids], scale="share", caption=caption)}

    def _embed_superpixels(self, superpixels: Superpixels, maps: FeatureMap | None) -> Float[Tensor, "S D"]:
        """Mean unit embedding of each superpixel; without maps, from cached features: unit embedding of the mean."""
        if maps is not None:
            return self.pixel_head.segment_mean(maps, _of_pixel(superpixels), superpixels.num)
        features = superpixels.features
        assert features is not None
        if features.shape[1] != self.teacher.num_features:
            raise ValueError(
                f"cached teacher features have {features.shape[1]} channels, the teacher {self.config.teacher.name} "
                f"{self.teacher.num_features}: the cache belongs to another teacher. Build it again"
            )
        return self.pixel_head.pooled(features.to(self.pixel_head.linear.weight.dtype))

    def _tolerance(self, superpixels: Superpixels, maps: FeatureMap | None, seen: Bool[Tensor, " S"]) -> Tolerance:
        """What the teacher's similarities make of the superpixels with points."""
        if self.config.tolerant is None:
            return Tolerance(None, None, None)
        features = superpixels.features
        if features is None:
            assert maps is not None
            features, _ = segment_mean_of_map(maps, _of_pixel(superpixels), superpixels.num)
        return semantic_tolerance(features[seen], self.config.tolerant, gather=self.config.gather_negatives)

    @torch.no_grad()
    def pool_teacher(self, batch: Batch) -> Float[Tensor, "S C"]:
        """The teacher's features, before any head, averaged over each superpixel's pixels: what a cache stores.

        One image at a time, without up-sampling the map. Superpixels without pixels get zeros.

        Raises:
            ValueError: the batch has no images or no superpixels.
        """
        images, superpixels = batch.need("images", by="SLidR"), batch.need("superpixels", by="SLidR")
        means = torch.zeros(superpixels.num, self.teacher.num_features, device=images.device)
        for image, of_pixel in zip(images.split(1), _of_pixel(superpixels).split(1), strict=True):
            means += segment_mean_of_map(self.teacher.feature_map(image), of_pixel, superpixels.num)[0]
        return means


def _of_pixel(superpixels: Superpixels) -> Int[Tensor, "I H W"]:
    if superpixels.of_pixel is None:
        raise ValueError("SLidR needs the superpixel of each pixel, or cached teacher features; this batch has neither")
    return superpixels.of_pixel.long()
