"""AP of boxes in rooms, loop by loop, for one class and limit, as VoteNet evaluates: the area at all recalls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.detection.frames import FoundObjects, TrueObjects
from tests.reference.upright_boxes import iou_3d


def average_precision(frames: Sequence[tuple[TrueObjects, FoundObjects]], name: str, limit: float) -> float:
    """In per cent; NaN without true objects."""
    num_true = sum(truth.categories.count(name) for truth, _ in frames)
    if num_true == 0:
        return math.nan
    ranked = [
        (-float(found.scores[row]), frame, row)
        for frame, (_, found) in enumerate(frames)
        for row in range(len(found))
        if found.classes[row] == name
    ]
    taken: set[tuple[int, int]] = set()
    recalls, precisions, right = [0.0], [0.0], 0
    for place, (_, frame, row) in enumerate(sorted(ranked), start=1):
        truth, found = frames[frame]
        best, overlap = -1, 0.0
        for other, category in enumerate(truth.categories):
            iou = iou_3d(truth.boxes[other], found.boxes[row])
            if category == name and iou > overlap:
                best, overlap = other, iou
        if overlap > limit and (frame, best) not in taken:
            taken.add((frame, best))
            right += 1
        recalls.append(right / num_true)
        precisions.append(right / place)
    area = 0.0
    for step in range(1, len(recalls)):
        area += (recalls[step] - recalls[step - 1]) * max(precisions[step:])
    return 100 * area
