"""Argoverse 2's metric on scenes of a few boxes; values of the official tool where one is known, by hand elsewhere."""

import math

import numpy as np
import pytest

from engine.detection.argoverse2 import CLASSES, score_argoverse2
from engine.detection.frames import FoundObjects, TrueObjects
from engine.scores import MEAN, JudgeError, Scores

CAR = "REGULAR_VEHICLE"


def boxes_at(places: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """Cars at x, y, z and, where it is not 0, a heading."""
    return np.array([[*place[:3], 4, 2, 1.6, *(place[3:] or (0.0,))] for place in places], dtype=float).reshape(-1, 7)


def truth(*places: tuple[float, ...], name: str = CAR, points: tuple[int, ...] = (), **other) -> TrueObjects:
    return TrueObjects(
        key=other.pop("key", "0"),
        boxes=boxes_at(places),
        categories=(name,) * len(places),
        num_lidar_points=np.array(points or (9,) * len(places), dtype=np.int64),
        **other,
    )


def found(*places: tuple[float, ...], scores: tuple[float, ...], name: str = CAR, key: str = "0") -> FoundObjects:
    return FoundObjects(
        key=key, boxes=boxes_at(places), scores=np.array(scores, dtype=float), classes=(name,) * len(places)
    )


def row(scores: Scores, metric: str = "AP", category: str = CAR) -> float:
    return scores.value(category, "", metric)


HERE, THERE = (10.0, 0.0, 0.0), (40.0, 0.0, 0.0)


def test_one_perfect_class_of_26():
    scores = score_argoverse2([(truth(HERE, THERE), found(HERE, THERE, scores=(0.9, 0.8)))])
    assert [row(scores, metric) for metric in ("AP", "ATE", "ASE", "AOE", "CDS")] == pytest.approx([1, 0, 0, 0, 1])
    assert scores.headline["mAP"] == pytest.approx(1 / 26)
    assert row(scores, "CDS", MEAN) == pytest.approx(1 / 26)
    assert row(scores, "ATE", MEAN) == pytest.approx(2 * 25 / 26)
    others = [[row(scores, metric, "DOG") for metric in ("AP", "ATE", "ASE", "AOE", "CDS")]]
    assert others == [[0.0, 2.0, 1.0, math.pi, 0.0]]
    assert next(iter(scores.headline)) == "CDS"
    assert "no ROI" in scores.benchmark
    assert len(CLASSES) == len(set(CLASSES)) == 26


def test_better_scored_box_takes_the_object_even_from_afar():
    """5 m off with .9, exact with .8: nothing is found."""
    scores = score_argoverse2([(truth(HERE), found((15.0, 0.0, 0.0), HERE, scores=(0.9, 0.8)))])
    assert row(scores) == 0.0
    assert (row(scores, "ATE"), row(scores, "AOE")) == (2.0, math.pi)
    # In the other order it is, and at recall 1 itself the official tool takes the precision after the box 5 m off.
    scores = score_argoverse2([(truth(HERE), found((15.0, 0.0, 0.0), HERE, scores=(0.7, 0.8)))])
    assert row(scores) == pytest.approx((100 + 0.5) / 101)


def test_height_counts():
    """3 m above: within 4 m alone, one of four thresholds."""
    scores = score_argoverse2([(truth(HERE), found((10.0, 0.0, 3.0), scores=(0.9,)))])
    assert row(scores) == pytest.approx(0.25)
    assert [row(scores, f"AP {threshold} m") for threshold in ("0.5", "1", "2", "4")] == pytest.approx([0, 0, 0, 1])
    assert row(scores, "CDS") == 0.0


def test_exactly_the_threshold_is_no_match():
    for distance, value in [(2.0, 0.25), (1.999, 0.5), (0.5, 0.75), (4.0, 0.0)]:
        found_frame = found((10.0 + distance, 0.0, 0.0), scores=(0.9,))
        assert row(score_argoverse2([(truth(HERE), found_frame)])) == pytest.approx(value), distance


def test_a_hundred_best_scored_of_a_class_count():
    scattered = [(float(-100 + number), 50.0, 0.0) for number in range(100)]
    for score, value in [(0.1, 0.0), (0.9, (100 + 0.01) / 101)]:
        frame = found(*scattered, HERE, scores=(0.5,) * 100 + (score,))
        assert row(score_argoverse2([(truth(HERE), frame)])) == pytest.approx(value)


def test_far_and_empty_objects_are_dropped_on_both_sides():
    far = (150.0, 0.0, 0.0)
    assert row(score_argoverse2([(truth(HERE, far), found(HERE, far, scores=(0.8, 0.9)))])) == pytest.approx(1.0)
    near = truth(HERE, (149.9, 0.0, 0.0))
    # One of two found: 51 of 101 recalls.
    assert row(score_argoverse2([(near, found(HERE, scores=(0.8,)))])) == pytest.approx(51 / 101)
    moved = truth(HERE, (149.9, 0.0, 0.0), origin_m=np.array([-1.0, 0.0, 0.0]))
    assert row(score_argoverse2([(moved, found(HERE, scores=(0.8,)))])) == pytest.approx(1.0)
    empty = truth(HERE, THERE, points=(1, 0))
    assert row(score_argoverse2([(empty, found(HERE, scores=(0.8,)))])) == pytest.approx(1.0)
    with pytest.raises(JudgeError, match="num_lidar_points"):
        score_argoverse2([(TrueObjects(key="0", boxes=boxes_at((HERE,)), categories=(CAR,)), found(scores=()))])


def test_errors_are_means_over_matches_within_2_m():
    true = truth((10.0, 0.0, 0.0, 3.0), (40.0, 0.0, 0.0), (70.0, 0.0, 0.0))
    boxes = found((11.0, 0.0, 0.0, -3.0), (40.0, 0.0, 0.5), (73.0, 0.0, 0.0), scores=(0.9, 0.8, 0.7))
    boxes.boxes[1, 3] = 2.0
    scores = score_argoverse2([(true, boxes)])
    assert row(scores, "ATE") == pytest.approx((1.0 + 0.5) / 2)
    assert row(scores, "ASE") == pytest.approx((0.0 + 0.5) / 2)
    assert row(scores, "AOE") == pytest.approx((2 * math.pi - 6) / 2)
    shares = (1 - 0.75 / 2, 1 - 0.25, 1 - (math.pi - 3) / math.pi)
    assert row(scores, "CDS") == pytest.approx(row(scores) * sum(shares) / 3)


def test_precision_falls_and_is_linear_between_recalls():
    """Hit, miss, hit of two objects; where a recall is reached more than once, the last precision counts."""
    frames = [(truth(HERE, THERE), found(HERE, (70.0, 0.0, 0.0), THERE, scores=(0.9, 0.8, 0.7)))]
    # The miss is nearest to the second object, and takes it.
    assert row(score_argoverse2(frames)) == pytest.approx((50 + 1 / 3) / 101)
    apart = [
        (truth(HERE, THERE, key="a"), found(HERE, THERE, scores=(0.9, 0.7), key="a")),
        (truth(key="b"), found(HERE, scores=(0.8,), key="b")),
    ]
    linear = np.interp(np.linspace(0, 1, 101), [0.5, 0.5, 1.0], [1.0, 2 / 3, 2 / 3])
    assert row(score_argoverse2(apart)) == pytest.approx(linear.mean())


def test_classes_and_frames_are_apart():
    assert row(score_argoverse2([(truth(HERE), found(HERE, scores=(0.9,), name="BUS"))])) == 0.0
    frames = [
        (truth(HERE, key="a"), found(scores=(), key="a")),
        (truth(key="b"), found(HERE, scores=(0.9,), key="b")),
    ]
    scores = score_argoverse2(frames)
    assert row(scores) == 0.0
    assert [(frame.missed.tolist(), frame.false.tolist()) for frame in scores.frames] == [([0], []), ([], [0])]


def test_curves_and_errors_by_frame():
    scores = score_argoverse2([(truth(HERE, THERE), found(HERE, (80.0, 0, 0), scores=(0.9, 0.1)))])
    curve = next(curve for curve in scores.curves if curve.metric == "AP 2 m")
    assert curve.precision[[0, 49, 50, 51]].tolist() == pytest.approx([1, 1, 0.5, 0])
    assert curve.scores[50] == 0.9
    assert np.isnan(curve.scores[51])
    (errors,) = scores.frames
    assert (errors.missed.tolist(), errors.false.tolist(), errors.right.tolist()) == ([1], [], [0])


def test_nothing_at_all():
    scores = score_argoverse2([(truth(), found(scores=()))])
    assert (scores.headline["CDS"], scores.headline["mAP"]) == (0.0, 0.0)
