"""Superpixels: ids, connectivity, bound on their number, and that they follow colour edges."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.preparing.superpixels import SuperpixelConfig, segment, superpixel_side
from tests.reference.superpixels import cut as cut_pixel_by_pixel

LIKE = ["fast-slic", "scikit-image", None]


def two_colours(height: int = 80, width: int = 120, edge: int = 51) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), (40, 90, 60), np.uint8)
    image[:, edge:] = (200, 120, 90)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def assert_valid(ids: np.ndarray, shape: tuple[int, int], limit: int) -> None:
    assert ids.shape == shape
    assert ids.dtype == np.int32
    counts = np.bincount(ids.ravel())
    assert counts.min() > 0, "ids are not consecutive"
    assert 1 <= counts.size <= limit


@pytest.mark.parametrize("like", LIKE)
def test_ids_are_consecutive_and_segments_connected(like):
    ids = segment(two_colours(), SuperpixelConfig(like=like, num_segments=60))
    assert_valid(ids, (80, 120), 60)
    assert ids.max() + 1 > 30
    for one in range(ids.max() + 1):
        pieces = cv2.connectedComponents((ids == one).astype(np.uint8), connectivity=4)[0] - 1
        assert pieces == 1, f"segment {one} is in {pieces} pieces"


@pytest.mark.parametrize("like", ["fast-slic", None])
def test_segments_do_not_cross_an_edge(like):
    image, edge = two_colours(), 51
    ids = segment(image, SuperpixelConfig(like=like, num_segments=60, smoothing=0.0))
    left = np.bincount(ids[:, :edge].ravel(), minlength=ids.max() + 1)
    both = left + np.bincount(ids[:, edge:].ravel(), minlength=ids.max() + 1)
    impure = np.minimum(left, both - left).sum() / ids.size
    # A square grid of the same side is the reference that clustering must beat.
    side = superpixel_side(80, 120, 60)
    grid_impure = min(edge % side, side - edge % side) / 120
    assert impure < 0.004 < grid_impure


def test_red_and_blue_are_told_apart_as_rgb():
    """Swapping channels must change the Lab distances, hence the cut: the input is RGB, not BGR."""
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8), (0, 0), 4)
    config = SuperpixelConfig(num_segments=40)
    assert (segment(image, config) != segment(np.ascontiguousarray(image[..., ::-1]), config)).any()


@pytest.mark.parametrize(("patch_px", "compactness"), [(8, 6.0), (15, 20.0)], ids=["many joined", "few joined"])
@pytest.mark.parametrize(
    ("size", "num_segments", "smoothing"),
    [((75, 110), 24, 0.06), ((64, 96), 40, 0.0), ((90, 61), 12, 0.1)],
    ids=["blurred", "as it is", "upright"],
)
def test_like_scikit_image_is_what_a_plain_reading_of_it_gives(size, num_segments, smoothing, patch_px, compactness):
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (size[0] // patch_px, size[1] // patch_px, 3), dtype=np.uint8)
    noise = rng.normal(0, 4, (*size, 3))
    image = np.clip(cv2.resize(patches, size[::-1], interpolation=cv2.INTER_CUBIC) + noise, 0, 255).astype(np.uint8)
    config = SuperpixelConfig(
        like="scikit-image",
        num_segments=num_segments,
        compactness=compactness,
        smoothing=smoothing,
        iterations=10,
        min_fragment_percent=50,
    )
    ids = segment(image, config)
    step = round((size[0] * size[1] / num_segments) ** 0.5)
    expected = cut_pixel_by_pixel(
        image,
        num_segments=num_segments,
        compactness=compactness,
        sigma_px=smoothing * step,
        iterations=10,
        smallest=0.5,
    )
    assert (ids == expected).mean() > 0.99


@settings(max_examples=25, deadline=None)
@given(
    like=st.sampled_from(LIKE),
    height=st.integers(1, 70),
    width=st.integers(1, 90),
    num_segments=st.integers(1, 300),
    max_pixels=st.integers(1, 8000),
    seed=st.integers(0, 3),
)
def test_any_size_and_number_is_bounded(like, height, width, num_segments, max_pixels, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    config = SuperpixelConfig(like=like, num_segments=num_segments, min_fragment_percent=0, max_pixels=max_pixels)
    assert_valid(segment(image, config), (height, width), num_segments)


def test_large_images_are_cut_at_a_smaller_size():
    image, edge = two_colours(height=301, width=499, edge=200), 200
    config = SuperpixelConfig(num_segments=60, smoothing=0.0, max_pixels=301 * 499 // 9)
    ids = segment(image, config)
    assert_valid(ids, (301, 499), 60)
    assert ids.max() + 1 > 40
    for one in range(ids.max() + 1):
        assert cv2.connectedComponents((ids == one).astype(np.uint8), connectivity=4)[0] == 2, one
    # Borders lie where those of the whole image do: within the two pixels that one small pixel's half stands for.
    crossing = [
        one for one in range(ids.max() + 1) if (ids[:, : edge - 2] == one).any() & (ids[:, edge + 2 :] == one).any()
    ]
    assert not crossing


def test_images_up_to_max_pixels_are_cut_as_they_are():
    image = two_colours()
    whole = segment(image, SuperpixelConfig(max_pixels=1 << 40))
    assert (segment(image, SuperpixelConfig(max_pixels=80 * 120)) == whole).all()
    assert (segment(image, SuperpixelConfig(max_pixels=80 * 120 // 4)) != whole).any()


@pytest.mark.parametrize("like", LIKE)
def test_flat_image_and_repeatability(like):
    image = np.full((60, 90, 3), 127, np.uint8)
    config = SuperpixelConfig(like=like, num_segments=50)
    first, second = segment(image, config), segment(image, config)
    assert_valid(first, (60, 90), 50)
    assert (first == second).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_segments", 0),
        ("num_segments", 65537),
        ("compactness", 0.0),
        ("smoothing", -0.1),
        ("iterations", 0),
        ("min_fragment_percent", 101),
        ("max_pixels", 0),
    ],
)
def test_refused_settings_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"{field}: got {value}"):
        SuperpixelConfig(**{field: value})
