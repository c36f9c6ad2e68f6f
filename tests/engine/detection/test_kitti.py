import dataclasses
import math
from typing import Any, cast

import numpy as np
import pytest

from engine.detection.frames import FoundObjects, TrueObjects
from engine.detection.judge import judge
from engine.detection.kitti import recall_thresholds, score_kitti
from engine.detection.kitti_rules import KittiSettings
from engine.scores import JudgeError, Scores
from tests.engine.detection.objects import TALL_PX, box, found_frame, rectangle, true_frame


def _cars(count: int) -> tuple[TrueObjects, FoundObjects]:
    """That many cars, all found, by falling score."""
    return (
        true_frame([("Car", 10.0 * n) for n in range(count)]),
        found_frame([("Car", 10.0 * n, 0.9 - 0.001 * n) for n in range(count)]),
    )


def _judged(true: TrueObjects, found: FoundObjects) -> Scores:
    return judge("kitti", [true], [found])


@pytest.mark.parametrize(("count", "r40"), [(1, 0.0), (10, 22.5), (40, 97.5), (41, 100.0), (60, 100.0)])
def test_a_perfect_detector_gets_n_minus_one_of_forty(count: int, r40: float) -> None:
    scores = _judged(*_cars(count))
    for metric in ("2D AP", "BEV AP", "3D AP", "AOS"):
        assert scores.value("Car", "easy", f"{metric} R40") == pytest.approx(r40, abs=1e-9)
    assert any("reaches (n - 1) / 40 at most" in note for note in scores.notes) == (count <= 40)


def test_what_is_nowhere_has_no_figure_and_is_left_out_of_means() -> None:
    scores = _judged(*_cars(41))
    assert not any("R40" in note for note in scores.notes)  # of 0 objects there is nothing to reach
    assert math.isnan(scores.value("Cyclist", "moderate", "3D AP R40"))
    assert scores.headline["3D AP R40, moderate"] == pytest.approx(100)
    assert "neither true nor found, left out of means: Cyclist, Pedestrian" in scores.notes


def test_a_class_that_is_only_found_has_zero_and_is_in_means() -> None:
    true, _ = _cars(41)
    found = found_frame([*[("Car", 10.0 * n, 0.9) for n in range(41)], ("Cyclist", -30.0, 0.8)])
    scores = _judged(true, found)
    assert scores.value("Cyclist", "easy", "3D AP R40") == 0
    assert scores.headline["3D AP R40, moderate"] == pytest.approx(50)


def test_nothing_found_is_zero() -> None:
    true, _ = _cars(3)
    scores = _judged(true, found_frame([]))
    assert scores.value("Car", "easy", "3D AP R11") == 0
    assert [frame.missed.tolist() for frame in scores.frames] == [[0, 1, 2]]


# ---- what counts, what is neutral. Each scene has 41 cars that are found, so that one more object moves R40.

_N = 41


def _scene(
    extra_true: list[tuple[str, float]], extra_found: list[tuple[str, float, float]], **of_truth: object
) -> tuple[TrueObjects, FoundObjects]:
    """Found cars at 0, 10, ... 400 m with scores .9, and what is added with its own ones."""
    cars = [("Car", 10.0 * n) for n in range(_N)]
    return (
        true_frame([*cars, *extra_true], **of_truth),  # type: ignore[arg-type]
        found_frame([*[("Car", x, 0.9) for _, x in cars], *extra_found]),
    )


def _heights(extra: list[float]) -> list[float]:
    return [TALL_PX] * _N + extra


def _moderate(true: TrueObjects, found: FoundObjects, metric: str = "3D AP R40") -> float:
    return _judged(true, found).value("Car", "moderate", metric)


_HALF = 100 * _N / (2 * _N)
"""Precision of 41 right and 41 wrong objects of equal score."""


def _on(name: str, score: float = 0.9) -> tuple[list[tuple[str, float]], list[tuple[str, float, float]]]:
    """41 objects of a category, each with a car found on it."""
    places = [10.0 * n + 1000 for n in range(_N)]
    return [(name, x) for x in places], [("Car", x, score) for x in places]


def test_cars_found_on_vans_are_neutral_on_trucks_wrong() -> None:
    assert _moderate(*_scene(*_on("Van"))) == pytest.approx(100)
    assert _moderate(*_scene(*_on("Truck"))) == pytest.approx(_HALF)
    assert _moderate(*_scene(*_on("Pedestrian"))) == pytest.approx(_HALF)


def test_sitting_persons_are_neutral_for_pedestrians() -> None:
    people = [("Pedestrian", 10.0 * n) for n in range(_N)]
    sitting = [("Person_sitting", 10.0 * n + 1000) for n in range(_N)]
    found = found_frame([("Pedestrian", x, 0.9) for _, x in [*people, *sitting]])
    scores = _judged(true_frame([*people, *sitting]), found)
    assert scores.value("Pedestrian", "easy", "3D AP R40") == pytest.approx(100)
    assert next(row.num_true for row in scores.rows if row.category == "Pedestrian") == _N


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({"occlusions": 1}, True),
        ({"occlusions": 2}, False),
        ({"truncations": 0.3}, True),
        ({"truncations": float(np.float32(0.3))}, True),
        ({"truncations": 0.31}, False),
        ({"heights": 25.0}, True),
        ({"heights": 24.9}, False),
    ],
    ids=["partly", "largely hidden", "truncated .3", "stored .3", "truncated .31", "25 px", "below 25 px"],
)
def test_objects_count_up_to_the_limits_of_a_difficulty(fields: dict[str, float], counts: bool) -> None:
    (name, value), usual = next(iter(fields.items())), {"heights": TALL_PX, "occlusions": 0, "truncations": 0.0}
    true = true_frame([("Car", 0.0), ("Car", 10.0)], **{name: [usual[name], value]})  # type: ignore[arg-type]
    scores = _judged(true, found_frame([("Car", 0.0, 0.9)]))
    assert next(row.num_true for row in scores.rows if row.subset == "moderate") == (2 if counts else 1)


def test_ports_do_not_count_objects_of_exactly_the_least_height() -> None:
    true = true_frame([("Car", 0.0), ("Car", 10.0)], heights=[40.0, 25.0])
    pair = [(true, found_frame([]))]
    for rule, easy, hard in (("development-kit", 1, 2), ("ports", 0, 1)):
        scores = score_kitti(pair, KittiSettings(height_rule=rule))  # type: ignore[arg-type]
        num = {row.subset: row.num_true for row in scores.rows if row.category == "Car"}
        assert (num["easy"], num["hard"]) == (easy, hard)
        assert rule.replace("-", " ") in scores.benchmark


def test_small_found_objects_are_neutral_whatever_their_class() -> None:
    true, _ = _scene([], [])
    places = [10.0 * n + 1000 for n in range(_N)]
    nowhere = [("Car", x, 0.9) for x in places]
    cars = [("Car", 10.0 * n, 0.9) for n in range(_N)]
    found = found_frame([*cars, *nowhere], heights=_heights([24.0] * _N))
    assert _moderate(true, found) == pytest.approx(100)  # not one of them is wrong
    # A small pedestrian on a car takes it out of the count: one car less to find, and R40 cannot reach 100.
    found = found_frame([*cars[:-1], ("Pedestrian", 400.0, 0.9)], heights=[*[TALL_PX] * (_N - 1), 24.0])
    moved = dataclasses.replace(found, boxes=np.array([box("Car", 10.0 * n) for n in range(_N)]))
    scores = _judged(true, moved)
    assert scores.value("Car", "moderate", "3D AP R40") == pytest.approx(97.5)
    assert scores.frames[0].missed.tolist() == []


def test_an_image_box_without_height_makes_all_neutral() -> None:
    true, found = _cars(41)
    flat = dataclasses.replace(found, image_boxes_px=np.zeros((41, 4)))
    unseen = dataclasses.replace(found, image_boxes_px=np.full((41, 4), np.nan))
    for frame in (flat, unseen):
        assert _moderate(true, frame) == 0
    with pytest.raises(JudgeError, match="frame 0: the found objects have no image_boxes_px, which the KITTI metric"):
        _judged(true, dataclasses.replace(found, image_boxes_px=None))
    with pytest.raises(JudgeError, match="the true objects have no occlusions"):
        _judged(dataclasses.replace(true, occlusions=None), found)


def test_dont_care_excuses_in_the_image_alone() -> None:
    places = [10.0 * n + 1000 for n in range(_N)]
    true, found = _scene([], [("Car", x, 0.9) for x in places], ignored_px=[rectangle(x) for x in places])
    assert _moderate(true, found, "2D AP R40") == pytest.approx(100)
    assert _moderate(true, found, "BEV AP R40") == pytest.approx(_HALF)
    assert _moderate(true, found) == pytest.approx(_HALF)


@pytest.mark.parametrize(("share", "excused"), [(0.69, False), (0.71, True)])
def test_dont_care_must_cover_more_than_the_limit_of_the_found_box(share: float, excused: bool) -> None:
    left, top, right, bottom = rectangle(1000.0)
    covered = [left, top, left + share * (right - left), bottom]
    true, found = _scene([], [("Car", 1000.0, 0.95)], ignored_px=[covered])
    assert (_moderate(true, found, "2D AP R40") == pytest.approx(100)) == excused


def test_overlap_must_exceed_the_limit() -> None:
    """Rectangles 96 wide, shifted by 32: IoU 64 / 128, and by 31."""
    true, found = true_frame([("Pedestrian", 0.0)] * 2), found_frame([("Pedestrian", 0.0, 0.9)] * 2)
    true_px = np.array([[0, 100, 96, 160], [500, 100, 596, 160]], dtype=float)
    for shift, num_right in ((32.0, 0), (31.0, 2)):
        scores = _judged(
            dataclasses.replace(true, image_boxes_px=true_px),
            dataclasses.replace(found, image_boxes_px=true_px + np.array([shift, 0, shift, 0])),
        )
        curve = next(c for c in scores.curves if (c.category, c.subset, c.metric) == ("Pedestrian", "easy", "2D AP"))
        assert np.isfinite(curve.scores).sum() == num_right


def test_the_loose_row_has_the_lower_limit() -> None:
    true, found = _cars(41)
    moved = dataclasses.replace(found, boxes=found.boxes + np.array([1.0, 0, 0, 0, 0, 0, 0]))  # IoU 3 / 5
    scores = _judged(true, moved)
    assert scores.value("Car", "easy", "3D AP R40") == 0
    assert scores.value("Car", "easy", "3D AP R40, loose") == pytest.approx(100)
    assert scores.value("Car", "easy", "BEV AP R40, loose") == pytest.approx(100)


def test_heading_does_not_matter_but_to_aos() -> None:
    true, found = _cars(41)
    turned = dataclasses.replace(
        found, boxes=found.boxes + np.array([0, 0, 0, 0, 0, 0, np.pi]), alphas=np.full(41, np.pi / 2)
    )
    scores = _judged(true, turned)
    assert scores.value("Car", "easy", "3D AP R40") == pytest.approx(100)
    assert scores.value("Car", "easy", "AOS R40") == pytest.approx(50)


def test_without_observation_angles_there_is_no_aos() -> None:
    true, found = _cars(3)
    for alphas in (np.array([0.0, -10.0, 0.0]), None):
        scores = _judged(true, dataclasses.replace(found, alphas=alphas))
        assert not any("AOS" in row.metric for row in scores.rows)
        assert "no AOS: some objects have no observation angle" in scores.notes


def test_the_first_pass_prefers_the_higher_score_the_second_the_larger_overlap() -> None:
    """One car, two boxes on it: the worse one has the higher score, which becomes the only threshold."""
    true = true_frame([("Car", 0.0)])
    found = found_frame([("Car", 0.0, 0.5), ("Car", 0.3, 0.9)])
    scores = _judged(true, found)
    # At .9 the other box does not take part: one right, none wrong.
    assert scores.value("Car", "easy", "3D AP R11") == pytest.approx(100 / 11)
    reversed_scores = found_frame([("Car", 0.0, 0.9), ("Car", 0.3, 0.5)])
    curve = next(c for c in _judged(true, reversed_scores).curves if (c.subset, c.metric) == ("easy", "3D AP"))
    assert curve.precision[0] == 1
    assert curve.scores[0] == 0.9
    assert np.isnan(curve.scores[1:]).all()


def test_two_true_objects_choose_in_their_order() -> None:
    """Both overlap the better box: the first takes it, although the second overlaps more."""
    true = true_frame([("Car", 0.3), ("Car", 0.0)])
    found = found_frame([("Car", 0.1, 0.9)])
    frame = _judged(true, found).frames[0]
    assert (frame.missed.tolist(), frame.false.tolist(), frame.right.tolist()) == ([1], [], [0])


def test_precision_falls_with_a_wrong_object_in_front() -> None:
    """Right .9, wrong .8, right .7: thresholds .9 and .7 with precision 1 and 2/3."""
    true = true_frame([("Car", 0.0), ("Car", 10.0)])
    scores = _judged(true, found_frame([("Car", 0.0, 0.9), ("Car", 500.0, 0.8), ("Car", 10.0, 0.7)]))
    assert scores.value("Car", "easy", "3D AP R40") == pytest.approx(100 * (2 / 3) / 40)
    assert scores.value("Car", "easy", "3D AP R11") == pytest.approx(100 / 11)


def test_recall_thresholds_skip_scores_that_are_farther_from_the_next_recall() -> None:
    scores = np.linspace(1, 0, 120)
    thresholds = recall_thresholds(scores, 120)
    assert len(thresholds) == 41
    # After the first, each is that of a multiple of 3/120 = 1/40.
    assert thresholds[:5].tolist() == scores[[0, 2, 5, 8, 11]].tolist()
    assert recall_thresholds(scores[:31], 120)[-1] == scores[30]  # the last one always
    assert len(recall_thresholds(np.zeros(0), 5)) == 0


def test_names_are_compared_without_regard_to_case() -> None:
    true, found = _cars(41)
    lower = dataclasses.replace(found, classes=("car",) * 41)
    assert _moderate(true, lower) == pytest.approx(100)


def test_frames_are_apart() -> None:
    """A box found in another frame than the car's is wrong; cars of many frames count together."""
    truth = [true_frame([("Car", 0.0)], key=str(n)) for n in range(41)]
    found = [found_frame([("Car", 0.0, 0.9 - n * 0.01)] if n else [], key=str(n)) for n in range(41)]
    found[1] = found_frame([("Car", 0.0, 0.5), ("Car", 50.0, 0.99)], key="1")
    scores = judge("kitti", truth, found)
    assert scores.rows[0].num_true == 41
    worst = scores.worst_frames(2)
    assert [(frame.key, frame.missed.tolist(), frame.false.tolist()) for frame in worst] == [
        ("0", [0], []),
        ("1", [], [1]),
    ]


def test_moving_and_turning_the_frame_of_reference_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    true, found = _cars(30)
    noisy = dataclasses.replace(found, boxes=found.boxes + rng.normal(0, 0.1, (30, 7)))
    angle, c, s = 0.7, np.cos(0.7), np.sin(0.7)

    def turned(boxes: np.ndarray) -> np.ndarray:
        out = boxes.copy()
        out[:, 0], out[:, 1] = c * boxes[:, 0] - s * boxes[:, 1] + 5, s * boxes[:, 0] + c * boxes[:, 1] - 3
        out[:, 2] += 2
        out[:, 6] += angle
        return out

    before = _judged(true, noisy)
    after = _judged(
        dataclasses.replace(true, boxes=turned(true.boxes)), dataclasses.replace(noisy, boxes=turned(noisy.boxes))
    )
    for row, same in zip(before.rows, after.rows, strict=True):
        assert row.value == pytest.approx(same.value, nan_ok=True)


def test_settings_are_checked() -> None:
    with pytest.raises((ValueError, TypeError), match="kit"):
        KittiSettings(height_rule=cast(Any, "kit"))
