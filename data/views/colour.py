"""Colour augmentation of images in the form of SimCLR and MoCo v2; pixels stay in place.

Order: colour jitter with its four parts in random order, grey, blur. Each part gives 8-bit values again, as the usual
pipelines do. Cost: docs/batches.md.

Source: Chen et al., SimCLR (ICML 2020), appendix A; Chen et al., MoCo v2 (2020) and its released code, whose numbers
are the defaults. Deviations: contrast is around the exact mean grey value instead of its whole number; the blur is a
sampled Gaussian instead of repeated box filters.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from common.ranges import ascending, at_least, below, between, share

_HUE_STEPS = 256
"""Of a turn around the colour circle, in OpenCV's full-range 8-bit HSV."""


@dataclass(frozen=True, kw_only=True)
class ColourConfig:
    """How colours are changed; the defaults are MoCo v2's.

    Attributes:
        enabled: False turns all of it off.
        jitter_probability: of the next four together.
        brightness: values are multiplied by 1 - brightness to 1 + brightness (not below 0).
        contrast: the same for distances from the image's mean grey value.
        saturation: the same for distances from the pixel's own grey value.
        hue: hues are turned by up to this share of the colour circle, either way.
        grey_probability: of an image without colour.
        blur_probability: of a Gaussian blur.
        blur_sigma_px: its standard deviation, drawn uniformly.
    """

    enabled: bool = False
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        share(self, "jitter_probability", "grey_probability", "blur_probability")
        at_least(self, brightness=0, contrast=0, saturation=0)
        below(self, brightness=np.inf, contrast=np.inf, saturation=np.inf)
        between(self, hue=(0, 0.5))
        ascending(self, "blur_sigma_px")


@dataclass(frozen=True, kw_only=True)
class ColourChange:
    """What is done to one image.

    Attributes:
        order: of brightness, contrast, saturation and hue (0 to 3); () for no jitter.
        brightness: factor.
        contrast: factor.
        saturation: factor.
        hue_turns: share of the colour circle.
        grey: whether colours are taken away.
        blur_sigma_px: None for no blur.
    """

    order: tuple[int, ...] = ()
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue_turns: float = 0.0
    grey: bool = False
    blur_sigma_px: float | None = None

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """The changed image; the given one stays as it is."""
        parts = (
            lambda x: brighten(x, self.brightness),
            lambda x: contrast(x, self.contrast),
            lambda x: saturate(x, self.saturation),
            lambda x: turn_hue(x, self.hue_turns),
        )
        for number in self.order:
            image = parts[number](image)
        if self.grey:
            image = saturate(image, 0.0)
        if self.blur_sigma_px is not None:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), self.blur_sigma_px))
        return image


def draw_colour(rng: np.random.Generator, config: ColourConfig) -> ColourChange:
    """What to do to one image. Takes the same count of random numbers whatever the outcome."""
    if not config.enabled:
        return ColourChange()
    jitters, is_grey, blurs = rng.random(3) < (
        config.jitter_probability,
        config.grey_probability,
        config.blur_probability,
    )
    spread = np.array((config.brightness, config.contrast, config.saturation))
    factors = rng.uniform(np.maximum(1 - spread, 0.0), 1 + spread)
    turns, sigma = rng.uniform(-config.hue, config.hue), rng.uniform(*config.blur_sigma_px)
    order = tuple(int(part) for part in rng.permutation(4))
    return ColourChange(
        order=order if jitters else (),
        brightness=float(factors[0]),
        contrast=float(factors[1]),
        saturation=float(factors[2]),
        hue_turns=float(turns),
        grey=bool(is_grey),
        blur_sigma_px=float(sigma) if blurs else None,
    )


@dataclass(frozen=True, kw_only=True)
class ToneConfig:
    """Change of gamma, brightness and the three colours, as works on depth augment images; by default none.

    Source: Lee et al., "From Big to Small" (2019), released code, which later works took over.

    Attributes:
        probability: of a change.
        gamma: exponent of values from 0 to 1, drawn uniformly.
        brightness: factor of all values.
        colour: factor of each of red, green and blue.
    """

    probability: float = 0.0
    gamma: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (0.9, 1.1)
    colour: tuple[float, float] = (0.9, 1.1)

    def __post_init__(self) -> None:
        share(self, "probability")
        ascending(self, "gamma", "brightness", "colour")

    def change(self, rng: np.random.Generator, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """The image, changed or as it is; the given one stays as it is. Draws nothing at a probability of 0."""
        if self.probability == 0 or rng.random() >= self.probability:
            return image
        gamma, brightness = rng.uniform(*self.gamma), rng.uniform(*self.brightness)
        values = (np.arange(256.0) / 255)[:, None] ** gamma * brightness * rng.uniform(*self.colour, 3)
        tables = np.rint(255 * values.clip(0, 1)).astype(np.uint8)
        return np.asarray(cv2.LUT(image, tables[None]))


def brighten(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """All values times a factor."""
    return _looked_up(image, factor * np.arange(256.0))


def contrast(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """Distances from the image's mean grey value times a factor."""
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return _looked_up(image, mean + factor * (np.arange(256.0) - mean))


def saturate(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """Distances from each pixel's own grey value times a factor."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(grey if factor == 0 else cv2.addWeighted(image, factor, grey, 1 - factor, 0))


def turn_hue(image: UInt8[np.ndarray, "H W 3"], turns: float) -> UInt8[np.ndarray, "H W 3"]:
    """Hues moved around the colour circle, in steps of 1/256 turn; saturation and value stay."""
    steps = round(turns * _HUE_STEPS)
    if steps == 0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[:, :, 0] += np.uint8(steps % _HUE_STEPS)  # wraps around
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))


def _looked_up(image: UInt8[np.ndarray, "H W 3"], values: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    return np.asarray(cv2.LUT(image, np.rint(np.clip(values, 0, 255)).astype(np.uint8)))
