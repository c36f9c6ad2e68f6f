"""ONCE's detection metric: average precision over 50 recalls, overall and by range.

What is odd about it is kept, because published figures have it:

- The released code turns footprints by minus their heading when it computes overlaps (at 0 and 90 degrees it makes no
  difference). Every figure is given twice: so ("AP"), and with the boxes as they lie ("AP, geometric overlap").
- Car, Bus and Truck are one class, Vehicle: a Bus found where a Car is counts as right.
- A box turned by more than 90 degrees from the true one does not match it.
- Ranges cut true and found objects by the distance of each: a pair on both sides of a border is missed in both ranges.
  Objects outside of a range are neutral *whatever their class*: they may take a partner of another class out of the
  count.
- Few objects repeat their scores, so that one object that is found gives 100, unlike KITTI's.
- A class without objects has 0 and is in the mean.

Source: Mao et al., ONCE (NeurIPS 2021 datasets track); released code (ONCE's development kit, `evaluation.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from common.ranges import above
from engine.detection.failures import best_threshold, errors_by_frame
from engine.detection.matching import COUNTED, NEUTRAL, OTHER, Counts, Matching, Outcome, Roles
from engine.detection.pairs import FramePair, Overlaps, Stacked, box_overlaps, stacked
from engine.scores import MEAN, Curve, Score, Scores

_RECALLS = 50
_ROUNDING = 1e-6
"""Of recalls, in the released code."""
_OVERALL = "overall"
_RANGES_M = {_OVERALL: (0.0, math.inf), "0-30m": (0.0, 30.0), "30-50m": (30.0, 50.0), "50m-inf": (50.0, math.inf)}
"""Distance of a box's centre from the LiDAR, the upper end excluded."""
_OFFICIAL, _GEOMETRIC = "AP", "AP, geometric overlap"


@dataclass(frozen=True, kw_only=True)
class OnceClass:
    """A class that is judged.

    Attributes:
        name: of the class.
        members: categories and classes that it is made of, without regard to case.
        min_iou: a match overlaps by more, in space.
    """

    name: str
    members: tuple[str, ...]
    min_iou: float


ONCE_CLASSES = (
    OnceClass(name="Vehicle", members=("car", "bus", "truck", "vehicle"), min_iou=0.7),
    OnceClass(name="Pedestrian", members=("pedestrian",), min_iou=0.3),
    OnceClass(name="Cyclist", members=("cyclist",), min_iou=0.5),
)


@dataclass(frozen=True, kw_only=True)
class OnceSettings:
    """Variants of the metric.

    Attributes:
        classes: that are judged.
        max_distance_m: boxes whose centres are farther apart do not overlap; None: no limit. The released code has 5
            where it computes overlaps on the CPU, and none on a GPU: of long vehicles, matches are lost by it.
    """

    classes: tuple[OnceClass, ...] = ONCE_CLASSES
    max_distance_m: float | None = None

    def __post_init__(self) -> None:
        above(self, "null: no limit", max_distance_m=0)


def score_once(frames: Sequence[FramePair], settings: OnceSettings | None = None) -> Scores:
    """All of ONCE's figures, each with the released code's overlap and with the geometric one.

    Args:
        frames: true and found objects of each frame.
        settings: the variant; None: the released code's on a GPU.
    """
    settings = settings or OnceSettings()
    objects = stacked(frames)
    origins = np.array([frame.origin_m for frame, _ in frames])
    overlaps = {name: _overlaps(objects, settings, turned=name == _OFFICIAL) for name in (_OFFICIAL, _GEOMETRIC)}
    cells = [
        _Cell(metric, kind, name, Matching(roles, found, kind.min_iou, objects.scores, objects.true_frame), roles)
        for kind in settings.classes
        for name, limits in _RANGES_M.items()
        for roles in [_roles(objects, origins, kind, limits)]
        for metric, found in overlaps.items()
    ]
    rows = [cell.row() for cell in cells] + _means(cells)
    outcomes = [cell.outcome() for cell in cells if (cell.metric, cell.subset) == (_OFFICIAL, _OVERALL)]
    limit = f"centres within {settings.max_distance_m:g} m" if settings.max_distance_m else "any distance of centres"
    means = {(row.subset, row.metric): row.value for row in rows if row.category == MEAN}
    return Scores(
        benchmark=f"ONCE, {limit}",
        headline={f"{metric}, overall": means[_OVERALL, metric] for metric in overlaps},
        unit="%",
        rows=tuple(rows),
        curves=tuple(cell.curve() for cell in cells),
        frames=errors_by_frame(frames, *zip(*[(o.missed, o.false, o.right) for o in outcomes], strict=True)),
        notes=_notes(cells),
    )


def _overlaps(objects: Stacked, settings: OnceSettings, *, turned: bool) -> Overlaps:
    """IoU in space, without pairs that head apart or lie too far from each other."""
    overlaps = box_overlaps(objects, turned=turned)[1]
    true, found = objects.true_boxes[overlaps.true], objects.found_boxes[overlaps.found]
    difference = np.abs(true[:, 6] - found[:, 6])
    difference = np.where(difference >= np.pi, 2 * np.pi - difference, difference)
    keep = difference <= np.pi / 2
    if settings.max_distance_m is not None:
        keep &= np.linalg.norm(true[:, :3] - found[:, :3], axis=1) <= settings.max_distance_m
    return overlaps.where(keep)


def _roles(
    objects: Stacked, origins: Float64[np.ndarray, "F 3"], kind: OnceClass, limits: tuple[float, float]
) -> Roles:
    """Who counts in a range; all outside of it are neutral."""
    members = [name.lower() for name in kind.members]

    def role(
        boxes: Float64[np.ndarray, "N 7"], frame: Int64[np.ndarray, " N"], names: Shaped[np.ndarray, " N"]
    ) -> Int64[np.ndarray, " N"]:
        distance = np.linalg.norm(boxes[:, :3] - origins[frame], axis=1)
        inside: Bool[np.ndarray, " N"] = (distance >= limits[0]) & (distance < limits[1])
        return np.where(inside, np.where(np.isin(names, members), COUNTED, OTHER), NEUTRAL)

    return Roles(
        true=role(objects.true_boxes, objects.true_frame, objects.categories),
        found=role(objects.found_boxes, objects.found_frame, objects.classes),
    )


class _Cell:
    """One class in one range, by one kind of overlap."""

    def __init__(self, metric: str, kind: OnceClass, subset: str, matching: Matching, roles: Roles) -> None:
        self.metric, self.category, self.subset = metric, kind.name, subset
        self.num_true = roles.num_true
        self._matching = matching
        self._thresholds = recall_thresholds(matching.kept_scores(), roles.num_true)
        self._counts: Counts = matching.counts(self._thresholds)
        precision = self._counts.right / np.maximum(self._counts.right + self._counts.wrong, 1)
        padded = np.append(precision, np.zeros(_RECALLS + 1 - len(precision)))
        self._precision = np.maximum.accumulate(padded[::-1])[::-1]

    def row(self) -> Score:
        """The mean of precision over the recalls but 0."""
        value = 100 * float(self._precision[1:].mean())
        return _row(self.category, self.subset, self.metric, value, self.num_true)

    def curve(self) -> Curve:
        """Precision at each recall."""
        unreached = np.full(_RECALLS + 1 - len(self._thresholds), np.nan)
        return Curve(
            category=self.category,
            subset=self.subset,
            metric=self.metric,
            recall=np.arange(_RECALLS + 1) / _RECALLS,
            precision=self._precision,
            scores=np.append(self._thresholds, unreached),
        )

    def outcome(self) -> Outcome:
        """Right, wrong and missed objects at the score of best F1."""
        best = best_threshold(self._counts.right, self._counts.wrong, self._counts.missed)
        return self._matching.outcome(math.inf if best is None else float(self._thresholds[best]))


def recall_thresholds(scores: Float64[np.ndarray, " R"], num_true: int) -> Float64[np.ndarray, " T"]:
    """Scores at the recalls 0, 1/50, ... 1, as far as these are reached; one may stand for several.

    Args:
        scores: of right matches, falling.
        num_true: objects that could be matched.
    """
    kept: list[float] = []
    target, last = 0.0, len(scores) - 1
    for index, score in enumerate(scores.tolist()):
        here = (index + 1) / num_true
        around = here + ((index + 2) / num_true if index < last else here)
        if around < 2 * target and index < last:
            continue
        kept.append(score)
        target += 1 / _RECALLS
        while around + _ROUNDING > 2 * target:
            kept.append(score)
            target += 1 / _RECALLS
    return np.array(kept, dtype=np.float64)


def _row(category: str, subset: str, metric: str, value: float, num_true: int) -> Score:
    return Score(category=category, subset=subset, metric=metric, value=value, unit="%", num_true=num_true)


def _means(cells: Sequence[_Cell]) -> list[Score]:
    """Over classes, those without objects with their 0."""
    means = []
    for metric in (_OFFICIAL, _GEOMETRIC):
        for subset in _RANGES_M:
            some = [cell for cell in cells if (cell.metric, cell.subset) == (metric, subset)]
            value = sum(cell.row().value for cell in some) / len(some)
            means.append(_row(MEAN, subset, metric, value, sum(cell.num_true for cell in some)))
    return means


def _notes(cells: Sequence[_Cell]) -> tuple[str, ...]:
    empty = dict.fromkeys(cell.category for cell in cells if cell.subset == _OVERALL and not cell.num_true)
    notes = [f'"{_OFFICIAL}" turns footprints by minus their heading, as the released code does']
    if empty:
        notes.append(f"without any object, 0 in the mean: {', '.join(empty)}")
    return tuple(notes)
