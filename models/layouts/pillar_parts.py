"""Pillars as OpenPCDet's and mmdetection3d's dynamic pillar encoders have them: places and a reader.

Both give a point one number more than Tandem does, the offset of its z to the middle of the range. It is z less a
constant, so its column is 0 in a file from here; of a file from there it is added to the column of z, and the constant
to the mean of BatchNorm.

The encoders that fill each pillar up to a fixed number of points (PillarVFE, PillarFeatureNet) are other networks: the
maximum over a pillar runs over what the layer makes of the filling, too.

Letters: B samples, M points, F features of a point, C channels, K pillars, Y X cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from models.layouts.base import AnyTensor, Place, norm_places
from models.layouts.spconv_reader import State, batch_norm
from models.lidar.pillars import PillarEncoder, Pillars


@dataclass(frozen=True)
class PillarNames:
    """Where a project keeps the layers on points.

    Attributes:
        layers: name of the list of layers, with a dot behind it.
        linear: of a layer's linear part.
        norm: of its BatchNorm.
    """

    layers: str
    linear: str
    norm: str


def pillar_places(encoder: PillarEncoder, prefix: str, names: PillarNames) -> dict[str, Place]:
    """Places of the layers on points, whose tensors' names begin with `prefix`."""
    found: dict[str, Place] = {}
    for number in range(len(encoder.layers)):
        ours, theirs = f"{prefix}.layers.{number}", f"{names.layers}{number}"
        key = f"{theirs}.{names.linear}.weight"
        found[f"{ours}.linear.weight"] = Place(key=key, out=_with_z, back=_without_z) if number == 0 else Place(key=key)
        found |= norm_places(f"{ours}.norm", f"{theirs}.{names.norm}")
    return found


def without_z_offset(state: State, network: Pillars, names: PillarNames) -> dict[str, AnyTensor]:
    """A state dict of theirs that gives the same features with a column of 0 for the offset of z."""
    first = f"{names.layers}0"
    key, mean = f"{first}.{names.linear}.weight", f"{first}.{names.norm}.running_mean"
    if key not in state or mean not in state:
        return dict(state)
    weight = state[key].clone()
    last = weight[:, -1].clone()
    weight[:, 2] += last
    weight[:, -1] = 0
    return {**state, key: weight, mean: state[mean] + last * _middle_of_z(network)}


def read_pillars(
    state: State,
    network: Pillars,
    names: PillarNames,
    inputs: tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int],
    *,
    eps: float,
) -> Float[Tensor, "B C Y X"]:
    """The map that both projects make of points: of the network the range and the pillars' size are read."""
    coords, points, num_samples = inputs
    low, high = (points.new_tensor(limit) for limit in (network.config.range_min_m, network.config.range_max_m))
    size, (x_size, y_size) = network.config.pillar_size_m, network.config.num_pillars
    inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(dim=1)
    points, sample = points[inside], coords[inside, 0].long()
    cell = ((points[:, :2] - low[:2]) / size).floor().long()
    place = (sample * y_size + cell[:, 1]) * x_size + cell[:, 0]  # canvas: y * X + x
    pillar, of_point, count = torch.unique(place, return_inverse=True, return_counts=True)
    sums = points.new_zeros(len(pillar), 3).index_add(0, of_point, points[:, :3])
    middle = torch.cat([low[:2] + (cell + 0.5) * size, points.new_full((len(points), 1), _middle_of_z(network))], dim=1)
    features = torch.cat([points, points[:, :3] - (sums / count[:, None])[of_point], points[:, :3] - middle], dim=1)
    largest = features
    for number in range(len(network.pillar_encoder.layers)):
        theirs = f"{names.layers}{number}"
        features = F.linear(features, state[f"{theirs}.{names.linear}.weight"])
        features = F.relu(batch_norm(features, state, f"{theirs}.{names.norm}", eps=eps))
        index = of_point[:, None].expand_as(features)
        largest = features.new_zeros(len(pillar), features.shape[1]).scatter_reduce(0, index, features, "amax")
        features = torch.cat([features, largest[of_point]], dim=1)
    canvas = largest.new_zeros(num_samples * y_size * x_size, largest.shape[1])
    canvas[pillar] = largest
    return canvas.view(num_samples, y_size, x_size, -1).permute(0, 3, 1, 2)


def _middle_of_z(network: Pillars) -> float:
    return (network.config.range_min_m[2] + network.config.range_max_m[2]) / 2


def _with_z(weight: AnyTensor) -> AnyTensor:
    return torch.cat([weight, torch.zeros_like(weight[:, :1])], dim=1)


def _without_z(weight: AnyTensor) -> AnyTensor:
    return weight[:, :-1].contiguous()
