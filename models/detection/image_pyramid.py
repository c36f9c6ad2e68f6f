"""Maps of equal width at strides 8, 16, 32, ... from those of an image network, for heads that look at all of them.

Unlike `models.image.fpn.ResNetFpn`, which is an image network for pre-training, this is part of a detector: without the
map at stride 4, with coarser ones, and with a 3x3 convolution on each level.

Source: Lin et al., "Feature pyramid networks", CVPR 2017; coarser levels as in Tian et al., "FCOS", ICCV 2019 (on the
pyramid's own coarsest level, with ReLU between them). Deviation: bilinear up-sampling, as in `models.image.fpn`.

Letters: I images, C channels, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.pairing import FeatureMap, resample_cells

FINEST_STRIDE = 8
_GIVEN = 3
"""Maps that are taken of the image network: strides 8, 16 and 32."""


class ImagePyramid(nn.Module):
    """The levels, finest first; cell 0 of each lies on pixel 0."""

    def __init__(self, level_features: Sequence[int], channels: int, num_levels: int) -> None:
        """Random weights.

        Args:
            level_features: channels of the image network's maps at strides 4, 8, 16 and 32.
            channels: C, of each level.
            num_levels: three or more.
        """
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in level_features[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(_GIVEN))
        self.coarser = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(num_levels - _GIVEN)
        )
        self.strides = tuple(FINEST_STRIDE * 2**level for level in range(num_levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[FeatureMap]) -> list[Float[Tensor, "I C _ _"]]:
        """The levels of what `ImageEncoder.pyramid` gives."""
        levels = [conv(fine.values) for conv, fine in zip(self.lateral, maps[1:], strict=True)]
        for fine in range(len(levels) - 2, -1, -1):
            size = (levels[fine].shape[-2], levels[fine].shape[-1])
            levels[fine] = levels[fine] + resample_cells(levels[fine + 1], size, scale=0.5, offset=0.0)
        levels = [conv(level) for conv, level in zip(self.smooth, levels, strict=True)]
        for number, conv in enumerate(self.coarser):
            levels.append(conv(levels[-1] if number == 0 else F.relu(levels[-1])))
        return levels
