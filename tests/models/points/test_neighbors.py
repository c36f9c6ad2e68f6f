"""Neighbour searches against loops, the tree against all pairs, interpolation and its gradient."""

from collections.abc import Callable

import pytest
import torch

from models.points import neighbors
from models.points.neighbors import Neighbors, ball_query, interpolate, knn
from models.points.sampling import farthest_points
from tests.reference.points import interpolate_loop, neighbors_loop

QUERY_COUNTS = torch.tensor([40, 5, 0, 30])
POINT_COUNTS = torch.tensor([200, 3, 10, 100])


@pytest.fixture(params=["tree", "all pairs"])
def back_end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "all pairs":
        monkeypatch.setattr(neighbors, "MAX_TREE_DIMS", 0)
        monkeypatch.setattr(neighbors, "CHUNK_PAIRS", 1000)
    monkeypatch.setattr(neighbors, "CHUNK_QUERIES", 7)
    return str(request.param)


def clouds(dims: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(dims)
    queries = torch.randn(int(QUERY_COUNTS.sum()), dims, generator=generator)
    points = torch.randn(int(POINT_COUNTS.sum()), dims, generator=generator)
    points[:20] = queries[:20]  # some queries are points
    return queries, points


def check(near: Neighbors, dims: int, k: int, wanted: Callable[[list[tuple[float, int]]], list[tuple[float, int]]]):
    queries, points = clouds(dims)
    q0 = p0 = 0
    for num_queries, num_points in zip(QUERY_COUNTS.tolist(), POINT_COUNTS.tolist(), strict=True):
        for q in range(q0, q0 + num_queries):
            pairs = wanted(neighbors_loop(queries[q].numpy(), points[p0 : p0 + num_points].numpy()))[:k]
            missing = k - len(pairs)
            assert near.index[q].tolist() == [p0 + i for _, i in pairs] + [-1] * missing
            torch.testing.assert_close(near.distance[q], torch.tensor([d for d, _ in pairs] + [torch.inf] * missing))
        q0, p0 = q0 + num_queries, p0 + num_points


@pytest.mark.parametrize("dims", [2, 3, 20])
def test_knn_equals_loop(back_end: str, dims: int):
    queries, points = clouds(dims)
    check(knn(queries, QUERY_COUNTS, points, POINT_COUNTS, 4), dims, 4, lambda pairs: pairs)


@pytest.mark.parametrize("radius", [0.05, 0.8])
def test_ball_query_equals_loop(back_end: str, radius: float):
    queries, points = clouds()
    near = ball_query(queries, QUERY_COUNTS, points, POINT_COUNTS, 6, radius=radius, choose="nearest")
    check(near, 3, 6, lambda pairs: [p for p in pairs if p[0] < radius])
    first = ball_query(queries, QUERY_COUNTS, points, POINT_COUNTS, 6, radius=radius, choose="first")
    check(first, 3, 6, lambda pairs: sorted((p for p in pairs if p[0] < radius), key=lambda p: p[1]))


def test_close_points_far_from_the_origin_keep_their_order(back_end: str):
    # Squares of 100 m have steps of about a millimetre squared times eight in float32: expanded squares would mix them.
    points = torch.tensor([[100.0, 50.0, 0.0]]) + torch.arange(5)[:, None] * torch.tensor([[1e-3, 0.0, 0.0]])
    near = knn(points[:1], torch.tensor([1]), points, torch.tensor([5]), 5)
    assert near.index.tolist() == [[0, 1, 2, 3, 4]]


def test_copies(back_end: str):
    points, counts = torch.ones(6, 3), torch.tensor([6])
    near = knn(points, counts, points, counts, 3)
    assert (near.distance == 0).all()
    assert all(len(set(row)) == 3 for row in near.index.tolist())
    assert ball_query(points, counts, points, counts, 3, radius=0.1).index.tolist() == [[0, 1, 2]] * 6


def test_nothing_there():
    none, one = torch.zeros(0, 3), torch.zeros(1, 3)
    near = knn(one, torch.tensor([1]), none, torch.tensor([0]), 2)
    assert near.index.tolist() == [[-1, -1]]
    assert near.distance.isinf().all()
    assert knn(none, torch.tensor([0]), one, torch.tensor([1]), 2).index.shape == (0, 2)
    assert interpolate(torch.zeros(0, 5), none, torch.tensor([0]), one, torch.tensor([1])).tolist() == [[0.0] * 5]


def test_refused_input():
    queries, points = clouds()
    with pytest.raises(ValueError, match="k = 0"):
        knn(queries, QUERY_COUNTS, points, POINT_COUNTS, 0)
    with pytest.raises(ValueError, match="radius = 0"):
        ball_query(queries, QUERY_COUNTS, points, POINT_COUNTS, 2, radius=0.0)
    with pytest.raises(ValueError, match="there are 75 queries"):
        knn(queries, QUERY_COUNTS + 1, points, POINT_COUNTS, 2)
    points[9, 2] = torch.inf
    with pytest.raises(ValueError, match="a point has a coordinate that is not finite"):
        knn(queries, QUERY_COUNTS, points, POINT_COUNTS, 2)


@pytest.mark.parametrize("k", [3, 5])
def test_interpolation_equals_loop(back_end: str, k: int):
    queries, points = clouds()
    features = torch.randn(len(points), 4, generator=torch.Generator().manual_seed(0))
    got = interpolate(features, points, POINT_COUNTS, queries, QUERY_COUNTS, k=k)
    q0 = p0 = 0
    for num_queries, num_points in zip(QUERY_COUNTS.tolist(), POINT_COUNTS.tolist(), strict=True):
        own = slice(p0, p0 + num_points)
        for q in range(q0, q0 + num_queries):
            wanted = interpolate_loop(queries[q].numpy(), points[own].numpy(), features[own].numpy(), k)
            torch.testing.assert_close(got[q], torch.from_numpy(wanted).float())
        q0, p0 = q0 + num_queries, p0 + num_points
    torch.testing.assert_close(got[:20], features[:20])  # at a point: its own feature


def test_interpolation_of_a_constant_is_that_constant_also_in_bfloat16():
    queries, points = clouds()
    features = torch.full((len(points), 2), 3.0, dtype=torch.bfloat16)
    got = interpolate(features, points, POINT_COUNTS, queries, QUERY_COUNTS)
    assert got.dtype == torch.bfloat16
    assert (got == 3).all()


def test_interpolation_gradient():
    queries, points = (x.double() for x in clouds())
    features = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([10, 2])  # the second sample has fewer than 3 points
    assert torch.autograd.gradcheck(
        lambda x: interpolate(x, points[:12], counts, queries[:8], torch.tensor([5, 3])), (features,)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    queries, points = clouds()
    on_gpu = [x.cuda() for x in (queries, QUERY_COUNTS, points, POINT_COUNTS)]
    assert torch.equal(knn(*on_gpu, 4).index.cpu(), knn(queries, QUERY_COUNTS, points, POINT_COUNTS, 4).index)
    index, _ = farthest_points(on_gpu[2], on_gpu[3], 20)
    assert torch.equal(index.cpu(), farthest_points(points, POINT_COUNTS, 20)[0])
    near = ball_query(*on_gpu, 6, radius=0.8)
    assert torch.equal(near.index.cpu(), ball_query(queries, QUERY_COUNTS, points, POINT_COUNTS, 6, radius=0.8).index)
