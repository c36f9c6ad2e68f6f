"""KITTI's object detection metric: average precision in the image, from above and in space, and orientation (AOS).

What is odd about it is kept, because published figures have it:

- A true object is missed, or a false one blamed, at one of three difficulties by the height of its box *in the image*:
  found objects need one. One that is too small there takes a true object out of the count, whatever its class.
- Neutral: harder objects of the class, and Van for Car, Person_sitting for Pedestrian. A Truck is nothing of the kind.
- Objects found in a DontCare rectangle are excused in the image's metric alone.
- R40 leaves recall 0 out and gives recalls that are not reached 0: the n-th of n < 41 objects gives no more than
  (n - 1) / 40. R11 counts recall 0.

Source: Geiger et al. (CVPR 2012), the object development kit's `evaluate_object.cpp`; R40: Simonelli et al., ICCV 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from engine.detection.failures import best_threshold, errors_by_frame
from engine.detection.frames import needed
from engine.detection.kitti_rules import DIFFICULTIES, NO_ALPHA, Difficulty, KittiClass, KittiSettings
from engine.detection.matching import COUNTED, NEUTRAL, OTHER, Counts, Matching, Outcome, Roles
from engine.detection.pairs import FramePair, Overlaps, box_overlaps, image_overlaps, stacked
from engine.scores import MEAN, Curve, Score, Scores

_NAME = "KITTI"
_MAIN, _ALL = "moderate", "all"
_METRICS, _AOS, _LOOSE = ("2D", "BEV", "3D"), "AOS", ", loose"
_RECALLS = 40
"""Steps of recall: precision is known at 41 places."""
_FULL_R40 = 41
"""True objects from which on R40 can reach 100 %."""
_ROUNDING = 1e-6
"""Truncations are written with two digits; a set may have stored them as float32."""


def score_kitti(frames: Sequence[FramePair], settings: KittiSettings | None = None) -> Scores:
    """All of KITTI's figures.

    A class that is neither true nor found anywhere has no figure (NaN) and is left out of means; one that is only
    found has 0, as in the development kit.

    Args:
        frames: true and found objects of each frame.
        settings: the variant; None: the development kit's.

    Raises:
        JudgeError: true objects lack truncation, occlusion or image box, or found ones the image box.
    """
    settings = settings or KittiSettings()
    board = _Board(frames)
    groups = [_Group(board, kind, level, settings) for kind in settings.classes for level in DIFFICULTIES]
    cells = [cell for group in groups for cell in group.cells()]
    rows = [row for cell in cells for row in cell.rows()]
    rows += _means(rows)
    outcomes = [group.outcome() for group in groups if group.level.name == _MAIN]
    return Scores(
        benchmark=f"KITTI object, rules of the {settings.height_rule.replace('-', ' ')}",
        headline={
            "3D AP R40, moderate": _value(rows, _MAIN, "3D AP R40"),
            "3D AP R40, all nine": _value(rows, _ALL, "3D AP R40"),
            "3D AP R11, moderate": _value(rows, _MAIN, "3D AP R11"),
            "BEV AP R40, moderate": _value(rows, _MAIN, "BEV AP R40"),
            "2D AP R40, moderate": _value(rows, _MAIN, "2D AP R40"),
        },
        unit="%",
        rows=tuple(rows),
        curves=tuple(cell.curve() for cell in cells if cell.metric != _AOS),
        frames=errors_by_frame(frames, *zip(*[(o.missed, o.false, o.right) for o in outcomes], strict=True)),
        notes=_notes(groups, board),
    )


class _Board:
    """What all classes and difficulties share: objects side by side, their overlaps, heights and angles."""

    def __init__(self, frames: Sequence[FramePair]) -> None:
        true, found = [pair[0] for pair in frames], [pair[1] for pair in frames]
        self.objects = stacked(frames)
        true_px = _joined([needed(frame.image_boxes_px, "image_boxes_px", frame, _NAME) for frame in true])
        found_px = _joined([needed(frame.image_boxes_px, "image_boxes_px", frame, _NAME) for frame in found])
        self.truncations = _joined([needed(frame.truncations, "truncations", frame, _NAME) for frame in true])
        self.occlusions = _joined([needed(frame.occlusions, "occlusions", frame, _NAME) for frame in true])
        self.true_height = np.nan_to_num(true_px[:, 3] - true_px[:, 1])
        self.found_height = np.nan_to_num(np.abs(found_px[:, 3] - found_px[:, 1]))
        rectangles = [np.zeros((0, 4)) if frame.ignored_px is None else frame.ignored_px for frame in true]
        their_frame = np.repeat(np.arange(len(true)), [len(some) for some in rectangles])
        found_frame = self.objects.found_frame
        self.dont_care = image_overlaps(their_frame, _joined(rectangles), found_frame, found_px, of_found=True)
        bev, volume = box_overlaps(self.objects)
        in_image = image_overlaps(self.objects.true_frame, true_px, found_frame, found_px)
        self.overlaps: dict[str, Overlaps] = {"2D": in_image, "BEV": bev, "3D": volume}
        self.alphas = _alphas(frames)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(parts))


def _alphas(frames: Sequence[FramePair]) -> tuple[Float64[np.ndarray, " K"], Float64[np.ndarray, " D"]] | None:
    """Observation angles of true and found objects; None where one is not given: there is no AOS then."""
    true = [frame.alphas for frame, _ in frames if frame.alphas is not None]
    found = [frame.alphas for _, frame in frames if frame.alphas is not None]
    if len(true) < len(frames) or len(found) < len(frames):
        return None
    angles = _joined(true), _joined(found)
    return None if np.isnan(angles[1]).any() or (angles[1] == NO_ALPHA).any() else angles


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One metric of one class at one difficulty.

    Attributes:
        category: class.
        subset: difficulty.
        metric: "2D AP", "3D AP", ...
        loose: with the second, lower limit of overlap.
        precision: at recall 0, 1/40, ... 1; or similarity, for AOS.
        thresholds: scores from which on recall is so high, as far as it is reached.
        num_true: objects that count.
        occurs: whether the class is true or found anywhere.
    """

    category: str
    subset: str
    metric: str
    loose: bool = False
    precision: Float64[np.ndarray, "41"]
    thresholds: Float64[np.ndarray, " T"]
    num_true: int
    occurs: bool

    def rows(self) -> list[Score]:
        """The mean of precision over 40 and over 11 recalls."""
        means = {"R40": self.precision[1:].mean(), "R11": self.precision[::4].mean()}
        return [
            Score(
                category=self.category,
                subset=self.subset,
                metric=f"{self.metric} {name}{_LOOSE * self.loose}",
                value=100 * float(mean) if self.occurs else math.nan,
                unit="%",
                num_true=self.num_true,
            )
            for name, mean in means.items()
        ]

    def curve(self) -> Curve:
        """Precision at each recall."""
        return Curve(
            category=self.category,
            subset=self.subset,
            metric=self.metric + _LOOSE * self.loose,
            recall=np.arange(_RECALLS + 1) / _RECALLS,
            precision=self.precision,
            scores=np.append(self.thresholds, np.full(_RECALLS + 1 - len(self.thresholds), np.nan)),
        )


class _Group:
    """One class at one difficulty."""

    def __init__(self, board: _Board, kind: KittiClass, level: Difficulty, settings: KittiSettings) -> None:
        self._board = board
        self.kind = kind
        self.level = level
        self.roles = _roles(board, kind, level, settings)
        self.occurs = self.roles.num_true > 0 or bool((board.objects.classes == kind.name.lower()).any())

    def cells(self) -> list[_Cell]:
        """2D, AOS, BEV, 3D, and the last two with the lower limit."""
        kind = self.kind
        strict = [cell for metric in _METRICS for cell in self._cells(metric, kind.min_iou)]
        loose = [cell for metric in ("BEV", "3D") for cell in self._cells(metric, kind.loose_iou, loose=True)]
        return strict + loose

    def _cells(self, metric: str, min_iou: float, *, loose: bool = False) -> list[_Cell]:
        matching = self._matching(metric, min_iou)
        thresholds = recall_thresholds(matching.kept_scores(), self.roles.num_true)
        excused = self._in_dont_care(min_iou) if metric == "2D" else None
        counts = matching.counts(thresholds, excused=excused)
        num_found = np.maximum(counts.right + counts.wrong, 1)
        measured = {f"{metric} AP": counts.right / num_found}
        if metric == "2D" and self._board.alphas is not None:
            measured[_AOS] = _similarity(counts, *self._board.alphas) / num_found
        return [
            _Cell(
                category=self.kind.name,
                subset=self.level.name,
                metric=name,
                loose=loose,
                precision=_envelope(values),
                thresholds=thresholds,
                num_true=self.roles.num_true,
                occurs=self.occurs,
            )
            for name, values in measured.items()
        ]

    def outcome(self) -> Outcome:
        """Right, wrong and missed objects in space, at the score of best F1."""
        matching = self._matching("3D", self.kind.min_iou)
        thresholds = recall_thresholds(matching.kept_scores(), self.roles.num_true)
        counts = matching.counts(thresholds)
        best = best_threshold(counts.right, counts.wrong, counts.missed)
        return matching.outcome(math.inf if best is None else float(thresholds[best]))

    def _matching(self, metric: str, min_iou: float) -> Matching:
        objects = self._board.objects
        return Matching(self.roles, self._board.overlaps[metric], min_iou, objects.scores, objects.true_frame)

    def _in_dont_care(self, min_share: float) -> Bool[np.ndarray, " D"]:
        excused = np.zeros(len(self._board.objects.scores), np.bool_)
        inside = self._board.dont_care
        excused[inside.found[inside.value > min_share]] = True
        return excused


def _roles(board: _Board, kind: KittiClass, level: Difficulty, settings: KittiSettings) -> Roles:
    named = board.objects.categories == kind.name.lower()
    neighbour = np.isin(board.objects.categories, [name.lower() for name in kind.neighbours])
    low = board.true_height < level.min_height_px
    if settings.height_rule == "ports":
        low |= board.true_height == level.min_height_px
    hard = low | (board.occlusions > level.max_occlusion)
    hard |= board.truncations > level.max_truncation + _ROUNDING
    true = np.where(named, np.where(hard, NEUTRAL, COUNTED), np.where(neighbour, NEUTRAL, OTHER))
    # Height comes first: a small object of any class is neutral.
    small = board.found_height < level.min_height_px
    found = np.where(board.objects.classes == kind.name.lower(), COUNTED, OTHER)
    return Roles(true=true, found=np.where(small, NEUTRAL, found))


def recall_thresholds(scores: Float64[np.ndarray, " R"], num_true: int) -> Float64[np.ndarray, " T"]:
    """Scores nearest to the recalls 0, 1/40, ... 1, as far as these are reached.

    Args:
        scores: of right matches, falling.
        num_true: objects that could be matched.
    """
    kept: list[float] = []
    target, last = 0.0, len(scores) - 1
    for index, score in enumerate(scores.tolist()):
        here = (index + 1) / num_true
        ahead = (index + 2) / num_true if index < last else here
        if ahead - target < target - here and index < last:
            continue
        kept.append(score)
        target += 1 / _RECALLS
    return np.array(kept, dtype=np.float64)


def _similarity(
    counts: Counts, true_alpha: Float64[np.ndarray, " K"], found_alpha: Float64[np.ndarray, " D"]
) -> Float64[np.ndarray, " T"]:
    """Sum over right matches of (1 + cos of the difference of observation angles) / 2."""
    if not len(counts.true):
        return np.zeros(len(counts.right))
    difference = true_alpha[counts.true][:, None] - found_alpha[counts.partner]
    return np.asarray(np.where(counts.is_right, (1 + np.cos(difference)) / 2, 0.0).sum(0))


def _envelope(values: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, "41"]:
    """The largest value at this or any higher recall; 0 at recalls that are not reached."""
    padded = np.append(values, np.zeros(_RECALLS + 1 - len(values)))
    return np.asarray(np.maximum.accumulate(padded[::-1])[::-1])


def _means(rows: Sequence[Score]) -> list[Score]:
    """Means over classes at each difficulty, then over all classes and difficulties."""
    means = []
    for metric in dict.fromkeys(row.metric for row in rows):
        for subset in [*(level.name for level in DIFFICULTIES), _ALL]:
            cells = [row for row in rows if row.metric == metric and subset in (row.subset, _ALL)]
            values = [row.value for row in cells if not math.isnan(row.value)]
            means.append(
                Score(
                    category=MEAN,
                    subset=subset,
                    metric=metric,
                    value=sum(values) / len(values) if values else math.nan,
                    unit="%",
                    num_true=sum(row.num_true for row in cells),
                )
            )
    return means


def _value(rows: Sequence[Score], subset: str, metric: str) -> float:
    return next(row.value for row in rows if (row.category, row.subset, row.metric) == (MEAN, subset, metric))


def _notes(groups: Sequence[_Group], board: _Board) -> tuple[str, ...]:
    notes = []
    few = [f"{g.kind.name} {g.level.name} {g.roles.num_true}" for g in groups if 0 < g.roles.num_true < _FULL_R40]
    if few:
        notes.append(
            f"R40 of fewer than {_FULL_R40} objects n reaches (n - 1) / 40 at most, however good the detector: "
            + ", ".join(few)
        )
    absent = sorted({group.kind.name for group in groups} - {group.kind.name for group in groups if group.occurs})
    if absent:
        notes.append(f"neither true nor found, left out of means: {', '.join(absent)}")
    if board.alphas is None:
        notes.append("no AOS: some objects have no observation angle")
    return tuple(notes)
