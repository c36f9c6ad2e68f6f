"""Overlap of two upright boxes in plain Python: one footprint clipped by the other's edges, one after another."""

import math
from collections.abc import Sequence
from functools import lru_cache

Point = tuple[float, float]


def corners(box: Sequence[float], turn: float = 1.0) -> list[Point]:
    """Footprint, counter-clockwise; `turn` -1 turns the box the wrong way round."""
    x, y, _, length, width, _, yaw = box
    c, s = math.cos(turn * yaw), math.sin(turn * yaw)
    ends = [(length / 2, width / 2), (-length / 2, width / 2), (-length / 2, -width / 2), (length / 2, -width / 2)]
    return [(x + a * c - b * s, y + a * s + b * c) for a, b in ends]


def clip(polygon: list[Point], start: Point, end: Point) -> list[Point]:
    """The part of a polygon to the left of a line."""

    def side(point: Point) -> float:
        return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])

    kept = []
    for here, there in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        a, b = side(here), side(there)
        if a >= 0:
            kept.append(here)
        if a * b < 0:
            share = a / (a - b)
            kept.append((here[0] + share * (there[0] - here[0]), here[1] + share * (there[1] - here[1])))
    return kept


def area(polygon: list[Point]) -> float:
    if len(polygon) < 3:
        return 0.0
    x0, y0 = polygon[0]
    shifted = [(x - x0, y - y0) for x, y in polygon]
    return sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(shifted, shifted[1:] + shifted[:1], strict=True)) / 2


def shared_area(a: Sequence[float], b: Sequence[float], turn: float = 1.0) -> float:
    return _shared_area(tuple(map(float, a)), tuple(map(float, b)), turn)


@lru_cache(maxsize=1 << 14)
def _shared_area(a: tuple[float, ...], b: tuple[float, ...], turn: float) -> float:
    if math.dist(a[:2], b[:2]) > (math.hypot(*a[3:5]) + math.hypot(*b[3:5])) / 2 + 1e-6:
        return 0.0
    polygon, other = corners(a, turn), corners(b, turn)
    for start, end in zip(other, other[1:] + other[:1], strict=True):
        polygon = clip(polygon, start, end)
    return max(area(polygon), 0.0)


def iou_bev(a: Sequence[float], b: Sequence[float], turn: float = 1.0) -> float:
    shared = shared_area(a, b, turn)
    union = a[3] * a[4] + b[3] * b[4] - shared
    return shared / union if union > 0 else 0.0


def iou_3d(a: Sequence[float], b: Sequence[float], turn: float = 1.0) -> float:
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    shared = shared_area(a, b, turn) * max(height, 0.0)
    union = a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - shared
    return shared / union if union > 0 else 0.0


def overlap_2d(a: Sequence[float], b: Sequence[float]) -> float:
    """Shared area of two rectangles left, top, right, bottom."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def area_2d(a: Sequence[float]) -> float:
    return (a[2] - a[0]) * (a[3] - a[1])
