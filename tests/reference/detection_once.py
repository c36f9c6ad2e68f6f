"""ONCE's detection metric, loop by loop, for one class and range at a time."""

import math
from collections.abc import Sequence

from engine.detection.frames import FoundObjects, TrueObjects
from tests.reference.upright_boxes import iou_3d

Frames = Sequence[tuple[TrueObjects, FoundObjects]]

CLASSES = {"Vehicle": ("Car", "Bus", "Truck"), "Pedestrian": ("Pedestrian",), "Cyclist": ("Cyclist",)}
LEAST_IOU = {"Vehicle": 0.7, "Pedestrian": 0.3, "Cyclist": 0.5}
RANGES = {"overall": (0.0, math.inf), "< 30 m": (0.0, 30.0), "30-50 m": (30.0, 50.0), ">= 50 m": (50.0, math.inf)}

OTHER, VALID, NEUTRAL = -1, 0, 1


def flag(name: str, box: Sequence[float], origin: Sequence[float], category: str, limits: tuple[float, float]) -> int:
    if not limits[0] <= math.dist(box[:3], origin) < limits[1]:
        return NEUTRAL  # of whatever class: the released code marks what is out of range last
    return VALID if name in CLASSES[category] else OTHER


def overlap(a: Sequence[float], b: Sequence[float], turn: float, reach: float) -> float:
    """IoU in space; 0 where the headings point apart or the centres are further apart than `reach`."""
    difference = abs(a[6] - b[6])
    if difference > math.pi:
        difference = 2 * math.pi - difference
    if difference > math.pi / 2 or math.dist(a[:3], b[:3]) > reach:
        return 0.0
    return iou_3d(a, b, turn)


def thresholds(scores: Sequence[float], num_true: int) -> list[float]:
    """Scores at recall 0, 1/50 to 1; few objects fill several of them."""
    chosen, recall = [], 0.0
    falling = sorted(scores, reverse=True)
    for i, score in enumerate(falling):
        last = i == len(falling) - 1
        left = (i + 1) / num_true
        right = left if last else (i + 2) / num_true
        if left + right < 2 * recall and not last:
            continue
        chosen.append(score)
        recall += 1 / 50
        while left + right + 1e-6 > 2 * recall:
            chosen.append(score)
            recall += 1 / 50
    return chosen


def average_precision(
    frames: Frames, category: str, subset: str, *, turn: float = 1.0, reach: float = math.inf
) -> tuple[float, int]:
    """In per cent, and the number of valid true objects. `turn` -1 is the official overlap."""
    least, limits = LEAST_IOU[category], RANGES[subset]
    prepared, scores, num_true = [], [], 0
    for truth, found in frames:
        origin = truth.origin_m
        of_true = [flag(truth.categories[i], truth.boxes[i], origin, category, limits) for i in range(len(truth))]
        of_found = [flag(found.classes[j], found.boxes[j], origin, category, limits) for j in range(len(found))]
        ious = [[overlap(a, b, turn, reach) for b in found.boxes] for a in truth.boxes]
        prepared.append((found, of_true, of_found, ious))
        num_true += of_true.count(VALID)
        taken: set[int] = set()
        for i, mine in enumerate(of_true):
            free = [j for j, its in enumerate(of_found) if its != OTHER and j not in taken and ious[i][j] > least]
            if mine == OTHER or not free:
                continue
            best = max(free, key=lambda j: found.scores[j])  # the first of equals
            taken.add(best)
            if mine == VALID and of_found[best] == VALID:
                scores.append(float(found.scores[best]))

    precision = [0.0] * 51
    for index, score in enumerate(thresholds(scores, num_true)[:51]):
        true = false = 0
        for found, of_true, of_found, ious in prepared:
            hits, left = at_score(found, of_true, of_found, ious, least, score)
            true, false = true + hits, false + left
        precision[index] = true / (true + false) if true + false else 0.0
    for index in range(49, -1, -1):
        precision[index] = max(precision[index], precision[index + 1])
    return 100 * sum(precision[1:]) / 50, num_true


def at_score(
    found: FoundObjects,
    of_true: list[int],
    of_found: list[int],
    ious: list[list[float]],
    least: float,
    score: float,
) -> tuple[int, int]:
    """Found objects that are right and wrong, of those that reach the score."""
    hits, taken = 0, set()
    usable = [j for j in range(len(found)) if of_found[j] != OTHER and found.scores[j] >= score]
    for i, mine in enumerate(of_true):
        if mine == OTHER:
            continue
        free = [j for j in usable if j not in taken and ious[i][j] > least]
        valid = [j for j in free if of_found[j] == VALID]
        best = max(valid, key=lambda j: ious[i][j]) if valid else (free[0] if free else None)
        if best is not None:
            taken.add(best)
            hits += mine == VALID and of_found[best] == VALID
    return hits, sum(of_found[j] == VALID and j not in taken for j in usable)
