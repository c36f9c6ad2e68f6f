"""Contrastive units: a few places of a sweep, each with the points that speak for it.

A unit is a weighted set of points, so that its feature in any view or modality is the same weighted mean of whatever
features the points have there. Making units has no gradient; taking means has one.

Letters: B samples, N points of all samples, U units of all samples, E members (pairs of a unit and a point), R rows,
C channels, T units of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from models.heads import unit
from models.pairing import first_of_each, full_precision
from models.points.neighbors import knn
from models.points.ragged import sample_counts
from models.points.sampling import farthest_points, random_points

Sampling = Literal["fps", "random"]
Context = Literal["knn", "pillar", "none"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """Units of a batch."""

    center: Int64[Tensor, " U"]  # a point of each unit: the sampled one, of merged units the first
    member_point: Int64[Tensor, " E"]  # point of each member
    member_unit: Int64[Tensor, " E"]  # unit of each member
    weight: Float[Tensor, " E"]  # of each member; those of a unit add up to 1

    def __len__(self) -> int:
        """U."""
        return int(self.center.shape[0])

    def mean(self, features: Float[Tensor, "R C"], row: Int[Tensor, " N"]) -> Float[Tensor, "U C"]:
        """Weighted mean of the members' features, in float32 (float64 for float64 input).

        `features` has a row a voxel, point, ...; `row` is that of each point, anything for points that are no members.
        """
        rows = full_precision(features[row[self.member_point]])
        weighted = rows * self.weight.to(rows.dtype)[:, None]
        return rows.new_zeros(len(self), rows.shape[1]).index_add(0, self.member_unit, weighted)

    def merged(self, cluster: Int[Tensor, " N"]) -> Units:
        """Units whose centres lie in the same cluster become one, their mean; those in none (negative) stay."""
        cluster_of_unit = cluster[self.center].long()
        alone = torch.arange(len(self), device=cluster_of_unit.device) + int(cluster.max() + 1 if len(cluster) else 0)
        _, group, size = torch.unique(
            torch.where(cluster_of_unit < 0, alone, cluster_of_unit), return_inverse=True, return_counts=True
        )
        return Units(
            center=self.center[first_of_each(group, len(size))],
            member_point=self.member_point,
            member_unit=group[self.member_unit],
            weight=self.weight / size[group[self.member_unit]],
        )


@torch.no_grad()
def make_units(
    points: Float[Tensor, "N 3"],
    point_sample: Int[Tensor, " N"],
    num_samples: int,
    candidates: Bool[Tensor, " N"],
    *,
    num_units: int,
    sampling: Sampling,
    context: Context,
    num_neighbors: int,
    pillar_m: float,
) -> Units:
    """Sample units and gather the points around each; only candidates are looked at.

        "knn": a unit is the mean of the k candidates nearest to the sampled point, itself included
        "pillar": that of all candidates in its cell of a grid seen from above; two sampled points of a cell make one
        "none": the sampled point alone

    Random sampling takes torch's default generator, whose state is in checkpoints.

    Points are in metres, one sample after another. `num_units` are sampled in each sample (all candidates where there
    are fewer): by "fps", farthest point sampling seen from above, or at "random". `num_neighbors` is k, where there are
    fewer candidates all of them; `pillar_m` is the edge of a cell.
    """
    rows = torch.nonzero(candidates).flatten()
    counts = sample_counts(point_sample[rows], num_samples)
    if sampling == "fps":
        place, units_per_sample = farthest_points(points[rows, :2], counts, num_units)
    else:
        place, units_per_sample = random_points(counts, num_units)
    center = rows[place]
    if context == "none":
        return _evenly(center, center, torch.arange(len(center), device=center.device), points.dtype)
    if context == "knn":
        near = knn(points[center], units_per_sample, points[rows], counts, num_neighbors).index
        member_unit, column = torch.nonzero(near >= 0, as_tuple=True)
        return _evenly(center, rows[near[member_unit, column]], member_unit, points.dtype)
    return _pillars(points, point_sample, rows, place, pillar_m)


def _pillars(
    points: Float[Tensor, "N 3"],
    point_sample: Int[Tensor, " N"],
    rows: Int64[Tensor, " n"],
    place: Int64[Tensor, " sampled"],
    pillar_m: float,
) -> Units:
    xy = torch.floor(points[rows, :2] / pillar_m).long()
    cells = torch.cat([point_sample[rows, None].long(), xy], dim=1)
    kinds, pillar = torch.unique(cells, dim=0, return_inverse=True)
    used, unit_of_place = torch.unique(pillar[place], return_inverse=True)
    unit_of_pillar = pillar.new_full((len(kinds),), -1)
    unit_of_pillar[used] = torch.arange(len(used), device=used.device)
    member = torch.nonzero(unit_of_pillar[pillar] >= 0).flatten()
    center = rows[place][first_of_each(unit_of_place, len(used))]
    return _evenly(center, rows[member], unit_of_pillar[pillar[member]], points.dtype)


def _evenly(
    center: Int64[Tensor, " U"], member_point: Int64[Tensor, " E"], member_unit: Int64[Tensor, " E"], dtype: torch.dtype
) -> Units:
    weight = 1 / torch.bincount(member_unit, minlength=len(center)).to(dtype)
    return Units(center=center, member_point=member_point, member_unit=member_unit, weight=weight[member_unit])


@torch.no_grad()
def too_similar(
    features: Float[Tensor, "U C"], all_features: Float[Tensor, "T C"], start: int, num_negatives: int
) -> Bool[Tensor, "U T"]:
    """Which of the others are no negatives of a unit: all but the `num_negatives` of least cosine similarity.

    In float32 or better. Among equally similar ones any may be kept.

    `all_features` are those of all ranks' units, this rank's from row `start` on. Where a unit has fewer others than
    `num_negatives`, all are kept.
    """
    with torch.autocast(features.device.type, enabled=False):
        similarity = unit(features) @ unit(all_features).T
    unit_row = torch.arange(len(features), device=features.device)
    similarity[unit_row, unit_row + start] = torch.inf  # the positive comes last
    negatives = similarity.topk(min(num_negatives, max(len(all_features) - 1, 0)), dim=1, largest=False).indices
    excluded = torch.ones_like(similarity, dtype=torch.bool).scatter(1, negatives, False)
    excluded[unit_row, unit_row + start] = False
    return excluded
