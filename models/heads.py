"""Projection heads: linear for points and pixels, and an MLP for methods that ask for one.

Linear on purpose: a deeper pixel head could solve the contrastive task from image position alone, and the points
would learn nothing of what is seen (SLidR, section 3.3).

Letters: I images, C channels, D embedding, R rows, P pairs, S segments, H W pixels, h w cells.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.lidar.layers import norm_act
from models.pairing import FeatureMap, full_precision, read_pixels, upsample_to_pixels
from models.pooling import segment_mean_of_unit_pixels


def unit(rows: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Rows of length 1 (a zero row stays zero), in float32 or float64: bfloat16 lengths are off by up to 0.4 %."""
    return F.normalize(full_precision(rows), dim=-1)


def unit_pixels(feature_map: FeatureMap, size: tuple[int, int]) -> Float[Tensor, "I D H W"]:
    """Unit features of every pixel of images of `size` (height, width), between cells bilinear."""
    return unit(upsample_to_pixels(feature_map, size).movedim(1, -1)).movedim(-1, 1)


class PointHead(nn.Module):
    """Linear layer with bias, then unit length. Source: SLidR, section 3.3."""

    def __init__(self, in_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, embedding_dim)

    def forward(self, features: Float[Tensor, "R C"]) -> Float[Tensor, "R D"]:
        """Unit embeddings of voxels or points."""
        return unit(self.linear(features))


class PixelHead(nn.Module):
    """1x1 convolution, fixed bilinear up-sampling to pixels, unit length. Source: SLidR, section 3.3.

    The convolution is a linear layer over channels, so the same weights serve pooled vectors. SLidR up-samples with
    aligned corners, which stretches the map by up to 3/4 of a cell; here each cell stays where the encoder put it.
    """

    def __init__(self, in_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, embedding_dim)

    def forward(self, feature_map: FeatureMap, size: tuple[int, int]) -> Float[Tensor, "I D H W"]:
        """Unit embeddings of every pixel of images of `size` (height, width)."""
        return unit_pixels(self._cells(feature_map), size)

    def segment_mean(
        self, feature_map: FeatureMap, segments: Int[Tensor, "I H W"], num_segments: int
    ) -> Float[Tensor, "S D"]:
        """Mean of the unit embeddings of each segment's pixels, 0 where it has none, without `forward`'s maps."""
        return segment_mean_of_unit_pixels(self._cells(feature_map), segments, num_segments)

    def read(self, feature_map: FeatureMap, image: Int[Tensor, " P"], uv: Float[Tensor, "P 2"]) -> Float[Tensor, "P D"]:
        """Unit embeddings at pixel coordinates; see `read_pixels`.

        Both the layer and the reading are linear, so their order is free: the one that leaves fewer rows comes first.
        """
        images, _, rows, columns = feature_map.values.shape
        if images * rows * columns < len(image):
            return unit(read_pixels(self._cells(feature_map), image, uv))
        return self.pooled(read_pixels(feature_map, image, uv))

    def _cells(self, feature_map: FeatureMap) -> FeatureMap:
        return replace(feature_map, values=self.linear(feature_map.values.movedim(1, -1)).movedim(-1, 1))

    def pooled(self, features: Float[Tensor, "S C"]) -> Float[Tensor, "S D"]:
        """Unit embeddings of features that were pooled before (over superpixels, or whole images)."""
        return unit(self.linear(features))


class MLPHead(nn.Module):
    """Linear, BatchNorm, ReLU, Linear; then unit length. Fewer than two rows meet BatchNorm's running statistics."""

    def __init__(self, in_features: int, hidden_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden_features, bias=False),  # BatchNorm takes any bias away
            nn.BatchNorm1d(hidden_features),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_features, embedding_dim),
        )

    def forward(self, features: Float[Tensor, "R C"]) -> Float[Tensor, "R D"]:
        """Unit embeddings of rows."""
        first, norm, _, last = self.layers
        assert isinstance(norm, nn.BatchNorm1d)
        return unit(last(norm_act(norm, first(features))))


class PlainMLPHead(nn.Module):
    """Linear, ReLU, Linear; then unit length. Without BatchNorm (MoCo v2): no row knows of the others."""

    def __init__(self, in_features: int, hidden_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden_features), nn.ReLU(inplace=True), nn.Linear(hidden_features, embedding_dim)
        )

    def forward(self, features: Float[Tensor, "R C"]) -> Float[Tensor, "R D"]:
        """Unit embeddings of rows."""
        return unit(self.layers(features))
