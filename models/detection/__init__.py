"""The registry of detectors: one line a detector."""

from models.detection.base import DetectorConfig
from models.detection.centerpoint import CenterPointConfig
from models.detection.second import PointPillarsConfig, SecondConfig

DETECTORS: dict[str, type[DetectorConfig]] = {
    "second": SecondConfig,
    "pointpillars": PointPillarsConfig,
    "centerpoint": CenterPointConfig,
}
