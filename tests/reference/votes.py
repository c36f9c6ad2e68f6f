"""What VoteNet's seeds and proposals have to learn, and its losses, object by object, from the paper's description."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = Sequence[float]
Box = Sequence[float]
"""x, y, z of the centre, length, width, height, heading."""


def inside(point: Point, box: Box) -> bool:
    x, y, z = (a - b for a, b in zip(point, box[:3], strict=True))
    along = x * math.cos(box[6]) + y * math.sin(box[6])
    across = y * math.cos(box[6]) - x * math.sin(box[6])
    return abs(along) <= box[3] / 2 and abs(across) <= box[4] / 2 and abs(z) <= box[5] / 2


def vote_loss(seeds: Sequence[Point], votes: Sequence[Point], boxes: Sequence[Box]) -> tuple[float, int]:
    """Sum over the seeds in boxes of the city-block distance to the nearest centre of the first three; their number."""
    total, number = 0.0, 0
    for seed, vote in zip(seeds, votes, strict=True):
        centres = [box[:3] for box in boxes if inside(seed, box)][:3]
        if centres:
            number += 1
            total += min(sum(abs(a - b) for a, b in zip(vote, centre, strict=True)) for centre in centres)
    return total, number


def stands_at(place: Point, boxes: Sequence[Box], near_m: float, far_m: float) -> tuple[int, bool, bool]:
    """Nearest box (-1: none), whether the proposal is to become it, whether it counts for objectness."""
    distances = [math.dist(place, box[:3]) for box in boxes]
    if not distances:
        return -1, False, True
    best = min(range(len(distances)), key=lambda number: distances[number])
    near = distances[best] < near_m
    return best, near, near or distances[best] > far_m


def heading_code(heading: float, bins: int) -> tuple[int, float]:
    """The bin whose middle is nearest, and the way from there in halves of a bin."""
    width = 2 * math.pi / bins

    def off(number: int) -> float:
        return (heading - number * width + math.pi) % (2 * math.pi) - math.pi

    best = min(range(bins), key=lambda number: abs(off(number)))
    return best, off(best) / (width / 2)


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def suppressed(boxes: Sequence[Box], scores: Sequence[float], classes: Sequence[int], max_iou: float) -> list[int]:
    """Rows that stay, by falling score, when boxes along the axes drop lower ones of their class."""

    def bounds(box: Box) -> list[tuple[float, float]]:
        c, s = abs(math.cos(box[6])), abs(math.sin(box[6]))
        reach = (box[3] * c + box[4] * s) / 2, (box[3] * s + box[4] * c) / 2, box[5] / 2
        return [(m - r, m + r) for m, r in zip(box[:3], reach, strict=True)]

    def iou(a: Box, b: Box) -> float:
        shared, first, second = 1.0, 1.0, 1.0
        for (a0, a1), (b0, b1) in zip(bounds(a), bounds(b), strict=True):
            shared *= max(min(a1, b1) - max(a0, b0), 0.0)
            first, second = first * (a1 - a0), second * (b1 - b0)
        return shared / (first + second - shared)

    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda row: -scores[row]):
        if all(classes[row] != classes[other] or iou(boxes[row], boxes[other]) <= max_iou for other in kept):
            kept.append(row)
    return kept
