"""Sinkhorn's assignment: against loops, its shares, extreme scores, one and two processes."""

import pytest
import torch

from models.contrast.sinkhorn import sinkhorn
from tests.helpers.distributed import run_distributed
from tests.reference.point_contrast import sinkhorn_loop


def _scores(rows: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_equals_loops(iterations: int):
    scores = _scores(12)
    torch.testing.assert_close(
        sinkhorn(scores, epsilon=0.1, iterations=iterations), sinkhorn_loop(scores, 0.1, iterations)
    )


def test_rows_sum_to_one_and_prototypes_get_equal_shares():
    plan = sinkhorn(_scores(40), epsilon=0.2, iterations=200)
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(dim=0), torch.full((5,), 8.0, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_a_favourite_prototype_is_shared_out():
    """All rows like prototype 0 best; only a fifth of them can have it."""
    scores = _scores(50)
    scores[:, 0] += 3
    share = sinkhorn(scores, epsilon=0.05, iterations=50).sum(dim=0) / 50
    torch.testing.assert_close(share, torch.full((5,), 0.2, dtype=torch.float64), rtol=0.02, atol=0.0)


def test_order_of_rows_and_a_constant_do_not_matter():
    scores = _scores(12)
    plan = sinkhorn(scores, epsilon=0.05, iterations=3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sinkhorn(scores[order], epsilon=0.05, iterations=3), plan[order])
    torch.testing.assert_close(sinkhorn(scores + 1e3, epsilon=0.05, iterations=3), plan, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_and_hard_assignment(rows: int):
    plan = sinkhorn(_scores(rows).float(), epsilon=1e-4, iterations=3)
    assert plan.shape == (rows, 5)
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(rows))
    if rows == 1:
        torch.testing.assert_close(plan, torch.full((1, 5), 0.2))


def test_identical_rows_are_shared_alike():
    plan = sinkhorn(_scores(1).repeat(6, 1), epsilon=0.03, iterations=3)
    torch.testing.assert_close(plan, torch.full((6, 5), 0.2, dtype=torch.float64))


def test_refused():
    for settings in ({"epsilon": 0.0, "iterations": 3}, {"epsilon": 0.1, "iterations": 0}):
        with pytest.raises(ValueError, match="sinkhorn"):
            sinkhorn(_scores(3), **settings)


def _rank_plan(rank: int, world_size: int, shares: list[tuple[int, int]]) -> torch.Tensor:
    first, last = shares[rank]
    return sinkhorn(_scores(12)[first:last], epsilon=0.05, iterations=3, gather=True)


@pytest.mark.slow
@pytest.mark.parametrize("shares", [[(0, 5), (5, 12)], [(0, 12), (12, 12)], [(0, 0), (0, 0)]], ids=str)
def test_two_processes_equal_one(shares: list[tuple[int, int]]):
    parts = run_distributed(_rank_plan, 2, shares)
    rows = shares[-1][1]
    torch.testing.assert_close(torch.cat(parts), sinkhorn(_scores(12)[:rows], epsilon=0.05, iterations=3))
