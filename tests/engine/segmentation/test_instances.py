"""ScanNet's average precision of objects: by hand, and against loops over sets of points."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.scores import JudgeError, Scores
from engine.segmentation.frames import SegmentedFrame, SegmentNames
from engine.segmentation.instances import (
    LOOSE_IOU,
    STRICT_IOUS,
    InstanceRules,
    instance_counts,
    score_instances,
)
from tests.reference.instances import Thing, average_precision

NAMES = SegmentNames(classes=("wall", "chair", "table"), things=("chair", "table"))
RULES = InstanceRules(title="AP", min_points=4)


def frame(
    true: list[tuple[int, int, int]],
    found: list[tuple[int, float, list[int]]],
    num_points: int = 40,
    key: str = "a",
) -> SegmentedFrame:
    """True objects as (class, first point, number of points); found ones as (class, score, points)."""
    classes, objects = np.full(num_points, -1, np.int64), np.full(num_points, -1, np.int64)
    for number, (kind, first, count) in enumerate(true):
        classes[first : first + count], objects[first : first + count] = kind, number
    of_point = np.full(num_points, -1, np.int64)
    for number, (_, _, points) in enumerate(found):
        of_point[points] = number
    return SegmentedFrame(
        key=key,
        true_class=classes,
        true_object=objects,
        found_class=np.full(num_points, -1, np.int64),
        found_object=of_point,
        object_class=np.array([kind for kind, _, _ in found], np.int64),
        object_score=np.array([score for _, score, _ in found], np.float64),
    )


def judged(*frames: SegmentedFrame, rules: InstanceRules = RULES) -> Scores:
    parts = {one.key: instance_counts(one, NAMES, rules) for one in frames}
    return score_instances(parts, NAMES, rules)


def points(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def test_all_right_and_nothing_found() -> None:
    true = [(1, 0, 10), (1, 10, 8), (2, 20, 6)]
    found = [(kind, 0.5 + number / 10, points(first, count)) for number, (kind, first, count) in enumerate(true)]
    right, none = judged(frame(true, found)), judged(frame(true, []))
    assert right.headline == {"AP": 100.0, "AP50": 100.0, "AP25": 100.0}
    assert none.headline == {"AP": 0.0, "AP50": 0.0, "AP25": 0.0}
    assert right.value("chair", "", "AP") == 100.0
    assert [row.num_true for row in right.rows if row.metric == "AP"] == [2, 1, 3]


def test_an_iou_counts_only_above_the_threshold() -> None:
    # 10 true points, 5 of which are found: an IoU of exactly a half is no match at 0.5, and one at 0.25.
    scores = judged(frame([(1, 0, 10)], [(1, 0.9, points(0, 5))]))
    assert (scores.value("chair", "", "AP50"), scores.value("chair", "", "AP25")) == (0.0, 100.0)
    # 6 of 10: right at 0.5 and 0.55, at 0.6 not.
    scores = judged(frame([(1, 0, 10)], [(1, 0.9, points(0, 6))]))
    assert scores.value("chair", "", "AP") == pytest.approx(100 * 2 / 10)


def test_an_unsure_false_object_costs_nothing_and_a_sure_one_half() -> None:
    # Another class' object is found where a table is: as sure as it is, it is false for chairs.
    true = [(1, 0, 10), (2, 20, 10)]
    unsure = judged(frame(true, [(1, 0.9, points(0, 10)), (1, 0.1, points(20, 10))]))
    # Corners (recall, precision): (0, 1), (1, 1), (1, 1/2): 1/2 + 1/2 + 0.
    assert unsure.value("chair", "", "AP50") == pytest.approx(100.0)
    sure = judged(frame(true, [(1, 0.1, points(0, 10)), (1, 0.9, points(20, 10))]))
    # Corners (0, 1), (0, 0), (1, 1/2): 0 + 0 + 1/2 * 1/2.
    assert sure.value("chair", "", "AP50") == pytest.approx(25.0)
    tied = judged(frame(true, [(1, 0.5, points(0, 10)), (1, 0.5, points(20, 10))]))
    # Equal scores are one corner: (0, 1), (1, 1/2): 1/2 + 1/4.
    assert tied.value("chair", "", "AP50") == pytest.approx(75.0)


def test_the_surest_of_two_matches_is_right_and_the_other_false() -> None:
    # At 0.25 both halves match.
    scores = judged(frame([(1, 0, 10)], [(1, 0.2, points(0, 5)), (1, 0.8, points(5, 5))]))
    assert scores.value("chair", "", "AP25") == pytest.approx(100.0)
    counts = instance_counts(frame([(1, 0, 10)], [(1, 0.2, points(0, 5)), (1, 0.8, points(5, 5))]), NAMES, RULES)
    assert counts.pair_points.tolist() == [5, 5]


def test_what_lies_on_walls_or_on_small_objects_is_not_held_against_anybody() -> None:
    on_wall, on_table = (1, 0.9, points(20, 10)), (1, 0.9, points(30, 10))
    chair = (1, 0.5, points(0, 10))
    wall = judged(frame([(1, 0, 10), (0, 20, 10)], [chair, on_wall]))
    assert wall.value("chair", "", "AP50") == 100.0
    table = judged(frame([(1, 0, 10), (2, 30, 10)], [chair, on_table]))
    assert table.value("chair", "", "AP50") == 25.0
    small = judged(frame([(1, 0, 10), (1, 30, 3)], [chair, (1, 0.9, points(30, 5))]))
    assert small.value("chair", "", "AP50") == 100.0
    assert [row.num_true for row in small.rows if (row.category, row.metric) == ("chair", "AP")] == [1]
    # Half of it on the wall: not above 0.5, and so false there; above 0.25.
    half = judged(frame([(1, 0, 10), (0, 20, 5), (2, 25, 5)], [chair, (1, 0.9, points(20, 10))]))
    assert (half.value("chair", "", "AP50"), half.value("chair", "", "AP25")) == (25.0, 100.0)
    tiny = judged(frame([(1, 0, 10), (2, 30, 10)], [chair, (1, 0.9, points(30, 3))]))
    assert tiny.value("chair", "", "AP50") == 100.0  # too few points to be looked at


def test_classes_without_an_object_are_left_out_and_named() -> None:
    scores = judged(frame([(1, 0, 10)], [(1, 0.9, points(0, 10)), (2, 0.9, points(20, 8))]))
    assert scores.headline["AP"] == 100.0
    assert math.isnan(scores.value("table", "", "AP"))
    assert scores.notes == ("no true object, left out of the means: table",)
    assert [curve.category for curve in scores.curves] == ["chair"]
    empty = judged(frame([], [], num_points=0))
    assert math.isnan(empty.headline["AP"])
    one = judged(frame([(1, 0, 1)], [(1, 1.0, [0])], num_points=1), rules=InstanceRules(title="AP", min_points=1))
    assert one.headline["AP"] == 100.0


def test_objects_must_be_told_apart() -> None:
    bare = frame([(1, 0, 10)], [])
    object.__setattr__(bare, "true_object", None)
    with pytest.raises(JudgeError, match="told the objects of its points apart"):
        instance_counts(bare, NAMES, RULES)


def random_frame(rng: np.random.Generator, key: str) -> SegmentedFrame:
    """Objects that found ones resemble; some points of no class, some of a class without an object."""
    num_points = 120
    true_object = np.sort(rng.integers(0, 9, num_points)) - 1
    kinds = rng.integers(0, 3, 9)
    true_class = kinds[true_object]
    true_class[rng.random(num_points) < 0.1] = -1
    mixed = rng.random(num_points) < 0.05
    true_class[mixed] = 1  # an object of two classes
    found_object = np.where(rng.random(num_points) < 0.75, true_object, rng.integers(-1, 10, num_points))
    object_class = np.where(rng.random(10) < 0.8, np.append(kinds[1:], [1, 2])[:10], rng.integers(0, 3, 10))
    return SegmentedFrame(
        key=key,
        true_class=true_class.astype(np.int64),
        true_object=true_object.astype(np.int64),
        found_class=np.zeros(num_points, np.int64),
        found_object=found_object.astype(np.int64),
        object_class=object_class.astype(np.int64),
        object_score=rng.integers(0, 5, 10) / 4,  # with ties
    )


@pytest.mark.parametrize("seed", range(20))
def test_against_loops_over_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = [random_frame(rng, str(number)) for number in range(3)]
    scores = judged(*frames)
    true, found, ignored = [], [], []
    for number, one in enumerate(frames):
        assert one.true_object is not None
        places: dict[tuple[int, int], set[int]] = {}
        for point, (kind, thing) in enumerate(zip(one.true_class.tolist(), one.true_object.tolist(), strict=True)):
            if kind in (1, 2) and thing >= 0:
                places.setdefault((kind, thing), set()).add(point)
        true += [Thing(number, kind, frozenset(where)) for (kind, _), where in sorted(places.items())]
        ignored.append(frozenset(range(len(one.true_class))) - frozenset().union(*places.values()))
        for thing in range(len(one.object_class)):
            where = frozenset(np.flatnonzero(one.found_object == thing).tolist())
            found.append(Thing(number, int(one.object_class[thing]), where, float(one.object_score[thing])))
    for kind, name in ((1, "chair"), (2, "table")):
        values = {
            threshold: average_precision(
                true, found, ignored, kind=kind, threshold=threshold, min_points=RULES.min_points
            )
            for threshold in (*STRICT_IOUS, LOOSE_IOU)
        }
        assert scores.value(name, "", "AP50") == pytest.approx(100 * values[0.5], nan_ok=True)
        assert scores.value(name, "", "AP25") == pytest.approx(100 * values[LOOSE_IOU], nan_ok=True)
        mean = float(np.mean([values[threshold] for threshold in STRICT_IOUS]))
        assert scores.value(name, "", "AP") == pytest.approx(100 * mean, nan_ok=True)
