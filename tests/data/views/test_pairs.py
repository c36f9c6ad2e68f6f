"""Pairs by the compiled loop are those of numpy, bit for bit, and those of a plain projection."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from common import native
from data.geometry import project, transform, visible
from data.views import pairs
from tests.helpers.samples import make_sample


@pytest.fixture(autouse=True, scope="module")
def compiler() -> None:
    try:
        native.load(pairs._SOURCE)
    except native.BuildError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("num_points", [1, 511, 512, 513, 5000])
@pytest.mark.parametrize(("min_depth_m", "border_px"), [(None, 1.0), (0.0, 0.0), (1e6, 1.0)], ids=str)
def test_compiled_and_numpy_are_the_same(num_points: int, min_depth_m: float | None, border_px: float) -> None:
    rng = np.random.default_rng(num_points)
    sample = make_sample(rng, num_points=num_points)
    options = {"min_depth_m": min_depth_m, "border_px": border_px}
    compiled = pairs.point_pixel_pairs(sample, **options)
    with mock.patch.object(pairs, "library", return_value=None):
        plain = pairs.point_pixel_pairs(sample, **options)
    for name in ("point", "camera", "uv"):
        one, other = getattr(compiled, name), getattr(plain, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert (len(plain) == 0) == (min_depth_m == 1e6) or num_points == 1


def test_a_plain_projection_gives_the_same_pixels() -> None:
    sample = make_sample(np.random.default_rng(0), num_points=3000)
    found = pairs.point_pixel_pairs(sample)
    for number, camera in enumerate(sample.cameras):
        uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
        seen = np.flatnonzero(visible(uv, depth, camera.image_size, min_depth_m=camera.min_depth_m))
        own = found.of_camera(number)
        np.testing.assert_array_equal(found.point[own], seen)
        np.testing.assert_allclose(found.uv[own], uv[seen], rtol=1e-9)
    assert len(found) > 500
