"""AP of boxes in rooms: hand-made frames, and random scenes against the slow form."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from engine.detection.frames import FoundObjects, TrueObjects
from engine.detection.indoor import score_indoor
from engine.detection.judge import check_classes, judge
from engine.scores import JudgeError
from tests.engine.detection.objects import found_frame, true_frame
from tests.helpers.detection_scenes import scene
from tests.reference.detection_indoor import average_precision

CATEGORIES = ("Car", "Pedestrian", "Cyclist")


def beds(*rows: list[float], key: str = "0") -> TrueObjects:
    boxes = np.array(rows, dtype=float).reshape(-1, 7)
    return TrueObjects(key=key, boxes=boxes, categories=("bed",) * len(rows))


def found_beds(*rows: list[float], scores: list[float], key: str = "0") -> FoundObjects:
    boxes = np.array(rows, dtype=float).reshape(-1, 7)
    return FoundObjects(key=key, boxes=boxes, scores=np.array(scores, dtype=float), classes=("bed",) * len(rows))


UNIT = [0.0, 0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("seed", range(6))
def test_random_scenes_against_loops(seed: int) -> None:
    frames = scene(seed, CATEGORIES, CATEGORIES, frames=4)
    scores = score_indoor(frames, CATEGORIES)
    for limit in (0.25, 0.5):
        values = [average_precision(frames, name, limit) for name in CATEGORIES]
        for name, value in zip(CATEGORIES, values, strict=True):
            assert scores.value(name, "", f"AP@{limit:g}") == pytest.approx(value, abs=1e-9, nan_ok=True)
        mean = np.nanmean(values) if not np.isnan(values).all() else math.nan
        assert scores.headline[f"mAP@{limit:g}"] == pytest.approx(mean, nan_ok=True)


def test_the_scenes_tell_something() -> None:
    values = [
        average_precision(scene(seed, CATEGORIES, CATEGORIES, frames=4), name, 0.5)
        for seed in range(6)
        for name in CATEGORIES
    ]
    assert sum(0 < value < 100 for value in values) > 5


def test_a_second_box_on_one_object_is_wrong_and_does_not_go_on_to_the_next() -> None:
    """Two beds overlap by .5 in length: both boxes lie on the first one; precision 1 at recall 1/2, and no more."""
    true = beds(UNIT, [0.5, 0, 0, 1, 1, 1, 0])
    twice = found_beds(UNIT, UNIT, scores=[0.9, 0.8])
    scores = score_indoor([(true, twice)])
    assert scores.value("bed", "", "AP@0.25") == pytest.approx(50)
    (errors,) = scores.frames
    assert (errors.missed.tolist(), errors.false.tolist(), errors.right.tolist()) == ([1], [], [0])


def test_a_false_box_costs_by_its_place_in_the_order() -> None:
    true = beds(UNIT)
    first = found_beds([9.0, 0, 0, 1, 1, 1, 0], UNIT, scores=[0.9, 0.8])
    last = found_beds([9.0, 0, 0, 1, 1, 1, 0], UNIT, scores=[0.7, 0.8])
    assert score_indoor([(true, first)]).headline["mAP@0.25"] == pytest.approx(50)
    assert score_indoor([(true, last)]).headline["mAP@0.25"] == pytest.approx(100)


def test_of_equal_scores_the_earlier_frame_and_row_come_first() -> None:
    true, empty = beds(UNIT), beds(key="1")
    right, wrong = found_beds(UNIT, scores=[0.5]), found_beds(UNIT, scores=[0.5], key="1")
    assert score_indoor([(true, right), (empty, wrong)]).headline["mAP@0.5"] == pytest.approx(100)
    assert score_indoor([(empty, wrong), (true, right)]).headline["mAP@0.5"] == pytest.approx(50)
    rows = found_beds([9.0, 0, 0, 1, 1, 1, 0], UNIT, scores=[0.5, 0.5])
    assert score_indoor([(true, rows)]).headline["mAP@0.5"] == pytest.approx(50)


@pytest.mark.parametrize(("length", "quarter", "half"), [(4.0, 0, 0), (3.9, 100, 0), (2.0, 100, 0), (1.9, 100, 100)])
def test_an_overlap_of_exactly_the_limit_is_none(length: float, quarter: float, half: float) -> None:
    """A unit cube inside a box `length` times as long: IoU 1 / length, exact in binary for 2 and 4."""
    scores = score_indoor([(beds(UNIT), found_beds([0.0, 0, 0, length, 1, 1, 0], scores=[0.5]))])
    assert (scores.value("bed", "", "AP@0.25"), scores.value("bed", "", "AP@0.5")) == (quarter, half)


def test_turned_boxes_and_heights_count() -> None:
    """Two boxes of 4 x 1 m across each other share 1 of 7 m^2; half as high ones share half of their volume."""
    long = [0.0, 0, 0, 4, 1, 1, 0]
    across = found_beds([0.0, 0, 0, 4, 1, 1, math.pi / 2], scores=[1])
    assert score_indoor([(beds(long), across)]).headline["mAP@0.25"] == 0
    low = found_beds([0.0, 0, -0.2, 4, 1, 0.6, 0], scores=[1])
    assert score_indoor([(beds(long), low)]).headline == {"mAP@0.25": 100, "mAP@0.5": 100}


def test_classes_are_the_sets_own() -> None:
    """An absent class is in no mean; a class that nobody asks for counts neither as true nor as found."""
    true = true_frame([("Car", 5.0), ("Van", 15.0)])
    found = found_frame([("Car", 5.0, 0.9), ("Van", 15.0, 0.8), ("Bus", 25.0, 0.7)])
    scores = score_indoor([(true, found)], ["car", "bus"])
    assert scores.headline == {"mAP@0.25": 100, "mAP@0.5": 100}
    assert math.isnan(scores.value("bus", "", "AP@0.25"))
    assert scores.notes == ("without true objects, and so in no mean: bus",)
    assert {row.category for row in judge("indoor", [true], [found]).rows} == {"car", "van", "mean"}
    check_classes("indoor", ["whatever"])  # of a set that is not known
    check_classes("indoor", ["whatever", "Bed"], of_set=["bed", "chair"])
    with pytest.raises(JudgeError, match=r"\(whatever\) is judged by indoor, which knows bed, chair"):
        check_classes("indoor", ["whatever"], of_set=["bed", "chair"])
    nameless = dataclasses.replace(true, categories=("Car", ""))
    assert judge("indoor", [nameless], [found]).headline["mAP@0.25"] == 100


def test_nothing_true_and_nothing_found() -> None:
    missed = score_indoor([(beds(UNIT, UNIT), found_beds(scores=[]))], ["bed", "chair"])
    assert missed.headline == {"mAP@0.25": 0, "mAP@0.5": 0}
    assert missed.frames[0].missed.tolist() == [0, 1]
    nothing = score_indoor([(beds(), found_beds(UNIT, scores=[0.3]))], ["bed"])
    assert math.isnan(nothing.headline["mAP@0.25"])
    assert not nothing.curves
    assert math.isnan(score_indoor([(beds(), found_beds(scores=[]))]).headline["mAP@0.5"])


def test_the_curve_is_what_the_figure_is_made_of() -> None:
    true = beds(UNIT, [5.0, 0, 0, 1, 1, 1, 0], [10.0, 0, 0, 1, 1, 1, 0])
    rows = [UNIT, [20.0, 0, 0, 1, 1, 1, 0], [5.0, 0, 0, 1, 1, 1, 0]]
    scores = score_indoor([(true, found_beds(*rows, scores=[0.9, 0.8, 0.7]))])
    curve = scores.curves[0]
    np.testing.assert_allclose(curve.recall, [1 / 3, 2 / 3])
    np.testing.assert_allclose(curve.precision, [1, 2 / 3])
    np.testing.assert_allclose(curve.scores, [0.9, 0.7])
    assert scores.value("bed", "", "AP@0.25") == pytest.approx(100 * (1 / 3 + 2 / 9))
