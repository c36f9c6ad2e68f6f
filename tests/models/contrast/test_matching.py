"""Hungarian matching against all permutations, greedy matching against a loop; gates, sizes, refused input."""

import math

import pytest
import torch

from models.contrast.matching import Assignment, greedy, hungarian
from tests.reference.points import best_total, greedy_loop


def total(cost: torch.Tensor, matches: Assignment, gate: float) -> float:
    unmatched = min(cost.shape) - len(matches.rows)
    return float(cost[matches.rows, matches.columns].sum()) + (gate * unmatched if unmatched else 0.0)


def random_costs(*shapes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) - 0.3 for shape in shapes]


@pytest.mark.parametrize("gate", [math.inf, 0.35, 0.0])
@pytest.mark.parametrize("threads", [1, 3])
def test_hungarian_is_the_best_of_all_ways(gate: float, threads: int):
    costs = random_costs((5, 5), (4, 6), (6, 3), (1, 1), (6, 6))
    for cost, matches in zip(costs, hungarian(costs, gate=gate, threads=threads), strict=True):
        assert total(cost, matches, gate) == pytest.approx(best_total(cost.numpy(), gate))
        assert (cost[matches.rows, matches.columns] < gate).all()
        assert len(matches.columns.unique()) == len(matches.columns)
        assert (matches.rows.diff() > 0).all()


@pytest.mark.parametrize("gate", [math.inf, 0.35, -0.4])
def test_greedy_equals_loop(gate: float):
    costs = random_costs((30, 30), (12, 40), (40, 12), (1, 5), seed=1)
    costs.append((costs[0] * 5).round())  # many equal costs
    for cost, matches in zip(costs, greedy(costs, gate=gate), strict=True):
        pairs = list(zip(matches.rows.tolist(), matches.columns.tolist(), strict=True))
        assert pairs == greedy_loop(cost.numpy(), gate)


def test_a_known_permutation_is_found():
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(2, 200, 3, generator=generator) * 20
    order = torch.randperm(200, generator=generator)
    costs = torch.cdist(points, points[:, order] + 1e-3)
    for match in (hungarian, greedy):
        for matches in match(costs, gate=1.0):
            assert torch.equal(order[matches.columns], torch.arange(200))


def test_hungarian_beats_greedy_where_the_cheapest_pair_is_a_trap():
    cost = torch.tensor([[1.0, 2.0], [2.0, 9.0]])
    assert hungarian([cost])[0].columns.tolist() == [1, 0]
    assert greedy([cost])[0].columns.tolist() == [0, 1]


@pytest.mark.parametrize("match", [hungarian, greedy])
def test_sizes_and_types(match):  # type: ignore[no-untyped-def]
    assert match([]) == []
    empty, none, half = match([torch.zeros(0, 4), torch.full((3, 3), 5.0), torch.eye(3).half() * -1], gate=1.0)
    assert empty.rows.tolist() == none.rows.tolist() == []
    assert half.columns.tolist() == [0, 1, 2]
    identical = match(torch.zeros(1, 4, 4))[0]
    assert sorted(identical.columns.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("match", [hungarian, greedy])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refused_input(match, bad: float):  # type: ignore[no-untyped-def]
    costs = torch.zeros(2, 3, 3)
    costs[1, 2, 0] = bad
    with pytest.raises(ValueError, match="row 2 and column 0 in sample 1"):
        match(costs)
