"""A pre-training method of your own: from its 3D feature, each point predicts the colour of the pixel it falls on.

    tandem prepare synthetic - runs/street/shards
    python examples/own_method.py pretrain examples/own_method.yaml
    python examples/own_method.py evaluate runs/colour configs/downstream/street.yaml

All verbs of `tandem` know the method while they are started through this file. To keep it, move the two classes to
`models/methods/<name>.py` and the registration to `models/methods/__init__.py` (CONTRIBUTING.md lists the rest).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from torch import nn

from data.batch_spec import BatchSpec
from data.sample import Batch
from launchers.cli import main
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods import METHODS
from models.methods.base import LossTerms, MethodConfig, Objective
from models.pairing import FeatureMap, read_pixels


@dataclass(frozen=True, kw_only=True)
class ColourConfig(MethodConfig):
    """Settings, under `method:` in the YAML file.

    Attributes:
        backbone: the 3D network that downstream tasks take over.
        hidden: width of the layer between a feature and a colour.
    """

    backbone: BackboneConfig = field(default_factory=Res16UNetConfig)
    hidden: int = 64

    def batch_spec(self) -> BatchSpec:
        """Images with point-pixel pairs, no superpixels."""
        return BatchSpec()

    def build(self) -> Colour:
        """Network and head with fresh weights."""
        return Colour(self)


class Colour(Objective):
    """Network, head and loss."""

    def __init__(self, config: ColourConfig) -> None:
        super().__init__()
        self.backbone = config.backbone.build()
        width = self.backbone.num_features
        self.head = nn.Sequential(nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 3))

    def forward(self, batch: Batch) -> LossTerms:
        """Mean absolute difference between predicted and seen RGB, both 0 to 1, over all pairs."""
        voxels = self.backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples)
        images, pairs = batch.need("images", by="colour"), batch.need("pairs", by="colour")
        predicted = self.head(voxels)[batch.point_voxel[pairs.point]]
        seen = read_pixels(FeatureMap(images.float() / 255), pairs.image, pairs.uv)  # a map at full resolution
        loss = (predicted - seen).abs().mean()
        return LossTerms(total=loss, parts={"colour": loss.detach()})


METHODS["colour"] = ColourConfig

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
