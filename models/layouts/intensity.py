"""The scale of intensities, put into the weights that see them: exact, and nothing else changes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from torch import nn

from models.layouts.back_in import first_kernel
from models.layouts.base import AnyTensor, Fed
from models.lidar.pillars import Pillars
from models.lidar.pointnet2 import PointNet2

_INTENSITY = 3
"""Column of intensity behind x, y, z: of a point, and of a neighbour with its offset."""


def with_intensity_times(
    state: Mapping[str, AnyTensor], network: nn.Module, fed: Fed, factor: float
) -> dict[str, AnyTensor]:
    """A state dict that gives for intensities i what the given one gives for `factor` times i.

    Args:
        state: of `network`, by our names; perhaps not whole.
        network: a 3D network; its values are not read.
        fed: what it is fed.
        factor: of the intensities.

    Raises:
        ValueError: it is not known which weights see the intensity.
    """
    kernel = first_kernel(network)
    if kernel is not None:
        fold = {kernel: lambda weight: fed.points.fold(weight, factor)}
    elif isinstance(network, Pillars):
        fold = _folds({"pillar_encoder.layers.0.linear.weight": _INTENSITY}, factor)
    elif isinstance(network, PointNet2):
        fold = _folds(_columns(network, num_features=fed.voxels.num_features - 3), factor)
    else:
        kind = type(network).__name__
        raise ValueError(f"--intensity-scale: of a {kind} it is not known which weights see intensity")
    shapes = {name: weight.shape for name, weight in network.state_dict().items() if name in fold}
    # Those of another shape are not this network's, and stay for a report that says so.
    return {key: fold[key](value) if value.shape == shapes.get(key) else value for key, value in state.items()}


def _columns(network: PointNet2, num_features: int) -> dict[str, int]:
    """Name -> column of intensity, of the layers that see the points' own features."""
    finest_up = f"propagation.{len(network.propagation) - 1}.layers.0.linear.weight"
    found = {finest_up: -num_features}  # [interpolated, the points' own features]
    for name, _ in network.named_parameters():
        if name.startswith("abstraction.0.networks.") and name.endswith(".0.linear.weight"):
            found[name] = _INTENSITY
    return found


def _folds(columns: Mapping[str, int], factor: float) -> dict[str, Callable[[AnyTensor], AnyTensor]]:
    return {name: functools.partial(_times, column=column, factor=factor) for name, column in columns.items()}


def _times(weight: AnyTensor, column: int, factor: float) -> AnyTensor:
    changed = weight.clone()
    changed[:, column] *= factor
    return changed
