"""Networks for code that feeds another range of intensities: the factor goes into the first layers, exactly."""

from __future__ import annotations

import copy

from torch import nn

from models.detection.bird_eye import BirdEyeDetector
from models.layouts.base import Fed
from models.layouts.intensity import with_intensity_times


def scaled(network: nn.Module, fed: Fed, scale: float) -> tuple[nn.Module, Fed]:
    """A copy that gives the same features for intensities `scale` times as large, and what it is fed.

    Args:
        network: a 3D network, or a detector with one.
        fed: what it is fed.
        scale: 255 for code that feeds 0 to 255 where it is 0 to 1 here.

    Raises:
        ValueError: it is not known which weights see the intensity.
    """
    copied = copy.deepcopy(network)
    inner = copied.backbone if isinstance(copied, BirdEyeDetector) else copied
    inner.load_state_dict(with_intensity_times(inner.state_dict(), inner, fed, 1 / scale))
    return copied, Fed(points=fed.points.scaled(scale), voxels=fed.voxels)
