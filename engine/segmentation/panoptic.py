"""Panoptic quality of points: classes and objects in one figure, as SemanticKITTI's and nuScenes' tools count it.

A segment is a set of points of one class in one frame. A true and a found one of the same class match where they share
more than half of their union, so that no segment has two matches.

Sources: Kirillov et al., "Panoptic Segmentation", CVPR 2019, section 4.2 (quality); Behley et al., "A Benchmark for
LiDAR-based Panoptic Segmentation based on KITTI", ICRA 2021, and semantic-kitti-api (`eval_np.py`); Fong et al.,
"Panoptic nuScenes", RA-L 2022, and nuscenes-devkit (`eval/panoptic`); Porzi et al., "Seamless Scene Segmentation",
CVPR 2019 (PQ dagger: stuff by its IoU).

Letters: N points, K classes, S segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from engine.scores import MEAN, FrameErrors, Score, Scores
from engine.segmentation.confusion import confusion_of, iou_of
from engine.segmentation.frames import SegmentedFrame, SegmentNames
from engine.segmentation.semantic import absent_note

_MATCH_IOU = 0.5
_SMALL_TABLE = 1 << 16
"""Rows that are counted through a table whatever the number of points: half a megabyte."""


@dataclass(frozen=True, kw_only=True)
class PanopticRules:
    """What differs between benchmarks.

    Attributes:
        title: of the figures.
        min_points: smaller segments without a match count neither as missed nor as false; matches count at any size.
    """

    title: str
    min_points: int


SEMANTICKITTI = PanopticRules(title="SemanticKITTI's panoptic quality", min_points=50)
NUSCENES = PanopticRules(title="nuScenes' panoptic quality", min_points=15)


@dataclass(frozen=True, kw_only=True)
class PanopticCounts:
    """What is kept of a frame. Counts of frames are added up.

    Attributes:
        overlap: of each class, sum of the IoUs of its matches.
        right: matches.
        missed: true segments without one.
        false: found segments without one.
        confusion: of points, see `engine.segmentation.confusion`.
        errors: numbers of the segments that were missed, false and right; true ones and found ones are numbered by
            class, then by object.
    """

    overlap: Float64[np.ndarray, " K"]
    right: Int64[np.ndarray, " K"]
    missed: Int64[np.ndarray, " K"]
    false: Int64[np.ndarray, " K"]
    confusion: Int64[np.ndarray, "K K_and_1"]
    errors: FrameErrors


def panoptic_counts(frame: SegmentedFrame, names: SegmentNames, rules: PanopticRules) -> PanopticCounts:
    """Count one frame. Stuff is one segment a class; points of a thing's class without an object are one segment.

    Raises:
        JudgeError: nobody has told the frame's objects apart.
    """
    true_object = frame.objects(rules.title)
    is_thing = np.append(names.is_thing, np.False_)  # class -1, the last one, has no objects
    return count_segments(
        frame.true_class,
        np.where(is_thing[frame.true_class], true_object, -1),
        frame.found_class,
        np.where(is_thing[frame.found_class], frame.found_object, -1),
        num_classes=len(names.classes),
        min_points=rules.min_points,
        key=frame.key,
    )


def count_segments(
    true_class: Int64[np.ndarray, " N"],
    true_id: Int64[np.ndarray, " N"],
    found_class: Int64[np.ndarray, " N"],
    found_id: Int64[np.ndarray, " N"],
    *,
    num_classes: int,
    min_points: int,
    key: str,
) -> PanopticCounts:
    """Count one frame whose segments are the points of one class and one number.

    Args:
        true_class: of each point; -1: unlabelled, such points are left out first of all.
        true_id: any number.
        found_class: of each point; -1: nothing found.
        found_id: any number.
        num_classes: K.
        min_points: see `PanopticRules`.
        key: of the frame.
    """
    labelled = true_class >= 0
    true = _segments(true_class[labelled], true_id[labelled])
    found = _segments(found_class[labelled], found_id[labelled])
    overlap, right = np.zeros(num_classes), np.zeros(num_classes, np.int64)
    # Points of the one class on both sides, by their pair of segments.
    both = (true.of_point >= 0) & (found.of_point >= 0)
    both[both] = true.classes[true.of_point[both]] == found.classes[found.of_point[both]]
    pairs, _, shared = _distinct(true.of_point[both] * (len(found.sizes) + 1) + found.of_point[both])
    of_true, of_found = np.divmod(pairs, len(found.sizes) + 1)
    iou = shared / (true.sizes[of_true] + found.sizes[of_found] - shared)
    matched = iou > _MATCH_IOU
    np.add.at(overlap, true.classes[of_true[matched]], iou[matched])
    np.add.at(right, true.classes[of_true[matched]], 1)
    missed = true.without(of_true[matched], min_points)
    false = found.without(of_found[matched], min_points)
    return PanopticCounts(
        overlap=overlap,
        right=right,
        missed=np.bincount(true.classes[missed], minlength=num_classes),
        false=np.bincount(found.classes[false], minlength=num_classes),
        confusion=confusion_of(true_class, found_class, num_classes),
        errors=FrameErrors(key=key, missed=missed, false=false, right=of_found[matched]),
    )


@dataclass(frozen=True)
class _Segments:
    """Class and number of points of each segment, in the order of class and id; segment of each point, -1 for none."""

    classes: Int64[np.ndarray, " S"]
    sizes: Int64[np.ndarray, " S"]
    of_point: Int64[np.ndarray, " N"]

    def without(self, matched: Int64[np.ndarray, " M"], min_points: int) -> Int64[np.ndarray, " m"]:
        """Segments of enough points that are not among the matched ones."""
        alone: Bool[np.ndarray, " S"] = self.sizes >= min_points
        alone[matched] = False
        return np.flatnonzero(alone)


def _segments(classes: Int64[np.ndarray, " N"], ids: Int64[np.ndarray, " N"]) -> _Segments:
    known = np.flatnonzero(classes >= 0)
    different, numbers, _ = _distinct(ids[known])
    count = len(different)
    keys, inverse, sizes = _distinct(classes[known] * count + numbers)
    of_point = np.full(len(classes), -1, dtype=np.int64)
    of_point[known] = inverse
    return _Segments(keys // max(count, 1), sizes, of_point)


def _distinct(
    keys: Int64[np.ndarray, " N"],
) -> tuple[Int64[np.ndarray, " D"], Int64[np.ndarray, " N"], Int64[np.ndarray, " D"]]:
    """The different keys in order, which of them each key is, and how often each comes.

    As `np.unique`, but without sorting where a table of all numbers between the lowest and the highest is small.
    """
    low = int(keys.min()) if len(keys) else 0
    rows = int(keys.max()) - low + 1 if len(keys) else 0
    if rows > max(4 * len(keys), _SMALL_TABLE):
        different, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        return different, inverse.reshape(-1), counts
    shifted = keys - low
    counts = np.bincount(shifted, minlength=rows)
    there = np.flatnonzero(counts)
    place = np.empty(rows, dtype=np.int64)
    place[there] = np.arange(len(there))
    return there + low, place[shifted], counts[there]


def score_panoptic(parts: Mapping[str, PanopticCounts], names: SegmentNames, rules: PanopticRules) -> Scores:
    """Panoptic quality over all frames: counts are added up first. A class that does not occur counts as 0."""
    counts = list(parts.values())
    overlap = np.sum([part.overlap for part in counts], axis=0)
    right, missed, false = (
        np.sum([getattr(part, name) for part in counts], axis=0) for name in ("right", "missed", "false")
    )
    iou = iou_of(np.sum([part.confusion for part in counts], axis=0))
    sq = overlap / np.maximum(right, 1)
    rq = right / np.maximum(right + 0.5 * false + 0.5 * missed, 0.5)
    figures = {"PQ": sq * rq, "SQ": sq, "RQ": rq, "IoU": np.nan_to_num(iou)}
    thing = names.is_thing
    dagger = np.where(thing, figures["PQ"], figures["IoU"])
    groups = {MEAN: np.ones(len(thing), np.bool_), "things": thing, "stuff": ~thing}
    rows = [
        Score(category=name, subset="", metric=title, value=100 * float(values[c]), unit="%", num_true=int(n))
        for c, (name, n) in enumerate(zip(names.classes, right + missed, strict=True))
        for title, values in figures.items()
    ]
    rows += [
        Score(category=group, subset="", metric=title, value=100 * float(values[mask].mean()), unit="%", num_true=n)
        for group, mask in groups.items()
        if mask.any()
        for n in [int((right + missed)[mask].sum())]
        for title, values in figures.items()
    ]
    means = {title: 100 * float(values.mean()) for title, values in figures.items()}
    return Scores(
        benchmark=f"{rules.title}, segments from {rules.min_points} points on, {len(names.classes)} classes",
        headline={
            "PQ": means["PQ"],
            "PQ dagger": 100 * float(dagger.mean()),
            "mIoU": means["IoU"],
            "SQ": means["SQ"],
            "RQ": means["RQ"],
        },
        unit="%",
        rows=tuple(rows),
        frames=tuple(part.errors for part in counts),
        notes=absent_note(np.isnan(iou), names, as_zero=True),
    )
