"""The registry of networks that give each point a class, and an object: one line a network."""

from models.segmentation.base import SegmenterConfig

SEGMENTERS: dict[str, type[SegmenterConfig]] = {}
