"""Average precision of objects among points by sets of points and plain loops, from the rules in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Thing:
    """An object: where it is, of what class, and, where it was found, how surely."""

    frame: int
    kind: int
    points: frozenset[int]
    score: float = 1.0


def iou(a: Thing, b: Thing) -> float:
    shared = len(a.points & b.points)
    return shared / (len(a.points) + len(b.points) - shared)


def average_precision(
    true: Sequence[Thing],
    found: Sequence[Thing],
    ignored: Sequence[frozenset[int]],
    *,
    kind: int,
    threshold: float,
    min_points: int,
) -> float:
    """AP of one class at one threshold; NaN where nothing is to be found.

    Args:
        true: objects of all classes and frames.
        found: likewise.
        ignored: of each frame, points that belong to no true object.
        kind: the class.
        threshold: IoU.
        min_points: of objects that count.
    """
    found = [one for one in found if len(one.points) >= min_points and one.kind == kind]
    mine = [one for one in true if one.kind == kind]
    asked = [one for one in mine if len(one.points) >= min_points]
    if not asked:
        return float("nan")

    def meets(a: Thing, b: Thing) -> bool:
        return a.frame == b.frame and iou(a, b) > threshold

    verdicts: list[tuple[float, bool]] = []
    taken: list[Thing] = []
    for goal in asked:
        rivals = [one for one in found if meets(one, goal) and not any(one is other for other in taken)]
        if rivals:
            taken.append(rivals[0])
            best = max(one.score for one in rivals)
            scores = [one.score for one in rivals]
            scores.remove(best)
            verdicts += [(best, True), *((score, False) for score in scores)]
    for one in found:
        if any(meets(one, other) for other in mine):
            continue
        small = [o for o in mine if len(o.points) < min_points and o.frame == one.frame]
        excused = len(one.points & ignored[one.frame]) + sum(len(one.points & o.points) for o in small)
        if excused / len(one.points) <= threshold:
            verdicts.append((one.score, False))
    # From the loosest demand to the strictest, then the point of precision 1 and recall 0.
    corners = []
    for least in sorted({score for score, _ in verdicts}):
        counted = [right for score, right in verdicts if score >= least]
        corners.append((sum(counted) / len(asked), sum(counted) / len(counted)))
    corners.append((0.0, 1.0))
    area = 0.0
    for place, (_, precision) in enumerate(corners):
        left = corners[max(place - 1, 0)][0]
        right = corners[place + 1][0] if place + 1 < len(corners) else 0.0
        area += precision * (left - right) / 2
    return area
