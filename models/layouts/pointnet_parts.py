"""PointNet++ as OpenPCDet's PointNet2MSG has it: places and a reader.

Its layers on points are 1 x 1 convolutions, three modules a layer (convolution, BatchNorm, ReLU), and its list of
feature propagations begins with the finest level. Sampling, balls and interpolation have no weights: the reader takes
Tandem's, and so the same order of points, which decides who is in a full ball.

Letters: B samples, M points, F features of a point, N points of a level, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.layouts.base import Place, norm_places
from models.layouts.spconv_reader import State, batch_norm
from models.lidar.ball_pooling import PointSet, scattered
from models.lidar.neighbors import pack
from models.lidar.pointnet2 import PointNet2, SetAbstraction, sample_centres
from models.points.neighbors import ball_query, interpolate

EPS = 1e-5
"""Of BatchNorm there."""
_DOWN, _UP = "backbone_3d.SA_modules", "backbone_3d.FP_modules"


def pointnet_places(network: PointNet2) -> dict[str, Place]:
    """Places of all tensors.

    Raises:
        ValueError: the network has parts that theirs lacks.
    """
    plain = all(
        layer.joined is None and layer.offsets and all(kind == "D-FPS" for kind, _ in layer.samplers)
        for layer in _down(network)
    )
    if not plain or len(network.propagation) != len(network.abstraction):
        raise ValueError(
            "OpenPCDet's PointNet2MSG samples by distance alone, has offsets, no layer on the joined scales, and as "
            "many levels up as down; of Tandem's presets only pointrcnn is such a network"
        )
    found: dict[str, Place] = {}
    for level, layer in enumerate(_down(network)):
        for scale, chain in enumerate(layer.networks):
            found |= _chain(chain, f"abstraction.{level}.networks.{scale}", f"{_DOWN}.{level}.mlps.{scale}")
    for number, layer_up in enumerate(network.propagation):
        chain = layer_up.get_submodule("layers")
        found |= _chain(chain, f"propagation.{number}.layers", f"{_UP}.{len(network.propagation) - 1 - number}.mlp")
    return found


def read_pointnet(
    state: State, network: PointNet2, inputs: tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int]
) -> Float[Tensor, "M C"]:
    """Features of each point: of the network radii, neighbours and numbers of centres are read."""
    coords, points, num_samples = inputs
    order = scattered(pack(coords))
    counts = torch.bincount(coords[:, 0].long(), minlength=num_samples)
    levels = [PointSet(points[order, :3], points[order, 3:], counts)]
    for level, layer in enumerate(_down(network)):
        fine = levels[-1]
        chosen, counts = sample_centres(fine, layer.samplers)
        centres, pooled = fine.points[chosen], []
        for number, scale in enumerate(layer.scales):
            near = ball_query(centres, counts, fine.points, fine.counts, scale.neighbors, radius=scale.radius_m).index
            # A ball with fewer points is filled with its first, as there: a maximum takes no notice.
            near = near.where(near >= 0, near[:, :1])
            offsets = fine.points[near] - centres[:, None]
            around = torch.cat([offsets, fine.features[near]], dim=2).permute(2, 0, 1)[None]
            pooled.append(_run(state, f"{_DOWN}.{level}.mlps.{number}", around)[0].amax(dim=2).T)
        levels.append(PointSet(centres, torch.cat(pooled, dim=1), counts))
    known = levels.pop()
    for level in range(len(levels) - 1, -1, -1):
        unknown = levels[level]
        spread = interpolate(known.features, known.points, known.counts, unknown.points, unknown.counts)
        joined = torch.cat([spread, unknown.features], dim=1).T[None, :, :, None]
        known = PointSet(unknown.points, _run(state, f"{_UP}.{level}.mlp", joined)[0, :, :, 0].T, unknown.counts)
    out = torch.empty_like(known.features)
    out[order] = known.features
    return out


def _down(network: PointNet2) -> list[SetAbstraction]:
    return [layer for layer in network.abstraction if isinstance(layer, SetAbstraction)]


def _chain(chain: nn.Module, ours: str, theirs: str) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for number, _ in enumerate(chain.children()):
        found[f"{ours}.{number}.linear.weight"] = Place(
            key=f"{theirs}.{3 * number}.weight",
            out=lambda weight: weight[:, :, None, None].contiguous(),
            back=lambda weight: weight[:, :, 0, 0].contiguous(),
        )
        found |= norm_places(f"{ours}.{number}.norm", f"{theirs}.{3 * number + 1}")
    return found


def _run(state: State, name: str, features: Float[Tensor, "1 C_in N k"]) -> Float[Tensor, "1 C_out N k"]:
    number = 0
    while f"{name}.{number}.weight" in state:
        features = F.conv2d(features, state[f"{name}.{number}.weight"])
        features = F.relu(batch_norm(features, state, f"{name}.{number + 1}", eps=EPS))
        number += 3
    return features
