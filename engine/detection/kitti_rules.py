"""What KITTI's metric counts: classes with their neighbours and limits of overlap, difficulties, variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.ranges import one_of

NO_ALPHA = -10.0
"""KITTI's sign that a detector gives no observation angle."""


@dataclass(frozen=True, kw_only=True)
class KittiClass:
    """A class that is judged.

    Attributes:
        name: of the class.
        neighbours: categories that are neutral for it.
        min_iou: a match overlaps by more, in all metrics.
        loose_iou: the same of the second figures from above and in space, which ports of the development kit print.
    """

    name: str
    neighbours: tuple[str, ...] = ()
    min_iou: float
    loose_iou: float


KITTI_CLASSES = (
    KittiClass(name="Car", neighbours=("Van",), min_iou=0.7, loose_iou=0.5),
    KittiClass(name="Pedestrian", neighbours=("Person_sitting",), min_iou=0.5, loose_iou=0.25),
    KittiClass(name="Cyclist", min_iou=0.5, loose_iou=0.25),
)


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """Limits of an object that counts; each level contains the easier ones.

    Attributes:
        name: of the level.
        min_height_px: of its box in the image.
        max_occlusion: 0 visible, 1 partly, 2 largely hidden.
        max_truncation: share outside the image.
    """

    name: str
    min_height_px: float
    max_occlusion: int
    max_truncation: float


DIFFICULTIES = (
    Difficulty(name="easy", min_height_px=40.0, max_occlusion=0, max_truncation=0.15),
    Difficulty(name="moderate", min_height_px=25.0, max_occlusion=1, max_truncation=0.3),
    Difficulty(name="hard", min_height_px=25.0, max_occlusion=2, max_truncation=0.5),
)

HeightRule = Literal["development-kit", "ports"]


@dataclass(frozen=True, kw_only=True)
class KittiSettings:
    """Variants of the metric.

    Attributes:
        classes: that are judged. Names are compared without regard to case, as the development kit does.
        height_rule: what happens to true objects of exactly the least height: "development-kit": they count, as in
            the C++ code; "ports": they are neutral, as in its Python ports (mmdetection3d, OpenPCDet).
    """

    classes: tuple[KittiClass, ...] = KITTI_CLASSES
    height_rule: HeightRule = "development-kit"

    def __post_init__(self) -> None:
        one_of(self, height_rule=HeightRule)
