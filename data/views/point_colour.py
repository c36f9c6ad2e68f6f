"""Augmentation of the colours of points, as networks of indoor scenes are trained with.

Source: Choy et al., "4D spatio-temporal ConvNets" (CVPR 2019), released code, for which changes there are; Hou et al.,
"Exploring data-efficient 3D scene understanding with contrastive scene contexts" (CVPR 2021) for their sizes: ScanNet
translation 0.1, jitter 0.05, hue 0.5, saturation 0.2; S3DIS translation 0.05, jitter 0.005, hue and saturation alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from common.ranges import between

_FULL = 255.0
_CIRCLE_DEG = 360.0
"""Of hue, in OpenCV's float HSV."""


@dataclass(frozen=True, kw_only=True)
class PointColourConfig:
    """How colours of points are changed, in this order; 0 leaves each as it is.

    Attributes:
        translation: each channel of a cloud is moved by up to this share of its full range, either way.
        jitter: standard deviation of Gaussian noise on each channel of each point, as a share of the full range.
        hue: hues of a cloud are turned by up to this share of the colour circle, either way.
        saturation: saturations of a cloud are multiplied by 1 - saturation to 1 + saturation.
    """

    translation: float = 0.0
    jitter: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        between(self, "a share", translation=(0, 1), jitter=(0, 1), saturation=(0, 1))
        between(self, "a share of the circle", hue=(0, 0.5))


def draw_point_colours(
    rng: np.random.Generator, colors: UInt8[np.ndarray, "N 3"], config: PointColourConfig
) -> UInt8[np.ndarray, "N 3"]:
    """The colours (red, green, blue), changed."""
    if config == PointColourConfig() or len(colors) == 0:
        return colors
    values = colors.astype(np.float32)
    if config.translation:
        moved = rng.uniform(-config.translation, config.translation, 3) * _FULL
        values = (values + moved.astype(np.float32)).clip(0, _FULL)
    if config.jitter:
        noise = rng.normal(0.0, config.jitter * _FULL, values.shape)
        values = (values + noise.astype(np.float32)).clip(0, _FULL)
    if config.hue or config.saturation:
        turn = rng.uniform(-config.hue, config.hue) * _CIRCLE_DEG
        factor = rng.uniform(1 - config.saturation, 1 + config.saturation)
        hsv = cv2.cvtColor((values / _FULL)[None], cv2.COLOR_RGB2HSV)[0]
        hsv[:, 0] = (hsv[:, 0] + turn) % _CIRCLE_DEG
        hsv[:, 1] = (hsv[:, 1] * factor).clip(0, 1)
        values = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] * _FULL
    return np.rint(values).clip(0, _FULL).astype(np.uint8)
