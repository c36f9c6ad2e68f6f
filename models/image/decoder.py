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

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.pairing import FeatureMap, resample_cells

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

        Args:
            level_features: channels of the pyramid's maps, finest first.
            out_channels: of the result.
            width: channels of the finest step, a multiple of 8.

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
        """Channels of each pixel.

        Args:
            pyramid: as `ImageEncoder.pyramid` gives it.
            size: height, width of the image.
        """
        x: Tensor | None = None
        stride, origin = pyramid[-1].stride, pyramid[-1].origin_px
        for level in reversed(range(len(pyramid))):
            here = pyramid[level]
            own = self.lateral[level](here.values)
            if x is not None:
                x = _moved(x, stride, origin, (own.shape[-2], own.shape[-1]), here.stride, here.origin_px)
                own = torch.cat((own, x), dim=1)
            x = self.blocks[level](own)
            stride, origin = here.stride, here.origin_px
        assert x is not None
        if stride > 2:  # one step between the finest map and the image; what is left is smooth
            half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
            x = _moved(x, stride, origin, half, 2, 0.0)
            stride, origin = 2, 0.0
        x = self.last(self.finest(x))
        return _moved(x, stride, origin, size, 1, 0.0)


def _moved(
    x: Float[Tensor, "I C h w"], stride: int, origin: float, size: tuple[int, int], to_stride: int, to_origin: float
) -> Float[Tensor, "I C h2 w2"]:
    """A map read where another one's cells lie."""
    return resample_cells(x, size, scale=to_stride / stride, offset=(to_origin - origin) / stride)
