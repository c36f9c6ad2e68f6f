import math

import pytest

from engine.detection.frames import FoundObjects, TrueObjects
from engine.detection.judge import judge
from engine.detection.scores import Scores
from tests.engine.detection.objects import found_frame, true_frame


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
    assert any("reaches (n - 1) / 40 at most" in note for note in scores.notes)


def test_what_is_nowhere_has_no_figure_and_is_left_out_of_means() -> None:
    scores = _judged(*_cars(41))
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
