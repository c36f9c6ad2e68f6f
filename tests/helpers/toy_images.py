"""An image network without neighbours and statistics, for tests where those would only be in the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from models.image.base import ImageEncoder, ImageEncoderConfig
from models.pairing import FeatureMap


@dataclass(frozen=True, kw_only=True)
class PatchConfig(ImageEncoderConfig):
    """Each cell from its own patch of pixels alone."""

    stride: int = 4

    def build(self) -> PatchEncoder:
        """Two layers on each patch."""
        return PatchEncoder(self.stride)


class PatchEncoder(ImageEncoder):
    """Two layers on each patch."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, stride, stride=stride), nn.Conv2d(16, 10, 1)
        self.num_features, self.stride, self.origin_px, self.level_features = 10, stride, (stride - 1) / 2, (10,)

    def forward(self, images: Tensor) -> Tensor:
        """No padding, no statistics over the batch."""
        out: Tensor = self.second(F.gelu(self.first(images.to(self.first.weight.dtype) / 64 - 2)))
        return out

    def pyramid(self, images: Tensor) -> tuple[FeatureMap, ...]:
        """One level."""
        return (FeatureMap(self(images), self.stride, self.origin_px),)
