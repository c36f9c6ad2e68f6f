"""Several stages of a ResNet beside each other at the finest of them: fine ones know where, coarse ones know what.

Letters: I images, C channels, H W pixels, h w cells.

Source: Cai et al. (contrastive units): P2, P3 and P4 of a frozen ResNet-50, up-sampled and concatenated. Deviation:
levels can be normalised, since their scales differ several times over and the strongest would decide alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from models.image.resnet import ResNet, ResNetName, ResNetTeacherConfig, fill_resnet
from models.image.teacher import LevelsTeacherConfig, check_levels, joined_levels
from models.pairing import FeatureMap
from models.weights import LoadReport

LevelsName = Literal["resnet18_levels", "resnet50_levels"]
_DEPTHS: dict[LevelsName, ResNetName] = {"resnet18_levels": "resnet18", "resnet50_levels": "resnet50"}
_STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class ResNetLevelsTeacherConfig(LevelsTeacherConfig):
    """Several stages of a ResNet as a teacher; weights as for `ResNetTeacherConfig`."""

    NAMES = get_args(LevelsName)
    SOURCES = ResNetTeacherConfig.SOURCES
    LEVELS = _STRIDES

    name: LevelsName = "resnet50_levels"

    def network(self) -> ResNetLevels:
        """Stages up to the coarsest level."""
        return ResNetLevels(_DEPTHS[self.name], levels=self.levels, normalise_levels=self.normalise_levels)

    def fill(self, network: nn.Module, file_format: str, path: str) -> LoadReport:
        """Read a public file, or the ResNet of one of our own image networks."""
        return fill_resnet(network, file_format, path, min_match=self.min_match)


class ResNetLevels(ResNet):
    """The ResNet with its names, giving the features of all levels together."""

    def __init__(
        self, name: ResNetName, *, levels: tuple[int, ...] = (4, 8, 16), normalise_levels: bool = True
    ) -> None:
        """Random weights (He initialisation); arguments as of `LevelsTeacherConfig`.

        Raises:
            ValueError: levels are empty, not ascending, or none of 4, 8, 16, 32.
        """
        super().__init__(name)
        check_levels(levels, _STRIDES)
        self.levels, self.normalise_levels = levels, normalise_levels
        self._taken = tuple(self.map_strides.index(level) for level in levels)
        self.num_features = sum(self.map_features[index] for index in self._taken)
        self.stride = levels[0]

    def forward(self, images: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C h w"]:
        """Features of normalised images; h = ceil(H / stride), w = ceil(W / stride)."""
        maps = self.maps(images, stages=self._taken[-1])
        levels = [FeatureMap(maps[index], self.map_strides[index]) for index in self._taken]
        return joined_levels(levels, normalise=self.normalise_levels)
