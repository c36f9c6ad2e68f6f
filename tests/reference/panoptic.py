"""Panoptic quality with sets of points, one pair of segments after another."""

from __future__ import annotations

from collections.abc import Sequence

Frame = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]
"""True class, true id, found class, found id of each point; class -1: unlabelled, nothing found."""


def _segments(classes: Sequence[int], ids: Sequence[int], kind: int, points: set[int]) -> list[set[int]]:
    groups: dict[int, set[int]] = {}
    for point in points:
        if classes[point] == kind:
            groups.setdefault(ids[point], set()).add(point)
    return list(groups.values())


def panoptic_by_sets(frames: Sequence[Frame], num_classes: int, min_points: int) -> dict[str, list[float]]:
    """PQ, SQ, RQ and IoU of each class, over all frames; 0 for a class that does not occur."""
    result: dict[str, list[float]] = {"PQ": [], "SQ": [], "RQ": [], "IoU": []}
    for kind in range(num_classes):
        ious: list[float] = []
        missed = false = shared = union = 0
        for true_class, true_id, found_class, found_id in frames:
            labelled = {point for point, label in enumerate(true_class) if label >= 0}
            true = _segments(true_class, true_id, kind, labelled)
            found = _segments(found_class, found_id, kind, labelled)
            matched = [(t, f) for t in true for f in found if len(t & f) / len(t | f) > 0.5]
            ious += [len(t & f) / len(t | f) for t, f in matched]
            missed += sum(len(t) >= min_points and all(t is not m for m, _ in matched) for t in true)
            false += sum(len(f) >= min_points and all(f is not m for _, m in matched) for f in found)
            in_true, in_found = set().union(*true), set().union(*found)
            shared, union = shared + len(in_true & in_found), union + len(in_true | in_found)
        sq = sum(ious) / len(ious) if ious else 0.0
        all_of_them = len(ious) + missed / 2 + false / 2
        rq = len(ious) / all_of_them if all_of_them else 0.0
        for name, value in (("PQ", sq * rq), ("SQ", sq), ("RQ", rq), ("IoU", shared / union if union else 0.0)):
            result[name].append(value)
    return result
