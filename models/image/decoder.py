"""U-Net decoder for dense tasks on any image network's pyramid: some channels for every pixel of the image.

    x = conv(coarsest map)
    for each finer map:           x = block(up-sample(x) beside conv1x1(map))       block: two 3x3 convolutions
    x = block(x up-sampled to stride 2);   out = conv3x3(x), up-sampled to the image

Norms are GroupNorm: batches of a few images give no statistics. Up-sampling is bilinear from where the cells lie.
Maps of the same stride (a dilated network) are joined without up-sampling.

Letters: I images, C channels, H W pixels, h w cells.

Source: Ronneberger et al., U-Net (MICCAI 2015), with an up-sampling instead of a transposed convolution as in Alhashim
and Wonka, DenseDepth (2018); narrower than the latter's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
