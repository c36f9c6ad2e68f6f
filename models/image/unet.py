"""ResNet with a U-Net decoder: features of every pixel.

    x = coarsest map of the ResNet
    for each finer map s (strides 16, 8, 4, 2), then the image itself:
        x = conv(up-sample(conv(x)) beside s)        3x3 convolutions
No norms and ELU between them; the last convolution has no ELU, so that features can point anywhere.

Letters: I images, C channels, H W pixels, h w cells.

Source: decoder of Godard et al., ICCV 2019 (monodepth2), which Janda et al. alter to 16 channels a pixel. Deviations:
bilinear up-sampling from where the cells lie (nearest neighbours would shift each step by half a cell); borders are
repeated instead of mirrored, which also works on maps of one cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from common.ranges import at_least, expect
from models.image.resnet import ResNetName
from models.image.resnet_encoder import ResNetEncoder, ResNetEncoderConfig
from models.image.teacher import TeacherConfig
from models.pairing import FeatureMap, resample_cells
from models.weights import OWN_FORMAT, OWN_IMAGE_PREFIX, LoadReport, load_state, read_own_weights

_WIDEST = 16
"""Channels of the coarsest decoder step, as a multiple of the finest."""


@dataclass(frozen=True, kw_only=True)
class ResNetUnetConfig(ResNetEncoderConfig):
    """A ResNet with a U-Net decoder; see `ResNetEncoderConfig` for the rest.

    Attributes:
        channels: C, features of a pixel; the decoder's steps have 16, 8, 4, 2 and 1 times as many.
    """

    channels: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, channels=1)
        expect(self, "dilated", not self.dilated, "false: the decoder needs maps of several strides")

    def network(self) -> ResNetUnet:
        """See `ResNetEncoderConfig.network`."""
        return ResNetUnet(self)


UnetName = Literal["resnet10_tiny_unet", "resnet18_unet", "resnet50_unet"]
_DEPTHS: dict[UnetName, ResNetName] = {
    "resnet10_tiny_unet": "resnet10_tiny",
    "resnet18_unet": "resnet18",
    "resnet50_unet": "resnet50",
}


@dataclass(frozen=True, kw_only=True)
class ResNetUnetTeacherConfig(TeacherConfig):
    """A pixel network that one of our own runs trained, as a teacher. Weights: `tandem:<path>`."""

    NAMES = get_args(UnetName)
    SOURCES = (OWN_FORMAT,)

    name: UnetName = "resnet50_unet"

    @property
    def stride(self) -> int:
        """Every pixel has features."""
        return 1

    def network(self) -> ResNetUnet:
        """With the default number of channels."""
        return ResNetUnet(ResNetUnetConfig(preset=_DEPTHS[self.name]))

    def fill(self, network: nn.Module, file_format: str, path: str) -> LoadReport:
        """Read ResNet and decoder."""
        return load_state(network, read_own_weights(path, OWN_IMAGE_PREFIX), source=path, min_match=1.0)


class _Step(nn.Module):
    """One step of the decoder: halve the stride, take in the encoder's map of that stride."""

    def __init__(self, in_channels: int, skip_channels: int, channels: int) -> None:
        super().__init__()
        self.before = _conv3x3(in_channels, channels)
        self.after = _conv3x3(channels + skip_channels, channels)

    def forward(
        self, x: Float[Tensor, "I Cin h w"], skip: Float[Tensor, "I Cskip h2 w2"] | None, size: tuple[int, int]
    ) -> Float[Tensor, "I C h2 w2"]:
        """Without the last non-linearity."""
        x = resample_cells(F.elu(self.before(x)), size, scale=0.5, offset=0.0)
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        out: Tensor = self.after(x)
        return out


def _conv3x3(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, padding=1, padding_mode="replicate")


class ResNetUnet(ResNetEncoder):
    """`forward` gives features of each pixel (stride 1); the pyramid is the ResNet's own, as in the other families."""

    def __init__(self, config: ResNetUnetConfig) -> None:
        """Random weights; `fill_encoder` reads the file."""
        super().__init__(config)
        widths = self.network.map_features  # strides 2, 4, 8, 16, 32
        below, steps = widths[-1], []
        for index, skip in enumerate((*reversed(widths[:-1]), 0)):
            channels = config.channels * (_WIDEST >> index)
            steps.append(_Step(below, skip, channels))
            below = channels
        self.steps = nn.ModuleList(steps)
        self.num_features, self.stride = config.channels, 1

    def forward(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C H W"]:
        """Features of each pixel."""
        *skips, x = self.network.maps(self.normalise(images))
        for index, step in enumerate(self.steps):
            skip = skips.pop() if skips else None
            like = images if skip is None else skip
            x = step(x if index == 0 else F.elu(x), skip, (like.shape[-2], like.shape[-1]))
        return x

    def pyramid(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> tuple[FeatureMap, ...]:
        """Strides 4, 8, 16 and 32, before the decoder."""
        return super().pyramid(images)
