from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from data.batch_spec import BatchSpec, VoxelConfig
from data.order import SampleDraws
from data.storage.shard import ShardError
from data.views.making import make_view
from data.views.view import ViewConfig
from data.views.voxelize import inside_range, measured_of, voxelize
from tests.helpers.samples import make_sample


def slow_voxelize(
    points: np.ndarray, intensity: np.ndarray, config: VoxelConfig, measured: np.ndarray
) -> tuple[list[tuple[int, ...]], list[list[float]], list[int]]:
    """One point at a time, with a dictionary."""
    members: dict[tuple[int, ...], list[int]] = {}
    cells = []
    for number, (x, y, z) in enumerate(points.astype(float)):
        axes = [x, y, z]
        if config.kind == "cylindrical":
            phi = math.degrees(math.atan2(y, x))
            axes = [math.sqrt(x * x + y * y), phi - 360 if phi >= 180 else phi, z]
        cell = tuple(math.floor(a / s) for a, s in zip(axes, config.size, strict=True))
        members.setdefault(cell, []).append(number)
        cells.append(cell)
    coords = sorted(members)
    rows = []
    for cell in coords:
        values = []
        for number in members[cell]:
            fed = float(intensity[number]) + config.intensity_offset
            xyz_intensity = [*map(float, points[number]), fed]
            full = {"occupancy": [1.0], "intensity": [fed], "xyz_intensity": xyz_intensity}
            values.append(full.get(config.features, [*xyz_intensity, float(measured[number])]))
        rows.append(values[0] if config.reduce == "first" else np.mean(values, axis=0).tolist())
    return coords, rows, [coords.index(cell) for cell in cells]


@pytest.mark.parametrize("kind", ["cartesian", "cylindrical"])
@pytest.mark.parametrize("reduce", ["first", "mean"])
@pytest.mark.parametrize("features", ["occupancy", "intensity", "xyz_intensity", "xyz_intensity_time"])
def test_equals_the_slow_way(kind: str, reduce: str, features: str) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(0, 3, (500, 3)).astype(np.float32)
    intensity, measured = rng.random(500).astype(np.float32), rng.random(500).astype(np.float32)
    size = (0.7, 0.9, 1.1) if kind == "cartesian" else (0.8, 20.0, 1.1)
    config = VoxelConfig(kind=kind, size=size, reduce=reduce, features=features, intensity_offset=0.5)  # type: ignore[arg-type]
    coords, rows, point_voxel = voxelize(points, intensity, config, measured)
    want_coords, want_rows, want_point_voxel = slow_voxelize(points, intensity, config, measured)
    assert len(want_coords) < 450  # some cells do hold several points
    assert coords.tolist() == [list(cell) for cell in want_coords]
    assert point_voxel.tolist() == want_point_voxel
    np.testing.assert_allclose(rows, want_rows, rtol=1e-6)
    assert (coords.dtype, rows.dtype, point_voxel.dtype) == (np.int32, np.float32, np.int64)
    assert rows.shape[1] == config.num_features


def test_what_else_a_point_measured_is_fed_where_the_set_has_it() -> None:
    sample = make_sample(np.random.default_rng(0), num_points=5)
    times, elongations = VoxelConfig(features="xyz_intensity_time"), VoxelConfig(features="xyz_intensity_elongation")
    assert (times.num_features, elongations.num_features) == (5, 5)
    assert measured_of(sample, VoxelConfig(features="xyz_intensity")) is None
    with pytest.raises(ShardError, match=r"has no times_s, .*=xyz_intensity_time feeds.*Set data.voxel.features="):
        measured_of(sample, times)
    seconds = np.linspace(0, 0.45, 5, dtype=np.float32)
    full = dataclasses.replace(sample, times_s=seconds, elongations=2 * seconds)
    np.testing.assert_array_equal(measured_of(full, times), seconds)
    np.testing.assert_array_equal(measured_of(full, elongations), 2 * seconds)
    # Through a view: each point keeps its own.
    config = ViewConfig(voxel=dataclasses.replace(times, size=(0.001, 0.01, 0.001)))
    view = make_view(full, config, BatchSpec(images=False), SampleDraws())
    np.testing.assert_array_equal(view.voxels.features[view.voxels.of_point, 4], seconds[view.recorded])
    with pytest.raises(ValueError, match="needs times_s of each point, got None"):
        voxelize(full.points_lidar, full.intensity, times)


def test_colours_are_fed_from_minus_a_half_to_a_half() -> None:
    sample = make_sample(np.random.default_rng(0), num_points=4)
    rgb, both = (VoxelConfig(kind="cartesian", size=(1e-3,) * 3, features=name) for name in ("rgb", "xyz_rgb"))  # type: ignore[arg-type]
    with pytest.raises(ShardError, match=r"has no colors, which data.voxel.features=rgb feeds"):
        measured_of(sample, rgb)
    colors = np.array([[0, 51, 255], [255, 0, 0], [102, 102, 102], [0, 0, 0]], np.uint8)
    coloured = dataclasses.replace(sample, colors=colors)
    coords, features, of_point = voxelize(sample.points_lidar, sample.intensity, rgb, measured_of(coloured, rgb))
    assert len(coords) == 4
    want = [[-0.5, -0.3, 0.5], [0.5, -0.5, -0.5], [-0.1, -0.1, -0.1], [-0.5, -0.5, -0.5]]
    np.testing.assert_allclose(features[of_point], want, atol=1e-6)
    _, features, of_point = voxelize(sample.points_lidar, sample.intensity, both, measured_of(coloured, both))
    np.testing.assert_allclose(features[of_point], np.column_stack([sample.points_lidar, want]), atol=1e-6)
    # Two points of a cell: the mean of their colours.
    one = VoxelConfig(kind="cartesian", size=(100.0,) * 3, features="rgb", reduce="mean")
    near = np.array([[1, 1, 1], [2, 2, 2]], np.float32)
    _, features, _ = voxelize(near, np.zeros(2, np.float32), one, colors[:2])
    np.testing.assert_allclose(features, [[0, -0.4, 0]], atol=1e-6)


def test_cells_are_unique_and_negative_ones_allowed() -> None:
    points = np.array([[-0.05, 0.05, -3.0], [0.05, 0.05, -3.0], [-0.05, 0.05, -2.95]], dtype=np.float32)
    coords, _, point_voxel = voxelize(points, np.zeros(3, np.float32), VoxelConfig(kind="cartesian", size=(0.1,) * 3))
    assert coords.tolist() == [[-1, 0, -30], [0, 0, -30]]
    assert point_voxel.tolist() == [0, 1, 0]


def test_the_cut_behind_the_sensor_has_one_cell() -> None:
    # atan2 gives exactly +180 degrees for y = 0 and -180 for y = -0.
    points = np.array([[-5.05, 0.0, 0.0], [-5.05, -0.0, 0.0]], dtype=np.float32)
    coords, _, _ = voxelize(points, np.zeros(2, np.float32), VoxelConfig())
    assert coords.tolist() == [[50, -180, 0]]


def test_no_points() -> None:
    coords, rows, point_voxel = voxelize(np.zeros((0, 3), np.float32), np.zeros(0, np.float32), VoxelConfig())
    assert coords.shape == (0, 3)
    assert rows.shape == (0, 1)
    assert point_voxel.shape == (0,)


def test_limits_drop_or_clamp() -> None:
    config = VoxelConfig(kind="cartesian", size=(1.0, 1.0, 1.0), range_min=(-2.0,) * 3, range_max=(2.0,) * 3)
    points = np.array([[0.5, 0.5, 0.5], [9.0, 0.5, 0.5], [2.0, 0.5, 0.5], [-2.0, -9.0, 0.5]], dtype=np.float32)
    assert inside_range(points, config).tolist() == [True, False, False, False]
    coords, _, point_voxel = voxelize(points, np.zeros(4, np.float32), config)
    assert coords[point_voxel].tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [-2, -2, 0]]
    assert inside_range(points, VoxelConfig()).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_refuses_points_that_have_no_cell(bad: float) -> None:
    with pytest.raises(ValueError, match="largest cell index"):
        voxelize(np.array([[bad, 0, 0]], np.float32), np.zeros(1, np.float32), VoxelConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0.1, 0.0, 0.1)}, "size: got"),
        ({"range_min": (0.0, 0.0, 0.0)}, "together"),
        ({"range_min": (0.0, 0.0, 0.0), "range_max": (1.0, 0.0, 1.0)}, "below range_max"),
    ],
)
def test_refuses_bad_settings(options: dict[str, tuple[float, float, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VoxelConfig(**options)  # type: ignore[arg-type]
