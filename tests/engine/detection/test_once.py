import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from engine.detection.frames import FoundObjects, TrueObjects
from engine.detection.judge import judge
from engine.detection.once import OnceSettings, recall_thresholds, score_once
from engine.scores import Scores
from tests.engine.detection.objects import found_frame, true_frame


def _judged(true: TrueObjects, found: FoundObjects) -> Scores:
    return judge("once", [true], [found])


def test_one_object_that_is_found_gives_100() -> None:
    scores = _judged(true_frame([("Car", 5.0)]), found_frame([("Car", 5.0, 0.9)]))
    assert scores.value("Vehicle", "overall", "AP") == pytest.approx(100)
    assert scores.value("Vehicle", "0-30m", "AP, geometric overlap") == pytest.approx(100)
    assert scores.headline["AP, overall"] == pytest.approx(100 / 3)  # classes without objects are 0
    assert "without any object, 0 in the mean: Pedestrian, Cyclist" in scores.notes


@pytest.mark.parametrize("shift", [0.9, 1.1])
def test_footprints_are_turned_the_wrong_way_in_the_official_figure(shift: float) -> None:
    """A 4 x 2 m box at 45 degrees, shifted 1 m along its heading: IoU 1/3 officially, .6 as it lies."""
    step = shift * np.sqrt(0.5)
    pedestrian = OnceSettings(classes=tuple(dataclasses.replace(kind, min_iou=0.5) for kind in OnceSettings().classes))
    true = true_frame([("Car", 5.0)], yaws=[np.pi / 4])
    found = found_frame([("Car", 5.0, 0.9)], yaws=[np.pi / 4])
    moved = dataclasses.replace(found, boxes=found.boxes + np.array([step, step, 0, 0, 0, 0, 0]))
    scores = score_once([(true, moved)], pedestrian)
    assert scores.value("Vehicle", "overall", "AP") == 0
    assert scores.value("Vehicle", "overall", "AP, geometric overlap") == pytest.approx(100)


@pytest.mark.parametrize("yaw", [0.0, np.pi / 2], ids=["0", "90"])
def test_along_the_axes_both_overlaps_are_equal(yaw: float) -> None:
    true = true_frame([("Car", 5.0)], yaws=[yaw])
    found = found_frame([("Car", 5.5, 0.9)], yaws=[yaw])
    scores = _judged(true, found)
    for subset in ("overall", "0-30m"):
        both = [scores.value("Vehicle", subset, metric) for metric in ("AP", "AP, geometric overlap")]
        assert both[0] == pytest.approx(both[1])


@pytest.mark.parametrize(
    ("yaws", "value"),
    [((0.0, np.pi), 0), ((0.0, 1.58), 0), ((3.1, -3.1), 100), ((0.0, 0.01), 100)],
    ids=["turned", "just over 90", "over pi", "hardly"],
)
def test_boxes_that_head_apart_do_not_match(yaws: tuple[float, float], value: float) -> None:
    """Pedestrians are square: their overlap is large however they are turned."""
    true = true_frame([("Pedestrian", 5.0)], yaws=[yaws[0]])
    found = found_frame([("Pedestrian", 5.0, 0.9)], yaws=[yaws[1]])
    assert _judged(true, found).value("Pedestrian", "overall", "AP") == pytest.approx(value)


def test_a_pair_on_both_sides_of_a_border_is_missed_in_both_ranges() -> None:
    scores = _judged(true_frame([("Car", 29.9)]), found_frame([("Car", 30.1, 0.9)]))
    assert scores.value("Vehicle", "overall", "AP") == pytest.approx(100)
    assert scores.value("Vehicle", "0-30m", "AP") == 0
    assert scores.value("Vehicle", "30-50m", "AP") == 0
    assert {row.subset: row.num_true for row in scores.rows if row.category == "Vehicle"} == {
        "overall": 1,
        "0-30m": 1,
        "30-50m": 0,
        "50m-inf": 0,
    }


@pytest.mark.parametrize(("x", "subset"), [(30.0, "30-50m"), (49.99, "30-50m"), (50.0, "50m-inf")])
def test_a_range_begins_with_its_lower_end(x: float, subset: str) -> None:
    scores = _judged(true_frame([("Car", x)]), found_frame([("Car", x, 0.9)]))
    assert scores.value("Vehicle", subset, "AP") == pytest.approx(100)


def test_ranges_are_measured_from_the_origin_in_space() -> None:
    true = dataclasses.replace(true_frame([("Car", 40.0)]), origin_m=np.array([20.0, 0.0, 0.0]))
    assert _judged(true, found_frame([("Car", 40.0, 0.9)])).value("Vehicle", "0-30m", "AP") == pytest.approx(100)
    true, found = true_frame([("Car", 29.0)]), found_frame([("Car", 29.0, 0.9)])
    up = np.array([0, 0, 10.0, 0, 0, 0, 0])
    true, found = (dataclasses.replace(frame, boxes=frame.boxes + up) for frame in (true, found))  # 30.7 m away
    assert _judged(true, found).value("Vehicle", "30-50m", "AP") == pytest.approx(100)


def test_all_kinds_of_vehicles_are_one_class() -> None:
    scores = _judged(true_frame([("Car", 5.0), ("Bus", 15.0)]), found_frame([("Truck", 5.0, 0.9), ("Car", 15.0, 0.8)]))
    assert scores.value("Vehicle", "overall", "AP") == pytest.approx(100)


def test_outside_a_range_objects_are_neutral_whatever_their_class() -> None:
    """A cyclist beyond 30 m takes the vehicle found before 30 m out of the count of vehicles there."""
    cars = [("Car", 5.0)]
    cyclist = dataclasses.replace(true_frame([*cars, ("Cyclist", 30.1)]))
    boxes = cyclist.boxes.copy()
    boxes[1, 3:6] = boxes[0, 3:6]
    true = dataclasses.replace(cyclist, boxes=boxes)
    found = found_frame([("Car", 5.0, 0.5), ("Car", 29.9, 0.9)])
    scores = _judged(true, found)
    assert scores.value("Vehicle", "0-30m", "AP") == pytest.approx(100)
    assert scores.value("Vehicle", "overall", "AP") == pytest.approx(50)


@pytest.mark.parametrize(("limit", "value"), [(None, 100.0), (5.0, 0.0)], ids=["none", "5 m"])
def test_the_limit_of_distance_loses_long_vehicles(limit: float | None, value: float) -> None:
    """A bus 12 m long, found 5.1 m off: IoU .4035."""
    classes = tuple(dataclasses.replace(kind, min_iou=0.4) for kind in OnceSettings().classes)
    boxes = np.array([[10.0, 0, 0, 12.0, 3.0, 3.0, 0]])
    true = dataclasses.replace(true_frame([("Bus", 10.0)]), boxes=boxes)
    found = dataclasses.replace(found_frame([("Bus", 10.0, 0.9)]), boxes=boxes + np.array([5.1, 0, 0, 0, 0, 0, 0]))
    scores = score_once([(true, found)], OnceSettings(classes=classes, max_distance_m=limit))
    assert scores.value("Vehicle", "overall", "AP") == pytest.approx(value)
    assert ("within 5 m" in scores.benchmark) == (limit is not None)


def test_a_wrong_object_in_front_halves_precision_from_there_on() -> None:
    true = true_frame([("Cyclist", 5.0), ("Cyclist", 15.0)])
    found = found_frame([("Cyclist", 5.0, 0.9), ("Cyclist", 25.0, 0.8), ("Cyclist", 15.0, 0.7)])
    scores = _judged(true, found)
    # .9 stands for the recalls up to 3/4 (half way between 1/2 and 1), .7 for the rest, with precision 2/3.
    assert scores.value("Cyclist", "overall", "AP") == pytest.approx(100 * (37 + 13 * 2 / 3) / 50)
    assert [frame.missed.tolist() for frame in scores.frames] == [[]]


@pytest.mark.parametrize(
    ("found", "num_true", "counts"),
    [((0.9,), 1, {0.9: 51}), ((0.9, 0.8), 2, {0.9: 38, 0.8: 13}), ((0.9,), 2, {0.9: 26}), ((), 3, {})],
    ids=["one", "two", "half", "none"],
)
def test_thresholds_repeat_scores(found: Sequence[float], num_true: int, counts: dict[float, int]) -> None:
    thresholds = recall_thresholds(np.array(found, dtype=float), num_true).tolist()
    assert {score: thresholds.count(score) for score in thresholds} == counts


def test_nothing_at_all_is_zero() -> None:
    scores = _judged(true_frame([]), found_frame([]))
    assert scores.headline["AP, overall"] == 0
    assert scores.frames[0].count == 0


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="max_distance_m: got -1"):
        OnceSettings(max_distance_m=-1.0)
