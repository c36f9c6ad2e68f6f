"""Decoders for dense tasks on any image network's pyramid: some channels for every pixel of the image.

`UNetDecoder`, ours:

    x = conv(coarsest map)
    for each finer map:           x = block(up-sample(x) beside conv1x1(map))       block: two 3x3 convolutions
    x = block(x up-sampled to stride 2);   out = conv3x3(x), up-sampled to the image

Norms are GroupNorm: batches of a few images give no statistics. Up-sampling is bilinear from where the cells lie.
Maps of the same stride (a dilated network) are joined without up-sampling.

`DenseDepthDecoder`, the literature's for depth:

    x = conv1x1(coarsest map), `width` times 2 to the number of maps channels
    for each finer map, then for half the image's size:       x = block(up-sample(x) beside the map), half the channels
    out = conv3x3(x), up-sampled to the image

Its norms are BatchNorm with LeakyReLU, and its up-sampling lays the outermost cells of both maps on each other, which
is off by up to a cell at the right and lower border of a map of odd padding, as in the released code.

Letters: I images, C channels, H W pixels, h w cells.

Source: Ronneberger et al., U-Net (MICCAI 2015), with an up-sampling instead of a transposed convolution; Alhashim and
Wonka, DenseDepth (2018), as Bhat et al., AdaBins (CVPR 2021), have it in their released code. Deviations from the
latter: no skip connection at half the image's size, where our pyramids have no map, and no border of zeros around the
coarsest map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from models.pairing import FeatureMap, upsample_to_pixels

_GROUPS = 8


def _block(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (in_channels, channels):
        layers += [
            nn.Conv2d(width, channels, 3, padding=1, padding_mode="replicate", bias=False),
            nn.GroupNorm(_GROUPS, channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNetDecoder(nn.Module):
    """The decoder; the coarsest step has `width` channels times 4, at most, the finest `width`."""

    def __init__(self, level_features: Sequence[int], out_channels: int, *, width: int = 32) -> None:
        """A decoder with random weights.

        The pyramid's maps have `level_features` channels, finest first; `width`, a multiple of 8, is that of the finest
        step.

        Raises:
            ValueError: no maps, or a width that GroupNorm cannot group.
        """
        super().__init__()
        if not level_features or width < _GROUPS or width % _GROUPS:
            raise ValueError(
                f"{len(level_features)} maps, width = {width}: expected at least one map and a positive multiple of "
                f"{_GROUPS}"
            )
        widths = [width * min(4, 2**level) for level in range(len(level_features))]
        self.lateral = nn.ModuleList(
            nn.Conv2d(features, own, 1) for features, own in zip(level_features, widths, strict=True)
        )
        self.blocks = nn.ModuleList(
            _block(own + below, own) for own, below in zip(widths, [*widths[1:], 0], strict=True)
        )
        self.finest = _block(width, width)
        self.last = nn.Conv2d(width, out_channels, 3, padding=1, padding_mode="replicate")

    def forward(self, pyramid: Sequence[FeatureMap], size: tuple[int, int]) -> Float[Tensor, "I C H W"]:
        """Channels of each pixel of images of `size` (height, width), from what `ImageEncoder.pyramid` gives."""
        below: FeatureMap | None = None
        for level in reversed(range(len(pyramid))):
            here = pyramid[level]
            values = self.lateral[level](here.values)
            if below is not None:
                read = below.read_at(here.size, stride=here.stride, origin_px=here.origin_px)
                values = torch.cat((values, read), dim=1)
            below = replace(here, values=self.blocks[level](values))
        assert below is not None
        if below.stride > 2:  # one step between the finest map and the image; what is left is smooth
            half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
            below = FeatureMap(below.read_at(half, stride=2, origin_px=0.0), stride=2)
        return upsample_to_pixels(replace(below, values=self.last(self.finest(below.values))), size)


class DenseDepthDecoder(nn.Module):
    """The decoder of depth in the literature; `width` is that of its finest step (128 on a ResNet-50: 2048 inside)."""

    def __init__(self, level_features: Sequence[int], out_channels: int, *, width: int = 128) -> None:
        """A decoder with random weights.

        The pyramid's maps have `level_features` channels, finest first.

        Raises:
            ValueError: no maps, or no width.
        """
        super().__init__()
        if not level_features or width < 1:
            raise ValueError(f"{len(level_features)} maps, width = {width}: expected at least one map and one channel")
        finer = [*level_features[-2::-1], 0]  # beside the last step lies no map
        channels = width * 2 ** len(level_features)
        self.bottleneck = nn.Conv2d(level_features[-1], channels, 1)
        steps = []
        for features in finer:
            steps.append(_leaky_block(channels + features, channels // 2))
            channels //= 2
        self.steps = nn.ModuleList(steps)
        self.last = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, pyramid: Sequence[FeatureMap], size: tuple[int, int]) -> Float[Tensor, "I C H W"]:
        """Channels of each pixel of images of `size` (height, width), from what `ImageEncoder.pyramid` gives."""
        x = self.bottleneck(pyramid[-1].values)
        for step, finer in zip(self.steps, pyramid[-2::-1], strict=False):  # the last step is the next line's
            x = step(torch.cat((_spread(x, finer.size), finer.values), dim=1))
        x = self.steps[-1](_spread(x, ((size[0] + 1) // 2, (size[1] + 1) // 2)))
        return _spread(self.last(x), size)


def _leaky_block(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (in_channels, channels):
        layers += [nn.Conv2d(width, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.LeakyReLU()]
    return nn.Sequential(*layers)


def _spread(x: Float[Tensor, "I C h w"], size: tuple[int, int]) -> Float[Tensor, "I C H W"]:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
