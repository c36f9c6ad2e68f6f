"""Waymo's detection metric, slow and obvious: every cut-off matched anew, by trying all matchings.

Written from the rules of the released code alone (waymo-open-dataset, metrics/detection_metrics.cc), without a look at
the fast one.
"""

import itertools
import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from engine.detection.frames import FoundObjects, TrueObjects
from tests.reference.upright_boxes import iou_3d

Frames = Sequence[tuple[TrueObjects, FoundObjects]]

MIN_IOU = {"vehicle": 0.7, "pedestrian": 0.5, "sign": 0.5, "cyclist": 0.5}
RANGES = {"": (0.0, math.inf), " 0-30 m": (0.0, 30.0), " 30-50 m": (30.0, 50.0), " 50 m on": (50.0, math.inf)}
CUTOFFS = [np.float32(number * 0.01) for number in range(100)] + [np.float32(1.0)]
RECALL_STEP = 0.05
FEW_POINTS = 5


def level_of(truth: TrueObjects, row: int) -> int:
    """1 or 2: as labelled, or by the number of points."""
    assert truth.difficulties is not None
    assert truth.num_lidar_points is not None
    labelled = int(truth.difficulties[row])
    if labelled > 0:
        return labelled
    return 2 if truth.num_lidar_points[row] <= FEW_POINTS else 1


def best_matching(weights: list[list[int]]) -> list[int]:
    """For each true object the found one that it has in a matching of largest total weight; -1 for none."""
    num_found = len(weights[0]) if weights else 0

    @cache
    def best(row: int, taken: int) -> tuple[int, tuple[int, ...]]:
        if row == len(weights):
            return 0, ()
        total, rest = best(row + 1, taken)
        answer = (total, (-1, *rest))
        for column in range(num_found):
            if weights[row][column] and not taken >> column & 1:
                total, rest = best(row + 1, taken | 1 << column)
                if total + weights[row][column] > answer[0]:
                    answer = (total + weights[row][column], (column, *rest))
        return answer

    return list(best(0, 0)[1])


def heading_accuracy(a: float, b: float) -> float:
    difference = abs(a - b) % (2 * math.pi)
    return 1 - min(difference, 2 * math.pi - difference) / math.pi


def rows_in(boxes: np.ndarray, names: Sequence[str], origin: np.ndarray, category: str, name: str) -> list[int]:
    low, high = RANGES[name]
    return [
        row
        for row in range(len(names))
        if names[row].lower() == category and low <= math.dist(boxes[row, :3], origin) < high
    ]


def figures(frames: Frames, category: str, level: int, span: str) -> tuple[float, float]:
    """AP and APH of one class, level and range."""
    curve = []
    prepared = []
    for truth, found in frames:
        assert truth.num_lidar_points is not None
        true_rows = rows_in(truth.boxes, truth.categories, truth.origin_m, category, span)
        true_rows = [row for row in true_rows if truth.num_lidar_points[row] > 0]
        found_rows = rows_in(found.boxes, found.classes, truth.origin_m, category, span)
        overlaps = [[iou_3d(truth.boxes[i], found.boxes[j]) for j in found_rows] for i in true_rows]
        prepared.append((truth, found, true_rows, found_rows, overlaps))
    known: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for cutoff in CUTOFFS:
        right = wrong = missed = 0
        accuracy = 0.0
        for number, (truth, found, true_rows, found_rows, overlaps) in enumerate(prepared):
            kept = tuple(c for c, j in enumerate(found_rows) if np.float32(found.scores[j]) >= cutoff)
            if (number, kept) not in known:
                least = MIN_IOU[category]
                weights = [[round(row[c] * 1e6) if row[c] >= least else 0 for c in kept] for row in overlaps]
                known[number, kept] = best_matching(weights)
            partner = known[number, kept]
            for i, column in zip(true_rows, partner, strict=True):
                if column >= 0:
                    right += 1
                    j = found_rows[kept[column]]
                    accuracy += heading_accuracy(truth.boxes[i, 6], found.boxes[j, 6])
                elif level_of(truth, i) <= level:
                    missed += 1
            wrong += len(kept) - sum(column >= 0 for column in partner)
        recall = right / (right + missed) if right + missed else 0.0
        precision = right / (right + wrong) if right + wrong else 0.0
        precision_h = accuracy / (right + wrong) if right + wrong else 0.0
        curve.append((recall, precision, precision_h))
    return area([(r, p) for r, p, _ in curve]), area([(r, p) for r, _, p in curve])


def area(points: list[tuple[float, float]]) -> float:
    """Under the largest precision at this or a higher recall; flat across gaps of more than a step."""
    highest: dict[float, float] = {0.0: 1.0}
    for recall, precision in points:
        if recall > 0:
            highest[recall] = max(highest.get(recall, 0.0), precision)
    falling = sorted(highest, reverse=True)
    listed: list[tuple[float, float]] = []
    best = 0.0
    for number, recall in enumerate(falling):
        if recall == 0:
            break
        best = max(best, highest[recall])
        listed.append((recall, best))
        following = falling[number + 1]
        between = recall
        while between - following > RECALL_STEP + 1e-6:
            between -= RECALL_STEP
            listed.append((between, best))
    if not listed:
        return 0.0
    listed.append((0.0, listed[-1][1]))
    return sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(listed))
