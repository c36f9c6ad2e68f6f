"""Means over superpixels by way of every pixel's features, as they were taken before `models.pooling`."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from models.heads import unit_pixels
from models.pairing import FeatureMap, segment_mean, upsample_to_pixels


def mean_of_pixels(
    feature_map: FeatureMap, segments: Int[Tensor, "I H W"], num_segments: int, *, unit: bool
) -> Float[Tensor, "S C"]:
    """Up-sample whole maps, bring each pixel to unit length where asked, add pixels up by segment."""
    size = (segments.shape[-2], segments.shape[-1])
    pixels = unit_pixels(feature_map, size) if unit else upsample_to_pixels(feature_map, size)
    return segment_mean(pixels.movedim(1, -1).flatten(0, 2), segments.flatten(), num_segments)[0]


def mean_of_interpolated(
    cells: Float[Tensor, "I C h w"], segments: Int[Tensor, "I H W"], num_segments: int, *, align_corners: bool
) -> Float[Tensor, "S C"]:
    """The same with unit length by torch's own up-sampling."""
    size = (segments.shape[-2], segments.shape[-1])
    pixels = F.normalize(F.interpolate(cells, size=size, mode="bilinear", align_corners=align_corners), dim=1)
    return segment_mean(pixels.movedim(1, -1).flatten(0, 2), segments.flatten(), num_segments)[0]
