"""Colours of points, elastic distortion and tilt, as networks of indoor scenes are trained with."""

from __future__ import annotations

import colorsys
import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.batch_spec import BatchSpec, VoxelConfig
from data.geometry import transform
from data.order import SampleDraws
from data.storage.damage import DamagedError
from data.views.augment import AugmentConfig, PointAugmentConfig, draw_cloud_transform, draw_elastic
from data.views.elastic import elastic_distortion
from data.views.making import make_view
from data.views.point_colour import PointColourConfig, draw_point_colours
from data.views.view import ViewConfig
from tests.helpers.samples import make_sample

COLORS = np.random.default_rng(5).integers(0, 256, (300, 3)).astype(np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- colours
def test_no_change_draws_nothing() -> None:
    source = rng()
    assert draw_point_colours(source, COLORS, PointColourConfig()) is COLORS
    assert source.bit_generator.state == rng().bit_generator.state
    nothing = np.zeros((0, 3), np.uint8)
    assert draw_point_colours(rng(), nothing, PointColourConfig(hue=0.5, jitter=0.1)).shape == (0, 3)


def test_a_translation_is_one_for_a_cloud_and_cut_off_at_the_ends() -> None:
    changed = draw_point_colours(rng(), COLORS, PointColourConfig(translation=0.1))
    moved = rng().uniform(-0.1, 0.1, 3) * 255
    want = np.rint((COLORS + moved).clip(0, 255))
    np.testing.assert_allclose(changed, want, atol=1)  # halves may round either way
    assert np.abs(moved).max() <= 25.5


def test_jitter_is_of_each_channel_of_each_point() -> None:
    grey = np.full((20_000, 3), 128, np.uint8)
    noise = draw_point_colours(rng(), grey, PointColourConfig(jitter=0.05)).astype(float) - 128
    assert noise.std() == pytest.approx(0.05 * 255, rel=0.02)
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.03


def test_hue_and_saturation_against_pythons_own() -> None:
    config = PointColourConfig(hue=0.5, saturation=0.2)
    for seed in range(5):
        changed = draw_point_colours(rng(seed), COLORS, config)
        source = rng(seed)
        turn, factor = source.uniform(-0.5, 0.5), source.uniform(0.8, 1.2)
        for got, (red, green, blue) in zip(changed[:60], (COLORS[:60] / 255).tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(red, green, blue)
            want = colorsys.hsv_to_rgb((h + turn) % 1, min(s * factor, 1), v)
            np.testing.assert_allclose(got, 255 * np.array(want), atol=1.01)


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 1))
def test_colours_stay_bytes(seed: int, translation: float, jitter: float, hue: float, saturation: float) -> None:
    config = PointColourConfig(translation=translation, jitter=jitter, hue=hue, saturation=saturation)
    changed = draw_point_colours(rng(seed), COLORS[:20], config)
    assert (changed.dtype, changed.shape) == (np.uint8, (20, 3))
    np.testing.assert_array_equal(changed, draw_point_colours(rng(seed), COLORS[:20], config))


@pytest.mark.parametrize("setting", [{"translation": -0.1}, {"jitter": 2.0}, {"hue": 0.6}, {"saturation": 1.5}])
def test_shares_are_checked(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        PointColourConfig(**setting)


def test_a_view_feeds_the_changed_colours_of_its_points() -> None:
    sample = dataclasses.replace(make_sample(rng(), num_points=300), colors=COLORS)
    voxel = VoxelConfig(kind="cartesian", size=(1e-3,) * 3, features="rgb")

    def colours(**change: object) -> tuple[np.ndarray, np.ndarray]:
        points = PointAugmentConfig(drop_max_side=0.5, **change)  # type: ignore[arg-type]
        config = ViewConfig(voxel=voxel, augment=AugmentConfig(points=points))
        view = make_view(sample, config, BatchSpec(images=False), SampleDraws())
        return view.recorded, np.rint((view.voxels.features[view.voxels.of_point] + 0.5) * 255)

    recorded, plain = colours()
    assert len(recorded) < 300
    np.testing.assert_array_equal(plain, COLORS[recorded])
    also, moved = colours(colour=PointColourConfig(translation=0.1))
    np.testing.assert_array_equal(also, recorded)  # colours are drawn last: all else stays
    assert (moved != plain).any()
    assert np.abs(moved - plain).max() <= 26
    _, off = colours(enabled=False, colour=PointColourConfig(translation=0.1))
    np.testing.assert_array_equal(off, COLORS)


# ---- elastic distortion
def slow_distortion(source: np.random.Generator, points: np.ndarray, cell: float, size: float) -> np.ndarray:
    """Node by node and point by point, as the docstring says."""
    low = points.min(axis=0).astype(float)
    shape = [math.floor((points[:, axis].max() - low[axis]) / cell) + 4 for axis in range(3)]
    field = source.normal(0.0, size, (3, *shape))
    for axis in (1, 2, 3, 1, 2, 3):
        padded = np.pad(field, [(1, 1) if number == axis else (0, 0) for number in range(4)])
        field = sum(np.take(padded, np.arange(field.shape[axis]) + step, axis=axis) for step in range(3)) / 3
    moved = []
    for point in points:
        at = (point - low) / cell + 1
        base, part = np.floor(at).astype(int), at - np.floor(at)
        total = np.zeros(3)
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod([part[i] if corner[i] else 1 - part[i] for i in range(3)])
            total += weight * field[(slice(None), *(base + corner))]
        moved.append(point + total)
    return np.array(moved)


@pytest.mark.parametrize(("cell", "size"), [(0.2, 0.4), (0.8, 1.6), (5.0, 0.3)])
def test_elastic_distortion_against_a_slow_one(cell: float, size: float) -> None:
    points = rng(1).uniform((-1, 0, 0), (1, 1.5, 0.7), (60, 3)).astype(np.float32)
    got = elastic_distortion(rng(3), points, cell, size)
    np.testing.assert_allclose(got, slow_distortion(rng(3), points, cell, size), atol=1e-5)
    assert got.dtype == np.float32


def test_neighbours_move_together_and_a_point_moves_by_a_tenth_of_the_size() -> None:
    points = rng(1).uniform(0, 3, (4000, 3))
    moved = elastic_distortion(rng(3), points, 0.2, 0.4) - points
    assert 0.02 < moved.std() < 0.06
    beside = elastic_distortion(rng(3), np.concatenate([points, points + 0.001]), 0.2, 0.4)
    assert np.abs((beside[4000:] - beside[:4000]) - 0.001).max() < 0.002


def test_elastic_distortion_of_one_point_of_none_and_of_a_city() -> None:
    assert elastic_distortion(rng(), np.zeros((0, 3)), 0.2, 0.4).shape == (0, 3)
    assert np.isfinite(elastic_distortion(rng(), np.zeros((1, 3)), 0.2, 0.4)).all()
    with pytest.raises(DamagedError, match=r"cells of 0.2 m"):
        elastic_distortion(rng(), np.array([[0.0, 0, 0], [2000, 2000, 50]]), 0.2, 0.4)
    off = PointAugmentConfig(enabled=False, elastic_m=((0.2, 0.4),))
    points = COLORS.astype(np.float32)
    assert draw_elastic(rng(), points, off) is points
    with pytest.raises(ValueError, match="elastic_m"):
        PointAugmentConfig(elastic_m=((0.2, 0.0),))


# ---- tilt
def test_a_tilt_turns_up_by_no_more_than_its_two_angles() -> None:
    config = PointAugmentConfig(tilt_rad=0.05, flip=False)
    angles = []
    for seed in range(50):
        T = draw_cloud_transform(rng(seed), config)
        np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-12)
        angles.append(math.acos(T[2, 2]))
    assert 0.03 < max(angles) <= 0.05 * math.sqrt(2)
    # Without it nothing else is drawn.
    np.testing.assert_array_equal(
        draw_cloud_transform(rng(3), PointAugmentConfig(tilt_rad=0.0)),
        draw_cloud_transform(rng(3), PointAugmentConfig()),
    )


def test_a_tilt_by_hand() -> None:
    config = PointAugmentConfig(tilt_rad=0.5, rotate=False, flip=False)
    up = transform(draw_cloud_transform(rng(4), config), np.array([[0.0, 0.0, 1.0]]))
    about_x, about_y = rng(4).uniform(-0.5, 0.5, 2)
    # About x: (0, -sin, cos); then about y.
    forward = math.cos(about_x) * math.sin(about_y)
    np.testing.assert_allclose(up, [[forward, -math.sin(about_x), math.cos(about_x) * math.cos(about_y)]], atol=1e-12)
