"""The registry of 3D networks: one line a family. `<section>.backbone.name` in a config chooses from it."""

from models.lidar.base import BackboneConfig
from models.lidar.pillars import PillarsConfig
from models.lidar.pointnet2 import PointNet2Config
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.spvcnn import SpvcnnConfig
from models.lidar.voxelnet import VoxelNetConfig
from models.lidar.waffleiron import WaffleIronConfig

BACKBONES: dict[str, type[BackboneConfig]] = {
    "res16unet": Res16UNetConfig,
    "spvcnn": SpvcnnConfig,
    "pillars": PillarsConfig,
    "pointnet2": PointNet2Config,
    "voxelnet": VoxelNetConfig,
    "waffleiron": WaffleIronConfig,
}
