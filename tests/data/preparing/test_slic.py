"""The compiled loops of SLIC give what numpy gives, pixel by pixel, and stay within their arrays."""

from __future__ import annotations

import platform
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import native
from data.convert.raw_files import read_image
from data.preparing import slic, slic_numpy
from tests.helpers.sanitizers import must_run_clean
from tests.reference.superpixels import joined

REAL = Path(__file__).resolve().parents[4] / "shared" / "data"
SLIDR = {"num_segments": 150, "compactness": 6.0, "smoothing": 0.03, "iterations": 10, "smallest": 0.5}


@pytest.fixture(autouse=True, scope="module")
def compiler() -> None:
    try:
        native.load(slic._SOURCE)
    except native.BuildError as error:
        pytest.skip(str(error))


def both(image: np.ndarray, **options: float) -> tuple[np.ndarray, np.ndarray]:
    compiled = slic.cut(image, **options)
    with mock.patch.object(slic, "library", return_value=None):
        return compiled, slic.cut(image, **options)


def patches(height: int, width: int, seed: int, side: int, noise: float = 4.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (height // side + 1, width // side + 1, 3), dtype=np.uint8)
    image = cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, 3)
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 75),
    width=st.integers(1, 90),
    num_segments=st.integers(1, 200),
    compactness=st.sampled_from([0.01, 1.0, 6.0, 40.0, 1000.0]),
    smoothing=st.sampled_from([0.0, 0.05, 0.3]),
    iterations=st.integers(1, 10),
    smallest=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    side=st.integers(1, 40),
    seed=st.integers(0, 9),
)
@example(1, 90, 20, 6.0, 0.05, 10, 0.5, 9, 0)
@example(75, 1, 20, 6.0, 0.05, 10, 0.5, 9, 0)
@example(1, 1, 1, 6.0, 0.05, 10, 0.5, 9, 0)
@example(8, 16, 200, 6.0, 0.0, 10, 0.0, 1, 0)
def test_compiled_and_numpy_are_the_same(
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
    compiled, plain = both(
        patches(height, width, seed, side),
        num_segments=num_segments,
        compactness=compactness,
        smoothing=smoothing,
        iterations=iterations,
        smallest=smallest,
    )
    assert compiled.dtype == plain.dtype == np.int32
    np.testing.assert_array_equal(compiled, plain)


@pytest.mark.parametrize("grey", [0, 127, 255])
def test_one_colour_is_cut_into_a_grid(grey: int) -> None:
    compiled, plain = both(np.full((60, 90, 3), grey, np.uint8), **{**SLIDR, "num_segments": 54, "iterations": 1})
    np.testing.assert_array_equal(compiled, plain)
    # Seeds at 5, 15, ...: of two at the same distance the first.
    rows, columns = (np.clip((np.arange(n) - 1) // 10, 0, n // 10 - 1) for n in (60, 90))
    np.testing.assert_array_equal(plain, rows[:, None] * 9 + columns)


def test_checkerboard_whose_pixels_are_all_far_from_every_mean() -> None:
    image = (np.indices((64, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)
    compiled, plain = both(np.repeat(image[..., None], 3, axis=2), **SLIDR)
    np.testing.assert_array_equal(compiled, plain)


def test_a_pixel_out_of_reach_of_all_centres_keeps_its_label() -> None:
    lab = np.zeros((4, 60, 3), np.float32)
    seeds = np.array([[2.0, 5.0], [2.0, 12.0]])
    # Columns beyond 12 + 6 never have a centre: they keep 0, what labels begin with.
    plain = slic_numpy.cluster(lab, seeds, (10, 6), 1.0, 1)
    np.testing.assert_array_equal(plain[0], [0] * 9 + [1] * 10 + [0] * 41)
    compiled = slic._cluster(native.load(slic._SOURCE), lab, seeds, (10, 6), 1.0, 1)
    np.testing.assert_array_equal(compiled, plain)


@pytest.mark.parametrize("sizes", [(0, 10**9), (6, 20), (12, 13), (30, 31)], ids=str)
def test_joining_is_what_a_plain_reading_gives(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for shape in ((17, 23), (1, 40), (40, 1)):
        labels = rng.integers(0, 3, shape).astype(np.int32)
        expected = joined(labels, *sizes)
        np.testing.assert_array_equal(slic_numpy.join(labels, *sizes), expected)
        np.testing.assert_array_equal(slic._join(native.load(slic._SOURCE), labels, *sizes), expected)


@pytest.mark.parametrize("flags", [("-O0",), ("-march=x86-64",), ("-O2", "-mtune=generic")], ids=" ".join)
def test_flags_change_no_label(flags: tuple[str, ...]) -> None:
    """Also those of another processor: the order of operations is that of the source."""
    if "x86" in flags[0] and platform.machine() != "x86_64":
        pytest.skip("for x86-64")
    lab = slic._smooth_lab(patches(75, 110, 0, 9), 1.0)
    seeds = np.stack(np.meshgrid(np.arange(5, 75, 11), np.arange(5, 110, 11), indexing="ij"), axis=-1)
    arguments = lab, seeds.reshape(-1, 2).astype(np.float64), (22, 22), (6 / 11) ** 2, 10
    expected = slic_numpy.cluster(*arguments)
    np.testing.assert_array_equal(slic._cluster(native.load(slic._SOURCE, flags=flags), *arguments), expected)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["nuscenes/samples/CAM_*/*.jpg", "kitti_raw/*/*/image_02/data/*0.png"])
def test_real_images_are_cut_the_same(pattern: str) -> None:
    paths = sorted(REAL.glob(pattern))[:2]
    if not paths:
        pytest.skip(f"no real frames in {REAL}")
    for path in paths:
        compiled, plain = both(read_image(path), **SLIDR)
        np.testing.assert_array_equal(compiled, plain)


_SANITIZED = """
import sys
from pathlib import Path
import numpy as np
from common import native
from data.preparing import slic
flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
library = native.load(slic._SOURCE, flags=flags)
rng = np.random.default_rng(0)
for height, width, step in ((1, 1, 1), (1, 40, 3), (40, 1, 3), (37, 51, 7), (64, 96, 16), (200, 301, 30), (8, 16, 1)):
    lab = np.rint(rng.uniform(0, 100, (height, width, 3)) * 65536).astype(np.float32) / np.float32(65536)
    places = np.meshgrid(np.arange(step // 2, height, step), np.arange(step // 2, width, step), indexing="ij")
    seeds = np.stack(places, axis=-1).reshape(-1, 2).astype(np.float64)
    if not len(seeds):
        seeds = np.zeros((1, 2))
    for weight in (1e-4, 1.0, 1e4):
        labels = slic._cluster(library, lab, seeds, (2 * step, 2 * step), weight, 10)
        for sizes in ((0, 1 << 40), (step, 3 * step * step), (1, 2)):
            slic._join(library, labels, *sizes)
print("clean")
"""


@pytest.mark.slow
def test_nothing_is_read_or_written_beside_the_arrays(tmp_path: Path) -> None:
    must_run_clean(_SANITIZED, tmp_path)
