"""SLIC in integers: compiled and numpy give the same superpixels, colours are CIELAB, borders are those of classes."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import native
from data.convert.raw_files import read_image
from data.preparing import fast_slic, fast_slic_numpy, slic
from data.preparing.superpixels import SuperpixelConfig, segment
from data.sample import IGNORE_LABEL
from data.street.config import StreetConfig
from data.street.log import generate_log
from tests.data.preparing.test_slic import patches
from tests.helpers.sanitizers import must_run_clean

REAL = Path(__file__).resolve().parents[4] / "shared" / "data"
DEFAULTS = {"num_segments": 150, "compactness": 10.0, "smoothing": 0.03, "iterations": 8, "smallest": 0.25}
FINE, SCALE = 24 - 15, 15 - 6
"""Bits that are dropped of XYZ and, at usual compactness, of CIELAB."""


@pytest.fixture(scope="module")
def compiled() -> Callable[..., np.ndarray]:
    try:
        native.load(fast_slic._SOURCE)
    except native.BuildError as error:
        pytest.skip(str(error))
    return fast_slic.cut


def in_numpy(image: np.ndarray, **options: float) -> np.ndarray:
    with mock.patch.object(fast_slic, "library", return_value=None):
        return fast_slic.cut(image, **options)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 75),
    width=st.integers(1, 90),
    num_segments=st.integers(1, 200),
    compactness=st.sampled_from([0.01, 1.0, 10.0, 300.0, 1e6]),
    smoothing=st.sampled_from([0.0, 0.05, 0.3]),
    iterations=st.integers(1, 10),
    smallest=st.sampled_from([0.0, 0.25, 1.0]),
    side=st.integers(1, 40),
    seed=st.integers(0, 9),
)
@example(1, 90, 20, 10.0, 0.05, 8, 0.25, 9, 0)
@example(75, 1, 20, 10.0, 0.05, 8, 0.25, 9, 0)
@example(1, 1, 200, 10.0, 0.05, 8, 0.25, 9, 0)
@example(8, 16, 200, 10.0, 0.0, 8, 0.0, 1, 0)
def test_compiled_and_numpy_are_the_same(
    compiled: Callable[..., np.ndarray],
    height: int,
    width: int,
    num_segments: int,
    compactness: float,
    smoothing: float,
    iterations: int,
    smallest: float,
    side: int,
    seed: int,
) -> None:
    image = patches(height, width, seed, side)
    options = {
        "num_segments": num_segments,
        "compactness": compactness,
        "smoothing": smoothing,
        "iterations": iterations,
        "smallest": smallest,
    }
    ids = compiled(image, **options)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, in_numpy(image, **options))


def test_a_large_image_is_the_same(compiled: Callable[..., np.ndarray]) -> None:
    image = patches(300, 533, 0, 30)
    np.testing.assert_array_equal(compiled(image, **DEFAULTS), in_numpy(image, **DEFAULTS))


def test_a_pixel_out_of_reach_of_all_centres_keeps_its_seed(compiled: Callable[..., np.ndarray]) -> None:
    planes = np.zeros((3, 4, 60), np.uint16)
    centres = np.array([[2, 5, 0, 0, 0], [2, 12, 0, 0, 0]], np.int32)
    far = np.abs(np.arange(-6, 7)).astype(np.uint16)
    home = np.zeros(4, np.int32), (np.arange(60) // 50).astype(np.int32)
    plain = fast_slic_numpy.cluster(planes, centres, far, *home, 1, 1)
    np.testing.assert_array_equal(plain[0], [0] * 9 + [1] * 10 + [0] * 31 + [1] * 10)
    loops = native.load(fast_slic._SOURCE)
    np.testing.assert_array_equal(fast_slic._cluster(loops, planes, centres, far, *home, 1, 1), plain)


def test_colours_are_cielab() -> None:
    """To an eighth of a unit, where OpenCV's of floats is half a unit off: all greys, and a grid of colours."""
    levels = np.arange(0, 256, 15)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    colours = np.concatenate([grid, np.repeat(np.arange(256)[:, None], 3, axis=1)]).astype(np.uint8)[:, None]
    found = fast_slic_numpy.lab(colours, *fast_slic.lab_tables(), FINE, SCALE)[..., 0].T / 64 - [0, 128, 128]
    level = colours[:, 0] / 255
    light = np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    white = np.array([0.950456, 1.0, 1.088754])
    x, y, z = (light @ cv2_matrix().T / white).T
    f_x, f_y, f_z = (np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116) for t in (x, y, z))
    expected = np.stack([116 * f_y - 16, 500 * (f_x - f_y), 200 * (f_y - f_z)], axis=-1)
    assert np.abs(found - expected).max() < 0.15
    assert np.abs(found - expected).mean() < 0.02


def cv2_matrix() -> np.ndarray:
    """Linear sRGB to XYZ, as OpenCV's documentation states it."""
    return np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])


def test_compiled_colours_are_those_of_numpy(compiled: Callable[..., np.ndarray]) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (64, 100, 3), dtype=np.uint8)
    loops, tables = native.load(fast_slic._SOURCE), fast_slic.lab_tables()
    for scale in (SCALE, 15):
        expected = fast_slic_numpy.lab(colours, *tables, FINE, scale)
        np.testing.assert_array_equal(fast_slic._lab(loops, colours, *tables, FINE, scale), expected)


@pytest.mark.parametrize("size", [(900, 1600), (160, 320), (1, 7), (7, 1), (3, 1000)], ids=str)
@pytest.mark.parametrize("num_segments", [1, 2, 30, 150, 65536])
def test_seeds_are_a_grid_of_at_most_so_many_cells(size: tuple[int, int], num_segments: int) -> None:
    grid = fast_slic.grid_of(*size, num_segments)
    assert 1 <= len(grid.seeds) <= num_segments
    assert len(np.unique(grid.seeds, axis=0)) == len(grid.seeds)
    home = grid.home_row[:, None] + grid.home_column
    np.testing.assert_array_equal(home[grid.seeds[:, 0], grid.seeds[:, 1]], np.arange(len(grid.seeds)))
    if min(size) ** 2 * num_segments > size[0] * size[1]:  # room for about square cells
        assert len(grid.seeds) > 0.6 * min(num_segments, size[0] * size[1])


def test_classes_are_cut_no_worse_than_by_opencv() -> None:
    """Share of pixels in the majority class of their superpixel, over a street's three cameras."""
    shares = {}
    (sample,) = generate_log(StreetConfig(num_logs=1, frames_per_log=1), 0)
    for like in ("fast-slic", None):
        right = total = 0
        for camera in sample.cameras:
            assert camera.image is not None
            assert camera.labels is not None
            known = camera.labels != IGNORE_LABEL
            ids = segment(camera.image, SuperpixelConfig(like=like))[known].astype(np.int64)
            counts = np.bincount(ids * 256 + camera.labels[known], minlength=256 * (ids.max() + 1)).reshape(-1, 256)
            right, total = right + counts.max(axis=1).sum(), total + counts.sum()
        shares[like] = right / total
    assert shares["fast-slic"] > shares[None] > 0.9


@pytest.mark.parametrize("flags", [("-O0",), ("-march=x86-64",), ("-O2", "-mtune=generic")], ids=" ".join)
def test_flags_change_no_label(compiled: Callable[..., np.ndarray], flags: tuple[str, ...]) -> None:
    if "x86" in flags[0] and platform.machine() != "x86_64":
        pytest.skip("for x86-64")
    image = patches(75, 110, 0, 9)
    with mock.patch.object(fast_slic, "library", return_value=native.load(fast_slic._SOURCE, flags=flags)):
        ids = fast_slic.cut(image, **DEFAULTS)
    np.testing.assert_array_equal(ids, in_numpy(image, **DEFAULTS))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["nuscenes/samples/CAM_*/*.jpg", "kitti_raw/*/*/image_02/data/*0.png"])
def test_real_images_are_cut_the_same(compiled: Callable[..., np.ndarray], pattern: str) -> None:
    paths = sorted(REAL.glob(pattern))[:2]
    if not paths:
        pytest.skip(f"no real frames in {REAL}")
    for path in paths:
        np.testing.assert_array_equal(compiled(read_image(path), **DEFAULTS), in_numpy(read_image(path), **DEFAULTS))


_SANITIZED = """
import numpy as np
from unittest import mock
from common import native
from data.preparing import fast_slic
flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
library = native.load(fast_slic._SOURCE, flags=flags)
rng = np.random.default_rng(0)
with mock.patch.object(fast_slic, "library", return_value=library):
    for size in ((1, 1), (1, 40), (40, 1), (37, 51), (64, 96), (200, 301), (8, 16)):
        for number, compactness in ((1, 10.0), (30, 0.01), (150, 1e6)):
            image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            options = {"compactness": compactness, "smoothing": 0.05, "iterations": 8, "smallest": 0.25}
            fast_slic.cut(image, num_segments=number, **options)
print("clean")
"""


@pytest.mark.slow
def test_nothing_is_read_or_written_beside_the_arrays(tmp_path: Path) -> None:
    must_run_clean(_SANITIZED, tmp_path)


def test_without_a_compiler_joining_is_in_numpy_too() -> None:
    """Both modules ask for their own source: neither may need the other's."""
    image = patches(60, 90, 0, 20)
    with mock.patch.object(slic, "library", return_value=None):
        np.testing.assert_array_equal(in_numpy(image, **DEFAULTS), fast_slic.cut(image, **DEFAULTS))
