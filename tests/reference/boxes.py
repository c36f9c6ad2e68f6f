"""Boxes with upright sides, one pair at a time: footprints as shapely's polygons, suppression by two loops."""

import math

import numpy as np
from shapely.geometry import Polygon


def footprint(box: np.ndarray) -> Polygon:
    x, y, _, length, width, _, yaw = (float(value) for value in box)
    c, s = math.cos(yaw), math.sin(yaw)
    corners = [(length / 2, width / 2), (-length / 2, width / 2), (-length / 2, -width / 2), (length / 2, -width / 2)]
    return Polygon([(x + along * c - across * s, y + along * s + across * c) for along, across in corners])


def intersection(a: np.ndarray, b: np.ndarray) -> float:
    return float(footprint(a).intersection(footprint(b)).area)


def iou_bev(a: np.ndarray, b: np.ndarray) -> float:
    shared = intersection(a, b)
    return shared / (a[3] * a[4] + b[3] * b[4] - shared)


def iou_3d(a: np.ndarray, b: np.ndarray) -> float:
    top, bottom = min(a[2] + a[5] / 2, b[2] + b[5] / 2), max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    shared = intersection(a, b) * max(top - bottom, 0.0)
    return float(shared / (a[3:6].prod() + b[3:6].prod() - shared))


def nms(boxes: np.ndarray, scores: np.ndarray, max_iou: float) -> list[int]:
    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda row: (-scores[row], row)):
        if all(iou_bev(boxes[other], boxes[row]) <= max_iou for other in kept):
            kept.append(row)
    return kept


def inside(point: np.ndarray, box: np.ndarray) -> bool:
    """The point in the box's own axes is within half its sizes."""
    x, y, z, length, width, height, yaw = box
    turned = complex(point[0] - x, point[1] - y) * complex(math.cos(yaw), -math.sin(yaw))
    return abs(turned.real) <= length / 2 and abs(turned.imag) <= width / 2 and abs(point[2] - z) <= height / 2
