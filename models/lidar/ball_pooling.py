"""What surrounds a place: the largest response of a small network among the points in balls around it.

Letters: N points, Q centres, B samples, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from models.lidar.layers import PointLayer
from models.lidar.neighbors import AXIS_BITS
from models.points.neighbors import ball_query


@dataclass(frozen=True)
class Scale:
    """One ball: radius in metres, neighbours at most, widths of the network on each."""

    radius_m: float
    neighbors: int
    widths: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PointSet:
    """Points (x, y, z in metres) of several samples, one sample after another, and how many each sample has."""

    points: Float[Tensor, "N 3"]
    features: Float[Tensor, "N C"]
    counts: Int64[Tensor, " B"]


class BallPooling(nn.Module):
    """The largest response among the neighbours of a place, in balls of several radii.

        out[q] = concatenation over the scales of max over neighbours n of q of h([x_n - x_q, f_n])

    or of h(f_n), without offsets; offsets in metres, or in radii of the ball (VoteNet). An empty ball gives zeros.

    Every neighbour counts once. Deviations: released networks fill a ball of fewer than k points up with copies of its
    first, which change no maximum, but which BatchNorm counts and which cost most of the time where points are sparse;
    for an empty ball, PV-RCNN's runs the network on zeros.

    Source: PointNet++ (Qi et al., NeurIPS 2017), section 3.3 (multi-scale grouping).

    Attributes:
        num_features: output channels of all scales together.
    """

    def __init__(
        self,
        in_features: int,
        scales: Sequence[Scale],
        *,
        bn_momentum: float = 0.1,
        offsets: bool = True,
        offsets_in_radii: bool = False,
    ) -> None:
        super().__init__()
        self.scales, self.offsets, self.offsets_in_radii = tuple(scales), offsets, offsets_in_radii
        self.networks = nn.ModuleList(
            point_layers((in_features + 3 * offsets, *scale.widths), bn_momentum=bn_momentum) for scale in scales
        )
        self.num_features = sum(scale.widths[-1] for scale in scales)

    def around(self, centres: Float[Tensor, "Q 3"], counts: Int64[Tensor, " B"], x: PointSet) -> Float[Tensor, "Q C"]:
        """Features of the centres, of which each sample has `counts`, from the points of their own sample."""
        pooled = []
        for scale, network in zip(self.scales, self.networks, strict=True):
            near = ball_query(centres, counts, x.points, x.counts, scale.neighbors, radius=scale.radius_m)
            centre, slot = (near.index >= 0).nonzero(as_tuple=True)
            point = near.index[centre, slot]
            around = x.features[point]
            if self.offsets:
                offsets = x.points[point] - centres[centre]
                if self.offsets_in_radii:
                    offsets = offsets / scale.radius_m
                around = torch.cat([offsets, around.to(offsets.dtype)], dim=1)
            values: Tensor = network(around)
            # Values are not below 0 after ReLU, so 0 is where maxima can start from.
            largest = values.new_zeros(len(centres), values.shape[1])
            pooled.append(largest.scatter_reduce(0, centre[:, None].expand_as(values), values, "amax"))
        return torch.cat(pooled, dim=1)


def point_layers(widths: Sequence[int], *, bn_momentum: float = 0.1) -> nn.Sequential:
    """Layers on each point alone, from each width to the next."""
    return nn.Sequential(*(PointLayer(a, b, bn_momentum=bn_momentum) for a, b in itertools.pairwise(widths)))


def scattered(keys: Int64[Tensor, " M"]) -> Int64[Tensor, " M"]:
    """Rows, sample by sample, in an order that depends on the cells alone and has nothing to do with their places.

    The first neighbours in a ball are then a fair choice of it. The multiplication spreads neighbouring cells over the
    whole range of integers (Fibonacci hashing). `keys` are packed cells (`models.lidar.neighbors.pack`).
    """
    cells = keys & ((1 << 3 * AXIS_BITS) - 1)
    spread = cells * -7046029254386353131  # 2^64 / golden ratio, as a signed number; overflow is meant
    spread = (spread ^ (spread >> 32)) * -7046029254386353131
    order = torch.argsort(spread, stable=True)
    return order[torch.argsort(keys[order] >> 3 * AXIS_BITS, stable=True)]
