"""ResNet as an image network that trains: it takes images as they are stored and gives one map or a pyramid.

The decoders on top of it (`models.image.fpn`, `models.image.unet`) are subclasses: the same network, the same rules for
weights.

Letters: I images, C channels, H W pixels, h w cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from common.ranges import expect, share
from models.image.base import IMAGENET_MEAN, IMAGENET_STD, ImageEncoder, ImageEncoderConfig
from models.image.resnet import NETWORK_PREFIX, ResNet, ResNetName, fill_resnet
from models.pairing import FeatureMap
from models.weights import IMAGE_FORMATS, OWN_FORMAT, OWN_IMAGE_PREFIX, LoadReport, load_state, read_own_weights


@dataclass(frozen=True, kw_only=True)
class ResNetEncoderConfig(ImageEncoderConfig):
    """A ResNet; see `ImageEncoderConfig` for the rest.

    Weights `<format>:<path>` fill the ResNet: torchvision, moco_v1, moco_v2, moco_v3, dino; or `tandem:<folder>`, see
    `fill_encoder`.

    Attributes:
        preset: depth. `resnet10_tiny` is for CPUs.
        dilated: dilation in place of the last three strides: features at 1/4 of the image, at 18 times the cost.
        checkpoint_activations: recompute each block in the backward pass instead of storing its inside.
    """

    preset: ResNetName = "resnet50"
    dilated: bool = False
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        file_format, _, path = self.weights.partition(":")
        known = (*IMAGE_FORMATS, OWN_FORMAT)
        fits = self.weights == "random" or (file_format in known and bool(path))
        expect(self, "weights", fits, f"random, or one of {', '.join(f'{name}:<path>' for name in known)}")
        share(self, "min_match")

    @property
    def architecture(self) -> str:
        """The ResNet's name."""
        return self.preset

    def build(self) -> ResNetEncoder:
        """See `ImageEncoderConfig.build`."""
        encoder = self.network()
        fill_encoder(encoder)
        return encoder

    def network(self) -> ResNetEncoder:
        """The family's network with random weights."""
        return ResNetEncoder(self)


class ResNetEncoder(ImageEncoder):
    """A ResNet with ImageNet's normalisation inside; `report` says what the weight file filled, None for random."""

    def __init__(self, config: ResNetEncoderConfig) -> None:
        """Random weights; `fill_encoder` reads the file."""
        super().__init__()
        self.config = config
        self.network = ResNet(
            config.preset, dilated=config.dilated, checkpoint_activations=config.checkpoint_activations
        )
        self.report: LoadReport | None = None
        self.num_features = self.network.num_features
        self.stride, self.origin_px = self.network.stride, self.network.origin_px
        self.level_features = self.network.map_features[1:]
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def normalise(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I 3 H W"]:
        """Zero mean and unit variance on ImageNet."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def forward(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C h w"]:
        """Map of the last stage."""
        features: Tensor = self.network(self.normalise(images))
        return features

    def pyramid(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> tuple[FeatureMap, ...]:
        """Maps of the four stages: strides 4, 8, 16 and 32 (4 for all of a dilated network)."""
        maps = self.network.maps(self.normalise(images))[1:]
        return tuple(FeatureMap(m, s, 0.0) for m, s in zip(maps, self.network.map_strides[1:], strict=True))


def fill_encoder(encoder: ResNetEncoder) -> None:
    """Read the configured weights.

    A public file fills the ResNet. `tandem:<folder>` takes the image network of one of our own runs: the ResNets must
    agree wholly, and so must the decoders where both have one; a decoder that the run did not have stays random.

    Raises:
        ValueError: the weight file is missing, unreadable or does not fit.
    """
    config = encoder.config
    file_format, _, path = config.weights.partition(":")
    if file_format == "random":
        return
    encoder.report = fill_resnet(encoder.network, file_format, path, min_match=config.min_match)
    if file_format == OWN_FORMAT:
        # Names beside the ResNet's are a decoder's; it is taken over where both the run and this network have one.
        state = read_own_weights(path, OWN_IMAGE_PREFIX)
        if all(any(not key.startswith(NETWORK_PREFIX) for key in keys) for keys in (state, encoder.state_dict())):
            encoder.report = load_state(encoder, state, source=path, min_match=1.0)
