"""Units: sampling, context and merging against loops; negatives by similarity; gradient of means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.contrast.units import Units, make_units, too_similar
from tests.reference.contrastive_units import excluded_loop

SETTINGS = {"num_units": 20, "sampling": "fps", "context": "knn", "num_neighbors": 5, "pillar_m": 1.0}


def _cloud(counts: tuple[int, ...] = (120, 0, 60)) -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(0)
    sample = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return torch.randn(len(sample), 3, generator=generator) * 4, sample, len(counts)


def _units(candidates: Tensor | None = None, **settings) -> tuple[Units, Tensor, Tensor]:
    points, sample, num = _cloud()
    mask = torch.ones(len(points), dtype=torch.bool) if candidates is None else candidates
    return make_units(points, sample, num, mask, **(SETTINGS | settings)), points, sample


@pytest.mark.parametrize("sampling", ["fps", "random"])
@pytest.mark.parametrize("context", ["knn", "pillar", "none"])
def test_members_are_candidates_of_the_own_sample_and_weights_add_up(sampling: str, context: str) -> None:
    candidates = torch.rand(180, generator=torch.Generator().manual_seed(1)) < 0.5
    units, _, sample = _units(candidates, sampling=sampling, context=context)
    assert candidates[units.member_point].all()
    assert (sample[units.member_point] == sample[units.center][units.member_unit]).all()
    sums = torch.zeros(len(units)).index_add(0, units.member_unit, units.weight)
    torch.testing.assert_close(sums, torch.ones(len(units)))
    assert len(torch.unique(units.center)) == len(units)
    assert len(units) == 40 or context == "pillar"
    # The sampled point is among its own unit's members.
    for number, center in enumerate(units.center.tolist()):
        assert center in units.member_point[units.member_unit == number]


def test_a_pillar_is_all_of_its_cell_once() -> None:
    units, points, sample = _units(context="pillar", pillar_m=2.0, num_units=500)
    cells = torch.cat([sample[:, None], (points[:, :2] / 2.0).floor().long()], dim=1)
    assert len(units) == len(torch.unique(cells, dim=0))  # every point is sampled, many cells twice
    assert sorted(units.member_point.tolist()) == list(range(len(points)))
    for number, center in enumerate(units.center.tolist()):
        members = units.member_point[units.member_unit == number]
        assert set(members.tolist()) == set(torch.nonzero((cells == cells[center]).all(1)).flatten().tolist())


def test_more_neighbors_than_points_is_all_points() -> None:
    units, points, sample = _units(num_neighbors=500)
    means = units.mean(points, torch.arange(len(points)))
    wanted = torch.stack([points[sample == s].mean(0) for s in sample[units.center]])
    torch.testing.assert_close(means, wanted)


def test_random_units_follow_the_generator_and_differ() -> None:
    state = torch.get_rng_state()
    first, _, _ = _units(sampling="random")
    second, _, _ = _units(sampling="random")
    torch.set_rng_state(state)
    again, _, _ = _units(sampling="random")
    assert torch.equal(first.center, again.center)
    assert not torch.equal(first.center, second.center)


def test_merged_units_are_means_of_units() -> None:
    units, points, _ = _units()
    cluster = torch.where(points[:, 0] > 2, 3, torch.where(points[:, 0] < -4, 0, -1))
    merged = units.merged(cluster)
    row = torch.arange(len(points))
    before, after = units.mean(points, row), merged.mean(points, row)
    own = cluster[units.center]
    wanted = [before[own == number].mean(0) for number in (0, 3)] + list(before[own < 0])
    assert len(merged) == len(wanted) < len(units)
    order = [0, 1]
    torch.testing.assert_close(after[order], torch.stack(wanted[:2]))
    assert {tuple(round(float(x), 4) for x in r) for r in after} == {
        tuple(round(float(x), 4) for x in r) for r in wanted
    }
    assert (cluster[merged.center[:2]] == torch.tensor([0, 3])).all()


def test_mean_has_a_gradient_and_takes_rows() -> None:
    units, points, _ = _units(num_units=3)
    row = torch.arange(len(points)) % 7
    features = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda f: units.mean(f, row), (features,))
    assert units.mean(features.to(torch.bfloat16), row).dtype == torch.float32


def test_no_candidates_give_no_units_with_a_gradient_path() -> None:
    units, points, _ = _units(torch.zeros(180, dtype=torch.bool))
    assert len(units) == 0
    assert len(units.merged(torch.full((180,), -1))) == 0
    features = points.clone().requires_grad_()
    units.mean(features, torch.arange(180)).sum().backward()
    assert features.grad.abs().sum() == 0
    for context in ("pillar", "none"):
        assert len(_units(torch.zeros(180, dtype=torch.bool), context=context)[0]) == 0


@pytest.mark.parametrize("num_negatives", [1, 7, 29, 30, 500])
def test_negatives_are_the_least_similar(num_negatives: int) -> None:
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    excluded = too_similar(features, features, 0, num_negatives)
    assert torch.equal(excluded, excluded_loop(features, num_negatives))
    assert ((~excluded).sum(1) == min(num_negatives, 29) + 1).all()


def test_negatives_among_the_units_of_all_ranks() -> None:
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    part = too_similar(features[10:18], features, 10, 5)
    assert torch.equal(part, too_similar(features, features, 0, 5)[10:18])


@pytest.mark.parametrize("num", [0, 1, 2])
def test_hardly_any_units_exclude_nothing(num: int) -> None:
    features = torch.zeros(num, 3)
    assert not too_similar(features, features, 0, 4).any()


def test_equal_features_still_leave_so_many_negatives() -> None:
    features = torch.ones(10, 3)
    assert ((~too_similar(features, features, 0, 4)).sum(1) == 5).all()
