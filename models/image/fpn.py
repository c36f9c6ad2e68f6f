"""ResNet with a feature pyramid: coarse maps carry their knowledge down to the finest one.

The ResNet's cells of all strides begin on pixel 0, so the cell of a coarse map that lies under a fine one is found
exactly; the usual nearest-neighbour up-sampling would shift each level by half a cell.

Letters: I images, C channels, H W pixels, h w cells.

Source: Lin et al., CVPR 2017, section 3. Deviations: bilinear up-sampling, for the reason above; only the finest
level, which `forward` gives, is smoothed by a 3x3 convolution: those of the other levels would get no gradient from a
method that reads one map.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from common.ranges import at_least, expect
from models.image.resnet_encoder import ResNetEncoder, ResNetEncoderConfig
from models.pairing import FeatureMap, resample_cells


@dataclass(frozen=True, kw_only=True)
class ResNetFpnConfig(ResNetEncoderConfig):
    """A ResNet with a feature pyramid; see `ResNetEncoderConfig` for the rest.

    Attributes:
        channels: C, of all levels.
    """

    channels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, channels=1)
        expect(self, "dilated", not self.dilated, "false: a dilated ResNet has one stride only, there is no pyramid")

    def network(self) -> ResNetFpn:
        """See `ResNetEncoderConfig.network`."""
        return ResNetFpn(self)


class ResNetFpn(ResNetEncoder):
    """One map at stride 4, or four levels of equal width."""

    def __init__(self, config: ResNetFpnConfig) -> None:
        """Random weights; `fill_encoder` reads the file."""
        super().__init__(config)
        widths = self.network.map_features[1:]
        self.lateral = nn.ModuleList(nn.Conv2d(width, config.channels, 1) for width in widths)
        self.smooth = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.num_features, self.stride = config.channels, self.network.map_strides[1]
        self.level_features = (config.channels,) * len(widths)

    def forward(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C h w"]:
        """The finest level, smoothed."""
        return self._levels(images)[0]

    def pyramid(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> tuple[FeatureMap, ...]:
        """Strides 4, 8, 16 and 32."""
        levels = self._levels(images)
        return tuple(FeatureMap(m, s, 0.0) for m, s in zip(levels, self.network.map_strides[1:], strict=True))

    def _levels(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> list[Float[Tensor, "I C _ _"]]:
        """Finest first."""
        maps = self.network.maps(self.normalise(images))[1:]
        levels = [conv(m) for conv, m in zip(self.lateral, maps, strict=True)]
        for fine in range(len(levels) - 2, -1, -1):
            size = (levels[fine].shape[-2], levels[fine].shape[-1])
            levels[fine] = levels[fine] + resample_cells(levels[fine + 1], size, scale=0.5, offset=0.0)
        levels[0] = self.smooth(levels[0])
        return levels
