"""Average precision of objects among points, as ScanNet's benchmark counts it.

An object is a set of points of one class in one frame. What the benchmark does, in words:

* Points of no thing (walls, floors, unlabelled ones) and true objects of few points are neither asked for nor held
  against anybody. Found objects of few points are not looked at.
* At a threshold, a true object is matched by found ones of its class whose IoU with it is above the threshold. Of
  several, the surest one is right and the others are false. A found object that took a true one is not offered again.
* A found object without any such true one is false, unless the share of its points that nobody is asked for is above
  the same threshold.
* Precision over recall has a point at each distinct score, and one of precision 1 and recall 0. Each point counts with
  half the distance in recall between its two neighbours; the last one is its own neighbour, and behind the first is 0.
* AP is the mean over thresholds from 0.5 to 0.95 in steps of 0.05; AP50 and AP25 are those at 0.5 and at 0.25. Their
  means are over the classes of which there is a true object.

Source: Dai et al., "ScanNet" (CVPR 2017) and the rules of its benchmark for instances. Written from these rules, not
from its code. Points are counted where the benchmark counts vertices.

Letters: N points, O found objects, T true objects, S pairs that share points, D decisions, C points of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from engine.scores import MEAN, Curve, Score, Scores
from engine.segmentation.frames import SegmentedFrame, SegmentNames

STRICT_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Thresholds whose mean is AP."""
LOOSE_IOU = 0.25


@dataclass(frozen=True, kw_only=True)
class InstanceRules:
    """What differs between benchmarks.

    Attributes:
        title: of the figures.
        min_points: smaller true objects are not asked for, smaller found ones not looked at.
    """

    title: str
    min_points: int


SCANNET = InstanceRules(title="ScanNet's AP of objects", min_points=100)
FEW_POINTS = InstanceRules(title="AP of objects by ScanNet's rules", min_points=10)
"""Of clouds with fewer points on an object than ScanNet's meshes have."""


@dataclass(frozen=True, kw_only=True)
class InstanceCounts:
    """What is kept of a frame.

    Attributes:
        found_class, found_score, found_points: of each found object of enough points.
        found_ignored: those of its points that are of no thing, or of no object.
        true_class, true_points: of each true object, of any size.
        pair_found, pair_true, pair_points: points that a found and a true object share, where there are any.
    """

    found_class: Int64[np.ndarray, " O"]
    found_score: Float64[np.ndarray, " O"]
    found_points: Int64[np.ndarray, " O"]
    found_ignored: Int64[np.ndarray, " O"]
    true_class: Int64[np.ndarray, " T"]
    true_points: Int64[np.ndarray, " T"]
    pair_found: Int64[np.ndarray, " S"]
    pair_true: Int64[np.ndarray, " S"]
    pair_points: Int64[np.ndarray, " S"]


def instance_counts(frame: SegmentedFrame, names: SegmentNames, rules: InstanceRules) -> InstanceCounts:
    """Count one frame.

    Raises:
        JudgeError: nobody has told the frame's objects apart.
    """
    true_object = frame.objects(rules.title)
    is_thing = np.append(names.is_thing, np.False_)  # class -1, the last one, is none
    asked = is_thing[frame.true_class] & (true_object >= 0)
    # An object's points of two classes are two objects.
    span = int(true_object.max(initial=0)) + 1
    keys = frame.true_class[asked] * span + true_object[asked]
    true, of_asked, true_points = np.unique(keys, return_inverse=True, return_counts=True)
    of_point = np.full(len(frame.true_class), -1, dtype=np.int64)
    of_point[asked] = of_asked.reshape(-1)
    num_found = len(frame.object_class)
    found_points = np.bincount(frame.found_object[frame.found_object >= 0], minlength=num_found)
    kept = np.flatnonzero((found_points >= rules.min_points) & is_thing[frame.object_class])
    number = np.full(num_found + 1, -1, dtype=np.int64)  # object -1, the last one, stays -1
    number[kept] = np.arange(len(kept))
    found = number[frame.found_object]
    both = (found >= 0) & (of_point >= 0)
    pairs, shared = np.unique(found[both] * (len(true) + 1) + of_point[both], return_counts=True)
    pair_found, pair_true = np.divmod(pairs, len(true) + 1)
    return InstanceCounts(
        found_class=frame.object_class[kept],
        found_score=frame.object_score[kept],
        found_points=found_points[kept],
        found_ignored=np.bincount(found[(found >= 0) & (of_point < 0)], minlength=len(kept)),
        true_class=true // span,
        true_points=true_points,
        pair_found=pair_found,
        pair_true=pair_true,
        pair_points=shared,
    )


def score_instances(parts: Mapping[str, InstanceCounts], names: SegmentNames, rules: InstanceRules) -> Scores:
    """AP over all frames, per class and in the mean over the classes that occur."""
    frames = list(parts.values())
    ious = (*STRICT_IOUS, LOOSE_IOU)
    rows: list[Score] = []
    curves: list[Curve] = []
    of_classes: dict[str, list[float]] = {"AP": [], "AP50": [], "AP25": []}
    total = 0
    for number, name in enumerate(names.classes):
        if name not in names.things:
            continue
        num_true = sum(_asked(frame, number, rules).sum() for frame in frames)
        total += int(num_true)
        of_iou = {iou: decide(frames, number, iou, rules) for iou in ious}
        values = {iou: average_precision(decisions) for iou, decisions in of_iou.items()}
        strict = [values[iou] for iou in STRICT_IOUS]
        figures = {"AP": float(np.mean(strict)), "AP50": values[0.5], "AP25": values[LOOSE_IOU]}
        for metric, value in figures.items():
            rows.append(_row(name, metric, value, int(num_true)))
            of_classes[metric].append(value)
        if num_true:
            curves.append(_curve(name, of_iou[0.5]))
    means = {metric: _mean(values) for metric, values in of_classes.items()}
    rows += [_row(MEAN, metric, value, total) for metric, value in means.items()]
    absent = [row.category for row in rows if row.metric == "AP" and row.num_true == 0 and row.category != MEAN]
    return Scores(
        benchmark=f"{rules.title} from {rules.min_points} points on, {len(names.things)} classes",
        headline={metric: 100 * value for metric, value in means.items()},
        unit="%",
        rows=tuple(rows),
        curves=tuple(curves),
        notes=(f"no true object, left out of the means: {', '.join(absent)}",) if absent else (),
    )


def _row(category: str, metric: str, value: float, num_true: int) -> Score:
    return Score(category=category, subset="", metric=metric, value=100 * value, unit="%", num_true=num_true)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


# ---- one class at one threshold
@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What became of the objects of one class, over all frames.

    Attributes:
        scores: of those found objects that count.
        right: which of them are right.
        missed: true objects that nothing matched.
        any_true: whether there is any object to find.
    """

    scores: Float64[np.ndarray, " D"]
    right: Bool[np.ndarray, " D"]
    missed: int
    any_true: bool


def decide(frames: Sequence[InstanceCounts], number: int, iou: float, rules: InstanceRules) -> Decisions:
    """Which found objects of a class are right and which are false at a threshold."""
    scores: list[float] = []
    right: list[bool] = []
    missed = num_true = 0
    for frame in frames:
        asked = _asked(frame, number, rules)
        found = np.flatnonzero(frame.found_class == number)
        num_true += int(asked.sum())
        near = _near(frame, number, iou)
        taken: set[int] = set()
        for true in np.flatnonzero(asked).tolist():
            rivals = [one for one, other in near if other == true and one not in taken]
            if not rivals:
                missed += 1
                continue
            taken.add(rivals[0])
            by_score = sorted((float(frame.found_score[one]) for one in rivals), reverse=True)
            scores += by_score
            right += [True] + [False] * (len(rivals) - 1)
        alone = set(found.tolist()) - {one for one, _ in near}
        false = [one for one in sorted(alone) if not _excused(frame, one, number, asked, iou)]
        scores += frame.found_score[false].tolist()
        right += [False] * len(false)
    return Decisions(
        scores=np.array(scores, dtype=np.float64),
        right=np.array(right, dtype=np.bool_),
        missed=missed,
        any_true=num_true > 0,
    )


def _asked(frame: InstanceCounts, number: int, rules: InstanceRules) -> Bool[np.ndarray, " T"]:
    return np.asarray((frame.true_class == number) & (frame.true_points >= rules.min_points))


def _near(frame: InstanceCounts, number: int, iou: float) -> list[tuple[int, int]]:
    """Found and true objects of a class, of any size, whose IoU is above the threshold."""
    one, other, shared = frame.pair_found, frame.pair_true, frame.pair_points
    union = frame.found_points[one] + frame.true_points[other] - shared
    above = (shared / union > iou) & (frame.found_class[one] == number) & (frame.true_class[other] == number)
    return list(zip(one[above].tolist(), other[above].tolist(), strict=True))


def _excused(frame: InstanceCounts, one: int, number: int, asked: Bool[np.ndarray, " T"], iou: float) -> bool:
    """Whether most of a found object lies where nobody is asked for anything."""
    small = (frame.pair_found == one) & (frame.true_class[frame.pair_true] == number) & ~asked[frame.pair_true]
    ignored = int(frame.found_ignored[one]) + int(frame.pair_points[small].sum())
    return ignored / int(frame.found_points[one]) > iou


def precision_recall(
    decisions: Decisions,
) -> tuple[Float64[np.ndarray, " C"], Float64[np.ndarray, " C"], Float64[np.ndarray, " C"]]:
    """Recall, precision and score at each distinct score, by rising recall."""
    order = np.argsort(-decisions.scores, kind="stable")
    scores, right = decisions.scores[order], np.cumsum(decisions.right[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], len(scores) > 0))
    hits = right[last].astype(np.float64)
    num_true = int(decisions.right.sum()) + decisions.missed
    recall = hits / num_true if num_true else np.zeros(len(hits))
    return recall, hits / (last + 1), scores[last]


def average_precision(decisions: Decisions) -> float:
    """Area under precision over recall, 0 to 1; NaN where there is no true object."""
    if not decisions.any_true:
        return float("nan")
    recall, precision, _ = precision_recall(decisions)
    if not len(recall):
        return 0.0
    # From recall 0 with precision 1 to the last point, which is its own neighbour.
    recall, precision = np.insert(recall, 0, 0.0), np.insert(precision, 0, 1.0)
    before, behind = np.insert(recall[:-1], 0, 0.0), np.append(recall[1:], recall[-1])
    return float((precision * (behind - before) / 2).sum())


def _curve(name: str, decisions: Decisions) -> Curve:
    recall, precision, scores = precision_recall(decisions)
    return Curve(category=name, subset="", metric="AP50", recall=recall, precision=precision, scores=scores)
