"""Waymo's metric on scenes of a few boxes; values of the official tool where one is known, by hand elsewhere."""

import math

import numpy as np
import pytest

from engine.detection.frames import FoundObjects, TrueObjects
from engine.detection.waymo import score_waymo
from engine.detection.waymo_curve import average_precision
from engine.detection.waymo_matching import reached_cutoffs
from engine.scores import JudgeError, Scores

CAR = (4.0, 2.0, 1.6)


def boxes_at(*places: tuple[float, ...]) -> np.ndarray:
    """Cars at x, y, z and, where it is not 0, a heading."""
    return np.array([[*place[:3], *CAR, *(place[3:] or (0.0,))] for place in places]).reshape(-1, 7)


def truth(
    *places: tuple[float, ...], points: tuple[int, ...] = (), levels: tuple[int, ...] = (), **other
) -> TrueObjects:
    count = len(places)
    return TrueObjects(
        key=other.pop("key", "0"),
        boxes=boxes_at(*places),
        categories=("vehicle",) * count,
        num_lidar_points=np.array(points or (100,) * count, dtype=np.int64),
        difficulties=np.array(levels or (1,) * count, dtype=np.int64),
        **other,
    )


def found(*places: tuple[float, ...], scores: tuple[float, ...], **other) -> FoundObjects:
    classes = other.pop("classes", ("vehicle",) * len(scores))
    return FoundObjects(
        key=other.pop("key", "0"),
        boxes=other.pop("boxes", boxes_at(*places)),
        scores=np.array(scores, dtype=np.float64),
        classes=classes,
    )


def row(scores: Scores, subset: str = "LEVEL_2", metric: str = "AP", category: str = "vehicle") -> float:
    return scores.value(category, subset, metric)


TEN = tuple((5.0 + 10 * number, 0.0, 0.0) for number in range(10))


# ---- levels
def test_found_level_2_objects_count_at_level_1():
    """9 of LEVEL_2 found, 1 of LEVEL_1 missed."""
    scores = score_waymo([(truth(*TEN, levels=(2,) * 9 + (1,)), found(*TEN[:9], scores=(0.9,) * 9))])
    assert (row(scores, "LEVEL_1"), row(scores, "LEVEL_2")) == pytest.approx((0.9, 0.9))


def test_missed_level_2_objects_do_not_count_at_level_1():
    scores = score_waymo([(truth(*TEN, levels=(2,) * 9 + (1,)), found(TEN[9], scores=(0.9,)))])
    assert (row(scores, "LEVEL_1"), row(scores, "LEVEL_2")) == pytest.approx((1.0, 0.1))
    assert [entry.num_true for entry in scores.rows[:3:2]] == [1, 10]


@pytest.mark.parametrize(("level", "points", "counted_as"), [(-1, 5, 2), (-1, 6, 1), (0, 5, 2), (2, 100, 2), (1, 1, 1)])
def test_level_by_points_where_it_was_not_set(level: int, points: int, counted_as: int):
    frames = [(truth(*TEN[:2], points=(9, points), levels=(1, level)), found(TEN[0], scores=(0.9,)))]
    assert row(score_waymo(frames), "LEVEL_1") == pytest.approx(1.0 if counted_as == 2 else 0.5)
    assert row(score_waymo(frames)) == pytest.approx(0.5)


def test_objects_without_points_are_dropped_and_what_finds_them_is_false():
    frames = [(truth(*TEN[:2], points=(0, 9)), found(*TEN[:2], scores=(0.9, 0.8)))]
    assert row(score_waymo(frames)) == pytest.approx(0.5)


def test_unknown_points_are_refused():
    with pytest.raises(JudgeError, match="frame 0: the number of points in true object 1 is not known"):
        score_waymo([(truth(*TEN[:2], points=(3, -1)), found(scores=()))])
    with pytest.raises(JudgeError, match="num_lidar_points"):
        score_waymo([(TrueObjects(key="0", boxes=boxes_at(TEN[0]), categories=("vehicle",)), found(scores=()))])


# ---- scores and curves
def test_miss_before_hit():
    frames = [(truth(TEN[0]), found(TEN[5], TEN[0], scores=(0.9, 0.8)))]
    assert row(score_waymo(frames)) == pytest.approx(0.5)


def test_scores_against_cutoffs():
    """A score below 0 never counts, one above 1 does; cutoffs are in single precision."""
    assert row(score_waymo([(truth(TEN[0]), found(TEN[0], scores=(-0.5,)))])) == 0.0
    assert row(score_waymo([(truth(TEN[0]), found(TEN[0], scores=(1.7,)))])) == 1.0
    assert reached_cutoffs(np.array([-0.1, 0.0, 0.005, 0.29, 0.3, 0.999, 1.0, 7.0])).tolist() == [
        *(0, 1, 1, 30, 31, 100, 101, 101)
    ]


def test_gap_of_recall_is_a_step_and_a_small_one_a_line():
    """By hand: 1 at recall .5, .5 at recall 1: steps of .05 at .5, the last of them a line up to 1."""
    assert average_precision(np.array([0.5, 1.0]), np.array([1.0, 0.5])) == pytest.approx(
        0.45 * 0.5 + 0.05 * (0.5 + 1) / 2 + 0.5
    )
    assert average_precision(np.array([0.5, 1.0]), np.array([0.54, 0.5])) == pytest.approx(0.04 * 0.75 + 0.5)
    assert average_precision(np.zeros(0), np.zeros(0)) == 0.0
    assert average_precision(np.ones(3), np.zeros(3)) == 0.0


# ---- headings
@pytest.mark.parametrize(
    ("turn", "accuracy"), [(0.0, 1.0), (0.1, 1 - 0.1 / math.pi), (math.pi, 0.0), (2 * math.pi, 1.0), (-math.pi, 0.0)]
)
def test_heading_weighs_aph_alone(turn: float, accuracy: float):
    scores = score_waymo([(truth(TEN[0]), found((*TEN[0], turn), scores=(0.9,)))])
    assert row(scores) == pytest.approx(1.0)
    assert row(scores, metric="APH") == pytest.approx(accuracy, abs=1e-12)


# ---- ranges
def test_pair_that_straddles_a_range_is_a_miss_and_a_false_object():
    frames = [(truth((29.9, 0.0, 0.0)), found((30.1, 0.0, 0.0), scores=(0.9,)))]
    scores = score_waymo(frames)
    assert row(scores) == pytest.approx(1.0)
    assert [row(scores, f"LEVEL_2 {name}") for name in ("0-30 m", "30-50 m", "50 m on")] == [0.0, 0.0, 0.0]


def test_range_is_in_space_from_the_vehicle_and_its_lower_limit_included():
    far = truth((18.0, 24.0, 0.0), (0.0, 0.0, 50.0))  # 30 m, 50 m
    scores = score_waymo([(far, found((18.0, 24.0, 0.0), (0.0, 0.0, 50.0), scores=(0.9, 0.9)))])
    assert [row(scores, f"LEVEL_1 {name}") for name in ("0-30 m", "30-50 m", "50 m on")] == [0.0, 1.0, 1.0]
    beside = truth((29.0, 0.0, 0.0), origin_m=np.array([-2.0, 0.0, 0.0]))
    scores = score_waymo([(beside, found((29.0, 0.0, 0.0), scores=(0.9,)))])
    assert [row(scores, f"LEVEL_1 {name}") for name in ("0-30 m", "30-50 m")] == [0.0, 1.0]


# ---- matching
def test_overlap_of_exactly_the_threshold_matches():
    """7 of 10 m of a vehicle: IoU .7; a little less does not match."""
    true = TrueObjects(
        key="0",
        boxes=np.array([[0, 0, 0, 10.0, 2, 2, 0]]),
        categories=("VEHICLE",),
        num_lidar_points=np.array([9]),
    )
    for length, matches in [(7.0, 1.0), (6.999, 0.0)]:
        box = np.array([[-5 + length / 2, 0, 0, length, 2, 2, 0]])
        frames = [(true, found(scores=(0.9,), boxes=box, classes=("Vehicle",)))]
        assert row(score_waymo(frames)) == matches


def test_assignment_has_the_largest_sum_not_the_best_pair_first():
    """The better of two overlaps of a box is given up where that lets both objects be found."""
    true = truth((0.0, 0.0, 0.0), (0.9, 0.0, 0.0))
    near = found((0.4, 0.0, 0.0), (1.3, 0.0, 0.0), scores=(0.9, 0.8))
    both = found((0.5, 0.0, 0.0), (-0.3, 0.0, 0.0), scores=(0.9, 0.8))  # the first is nearer to the second object
    for frame in (near, both):
        assert row(score_waymo([(true, frame)])) == pytest.approx(1.0)


def test_matching_is_made_anew_at_every_cutoff():
    """From .6 on one box is left, and takes the object that it overlaps more."""
    true = truth((0.0, 0.0, 0.0), (0.9, 0.0, 0.0, math.pi))
    boxes = found((0.5, 0.0, 0.0), (-0.3, 0.0, 0.0), scores=(0.9, 0.55))
    scores = score_waymo([(true, boxes)])
    # 56 cutoffs with both (heading 0 + 1 of 2), then one alone: with the turned object, heading 0.
    assert row(scores, metric="APH") == pytest.approx(
        average_precision(np.array([0.5, 0.0]), np.array([1.0, 0.5])), abs=1e-9
    )


def test_other_classes_tiny_and_huge_boxes_do_not_match():
    assert row(score_waymo([(truth(TEN[0]), found(TEN[0], scores=(0.9,), classes=("sign",)))])) == 0.0
    for size in (0.01, 1e6):
        box = np.array([[0, 0, 0, size, 2, 2, 0]])
        true = TrueObjects(key="0", boxes=box, categories=("vehicle",), num_lidar_points=np.array([9]))
        assert row(score_waymo([(true, found(scores=(0.9,), boxes=box))])) == 0.0


def test_frames_are_apart():
    frames = [
        (truth(TEN[0], key="a"), found(scores=(), key="a")),
        (truth(key="b"), found(TEN[0], scores=(0.9,), key="b")),
    ]
    assert row(score_waymo(frames)) == 0.0


# ---- what is said beside the figures
def test_means_headline_curves_and_errors():
    scores = score_waymo([(truth(*TEN[:3]), found(TEN[0], TEN[1], TEN[7], scores=(0.9, 0.8, 0.1)))])
    third = row(scores) / 3  # pedestrians and cyclists have none: 0
    assert scores.headline["mAP LEVEL_2"] == pytest.approx(third)
    assert list(scores.headline) == ["mAPH LEVEL_2", "mAP LEVEL_2", "mAPH LEVEL_1", "mAP LEVEL_1"]
    (curve,) = [one for one in scores.curves if (one.category, one.subset) == ("vehicle", "LEVEL_2")]
    assert (np.diff(curve.recall) >= 0).all()
    ends = (curve.recall[-1], curve.precision[-1], curve.precision[0])
    assert ends == pytest.approx((2 / 3, 2 / 3, 1.0))
    (errors,) = scores.frames
    assert (errors.missed.tolist(), errors.false.tolist(), errors.right.tolist()) == ([2], [], [0, 1])


def test_nothing_at_all():
    scores = score_waymo([(truth(), found(scores=()))])
    assert set(scores.headline.values()) == {0.0}
    assert scores.frames[0].count == 0
