"""Who is near: k nearest neighbours, ball query, interpolation from the three nearest points, sample by sample.

On CPU scipy's k-d tree does the search (with as many threads as torch may use), on other devices, and for rows of more
than 16 columns where a tree prunes nothing, torch compares all pairs in chunks. Both compare exact differences, not
expanded squares, so that close points far from the origin keep their order. Among equally far points either may come
first. Searches have no gradient; interpolation has one for features. Figures: `python -m benchmarks.points`.

Letters: B samples, Q queries of all samples, N points of all samples, D columns, C channels, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from models.lidar.native.library import threads
from models.points.ragged import bounds

if TYPE_CHECKING:  # scipy takes a third of a second, and few networks search
    from scipy.spatial import cKDTree

MAX_TREE_DIMS = 16
CHUNK_PAIRS = 1 << 24
"""Pairs compared at once without a tree: 64 MiB of distances."""
CHUNK_QUERIES = 1024
"""Queries whose balls are listed at once with a tree: a ball may hold thousands of points."""
EPSILON_M2 = 1e-8


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """Neighbours of each query."""

    index: Int64[Tensor, "Q k"]  # rows of `points`, -1 where there are fewer than k
    distance: Float[Tensor, "Q k"]  # Euclidean, infinite where there is none


def knn(
    queries: Float[Tensor, "Q D"],
    query_counts: Int[Tensor, " B"],
    points: Float[Tensor, "N D"],
    point_counts: Int[Tensor, " B"],
    k: int,
) -> Neighbors:
    """The k nearest points of the query's own sample, nearest first; a query that is a point finds itself.

    Raises:
        ValueError: k is not positive, counts do not fit, or a coordinate is not finite.
    """
    return _search(queries, query_counts, points, point_counts, k, _tree_knn, _brute_knn)


def ball_query(
    queries: Float[Tensor, "Q D"],
    query_counts: Int[Tensor, " B"],
    points: Float[Tensor, "N D"],
    point_counts: Int[Tensor, " B"],
    k: int,
    *,
    radius: float,
    choose: Literal["first", "nearest"] = "first",
) -> Neighbors:
    """Up to k points closer than `radius` to each query.

    Source: PointNet++ (Qi et al., NeurIPS 2017), section 3.2, which asks for up to k points of the ball. Its released
    kernels take the first k in memory order: choose "first". The k "nearest" do not depend on the order of the points,
    but where points are dense they fill only the middle of the ball.

    `queries` are the centres of the balls, `radius` has the unit of the coordinates. Of a fuller ball "first" takes the
    first k by row (in row order), "nearest" the nearest (nearest first).

    Raises:
        ValueError: k or radius is not positive, counts do not fit, or a coordinate is not finite.
    """
    if not radius > 0:
        raise ValueError(f"radius = {radius}: expected more than 0")
    if choose == "first":
        tree, brute = partial(_tree_first, radius=radius), partial(_brute_first, radius=radius)
        return _search(queries, query_counts, points, point_counts, k, tree, brute)
    tree = partial(_tree_knn, radius=radius)
    near = _search(queries, query_counts, points, point_counts, k, tree, _brute_knn)
    inside = near.distance < radius
    return Neighbors(index=near.index.where(inside, -1), distance=near.distance.where(inside, torch.inf))


def interpolate(
    features: Float[Tensor, "N C"],
    points: Float[Tensor, "N 3"],
    point_counts: Int[Tensor, " B"],
    queries: Float[Tensor, "Q 3"],
    query_counts: Int[Tensor, " B"],
    *,
    k: int = 3,
) -> Float[Tensor, "Q C"]:
    """Features at the queries: mean over the k nearest points, weighted by inverse squared distance.

    A sample with fewer points uses those that it has; without any, its queries get zeros. Gradient goes to the
    features, not to coordinates. Sums run in float32 or better.

    Source: PointNet++ (Qi et al., NeurIPS 2017), equation 2 with p = 2, k = 3.

    Raises:
        ValueError: as `knn`.
    """
    near = knn(queries, query_counts, points, point_counts, k)
    is_point = near.index >= 0
    dtype = torch.promote_types(features.dtype, torch.float32)
    weights = torch.where(is_point, 1 / (near.distance.to(dtype).square() + EPSILON_M2), 0)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
    if points.shape[0] == 0:
        return features.new_zeros(queries.shape[0], features.shape[1]) + features.sum()  # 0, but part of the graph
    # Weighted sums row by row, without a tensor of Q x k x C (200 MB for a sweep and 256 channels).
    mixed = F.embedding_bag(near.index.clamp(min=0), features.to(dtype), mode="sum", per_sample_weights=weights)
    return mixed.to(features.dtype)


_Found = tuple[Int64[Tensor, "q k"], Float[Tensor, "q k"]]
_SampleSearch = Callable[[Tensor, Tensor, int], _Found]


def _search(
    queries: Float[Tensor, "Q D"],
    query_counts: Int[Tensor, " B"],
    points: Float[Tensor, "N D"],
    point_counts: Int[Tensor, " B"],
    k: int,
    tree: _SampleSearch,
    brute: _SampleSearch,
) -> Neighbors:
    """Each sample with the search that suits device and dimension; rows counted within all samples again."""
    if k < 1:
        raise ValueError(f"k = {k} neighbours: expected 1 or more")
    for name, rows in (("query", queries), ("point", points)):
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"a {name} has a coordinate that is not finite: it has no neighbours; drop it")
    search = tree if queries.device.type == "cpu" and queries.shape[1] <= MAX_TREE_DIMS else brute
    index = torch.full((queries.shape[0], k), -1, dtype=torch.int64, device=queries.device)
    distance = torch.full((queries.shape[0], k), torch.inf, dtype=queries.dtype, device=queries.device)
    query_spans = bounds(query_counts, queries.shape[0], "queries")
    for (q0, q1), (p0, p1) in zip(query_spans, bounds(point_counts, points.shape[0]), strict=True):
        if q1 == q0 or p1 == p0:
            continue
        width = min(k, p1 - p0)
        found, far = search(queries[q0:q1].detach(), points[p0:p1].detach(), width)
        index[q0:q1, :width] = torch.where(found < 0, -1, found + p0)
        distance[q0:q1, :width] = far.to(distance.dtype)
    return Neighbors(index=index, distance=distance)


def _tree(points: Tensor) -> cKDTree:
    from scipy.spatial import cKDTree

    # Splitting at the middle instead of the median: half the time to build, searches are as fast on sweeps.
    return cKDTree(points.double().numpy(), balanced_tree=False, compact_nodes=False)


def _tree_knn(queries: Tensor, points: Tensor, k: int, radius: float = np.inf) -> _Found:
    distance, index = _tree(points).query(
        queries.double().numpy(), np.arange(1, k + 1), distance_upper_bound=radius, workers=threads()
    )
    rows = torch.from_numpy(np.asarray(index, np.int64))
    return rows.where(rows < points.shape[0], -1), torch.from_numpy(np.asarray(distance))


def _tree_first(queries: Tensor, points: Tensor, k: int, radius: float) -> _Found:
    tree = _tree(points)
    parts = [_first_of_chunk(tree, chunk, k, radius) for chunk in queries.split(CHUNK_QUERIES)]
    return torch.cat([index for index, _ in parts]), torch.cat([distance for _, distance in parts])


def _first_of_chunk(tree: cKDTree, queries: Tensor, k: int, radius: float) -> _Found:
    pairs = _tree(queries).sparse_distance_matrix(tree, radius, output_type="ndarray")
    pairs = pairs[pairs["v"] < radius]
    pairs = pairs[np.argsort(pairs["i"] * tree.n + pairs["j"])]
    query = np.asarray(pairs["i"], np.int64)
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    keep = rank < k
    index = np.full((len(queries), k), -1, np.int64)
    distance = np.full((len(queries), k), np.inf)
    index[query[keep], rank[keep]] = pairs["j"][keep]
    distance[query[keep], rank[keep]] = pairs["v"][keep]
    return torch.from_numpy(index), torch.from_numpy(distance)


def _brute_knn(queries: Tensor, points: Tensor, k: int) -> _Found:
    parts = [distance.topk(k, dim=1, largest=False) for distance in _distances(queries, points)]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def _brute_first(queries: Tensor, points: Tensor, k: int, radius: float) -> _Found:
    order = torch.arange(points.shape[0], device=points.device)
    indices, distances = [], []
    for distance in _distances(queries, points):
        rank = torch.where(distance < radius, order, points.shape[0])
        index = rank.topk(k, dim=1, largest=False).values
        outside = index == points.shape[0]
        indices.append(index.masked_fill(outside, -1))
        distances.append(distance.gather(1, index.masked_fill(outside, 0)).masked_fill(outside, torch.inf))
    return torch.cat(indices), torch.cat(distances)


def _distances(queries: Tensor, points: Tensor) -> list[Float32[Tensor, "q n"]] | map[Tensor]:
    """All distances of some queries after the other, so that no more than a chunk exists at a time."""
    rows = max(1, CHUNK_PAIRS // points.shape[0])
    return map(
        lambda chunk: torch.cdist(chunk, points, compute_mode="donot_use_mm_for_euclid_dist"), queries.split(rows)
    )
