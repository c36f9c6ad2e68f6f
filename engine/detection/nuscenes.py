"""nuScenes' detection metric: AP by distance of centres, five errors of matched objects, and the score NDS of both.

Errors and distances are the same in any frame that is turned about the vertical and moved, so boxes may be the world's
or the LiDAR's where that stands upright; `TrueObjects.origin_m` is the vehicle's place (the ego pose at the sweep) in
the frame of the boxes, as ranges are measured from there. Rules that surprise, all kept:

- A class without true objects has AP 0 and all errors 1, and is in the means.
- True objects without a LiDAR or radar point do not count; what is found there is false.
- Bicycles and motorcycles in a bicycle rack do not count, true or found.
- Of equal scores the one that is later in the list comes first.
- A found object takes the nearest object left, and no other if that is too far away for the limit.
- Errors are means over recall of running means: those of the best scores weigh more. A match whose score is 0 does not
  count for them. A car turned by pi has an orientation error of pi, which is worse than none found (1).

Source: Caesar et al., nuScenes (CVPR 2020), section 3.1; nuscenes-devkit 1.2.0 (released code), eval/detection.

Letters: K true, D found objects of all frames, those that count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from engine.detection.failures import best_threshold, errors_by_frame
from engine.detection.frames import FoundObjects, TrueObjects, needed
from engine.detection.nuscenes_curve import RECALLS, RecallCurve, mean_error, recall_curve
from engine.detection.nuscenes_matching import NONE, greedy, near_pairs
from engine.detection.nuscenes_rules import (
    ATTRIBUTES,
    CLASS_OF,
    CLASS_RANGE_M,
    ERRORS,
    IN_RACKS,
    NO_ERROR,
    RACK,
    NuscenesSettings,
    inside_any,
)
from engine.detection.pairs import FramePair
from engine.scores import MEAN, Curve, JudgeError, Score, Scores

_NAME = "nuScenes"
_CLASSES = tuple(CLASS_RANGE_M)
_RANGE_M = np.array([*CLASS_RANGE_M.values(), 0.0])
"""By number of the class; the last one: no class."""
_CODES = {name: number for number, name in enumerate(_CLASSES)}
_CODE_OF = {category: _CODES[name] for category, name in CLASS_OF.items()}
_RACKED = [_CODES[name] for name in IN_RACKS]
_ATTRIBUTES = {name: number for number, name in enumerate(sorted({a for names in ATTRIBUTES.values() for a in names}))}
_AP_WEIGHT = 5.0
"""Of mAP in NDS, where each error's score has 1."""


def score_nuscenes(frames: Sequence[FramePair], settings: NuscenesSettings | None = None) -> Scores:
    """Figures of the nuScenes metric.

    Args:
        frames: true objects with numbers of points, velocities and attributes, bicycle racks among them; found ones
            with velocities and attributes.
        settings: None: the official ones.

    Raises:
        JudgeError: something of that is missing, a class, attribute or score is none of nuScenes', or a frame has too
            many found objects.
    """
    settings = settings or NuscenesSettings()
    true = _side([frame for frame, _ in frames], [frame for frame, _ in frames])
    found = _side([frame for _, frame in frames], [frame for frame, _ in frames])
    _check(frames, found.scores, settings)
    turn = np.empty(len(found.code), dtype=np.int64)
    order = np.lexsort((found.row, found.scores))[::-1]  # of equal scores the last one first
    turn[order] = np.arange(len(order))
    near = near_pairs(true.group, true.boxes[:, :2], found.group, found.boxes[:, :2], turn, max(settings.distances_m))
    measured = [
        _Class(true, found, order, greedy(near.where(near.distance_m < limit), len(true.code), len(turn)), name, limit)
        for limit in settings.distances_m
        for name in settings.classes
    ]
    at_errors = [each for each in measured if each.limit_m == settings.error_distance_m]
    rows = [each.ap_row(settings) for each in measured]
    rows += [row for each in at_errors for row in each.error_rows(settings)]
    means, headline = _summary(rows, settings)
    return Scores(
        benchmark="nuScenes detection" + ("" if settings.is_official else f" of {', '.join(settings.classes)}"),
        headline=headline,
        unit="",
        rows=(*rows, *means),
        curves=tuple(each.curve() for each in measured),
        frames=errors_by_frame(frames, *zip(*[each.errors() for each in at_errors], strict=True)),
        notes=tuple(_notes(frames, at_errors)),
    )


@dataclass(frozen=True, kw_only=True)
class _Side:
    """Objects of all frames that count, true or found.

    Attributes:
        row: of each in all objects of all frames.
        code: number of the class.
        group: number of frame and class together.
        boxes: as of `TrueObjects`.
        velocities_mps: NaN where unknown.
        attributes: numbers; -1 for none.
        scores: 0 for true objects.
    """

    row: Int64[np.ndarray, " K"]
    code: Int64[np.ndarray, " K"]
    group: Int64[np.ndarray, " K"]
    boxes: Float64[np.ndarray, "K 7"]
    velocities_mps: Float64[np.ndarray, "K 2"]
    attributes: Int64[np.ndarray, " K"]
    scores: Float64[np.ndarray, " K"]


def _side(objects: Sequence[TrueObjects | FoundObjects], truth: Sequence[TrueObjects]) -> _Side:
    """Objects of all frames that are in range, not empty and not in a rack."""
    sizes = [len(frame) for frame in objects]
    frame_of = np.repeat(np.arange(len(objects)), sizes)
    boxes = np.concatenate([frame.boxes for frame in objects])
    names = (name for frame in objects for name in _names(frame))
    code = np.fromiter((_CODE_OF.get(name, -1) for name in names), np.int64, len(boxes))
    apart = boxes[:, :2] - np.repeat(np.stack([frame.origin_m[:2] for frame in truth]), sizes, axis=0)
    keep = np.sqrt(apart[:, 0] ** 2 + apart[:, 1] ** 2) < _RANGE_M[code]
    keep &= np.concatenate([_has_points(frame) for frame in objects])
    ends = np.cumsum(sizes)
    for frame, end, size in zip(truth, ends, sizes, strict=True):
        racks = [row for row, name in enumerate(frame.categories) if name == RACK]
        if racks:
            rows = np.arange(end - size, end)[np.isin(code[end - size : end], _RACKED)]
            keep[rows] &= ~inside_any(boxes[rows, :3], frame.boxes[racks])
    row = np.flatnonzero(keep)
    attributes = (name for frame in objects for name in needed(frame.attributes, "attributes", frame, _NAME))
    velocities = [needed(frame.velocities_mps, "velocities_mps", frame, _NAME) for frame in objects]
    return _Side(
        row=row,
        code=code[row],
        group=frame_of[row] * len(_CLASSES) + code[row],
        boxes=boxes[row],
        velocities_mps=np.concatenate(velocities)[row],
        attributes=np.fromiter((_ATTRIBUTES.get(name, -1) for name in attributes), np.int64, len(boxes))[row],
        scores=np.concatenate([_scores(frame) for frame in objects])[row],
    )


def _names(frame: TrueObjects | FoundObjects) -> tuple[str, ...]:
    return frame.categories if isinstance(frame, TrueObjects) else frame.classes


def _scores(frame: TrueObjects | FoundObjects) -> Float64[np.ndarray, " K"]:
    return np.zeros(len(frame)) if isinstance(frame, TrueObjects) else frame.scores


def _has_points(frame: TrueObjects | FoundObjects) -> Bool[np.ndarray, " K"]:
    """Whether a LiDAR or a radar saw each object; found ones need not be seen."""
    if isinstance(frame, FoundObjects):
        return np.ones(len(frame), dtype=np.bool_)
    lidar = needed(frame.num_lidar_points, "num_lidar_points", frame, _NAME)
    radar = np.zeros_like(lidar) if frame.num_radar_points is None else frame.num_radar_points
    unknown = np.flatnonzero((lidar < 0) & np.isin(frame.categories, list(CLASS_OF)))
    if unknown.size:
        raise JudgeError(
            f"frame {frame.key}: the number of points in true object {unknown[0]} is not known; the nuScenes metric "
            "needs it, because it drops objects without any: prepare the set from labels that state it"
        )
    return np.asarray((lidar > 0) | (radar > 0))


def _check(frames: Sequence[FramePair], scores: Float64[np.ndarray, " D"], settings: NuscenesSettings) -> None:
    """Refuse what the official tool refuses, with the reason."""
    for frame, found in frames:
        if len(found) > settings.max_boxes:
            raise JudgeError(
                f"frame {found.key}: {len(found)} found objects, the nuScenes metric takes {settings.max_boxes} at "
                "most; keep those with the highest scores"
            )
        for what, used, known in (
            ("class of a found object", set() if settings.other_classes else set(found.classes), _CODES.keys()),
            ("attribute of a found object", set(found.attributes or ()), _ATTRIBUTES.keys() | {""}),
            ("attribute of a true object", set(frame.attributes or ()), _ATTRIBUTES.keys() | {""}),
        ):
            if used - known:
                raise JudgeError(
                    f"frame {found.key}: {what} is {min(used - known)!r}, expected one of {', '.join(sorted(known))}"
                )
    if (scores < 0).any():
        raise JudgeError(
            f"a found object has the score {scores.min()}; the nuScenes metric takes 0 or more: map scores to 0 to 1"
        )


class _Class:
    """One class at one limit of distance."""

    def __init__(
        self,
        true: _Side,
        found: _Side,
        order: Int64[np.ndarray, " D"],
        partner: Int64[np.ndarray, " D"],
        name: str,
        limit_m: float,
    ) -> None:
        self.name, self.limit_m = name, limit_m
        self._true, self._found = true, found
        self._ranked = order[found.code[order] == _CODES[name]]
        self._partner = partner[self._ranked]
        self._own = np.flatnonzero(true.code == _CODES[name])
        matched, scores = self._partner != NONE, found.scores[self._ranked]
        self.num_true, self.num_found = len(self._own), len(self._ranked)
        self._recall: RecallCurve = recall_curve(matched, scores, self.num_true)

    def ap_row(self, settings: NuscenesSettings) -> Score:
        """Average precision."""
        value = self._recall.average(settings.min_recall, settings.min_precision)
        return self._row(_ap(self.limit_m), value, "")

    def _row(self, metric: str, value: float, unit: str) -> Score:
        return Score(category=self.name, subset="", metric=metric, value=value, unit=unit, num_true=self.num_true)

    def error_rows(self, settings: NuscenesSettings) -> list[Score]:
        """The five errors; NaN where the class has none of the kind."""
        matched = self._partner != NONE
        scores = self._found.scores[self._ranked[matched]]
        errors = self._errors(self._partner[matched], self._ranked[matched])
        left_out = NO_ERROR.get(self.name, ())
        return [
            self._row(
                kind,
                math.nan if kind in left_out else mean_error(errors[kind], scores, self._recall, settings.min_recall),
                unit,
            )
            for kind, unit in ERRORS.items()
        ]

    def _errors(
        self, true: Int64[np.ndarray, " M"], found: Int64[np.ndarray, " M"]
    ) -> dict[str, Float64[np.ndarray, " M"]]:
        """Errors of each match, by falling score; NaN where unknown."""
        a, b = self._true.boxes[true], self._found.boxes[found]
        shared = np.minimum(a[:, 3:6], b[:, 3:6]).prod(axis=1)
        whole = a[:, 3:6].prod(axis=1) + b[:, 3:6].prod(axis=1) - shared
        period = math.pi if self.name == "barrier" else 2 * math.pi
        turned = (a[:, 6] - b[:, 6] + period / 2) % period - period / 2
        velocity = self._found.velocities_mps[found] - self._true.velocities_mps[true]
        stated, given = self._true.attributes[true], self._found.attributes[found]
        return {
            "ATE": np.hypot(*(b - a)[:, :2].T),
            "ASE": 1 - shared / np.where(whole > 0, whole, 1),
            "AOE": np.abs(turned),
            "AVE": np.hypot(*velocity.T),
            "AAE": np.where(stated < 0, np.nan, stated != given),
        }

    def curve(self) -> Curve:
        """Precision at each of 101 recalls."""
        return Curve(
            category=self.name,
            subset="",
            metric=_ap(self.limit_m),
            recall=RECALLS,
            precision=self._recall.precision,
            scores=np.where(self._recall.precision > 0, self._recall.scores, np.nan),
        )

    def errors(self) -> tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]:
        """Rows of missed true, of false and of right found objects, from the score of best F1 on; of all if none."""
        matched = self._partner != NONE
        right = np.cumsum(matched)
        last = (
            best_threshold(right, np.arange(1, len(right) + 1) - right, self.num_true - right) if len(right) else None
        )
        counted = slice(None if last is None else last + 1)
        partner, ranked = self._partner[counted], self._ranked[counted]
        missed = np.setdiff1d(self._own, partner[partner != NONE])
        return (
            self._true.row[missed],
            self._found.row[ranked[partner == NONE]],
            self._found.row[ranked[partner != NONE]],
        )


def _ap(limit_m: float) -> str:
    return f"AP {limit_m:g} m"


def _summary(rows: Sequence[Score], settings: NuscenesSettings) -> tuple[list[Score], dict[str, float]]:
    """Means over limits and classes, and the headline. An error that no class has is left out of NDS."""
    aps = {_ap(limit) for limit in settings.distances_m}
    by_class = {name: [row for row in rows if row.category == name] for name in settings.classes}
    means = [
        Score(
            category=name,
            subset="",
            metric="AP",
            value=float(np.mean([row.value for row in own if row.metric in aps])),
            unit="",
            num_true=own[0].num_true,
        )
        for name, own in by_class.items()
    ]
    number = sum(row.num_true for row in means)
    headline = {"NDS": math.nan, "mAP": float(np.mean([row.value for row in means]))}
    for kind in ERRORS:
        known = [row.value for row in rows if row.metric == kind and not math.isnan(row.value)]
        headline[f"m{kind}"] = float(np.mean(known)) if known else math.nan
    gains = [max(0.0, 1 - headline[f"m{kind}"]) for kind in ERRORS if not math.isnan(headline[f"m{kind}"])]
    headline["NDS"] = (_AP_WEIGHT * headline["mAP"] + sum(gains)) / (_AP_WEIGHT + len(gains))
    units = {f"m{kind}": unit for kind, unit in ERRORS.items()}
    means += [
        Score(category=MEAN, subset="", metric=name, value=value, unit=units.get(name, ""), num_true=number)
        for name, value in headline.items()
    ]
    return means, headline


def _notes(frames: Sequence[FramePair], classes: Iterable[_Class]) -> list[str]:
    """What a reader of the figures must know."""
    notes = []
    absent = [each.name for each in classes if not each.num_true]
    if absent:
        notes.append(f"without true objects that count, hence AP 0 and errors 1 in the means: {', '.join(absent)}")
    if not any(len(found) for _, found in frames):
        notes.append("nothing was found in any frame: the official tool stops with an error there, here all AP are 0")
    if any(frame.num_radar_points is None for frame, _ in frames):
        notes.append("radar points are not known: true objects that only radar saw do not count, officially they do")
    return notes
