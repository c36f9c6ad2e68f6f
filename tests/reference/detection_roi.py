"""Second stages of detectors, one RoI and one point at a time, boxes as lists of seven numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial import KDTree

from tests.reference.boxes import inside, iou_3d

Box = Sequence[float]


def matched(rois: list[Box], classes: list[int], truth: list[Box], true_classes: list[int]) -> list[tuple[int, float]]:
    """Of each RoI the index of the true box of its class that it overlaps most, and the IoU; (-1, 0) without any."""
    found = []
    for roi, kind in zip(rois, classes, strict=True):
        best, best_iou = -1, 0.0
        for number, (box, true_kind) in enumerate(zip(truth, true_classes, strict=True)):
            if true_kind != kind:
                continue
            iou = iou_3d(np.array(roi), np.array(box))
            if best < 0 or iou > best_iou:
                best, best_iou = number, iou
        found.append((best, best_iou))
    return found


def numbers_drawn(
    ious: Sequence[float], *, num_rois: int, foreground_share: float, foreground: float, hard: float, hard_share: float
) -> tuple[int, int, int]:
    """How many RoIs of the foreground, of the hard and of the easy background a frame gives."""
    num_foreground = sum(iou >= foreground for iou in ious)
    num_hard = sum(hard <= iou < foreground for iou in ious)
    num_easy = sum(iou < hard for iou in ious)
    if not ious:
        return 0, 0, 0
    if num_hard == 0 and num_easy == 0:
        return num_rois, 0, 0
    from_foreground = min(round(num_rois * foreground_share), num_foreground)
    left = num_rois - from_foreground
    if num_hard == 0:
        return from_foreground, 0, left
    if num_easy == 0:
        return from_foreground, left, 0
    from_hard = min(int(left * hard_share), num_hard)
    return from_foreground, from_hard, left - from_hard


def corner_distance(box: Box, true: Box) -> float:
    """Mean over corners of the Huber loss of the distance to the true box's corner, or to that of its reverse."""
    total = 0.0
    reverse = [*true[:6], true[6] + math.pi]
    for mine, straight, back in zip(_corners(box), _corners(true), _corners(reverse), strict=True):
        distance = min(math.dist(mine, straight), math.dist(mine, back))
        total += distance**2 / 2 if distance < 1 else distance - 0.5
    return total / 8


def _corners(box: Box) -> list[tuple[float, float, float]]:
    x, y, z, length, width, height, yaw = box
    found = []
    for along in (-length / 2, length / 2):
        for across in (-width / 2, width / 2):
            place = complex(x, y) + complex(along, across) * complex(math.cos(yaw), math.sin(yaw))
            found += [(place.real, place.imag, z - height / 2), (place.real, place.imag, z + height / 2)]
    return found


def pooled_points(points: list[Box], rois: list[Box], limit: int) -> list[list[tuple[int, float, float, float]]]:
    """Of each RoI the first points inside: row, and place in the RoI's frame."""
    found = []
    for roi in rois:
        rows: list[tuple[int, float, float, float]] = []
        for row, point in enumerate(points):
            if len(rows) < limit and inside(np.array(point), np.array(roi)):
                turned = complex(point[0] - roi[0], point[1] - roi[1]) * complex(math.cos(roi[6]), -math.sin(roi[6]))
                rows.append((row, turned.real, turned.imag, point[2] - roi[2]))
        found.append(rows)
    return found


def grid_of(roi: Box, size: int) -> list[tuple[float, float, float]]:
    """Centres of the cells, x slowest."""
    x, y, z, length, width, height, yaw = roi
    steps = [(number + 0.5) / size - 0.5 for number in range(size)]
    found = []
    for a in steps:
        for b in steps:
            for c in steps:
                place = complex(a * length, b * width) * complex(math.cos(yaw), math.sin(yaw))
                found.append((x + place.real, y + place.imag, z + c * height))
    return found


def point_labels(points: list[Box], boxes: list[Box], margin: float) -> list[tuple[int, bool]]:
    """The first box that holds each point (-1: none), and whether only a larger one does."""
    found = []
    for point in points:
        holders = [number for number, box in enumerate(boxes) if inside(np.array(point), np.array(box))]
        larger = [[*box[:3], *(edge + margin for edge in box[3:6]), box[6]] for box in boxes]
        near = any(inside(np.array(point), np.array(box)) for box in larger)
        found.append((holders[0] if holders else -1, near and not holders))
    return found


def largest_in_ball(centre: Box, points: np.ndarray, values: np.ndarray, radius: float, limit: int) -> np.ndarray:
    """Largest value of each channel among the first points of a ball, 0 where it is empty."""
    rows = sorted(KDTree(points).query_ball_point(centre, radius))[:limit] if len(points) else []
    return values[rows].max(axis=0) if rows else np.zeros(values.shape[1])
