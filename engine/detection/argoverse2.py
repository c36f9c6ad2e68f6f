"""Argoverse 2's 3D detection metric: AP, errors of position, size and heading, and the composite score (CDS).

Rules that surprise, all kept:

- Each found object belongs to its nearest true one, each true object to the best-scored of those that belong to it, and
  only then the distance is compared with the threshold. So a well-placed object counts nothing where a better-scored
  one further away has the same nearest object.
- Distances are in space, so that a wrong height costs a match.
- A class without true objects has AP 0 and the largest errors (2 m, 1, pi), and is in the mean of all 26.
- A class with more than 100 found objects in a sweep keeps its 100 best-scored.

The official tool drops objects outside the region of interest of the map. Maps are no part of the input here: the
result's name says so, and its figures are not those of the leaderboard. Nor are they rounded to three digits.

Source: Wilson et al., Argoverse 2: Next Generation Datasets for Self-Driving Perception and Forecasting (NeurIPS 2021
datasets track), section 4.1; av2 (released code) 0.3.6, evaluation/detection.

Letters: K true, D found objects, T thresholds, R recalls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from engine.detection.failures import best_threshold, errors_by_frame
from engine.detection.frames import needed
from engine.detection.pairs import FramePair, Stacked, stacked
from engine.scores import MEAN, Curve, Score, Scores

Rows = Int64[np.ndarray, " _"]

BENCHMARK = "Argoverse 2 3D detection, no ROI"

CLASSES = (
    *("ARTICULATED_BUS", "BICYCLE", "BICYCLIST", "BOLLARD", "BOX_TRUCK", "BUS", "CONSTRUCTION_BARREL"),
    *("CONSTRUCTION_CONE", "DOG", "LARGE_VEHICLE", "MESSAGE_BOARD_TRAILER", "MOBILE_PEDESTRIAN_CROSSING_SIGN"),
    *("MOTORCYCLE", "MOTORCYCLIST", "PEDESTRIAN", "REGULAR_VEHICLE", "SCHOOL_BUS", "SIGN", "STOP_SIGN", "STROLLER"),
    *("TRUCK", "TRUCK_CAB", "VEHICULAR_TRAILER", "WHEELCHAIR", "WHEELED_DEVICE", "WHEELED_RIDER"),
)
THRESHOLDS_M = (0.5, 1.0, 2.0, 4.0)
_ERRORS_AT = THRESHOLDS_M.index(2.0)
_LARGEST_ERRORS = (2.0, 1.0, math.pi)
"""Of position (m), size and heading (rad): what a class has without a match, and what 1 is in the composite score."""
_UNITS = {"AP": "", "ATE": "m", "ASE": "", "AOE": "rad", "CDS": ""}
_MAX_RANGE_M = 150.0
_MAX_FOUND = 100
_RECALLS = np.linspace(0, 1, 101)
_NOTES = (
    "objects outside the region of interest count, as no map is used: not comparable with the leaderboard",
    "classes without true objects count as AP 0 and the largest errors in the means",
)


@dataclass(frozen=True, kw_only=True)
class _OneClass:
    """One class in all frames.

    Attributes:
        true: rows of the true objects that count.
        found: rows of the found objects that count, by falling score.
        partner: true row that each of `found` was assigned to; -1 where a better-scored one has it.
        distances_m: to the nearest true object; infinite where the frame has none.
    """

    true: Rows
    found: Rows
    partner: Rows
    distances_m: Float64[np.ndarray, " _"]

    def right(self, threshold_m: float) -> Bool[np.ndarray, " _"]:
        """Which of `found` are matches."""
        return np.asarray((self.partner >= 0) & (self.distances_m < threshold_m))


def score_argoverse2(frames: Sequence[FramePair]) -> Scores:
    """Figures of the Argoverse 2 metric. Classes have the set's names, in any case; others are left out.

    Args:
        frames: true objects with numbers of points, and the vehicle as the origin of ranges; found objects.

    Raises:
        JudgeError: the number of points is missing.
    """
    objects = stacked(frames)
    true_kept, found_near = _kept(frames)
    rows: list[Score] = []
    curves: list[Curve] = []
    errors: list[tuple[Rows, Rows, Rows]] = []
    for name in CLASSES:
        one = _assigned(objects, name, true_kept, found_near)
        rows += _figures(objects, name, one, curves)
        errors.append(_wrong(one))
    means = [_mean(rows, metric) for metric in _UNITS]
    missed, false, right = zip(*errors, strict=True)
    return Scores(
        benchmark=BENCHMARK,
        headline={("CDS" if row.metric == "CDS" else f"m{row.metric}"): row.value for row in reversed(means)},
        unit="",
        rows=(*rows, *means),
        curves=tuple(curves),
        frames=errors_by_frame(frames, missed, false, right),
        notes=_NOTES,
    )


def _kept(frames: Sequence[FramePair]) -> tuple[Bool[np.ndarray, " K"], Bool[np.ndarray, " D"]]:
    """True objects with points within the range; found ones within the range."""
    true, found = [], []
    for frame, its_found in frames:
        points = needed(frame.num_lidar_points, "num_lidar_points", frame, BENCHMARK)
        near = np.linalg.norm(frame.boxes[:, :3] - frame.origin_m, axis=1) < _MAX_RANGE_M
        true.append(near & (points > 0))
        found.append(np.linalg.norm(its_found.boxes[:, :3] - frame.origin_m, axis=1) < _MAX_RANGE_M)
    return np.concatenate(true), np.concatenate(found)


def _assigned(
    objects: Stacked, name: str, true_kept: Bool[np.ndarray, " K"], found_near: Bool[np.ndarray, " D"]
) -> _OneClass:
    true = np.flatnonzero((objects.categories == name.lower()) & true_kept)
    found = np.flatnonzero((objects.classes == name.lower()) & found_near)
    # By frame, within it by falling score, and of equal scores in their order.
    found = found[np.lexsort((-objects.scores[found], objects.found_frame[found]))]
    place = np.arange(len(found)) - np.searchsorted(objects.found_frame[found], objects.found_frame[found], "left")
    found = found[place < _MAX_FOUND]
    nearest, distances_m = _nearest(objects, true, found)
    _, first = np.unique(nearest, return_index=True)
    partner = np.full(len(found), -1, dtype=np.int64)
    partner[first] = nearest[first]
    order = np.argsort(-objects.scores[found], kind="stable")
    return _OneClass(true=true, found=found[order], partner=partner[order], distances_m=distances_m[order])


def _nearest(objects: Stacked, true: Rows, found: Rows) -> tuple[Rows, Float64[np.ndarray, " _"]]:
    """Row of the true object nearest to each found one, the first of equals, and how far it is."""
    nearest = np.full(len(found), -1, dtype=np.int64)
    distances_m = np.full(len(found), np.inf)
    of_true, of_found = objects.true_frame[true], objects.found_frame[found]
    for frame in np.intersect1d(of_true, of_found):
        mine, its = (slice(*np.searchsorted(of, [frame, frame + 1])) for of in (of_true, of_found))
        offsets = objects.found_boxes[found[its], None, :3] - objects.true_boxes[None, true[mine], :3]
        apart = np.linalg.norm(offsets, axis=2)
        best = apart.argmin(axis=1)
        nearest[its], distances_m[its] = true[mine][best], apart.min(axis=1)
    return nearest, distances_m


def _figures(objects: Stacked, name: str, one: _OneClass, curves: list[Curve]) -> list[Score]:
    """AP at each threshold and their mean, the three errors, CDS."""
    precisions = {threshold: _precision(one, threshold) for threshold in THRESHOLDS_M}
    aps = {threshold: float(values.mean()) for threshold, values in precisions.items()}
    ap = sum(aps.values()) / len(aps)
    right = one.right(THRESHOLDS_M[_ERRORS_AT])
    errors = _LARGEST_ERRORS
    if right.any():
        errors = _errors(objects.true_boxes[one.partner[right]], objects.found_boxes[one.found[right]])
    cds = ap * sum(1 - error / largest for error, largest in zip(errors, _LARGEST_ERRORS, strict=True)) / 3
    curves.extend(
        Curve(
            category=name,
            subset="",
            metric=f"AP {threshold:g} m",
            recall=_RECALLS,
            precision=precision,
            scores=_scores_at(objects, one, threshold),
        )
        for threshold, precision in precisions.items()
        if len(one.true)
    )
    values = [
        *(("AP", "", ap), ("ATE", "m", errors[0]), ("ASE", "", errors[1]), ("AOE", "rad", errors[2]), ("CDS", "", cds)),
        *((f"AP {threshold:g} m", "", value) for threshold, value in aps.items()),
    ]
    return [
        Score(category=name, subset="", metric=metric, value=value, unit=unit, num_true=len(one.true))
        for metric, unit, value in values
    ]


def _recall(one: _OneClass, threshold_m: float) -> Float64[np.ndarray, " _"]:
    return np.asarray(np.cumsum(one.right(threshold_m)) / max(len(one.true), 1))


def _precision(one: _OneClass, threshold_m: float) -> Float64[np.ndarray, " R"]:
    """At 101 recalls, made to fall; 0 beyond the largest recall."""
    if not len(one.true) or not len(one.found):
        return np.zeros(len(_RECALLS))
    right = np.cumsum(one.right(threshold_m))
    # The official divisor has the smallest step of a double added, which makes it safe and changes a last digit.
    precision = right / (np.arange(1, len(right) + 1) + np.finfo(np.float64).eps)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return np.asarray(np.interp(_RECALLS, _recall(one, threshold_m), falling, right=0))


def _scores_at(objects: Stacked, one: _OneClass, threshold_m: float) -> Float64[np.ndarray, " R"]:
    """Score of the first found object with which each recall is reached; NaN beyond."""
    recall = _recall(one, threshold_m)
    at = np.searchsorted(recall, _RECALLS - 1e-12, "left")
    scores = np.append(objects.scores[one.found], np.nan)
    return np.asarray(scores[at])


def _errors(true: Float64[np.ndarray, "P 7"], found: Float64[np.ndarray, "P 7"]) -> tuple[float, float, float]:
    """Mean distance, 1 - IoU of the sizes laid over one another, and angle between headings."""
    distances = np.linalg.norm(true[:, :3] - found[:, :3], axis=1)
    a, b = true[:, 3:6], found[:, 3:6]
    larger = np.maximum(a, b).prod(axis=1)
    overlap = np.minimum(a, b).prod(axis=1) / np.where(larger > 0, larger, 1)  # 0 where neither has a volume
    angles = np.abs((true[:, 6] - found[:, 6] + np.pi) % (2 * np.pi) - np.pi)
    return float(distances.mean()), float((1 - overlap).mean()), float(angles.mean())


def _wrong(one: _OneClass) -> tuple[Rows, Rows, Rows]:
    """Missed, false and right rows at 2 m, from the score of best F1 on; of all found objects if none is right."""
    right = one.right(THRESHOLDS_M[_ERRORS_AT])
    hits = np.cumsum(right)
    best = best_threshold(hits, np.arange(1, len(right) + 1) - hits, len(one.true) - hits) if len(right) else None
    shown = slice(None if best is None else best + 1)
    hit = right[shown]
    missed = np.setdiff1d(one.true, one.partner[shown][hit])
    return missed, one.found[shown][~hit], one.found[shown][hit]


def _mean(rows: Sequence[Score], metric: str) -> Score:
    mine = [row for row in rows if row.metric == metric]
    value = sum(row.value for row in mine) / len(mine)
    num_true = sum(row.num_true for row in mine)
    return Score(category=MEAN, subset="", metric=metric, value=value, unit=_UNITS[metric], num_true=num_true)
