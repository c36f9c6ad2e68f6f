"""The data sets that `tandem prepare` knows: one line each."""

from __future__ import annotations

from typing import Any

from data.convert.base import Converter
from data.convert.kitti_object import KittiObjectConverter
from data.convert.kitti_raw import KittiRawConverter
from data.convert.synthetic import SyntheticConverter
from data.street.config import StreetConfig

SETTINGS: dict[str, type] = {
    "synthetic": StreetConfig,
    "kitti-raw": KittiRawConverter,
    "kitti-object": KittiObjectConverter,
}
"""Set -> the dataclass of its own settings. A set without further needs is its own converter."""


def make_converter(settings: Any) -> Converter:
    """The converter for an instance of one of `SETTINGS`.

    Raises:
        TypeError: another object.
    """
    if isinstance(settings, StreetConfig):
        return SyntheticConverter(street=settings)
    if isinstance(settings, (KittiRawConverter, KittiObjectConverter)):
        return settings
    raise TypeError(f"no data set has settings of type {type(settings).__name__}")
