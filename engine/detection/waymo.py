"""Waymo's 3D detection metric: AP and AP weighted by heading (APH), LEVEL_1 and LEVEL_2, all and by range.

At each of 101 score cutoffs the found objects that reach it are matched with the true ones of their class anew, so that
the sum of overlaps is largest (Hungarian method, overlaps rounded to millionths). Rules that surprise, all kept:

- True objects without LiDAR points are dropped. One whose level was not set has LEVEL_2 up to 5 points.
- LEVEL_1 counts every match, also with a LEVEL_2 object, while a LEVEL_2 object that is missed does not count there.
- In ranges true and found objects are cut by their own distance: a pair that straddles a limit is a miss and a false
  object.
- The curve ends at the largest recall; a gap of more than .05 in recall is filled with steps, smaller ones linearly.
- A class without true objects has 0; it is in the mean of the classes.

Zones without labels are not part of the input (the official `overlap_with_nlz` is false).

Source: Sun et al., Scalability in Perception for Autonomous Driving: Waymo Open Dataset (CVPR 2020), section 4;
waymo-open-dataset (released code), metrics/: detection_metrics.cc, metrics_utils.cc, matcher.cc, iou.cc,
breakdown_generator.cc and tools/compute_detection_metrics_main.cc.

Letters: K true, D found objects, P pairs that may match, C score cutoffs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from engine.detection.failures import best_threshold, errors_by_frame
from engine.detection.frames import TrueObjects, needed
from engine.detection.pairs import FramePair, Overlaps, Stacked, box_overlaps, stacked
from engine.detection.waymo_curve import average_precision
from engine.detection.waymo_matching import CUTOFFS, Matches, match_at_cutoffs, reached_cutoffs
from engine.scores import MEAN, Curve, JudgeError, Score, Scores

Rows = Int64[np.ndarray, " _"]

BENCHMARK = "Waymo 3D detection"

MIN_IOU = {"vehicle": 0.7, "pedestrian": 0.5, "cyclist": 0.5, "sign": 0.5}
"""Class -> IoU of a match, at least."""

MEAN_CLASSES = ("vehicle", "pedestrian", "cyclist")
"""Classes of the mean that papers state."""

RANGES_M = {"": (0.0, np.inf), "0-30 m": (0.0, 30.0), "30-50 m": (30.0, 50.0), "50 m on": (50.0, np.inf)}
"""Subset -> distances of the centre, the lower limit included."""

LEVELS = {"LEVEL_1": 1, "LEVEL_2": 2}
_FEW_POINTS = 5
_SIZE_RANGE_M = (0.01, 1e6)
"""Boxes with a size outside overlap nothing, limits included."""


_NOTES = (
    "LEVEL_1 counts matches with LEVEL_2 objects, and not those that are missed; objects without points are dropped",
    "pairs that straddle the limit of a range are a miss and a false object",
    "zones without labels are not known: found objects in them count",
)


@dataclass(frozen=True, kw_only=True)
class _Objects:
    """What the metric needs of all frames.

    Attributes:
        stacked: objects of all frames.
        levels: of the true objects; 0 for those that are dropped.
        true_range_m: distances of the true objects.
        found_range_m: distances of the found objects.
        reached: number of cutoffs that each score reaches.
        overlaps: pairs of one class that may match.
    """

    stacked: Stacked
    levels: Int64[np.ndarray, " K"]
    true_range_m: Float64[np.ndarray, " K"]
    found_range_m: Float64[np.ndarray, " D"]
    reached: Int64[np.ndarray, " D"]
    overlaps: Overlaps


@dataclass(frozen=True, kw_only=True)
class _Subset:
    """One class and range.

    Attributes:
        true: which true objects are in it.
        found: which found objects are in it.
        matches: of them.
        num_found: found objects at each cutoff.
        accuracy: sum of the heading accuracies of the matches at each cutoff.
    """

    true: Bool[np.ndarray, " K"]
    found: Bool[np.ndarray, " D"]
    matches: Matches
    num_found: Int64[np.ndarray, " C"]
    accuracy: Float64[np.ndarray, " C"]


def score_waymo(frames: Sequence[FramePair]) -> Scores:
    """Figures of the Waymo metric. Classes have Waymo's names, in any case; others are left out.

    Args:
        frames: true objects with numbers of points, levels where they were set, and the vehicle as the origin of
            ranges; found objects with scores from 0 to 1 (below 0 they never count, as in the official tool).

    Raises:
        JudgeError: a number of points is missing.
    """
    objects = _objects(frames)
    rows: list[Score] = []
    curves: list[Curve] = []
    errors: list[tuple[Rows, Rows, Rows]] = []
    for category in MIN_IOU:
        for name, limits in RANGES_M.items():
            subset = _subset(objects, category, limits)
            for level, hardest in LEVELS.items():
                precision, heading, recall, num_true = _curve(objects, subset, hardest)
                label = f"{level} {name}".strip()
                for metric, values in (("AP", precision), ("APH", heading)):
                    value = average_precision(values, recall)
                    rows.append(
                        Score(category=category, subset=label, metric=metric, value=value, unit="", num_true=num_true)
                    )
                if not name:
                    curves.append(_shown(category, label, precision, recall))
            if not name:
                errors.append(_errors(objects, subset))
    rows += _means(rows)
    table = {(row.subset, row.metric): row.value for row in rows if row.category == MEAN}
    missed, false, right = zip(*errors, strict=True)
    return Scores(
        benchmark=BENCHMARK,
        headline={f"m{metric} {level}": table[level, metric] for level in reversed(LEVELS) for metric in ("APH", "AP")},
        unit="",
        rows=tuple(rows),
        curves=tuple(curves),
        frames=errors_by_frame(frames, missed, false, right),
        notes=_NOTES,
    )


def _objects(frames: Sequence[FramePair]) -> _Objects:
    objects = stacked(frames)
    levels = np.concatenate([_levels(frame) for frame, _ in frames])
    _, overlaps = box_overlaps(objects)
    least = np.array([MIN_IOU.get(name, np.inf) for name in objects.categories[overlaps.true]], dtype=np.float32)
    same = objects.categories[overlaps.true] == objects.classes[overlaps.found]
    sized = _sized(objects.true_boxes)[overlaps.true] & _sized(objects.found_boxes)[overlaps.found]
    may_match = same & sized & (levels[overlaps.true] > 0) & (overlaps.value.astype(np.float32) >= least)
    return _Objects(
        stacked=objects,
        levels=levels,
        true_range_m=np.concatenate([_distances(true.boxes, true.origin_m) for true, _ in frames]),
        found_range_m=np.concatenate([_distances(found.boxes, true.origin_m) for true, found in frames]),
        reached=reached_cutoffs(objects.scores),
        overlaps=overlaps.where(may_match),
    )


def _levels(frame: TrueObjects) -> Int64[np.ndarray, " K"]:
    """LEVEL_1 or LEVEL_2; 0 for objects without points."""
    points = needed(frame.num_lidar_points, "num_lidar_points", frame, BENCHMARK)
    unknown = np.flatnonzero(points < 0)
    if unknown.size:
        raise JudgeError(
            f"frame {frame.key}: the number of points in true object {unknown[0]} is not known; the {BENCHMARK} metric "
            "needs it, because it drops objects without any: prepare the set from labels that state it"
        )
    by_points = np.where(points <= _FEW_POINTS, 2, 1)
    given = by_points if frame.difficulties is None else frame.difficulties
    return np.where(points == 0, 0, np.where(given > 0, given, by_points))


def _distances(boxes: Float64[np.ndarray, "K 7"], origin_m: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, " K"]:
    return np.asarray(np.linalg.norm(boxes[:, :3] - origin_m, axis=1))


def _sized(boxes: Float64[np.ndarray, "K 7"]) -> Bool[np.ndarray, " K"]:
    sizes = boxes[:, 3:6]
    return np.asarray(((sizes > _SIZE_RANGE_M[0]) & (sizes < _SIZE_RANGE_M[1])).all(axis=1))


def _subset(objects: _Objects, category: str, limits: tuple[float, float]) -> _Subset:
    near, far = limits
    true = (objects.stacked.categories == category) & (objects.levels > 0)
    true &= (objects.true_range_m >= near) & (objects.true_range_m < far)
    found = (objects.stacked.classes == category) & (objects.found_range_m >= near) & (objects.found_range_m < far)
    pairs = objects.overlaps.where(true[objects.overlaps.true] & found[objects.overlaps.found])
    matches = match_at_cutoffs(pairs, objects.reached, len(true))
    turned = objects.stacked.true_boxes[matches.true, 6] - objects.stacked.found_boxes[matches.found, 6]
    apart = np.abs((turned + np.pi) % (2 * np.pi) - np.pi)
    reaching = np.bincount(objects.reached[found], minlength=len(CUTOFFS) + 1)
    return _Subset(
        true=true,
        found=found,
        matches=matches,
        num_found=reaching[::-1].cumsum()[::-1][1:],
        accuracy=matches.sums(1 - apart / np.pi),
    )


def _curve(
    objects: _Objects, subset: _Subset, hardest: int
) -> tuple[Float64[np.ndarray, " C"], Float64[np.ndarray, " C"], Float64[np.ndarray, " C"], int]:
    """Precision, precision weighted by heading and recall at each cutoff, and the number of true objects."""
    counted = objects.levels <= hardest
    num_true = int((subset.true & counted).sum())
    right = subset.matches.counts(np.ones(len(subset.matches.true), dtype=np.bool_))
    missed = num_true - subset.matches.counts(counted[subset.matches.true])
    recall = right / np.maximum(right + missed, 1)
    found = np.maximum(subset.num_found, 1)
    precision, heading = right / found, subset.accuracy / found
    return np.where(recall == 0, 1.0, precision), np.where(recall == 0, 1.0, heading), recall, num_true


def _shown(category: str, label: str, precision: Float64[np.ndarray, " C"], recall: Float64[np.ndarray, " C"]) -> Curve:
    """The cutoffs at which something is right, by rising recall, precision made to fall."""
    some = np.flatnonzero(recall > 0)[::-1]
    falling = np.maximum.accumulate(precision[some][::-1])[::-1]
    return Curve(
        category=category,
        subset=label,
        metric="AP",
        recall=recall[some],
        precision=falling,
        scores=CUTOFFS[some].astype(np.float64),
    )


def _errors(objects: _Objects, subset: _Subset) -> tuple[Rows, Rows, Rows]:
    """Rows of missed true, of false and of right found objects at the cutoff of best F1; from cutoff 0 on if none."""
    right = subset.matches.counts(np.ones(len(subset.matches.true), dtype=np.bool_))
    cutoff = best_threshold(right, subset.num_found - right, subset.true.sum() - right) or 0
    true, found = subset.matches.at(cutoff)
    reaching = np.flatnonzero(subset.found & (objects.reached > cutoff))
    return np.setdiff1d(np.flatnonzero(subset.true), true), np.setdiff1d(reaching, found), found


def _means(rows: Sequence[Score]) -> list[Score]:
    """Means of the classes that papers state."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for row in rows:
        if row.category in MEAN_CLASSES:
            groups.setdefault((row.subset, row.metric), []).append(row)
    return [
        Score(
            category=MEAN,
            subset=subset,
            metric=metric,
            value=float(np.mean([row.value for row in group])),
            unit="",
            num_true=sum(row.num_true for row in group),
        )
        for (subset, metric), group in groups.items()
    ]
