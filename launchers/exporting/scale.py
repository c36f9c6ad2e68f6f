"""Networks for code that feeds another range of intensities: the factor goes into the first layers, exactly."""

from __future__ import annotations

import copy

import torch
from torch import nn

from models.detection.bird_eye import BirdEyeDetector
from models.layouts.back_in import first_kernel
from models.layouts.base import Fed
from models.lidar.pillars import Pillars
from models.lidar.pointnet2 import PointNet2

_INTENSITY = 3
"""Column of intensity behind x, y, z: of a point, and of a neighbour with its offset."""


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
    kernel = first_kernel(inner)
    with torch.no_grad():
        if kernel is not None:
            weight = inner.get_parameter(kernel)
            weight.copy_(fed.points.fold(weight, 1 / scale))
        elif isinstance(inner, Pillars):
            inner.get_parameter("pillar_encoder.layers.0.linear.weight")[:, _INTENSITY] /= scale
        elif isinstance(inner, PointNet2):
            _scale_points(inner, scale, num_features=fed.voxels.num_features - 3)
        else:
            raise ValueError(
                f"--intensity-scale {scale:g}: of a {type(inner).__name__} it is not known which weights see intensity"
            )
    return copied, Fed(points=fed.points.scaled(scale), voxels=fed.voxels)


def _scale_points(network: PointNet2, scale: float, num_features: int) -> None:
    for name, weight in network.named_parameters():
        finest_up = f"propagation.{len(network.propagation) - 1}.layers.0.linear.weight"
        if name.startswith("abstraction.0.networks.") and name.endswith(".0.linear.weight"):
            weight[:, _INTENSITY] /= scale
        elif name == finest_up:  # [interpolated, the points' own features]
            weight[:, -num_features] /= scale
