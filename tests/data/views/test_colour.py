from __future__ import annotations

import colorsys

import numpy as np
import pytest

from data.batch_spec import BatchSpec
from data.order import SampleDraws
from data.views.augment import AugmentConfig, ImageAugmentConfig
from data.views.colour import ColourChange, ColourConfig, brighten, contrast, draw_colour, saturate, turn_hue
from data.views.making import make_view
from data.views.view import ViewConfig
from tests.helpers.samples import make_sample

ALWAYS = ColourConfig(enabled=True, jitter_probability=1.0, grey_probability=0.0, blur_probability=0.0)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Noise, with pure colours, greys, black and white among it."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    pixels[0, :8] = [
        (0, 0, 0),
        (255, 255, 255),
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (9, 9, 9),
        (200,) * 3,
        (255, 255, 0),
    ]
    return pixels


# ---- slow, obvious references
def grey_of(pixel: np.ndarray) -> float:
    r, g, b = (float(value) for value in pixel)
    return 0.299 * r + 0.587 * g + 0.114 * b


def blended(image: np.ndarray, others: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(factor * image.astype(float) + (1 - factor) * others, 0, 255)


def greys(image: np.ndarray) -> np.ndarray:
    return np.array([[[grey_of(pixel)] * 3 for pixel in row] for row in image])


def hue_turned(image: np.ndarray, turns: float) -> np.ndarray:
    def one(pixel: np.ndarray) -> list[float]:
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255.0))
        return [255 * value for value in colorsys.hsv_to_rgb((h + turns) % 1.0, s, v)]

    return np.array([[one(pixel) for pixel in row] for row in image])


@pytest.mark.parametrize("factor", [0.0, 0.37, 0.6, 1.0, 1.4, 1.79])
def test_brightness_contrast_and_saturation(image: np.ndarray, factor: float) -> None:
    # Grey values are whole numbers, so results may be a step or two off.
    np.testing.assert_allclose(brighten(image, factor), blended(image, np.zeros(3), factor), atol=0.51)
    mean = greys(image).mean()
    np.testing.assert_allclose(contrast(image, factor), blended(image, np.full(3, mean), factor), atol=1.0)
    np.testing.assert_allclose(saturate(image, factor), blended(image, greys(image), factor), atol=1.1)
    for change in (brighten, contrast, saturate):
        assert (change(image, 1.0) == image).all()


@pytest.mark.parametrize("turns", [0.1, -0.1, 0.03125, 0.5, -0.037])
def test_hue_turns_around_the_circle(image: np.ndarray, turns: float) -> None:
    step = round(turns * 256) / 256
    error = np.abs(turn_hue(image, turns) - hue_turned(image, step))
    # 8-bit hues: a step of 1/256 turn is 6 values where colours change fastest.
    assert error.max() <= 8
    assert error.mean() < 1
    assert (turn_hue(image, turns)[0, 5:7] == image[0, 5:7]).all()  # grey has no hue
    assert (turn_hue(image, 0.001) == image).all()


def test_blur_is_a_gaussian(image: np.ndarray) -> None:
    sigma, around = 1.3, np.arange(-5, 6)
    weights = np.exp(-(around**2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(image.astype(float), ((5, 5), (5, 5), (0, 0)), mode="reflect")
    rows = sum(w * padded[5 + o : 17 + o] for w, o in zip(weights, around, strict=True))
    expected = sum(w * rows[:, 5 + o : 22 + o] for w, o in zip(weights, around, strict=True))
    np.testing.assert_allclose(ColourChange(blur_sigma_px=sigma)(image), expected, atol=1.6)


def test_parts_come_in_the_drawn_order_then_grey_then_blur(image: np.ndarray) -> None:
    change = ColourChange(order=(3, 0, 2, 1), brightness=1.3, contrast=0.7, saturation=1.2, hue_turns=0.1)
    by_hand = contrast(saturate(brighten(turn_hue(image, 0.1), 1.3), 1.2), 0.7)
    assert (change(image) == by_hand).all()
    grey = ColourChange(order=(0,), brightness=0.5, grey=True, blur_sigma_px=0.8)(image)
    assert (grey == ColourChange(blur_sigma_px=0.8)(saturate(brighten(image, 0.5), 0.0))).all()
    assert (grey.max(axis=2) == grey.min(axis=2)).all()


def test_the_given_image_stays_as_it_is(image: np.ndarray) -> None:
    before = image.tobytes()
    for seed in range(20):
        draw_colour(np.random.default_rng(seed), ALWAYS)(image)
    assert image.tobytes() == before


# ---- the draws
def test_draws_have_the_stated_ranges_and_probabilities() -> None:
    rng = np.random.default_rng(0)
    changes = [draw_colour(rng, ColourConfig(enabled=True)) for _ in range(2000)]
    jittered = [change for change in changes if change.order]
    assert len(jittered) / 2000 == pytest.approx(0.8, abs=0.03)
    assert sum(change.grey for change in changes) / 2000 == pytest.approx(0.2, abs=0.03)
    blurred = [change.blur_sigma_px for change in changes if change.blur_sigma_px is not None]
    assert len(blurred) / 2000 == pytest.approx(0.5, abs=0.04)
    assert min(blurred) < 0.15 < 1.9 < max(blurred) <= 2.0
    for name, low, high in (("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("hue_turns", -0.1, 0.1)):
        values = [getattr(change, name) for change in changes]
        assert low <= min(values) < low + 0.02
        assert high - 0.02 < max(values) <= high
    assert len({change.order for change in jittered}) == 24
    strong = [draw_colour(rng, ColourConfig(enabled=True, brightness=3.0)).brightness for _ in range(200)]
    assert 0 <= min(strong) < 0.2


def test_disabled_draws_nothing(image: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    assert draw_colour(rng, ColourConfig())(image) is image
    assert rng.random() == np.random.default_rng(0).random()


def test_colours_of_a_view_are_drawn_for_each_image_and_leave_places_alone() -> None:
    sample = make_sample(np.random.default_rng(0), num_points=1500)

    def images(colour: ColourConfig, *, enabled: bool = True) -> tuple[list[np.ndarray], np.ndarray]:
        augment = AugmentConfig(min_pairs=10, image=ImageAugmentConfig(enabled=enabled, colour=colour))
        view = make_view(sample, ViewConfig(image_size=(40, 72), augment=augment), BatchSpec(), SampleDraws())
        assert view.images is not None
        assert view.pairs is not None
        return list(view.images), view.pairs.uv

    plain, uv = images(ColourConfig())
    changed, same_uv = images(ALWAYS)
    again, _ = images(ALWAYS)
    np.testing.assert_array_equal(uv, same_uv)
    for one, other, repeated in zip(plain, changed, again, strict=True):
        assert (one != other).mean() > 0.3
        assert (other == repeated).all()
    off = images(ALWAYS, enabled=False)[0]
    np.testing.assert_array_equal(off[0], images(ColourConfig(), enabled=False)[0][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jitter_probability": 1.1}, "jitter_probability: got 1.1"),
        ({"brightness": -0.1}, "brightness: got -0.1"),
        ({"hue": 0.6}, "hue: got 0.6"),
        ({"blur_sigma_px": (0.0, 1.0)}, "blur_sigma_px: got"),
    ],
)
def test_refuses_bad_settings(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColourConfig(**options)  # type: ignore[arg-type]
