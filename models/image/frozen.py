"""Image networks that never train: no gradient, BatchNorm on its stored statistics, whatever mode their owner is in.

Letters: I images, C channels, H W pixels, h w cells.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from models.image.base import DenseNetwork, ImageEncoder, ImageEncoderConfig

FrozenT = TypeVar("FrozenT", bound="Frozen")


class Frozen(DenseNetwork):
    """Keeps a network, its `encoder`, as it is."""

    def __init__(self, encoder: nn.Module) -> None:
        """Takes the network over: evaluation mode, no gradients."""
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.training = False

    def train(self: FrozenT, mode: bool = True) -> FrozenT:
        """Stays in evaluation mode: BatchNorm statistics of another data set must not drift."""
        super().train(False)
        return self


class FrozenEncoder(Frozen):
    """An image network as methods train it, frozen; a `FrozenTeacher` has the same attributes and the same call."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__(encoder)
        self.num_features, self.stride, self.origin_px = encoder.num_features, encoder.stride, encoder.origin_px

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C h w"]:
        """The network's map of images as stored."""
        features: Tensor = self.encoder(images)
        return features


def frozen_encoder(config: ImageEncoderConfig) -> FrozenEncoder:
    """Build an image network, fill it as its config says (see `ImageEncoderConfig.build`), and freeze it."""
    return FrozenEncoder(config.build())
