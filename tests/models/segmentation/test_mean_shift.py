"""Mean shift against one seed after another."""

from __future__ import annotations

import numpy as np
import pytest

from models.segmentation import mean_shift as module
from models.segmentation.mean_shift import mean_shift
from tests.reference.mean_shift import mean_shift_by_loop


@pytest.mark.parametrize("seed", range(8))
def test_clusters_are_those_of_the_definition(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    middles = rng.uniform(-8, 8, (int(rng.integers(1, 8)), 3)) * [1, 1, 0.1]
    points = middles[rng.integers(0, len(middles), 150)] + rng.normal(0, rng.choice([0.05, 0.4, 1.5]), (150, 3))
    expected = mean_shift_by_loop(points, 1.2)
    assert np.array_equal(mean_shift(points, 1.2), expected)
    monkeypatch.setattr(module, "_MAX_PAIRS", 40)
    assert np.array_equal(mean_shift(points, 1.2), expected), "whatever the memory"


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (np.zeros((0, 3)), []),
        (np.full((1, 3), 7.3), [0]),
        (np.ones((5, 3)), [0] * 5),
        (np.array([[0.0, 0, 0], [9, 0, 0], [9.1, 0, 0]]), [1, 0, 0]),
        (np.array([[-1e4, 0, 0], [1e4, 5e3, 9.0]]), [1, 0]),
    ],
    ids=["none", "one", "the same", "two places", "far apart"],
)
def test_few_points(points: np.ndarray, expected: list[int]) -> None:
    assert mean_shift(points, 1.2).tolist() == expected


def test_places_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"have diverged, so lower optim\.lr"):
        mean_shift(np.array([[0.0, 0, 0], [np.nan, 0, 0]]), 1.2)


def test_it_moves_with_the_points_by_whole_cells() -> None:
    points = np.random.default_rng(0).normal(0, 3, (200, 3))
    moved = points + np.array([24.0, -12, 6])
    np.testing.assert_array_equal(mean_shift(points, 1.5), mean_shift(moved, 1.5))
