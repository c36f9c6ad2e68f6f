"""Argoverse 2's detection metric, slow and obvious: loops over single objects.

Written from the rules of the released code alone (av2-api, evaluation/detection), without the fast one. No region of
interest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.detection.frames import FoundObjects, TrueObjects

Frames = Sequence[tuple[TrueObjects, FoundObjects]]

LIMITS_M = (0.5, 1.0, 2.0, 4.0)
ERROR_LIMIT_M = 2.0
RANGE_M = 150.0
MOST_FOUND = 100
NUM_RECALLS = 101


@dataclass
class Detection:
    """One found object that counts; errors where it is the one of its true object within 2 m."""

    score: float
    right: dict[float, bool]
    errors: tuple[float, float, float] | None = None


def figures(frames: Frames, category: str) -> dict[str, float]:
    """AP, ATE, ASE, AOE and CDS of one class."""
    num_true = 0
    detections: list[Detection] = []
    for truth, found in frames:
        more, some = of_frame(truth, found, category)
        num_true += more
        detections += some
    if num_true == 0:
        return {"AP": 0.0, "ATE": ERROR_LIMIT_M, "ASE": 1.0, "AOE": math.pi, "CDS": 0.0}
    detections.sort(key=lambda one: -one.score)
    precisions = [average_precision([one.right[limit] for one in detections], num_true) for limit in LIMITS_M]
    ap = sum(precisions) / len(precisions)
    errors = [one.errors for one in detections if one.errors is not None]
    ate, ase, aoe = (
        (sum(column) / len(errors) for column in zip(*errors, strict=True)) if errors else (ERROR_LIMIT_M, 1.0, math.pi)
    )
    quality = ((1 - ate / ERROR_LIMIT_M) + (1 - ase) + (1 - aoe / math.pi)) / 3
    return {"AP": ap, "ATE": ate, "ASE": ase, "AOE": aoe, "CDS": ap * quality}


def of_frame(truth: TrueObjects, found: FoundObjects, category: str) -> tuple[int, list[Detection]]:
    """Number of true objects that count, and the found ones that do."""
    assert truth.num_lidar_points is not None
    true_rows = [
        row
        for row in range(len(truth))
        if truth.categories[row] == category
        and math.dist(truth.boxes[row, :3], truth.origin_m) < RANGE_M
        and truth.num_lidar_points[row] > 0
    ]
    rows = [row for row in range(len(found)) if found.classes[row] == category]
    rows.sort(key=lambda row: -found.scores[row])
    rows = [row for row in rows if math.dist(found.boxes[row, :3], truth.origin_m) < RANGE_M][:MOST_FOUND]
    detections = [Detection(float(found.scores[row]), dict.fromkeys(LIMITS_M, False)) for row in rows]
    first: dict[int, int] = {}  # true object -> its best found one, of those to which it is the nearest
    for number, row in enumerate(rows):
        if true_rows:
            distances = [math.dist(found.boxes[row, :3], truth.boxes[i, :3]) for i in true_rows]
            first.setdefault(true_rows[distances.index(min(distances))], number)
    for i, number in first.items():
        box, true = found.boxes[rows[number]], truth.boxes[i]
        distance = math.dist(box[:3], true[:3])
        for limit in LIMITS_M:
            detections[number].right[limit] = distance < limit
        if distance < ERROR_LIMIT_M:
            shared = math.prod(min(a, b) for a, b in zip(box[3:6], true[3:6], strict=True))
            union = math.prod(max(a, b) for a, b in zip(box[3:6], true[3:6], strict=True))  # not quite, but as released
            turn = abs(box[6] - true[6]) % (2 * math.pi)
            detections[number].errors = (distance, 1 - shared / union, min(turn, 2 * math.pi - turn))
    return len(true_rows), detections


def average_precision(right: Sequence[bool], num_true: int) -> float:
    """Mean over 101 recalls from 0 to 1 of the precision at the nearest points, which is the largest from there on."""
    recalls, precisions, hits = [], [], 0
    for number, is_right in enumerate(right, start=1):
        hits += is_right
        recalls.append(hits / num_true)
        precisions.append(hits / number)
    envelope = [max(precisions[number:]) for number in range(len(precisions))]
    # As numpy rounds them: some recalls, such as 0.7000000000000001, are thus beyond the one that is reached.
    sampled = np.linspace(0, 1, NUM_RECALLS).tolist()
    return sum(at_recall(recall, recalls, envelope) for recall in sampled) / NUM_RECALLS


def at_recall(recall: float, recalls: Sequence[float], precisions: Sequence[float]) -> float:
    """On the line between the last point that is not beyond it and the next one; 0 beyond the largest recall."""
    if not recalls or recall > recalls[-1]:
        return 0.0
    if recall < recalls[0]:
        return precisions[0]
    last = max(number for number, value in enumerate(recalls) if value <= recall)
    if last == len(recalls) - 1 or recalls[last] == recall:
        return precisions[last]
    share = (recall - recalls[last]) / (recalls[last + 1] - recalls[last])
    return precisions[last] + share * (precisions[last + 1] - precisions[last])
