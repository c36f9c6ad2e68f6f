"""The registry of networks that give each point a class, and an object: one line a network."""

from models.segmentation.base import SegmenterConfig
from models.segmentation.instance import InstanceConfig
from models.segmentation.panoptic import PanopticConfig
from models.segmentation.semantic import SemanticConfig

SEGMENTERS: dict[str, type[SegmenterConfig]] = {
    "semantic": SemanticConfig,
    "instance": InstanceConfig,
    "panoptic": PanopticConfig,
}
