"""The registry of detectors: one line a detector."""

from models.detection.base import DetectorConfig
from models.detection.centerpoint import CenterPointConfig
from models.detection.fcos3d import Fcos3dConfig
from models.detection.mvx_net import MvxNetConfig
from models.detection.point_rcnn import PointRcnnConfig
from models.detection.pv_rcnn import PvRcnnConfig
from models.detection.second import PointPillarsConfig, SecondConfig
from models.detection.vote_net import VoteNetConfig

DETECTORS: dict[str, type[DetectorConfig]] = {
    "second": SecondConfig,
    "pointpillars": PointPillarsConfig,
    "centerpoint": CenterPointConfig,
    "pv_rcnn": PvRcnnConfig,
    "point_rcnn": PointRcnnConfig,
    "fcos3d": Fcos3dConfig,
    "vote_net": VoteNetConfig,
    "mvx_net": MvxNetConfig,
}
