"""The data sets that `tandem prepare` knows: one line each."""

from __future__ import annotations

from data.convert.argoverse2 import Argoverse2Converter
from data.convert.base import Converter
from data.convert.custom.converter import CustomConverter
from data.convert.kitti.kitti_360 import Kitti360Converter
from data.convert.kitti.kitti_object import KittiObjectConverter
from data.convert.kitti.kitti_raw import KittiRawConverter
from data.convert.kitti.semantickitti import SemanticKittiConverter
from data.convert.kitti.semanticposs import SemanticPossConverter
from data.convert.las import LasConverter
from data.convert.logs.converter import McapConverter, RosbagConverter
from data.convert.nuscenes.converter import NuscenesConverter
from data.convert.nyu import NyuConverter
from data.convert.once import OnceConverter
from data.convert.pandaset.converter import PandasetConverter
from data.convert.pcd import PcdConverter
from data.convert.s3dis import S3disConverter
from data.convert.scannet.converter import ScanNetConverter
from data.convert.seven_scenes import SevenScenesConverter
from data.convert.sunrgbd import SunRgbdConverter
from data.convert.synthetic import SyntheticConverter
from data.convert.waymo.converter import WaymoConverter

SETTINGS: dict[str, type[Converter]] = {
    "synthetic": SyntheticConverter,
    "kitti-raw": KittiRawConverter,
    "kitti-object": KittiObjectConverter,
    "semantickitti": SemanticKittiConverter,
    "semanticposs": SemanticPossConverter,
    "kitti-360": Kitti360Converter,
    "nuscenes": NuscenesConverter,
    "waymo": WaymoConverter,
    "once": OnceConverter,
    "pandaset": PandasetConverter,
    "argoverse2": Argoverse2Converter,
    "7scenes": SevenScenesConverter,
    "nyu": NyuConverter,
    "sunrgbd": SunRgbdConverter,
    "scannet": ScanNetConverter,
    "s3dis": S3disConverter,
    "rosbag": RosbagConverter,
    "mcap": McapConverter,
    "custom": CustomConverter,
    "pcd": PcdConverter,
    "las": LasConverter,
}
"""Set -> its converter, a dataclass of the set's own settings."""
