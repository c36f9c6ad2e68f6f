"""What detectors with one head on a bird's-eye view share."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from data.sample import Batch
from models.detection.base import Detector, DetectorConfig
from models.lidar.base import BackboneConfig, GivesBirdEyeView
from models.lidar.pillars import PillarsConfig
from models.lidar.voxelnet import VoxelNetConfig


@dataclass(frozen=True, kw_only=True)
class BirdEyeDetectorConfig(DetectorConfig):
    """Settings of a detector on a bird's-eye view.

    Attributes:
        backbone: 3D network with a bird's-eye view: voxelnet, whose `voxel_size_m` is set, or pillars.
    """

    backbone: BackboneConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backbone, (VoxelNetConfig, PillarsConfig)):
            raise ValueError(
                f"backbone: got {type(self.backbone).__name__.removesuffix('Config').lower()}, expected a network with "
                "a bird's-eye view: set backbone.name to voxelnet or pillars"
            )
        if isinstance(self.backbone, VoxelNetConfig) and self.backbone.voxel_size_m is None:
            raise ValueError(
                "backbone.voxel_size_m: got None, expected the edges of a cell in metres, as data.voxel.size: the "
                "head has to know where the map's cells lie"
            )


class BirdEyeDetector(Detector):
    """A 3D network with a bird's-eye view, for a head on it.

    Attributes:
        backbone: the network.
        grid: places of the map's cells.
    """

    def __init__(self, config: BirdEyeDetectorConfig) -> None:
        super().__init__()
        self.backbone = config.backbone.build()
        assert isinstance(self.backbone, GivesBirdEyeView)
        self.grid = self.backbone.bird_eye_grid

    def bird_eye_view(self, batch: Batch) -> Float[Tensor, "B C Y X"]:
        """The map that the head works on."""
        assert isinstance(self.backbone, GivesBirdEyeView)
        return self.backbone.bird_eye_view(batch.voxel_coords, batch.voxel_features, batch.num_samples)
