"""Clusters: against slow references, invariances, filters and degenerate clouds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from common import components as components_module
from common.components import components
from data.batch_spec import GroundConfig, PointClusterConfig
from data.street.config import StreetConfig
from data.street.log import LogRenderer
from data.views.clusters import clusters
from data.views.ground import ground_mask
from tests.reference.segments import dbscan_loop, radius_clusters_loop

EVERYTHING = PointClusterConfig(min_points=1)


def _sets(found: np.ndarray) -> set[frozenset[int]]:
    """Each cluster as the set of its points, whatever its number."""
    return {frozenset(np.flatnonzero(found == number).tolist()) for number in range(int(found.max(initial=-1)) + 1)}


def _cloud(seed: int, num: int = 250) -> np.ndarray:
    """Lumps of different density with single points between them."""
    rng = np.random.default_rng(seed)
    lumps = rng.uniform(-4, 4, (8, 3))[rng.integers(0, 8, num)] + rng.normal(0, 0.35, (num, 3))
    alone = rng.uniform(-5, 5, (num // 8, 3))
    return rng.permutation(np.concatenate([lumps, alone]))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("radius", [0.1, 0.3, 0.5, 1.0, 30.0])
def test_radius_equals_the_slow_reference(seed: int, radius: float) -> None:
    points = _cloud(seed)
    wanted = {frozenset(members) for members in radius_clusters_loop(points, radius)}
    assert _sets(clusters(points, PointClusterConfig(radius_m=radius, min_points=1))) == wanted


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("radius", "min_points"), [(0.3, 4), (0.5, 10), (0.2, 1)])
def test_dbscan_equals_the_slow_reference(seed: int, radius: float, min_points: int) -> None:
    points = _cloud(seed)
    config = PointClusterConfig(kind="dbscan", radius_m=radius, min_points=min_points)
    wanted = {frozenset(members) for members in dbscan_loop(points, config) if len(members) >= min_points}
    assert len(wanted) > 3
    assert _sets(clusters(points, config)) == wanted


def test_cells_that_are_settled_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points = _cloud(0, 3000)
    whole = clusters(points, PointClusterConfig(radius_m=0.2))
    monkeypatch.setattr(components_module, "_PAIRS_AT_A_TIME", 50)
    np.testing.assert_array_equal(clusters(points, PointClusterConfig(radius_m=0.2)), whole)


def test_a_street_equals_all_pairs() -> None:
    sweep = LogRenderer(StreetConfig(), 1).sweep(0)
    points = sweep.points_lidar[~ground_mask(sweep.points_lidar, GroundConfig(), np.random.default_rng(0))]
    points = points[::2].astype(np.float64)
    found = components(points, 0.5)
    # Two points of a component are joined, two of different ones are too far apart: all pairs, a row at a time.
    for row in range(0, len(points), 7):
        near = ((points - points[row]) ** 2).sum(axis=1) <= 0.25
        assert (found[near] == found[row]).all()
    assert 20 < len(np.unique(found)) < len(points) / 3
    numbers = clusters(points, PointClusterConfig())
    instances = sweep.instances[~ground_mask(sweep.points_lidar, GroundConfig(), np.random.default_rng(0))][::2]
    shares = [
        np.bincount(instances[numbers == number]).max() / (numbers == number).sum()
        for number in np.unique(numbers[(numbers >= 0) & (instances > 0)])
    ]
    print(f"share of a cluster's points that belong to one object: median {np.median(shares):.3f}")
    assert np.median(shares) > 0.9


def test_numbers_follow_first_points() -> None:
    points = np.array([[9, 0, 0], [0, 0, 0], [9, 0.1, 0], [5, 0, 0], [0, 0.1, 0], [5, 0.1, 0], [7, 0, 0]], np.float32)
    found = clusters(points, PointClusterConfig(min_points=2))
    assert found.tolist() == [0, 1, 0, 2, 1, 2, -1]
    assert found.dtype == np.int64


@pytest.mark.parametrize("kind", ["radius", "dbscan"])
def test_order_of_points_does_not_matter(kind: str) -> None:
    points = _cloud(1, 2000)
    config = PointClusterConfig(kind=kind, radius_m=0.25, min_points=5, max_extent_m=3.0, max_aspect=4.0)
    order = np.random.default_rng(3).permutation(len(points))
    back = np.argsort(order)
    assert _sets(clusters(points[order], config)[back]) == _sets(clusters(points, config))


@pytest.mark.parametrize("kind", ["radius", "dbscan"])
def test_rigid_motion_does_not_matter(kind: str) -> None:
    points = _cloud(2, 1500)
    config = PointClusterConfig(kind=kind, radius_m=0.25, min_points=5)
    turned = points @ Rotation.from_euler("zyx", [70, 20, -35], degrees=True).as_matrix().T + [30, -80, 4]
    plain = clusters(points, config)
    assert plain.max() > 4
    np.testing.assert_array_equal(clusters(turned, config), plain)


def test_turning_about_z_does_not_change_what_is_dropped() -> None:
    rng = np.random.default_rng(0)
    boxes = [(12, 1, 1), (4, 2, 1.5), (1, 0.6, 1.8), (6, 0.3, 1), (1, 1, 9)]
    centers = [(20 * i, 0, 0) for i in range(len(boxes))]
    points = np.concatenate(
        [rng.uniform(-0.5, 0.5, (4000, 3)) * box + center for box, center in zip(boxes, centers, strict=True)]
    )
    owner = np.repeat(np.arange(len(boxes)), 4000)
    for degrees in (0, 25, 45, 90, 130):
        turned = points @ Rotation.from_euler("z", degrees, degrees=True).as_matrix().T
        kept = clusters(turned, PointClusterConfig(max_extent_m=7.0))
        assert np.unique(owner[kept >= 0]).tolist() == [1, 2, 3]
        kept = clusters(turned, PointClusterConfig(max_aspect=6.0))
        assert np.unique(owner[kept >= 0]).tolist() == [1, 2, 4]


def test_numbers_of_points_are_limited() -> None:
    sizes = (3, 10, 40)
    points = np.concatenate([np.full((size, 3), 10.0 * i) for i, size in enumerate(sizes)])
    found = clusters(points, PointClusterConfig(min_points=5, max_points=20))
    assert np.bincount(found + 1).tolist() == [43, 10]


@pytest.mark.parametrize("kind", ["radius", "dbscan"])
@pytest.mark.parametrize("num", [0, 1, 2])
def test_hardly_any_points(kind: str, num: int) -> None:
    points = np.zeros((num, 3), np.float32)
    assert clusters(points, PointClusterConfig(kind=kind)).tolist() == [-1] * num
    assert clusters(points, PointClusterConfig(kind=kind, min_points=1)).tolist() == [0] * num


@pytest.mark.parametrize("kind", ["radius", "dbscan"])
def test_the_same_point_many_times(kind: str) -> None:
    config = PointClusterConfig(kind=kind, max_aspect=3.0, max_extent_m=1.0)
    assert clusters(np.ones((5000, 3), np.float32), config).tolist() == [0] * 5000


def test_exactly_the_radius_apart_is_near() -> None:
    line = np.arange(5)[:, None] * np.array([[0.5, 0, 0]])
    assert clusters(line, EVERYTHING).tolist() == [0] * 5
    assert clusters(line, PointClusterConfig(radius_m=0.4999, min_points=1)).tolist() == [0, 1, 2, 3, 4]
    assert clusters(line, PointClusterConfig(kind="dbscan", min_points=3)).tolist() == [0] * 5


def test_refused_clouds_and_settings() -> None:
    with pytest.raises(ValueError, match="not finite"):
        clusters(np.full((3, 3), np.inf), EVERYTHING)
    with pytest.raises(ValueError, match="too wide"):
        clusters(np.array([[0, 0, 0], [1e8, 1e8, 1e8]]), PointClusterConfig(radius_m=0.01))
    for name, value in {
        "radius_m": 0.0,
        "min_points": 0,
        "max_points": 0,
        "max_extent_m": 0.0,
        "max_aspect": 0.0,
    }.items():
        with pytest.raises(ValueError, match=name):
            PointClusterConfig(**{name: value})
