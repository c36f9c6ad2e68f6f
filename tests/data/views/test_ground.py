"""Ground of a sweep: against a slow reference, on the labelled street world, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from data.batch_spec import GroundConfig
from data.street.classes import Label
from data.street.config import StreetConfig
from data.street.log import LogRenderer
from data.views.ground import ground_mask
from tests.reference.segments import ground_lines_loop

GROUND = (Label.ROAD, Label.PARKING, Label.SIDEWALK, Label.TERRAIN)
KINDS = ("lines", "plane")


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def sweeps() -> list[tuple[np.ndarray, np.ndarray]]:
    """Points and labels of two sweeps of different worlds."""
    found = [LogRenderer(StreetConfig(), log).sweep(0) for log in range(2)]
    return [(sweep.points_lidar, sweep.labels) for sweep in found]


def _rough_ground(num: int = 3000) -> np.ndarray:
    """Hilly ground 1.7 m below the sensor with boxes on it."""
    rng = _rng()
    r, phi = rng.uniform(2, 40, num), rng.uniform(-np.pi, np.pi, num)
    points = np.stack([r * np.cos(phi), r * np.sin(phi), np.zeros(num)], axis=1)
    points[:, 2] = -1.7 + 0.06 * points[:, 0] + 0.3 * np.sin(points[:, 1] / 4) + rng.normal(0, 0.02, num)
    points[rng.random(num) < 0.3, 2] += 1.0
    return points


@pytest.mark.parametrize("settings", [{}, {"sectors": 36, "bin_m": 1.5}, {"max_slope": 0.05, "fit_error_m": 0.02}])
def test_lines_equal_the_slow_reference(settings: dict) -> None:
    points = _rough_ground()
    config = GroundConfig(sensor_height_m=1.7, **({"sectors": 60} | settings))
    wanted = ground_lines_loop(points, config)
    assert 0.3 < wanted.mean() < 0.8
    np.testing.assert_array_equal(ground_mask(points, config, _rng()), wanted)


def test_lines_equal_the_slow_reference_on_a_street(sweeps: list) -> None:
    points = sweeps[0][0][::3].astype(np.float64)
    config = GroundConfig(sensor_height_m=1.84)
    np.testing.assert_array_equal(ground_mask(points, config, _rng()), ground_lines_loop(points, config))


@pytest.mark.parametrize(("kind", "precision", "recall"), [("lines", 0.91, 0.98), ("plane", 0.94, 0.99)])
def test_on_the_street_world(sweeps: list, kind: str, precision: float, recall: float) -> None:
    """Most false ground is the foot of what stands on it, which is closer than `distance_m` by definition."""
    masks = [ground_mask(points, GroundConfig(kind=kind), _rng()) for points, _ in sweeps]
    found, true = np.concatenate(masks), np.concatenate([np.isin(labels, GROUND) for _, labels in sweeps])
    print(f"{kind}: precision {true[found].mean():.4f}, recall {found[true].mean():.4f}")
    assert true[found].mean() > precision
    assert found[true].mean() > recall


def test_the_height_of_the_sensor_is_estimated(sweeps: list) -> None:
    for points, _ in sweeps:
        told = ground_mask(points, GroundConfig(sensor_height_m=1.84), _rng())
        assert (ground_mask(points, GroundConfig(), _rng()) == told).mean() > 0.995
        # A frame whose origin lies on the ground, as some sets have it.
        lifted = ground_mask(points + np.array([0, 0, 1.84], np.float32), GroundConfig(), _rng())
        assert (lifted == told).mean() > 0.995


def test_lines_follow_hills_that_one_plane_does_not() -> None:
    rng = _rng()
    r, phi = rng.uniform(2, 60, 20_000), rng.uniform(-np.pi, np.pi, 20_000)
    points = np.stack([r * np.cos(phi), r * np.sin(phi), -1.7 + 0.1 * np.maximum(r - 20, 0)], axis=1)
    assert ground_mask(points, GroundConfig(), rng).mean() > 0.99
    assert ground_mask(points, GroundConfig(kind="plane"), rng).mean() < 0.8


def test_order_of_points_does_not_matter(sweeps: list) -> None:
    points = sweeps[1][0]
    order = _rng().permutation(len(points))
    plain = ground_mask(points, GroundConfig(), _rng())
    np.testing.assert_array_equal(ground_mask(points[order], GroundConfig(), _rng()), plain[order])


def test_plane_equals_the_one_that_was_there() -> None:
    rng = _rng()
    points = rng.uniform(-30, 30, (4000, 3))
    plane = 0.05 * points[:, 0] - 0.02 * points[:, 1] - 1.5
    on = rng.random(4000) < 0.5
    points[:, 2] = np.where(on, plane + rng.normal(0, 0.03, 4000), plane + rng.uniform(0.4, 5, 4000))
    np.testing.assert_array_equal(ground_mask(points, GroundConfig(kind="plane"), rng), on)
    steep = GroundConfig(kind="plane", max_slope=0.01)
    assert ground_mask(points, steep, rng).mean() < 0.4


def test_plane_is_the_same_for_the_same_random_numbers(sweeps: list) -> None:
    first, second = (ground_mask(sweeps[0][0], GroundConfig(kind="plane", trials=3), _rng()) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num", [0, 1, 2])
def test_too_few_points_are_no_ground(kind: str, num: int) -> None:
    points = np.zeros((num, 3), np.float32)
    mask = ground_mask(points, GroundConfig(kind=kind), _rng())
    assert mask.shape == (num,)
    assert not mask.any()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_ground(kind: str) -> None:
    points = _rng().uniform(-30, 30, (5000, 3)) * [1, 1, 0] - [0, 0, 1.7]
    assert ground_mask(points, GroundConfig(kind=kind), _rng()).mean() > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_a_wall_is_not_ground(kind: str) -> None:
    rng = _rng()
    wall = np.stack([np.full(4000, 8.0), rng.uniform(-1, 1, 4000), rng.uniform(0, 6, 4000)], axis=1)
    assert ground_mask(wall, GroundConfig(kind=kind), _rng()).mean() < 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [(0, 0, 0), (5, 5, -1)])
def test_the_same_point_many_times(kind: str, where: tuple[int, int, int]) -> None:
    points = np.tile(np.array(where, np.float32), (50, 1))
    assert ground_mask(points, GroundConfig(kind=kind), _rng()).shape == (50,)


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_that_are_not_finite_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="not finite"):
        ground_mask(np.full((5, 3), np.nan), GroundConfig(kind=kind), _rng())


@pytest.mark.parametrize("name", ["distance_m", "max_slope", "bin_m", "fit_error_m", "step_m", "sectors", "trials"])
def test_refused_settings(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        GroundConfig(**{name: type(getattr(GroundConfig(), name))(0)})
