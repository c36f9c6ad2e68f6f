"""What every image network offers, so that methods, evaluation and export need not know which one it is.

Letters: I images, C channels, H W pixels, h w cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from models.pairing import FeatureMap

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB from 0 to 1."""


class DenseNetwork(nn.Module):
    """A network whose `forward` gives one map of features for each image.

    Attributes:
        num_features: channels of the map.
        stride: pixels from one of its cells to the next.
        origin_px: pixel under the centre of its cell 0.
    """

    num_features: int
    stride: int
    origin_px: float

    def feature_map(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> FeatureMap:
        """The map with the place of its cells. `forward` gives plain tensors, which engines find for their hooks."""
        return FeatureMap(self(images), self.stride, self.origin_px)


def describe_input(network: DenseNetwork) -> str:
    """What an image network here is fed and where its cells lie, for whoever runs its weights in other code."""
    mean, std = ("/".join(f"{value:g}" for value in values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (
        f"RGB from 0 to 1, minus {mean}, over {std}; cell i of the map lies at pixel {network.stride} i"
        f"{f' + {network.origin_px:g}' if network.origin_px else ''} (corners not aligned)"
    )


class ImageEncoder(DenseNetwork, ABC):
    """An image network that takes images as they are stored and applies its own normalisation.

    Attributes:
        level_features: channels of the maps that `pyramid` gives, finest first.
    """

    level_features: tuple[int, ...]

    @abstractmethod
    def forward(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C h w"]:
        """The network's own map.

        Args:
            images: RGB, 0 to 255, as stored or (floating) after colour augmentation.
        """

    @abstractmethod
    def pyramid(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> tuple[FeatureMap, ...]:
        """Maps of several strides, finest first: what a decoder for dense tasks builds on."""


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig(ABC):
    """Settings of one family of image networks; `models.image.encoders.IMAGE_ENCODERS` lists the families.

    Attributes:
        weights: `random`, or `<format>:<path>` (formats: see `models.weights`; `tandem:<run or checkpoint folder>`
            takes the image network of one of our own runs).
        min_match: share of the network's tensors that the weight file must fill, 0 to 1.
    """

    weights: str = "random"
    min_match: float = 0.9

    @property
    def architecture(self) -> str:
        """Name for tables."""
        return type(self).__name__

    @abstractmethod
    def build(self) -> ImageEncoder:
        """Assemble the network and fill it.

        Raises:
            ValueError: the weight file is missing, unreadable or does not fit.
        """
