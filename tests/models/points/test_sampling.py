"""Farthest point and random sampling against loops; both back-ends; degenerate samples."""

import fpsample
import numpy as np
import pytest
import torch

from models.points.ragged import bounds, pad, sample_counts
from models.points.sampling import _farthest_torch, farthest_points, joint_space, random_points
from tests.reference.points import farthest_loop


def cloud(*sizes: int, dims: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(sizes), dims, generator=generator), torch.tensor(sizes)


@pytest.mark.parametrize("dims", [2, 3, 12])
def test_farthest_equals_loop_in_each_sample(dims: int):
    rows, counts = cloud(300, 7, 0, 60, dims=dims)
    index, chosen = farthest_points(rows, counts, 20, start=torch.tensor([123, 6, 0, 0]))
    assert chosen.tolist() == [20, 7, 0, 20]
    wanted = [
        *farthest_loop(rows[:300].numpy(), 20, 123),
        *(300 + i for i in farthest_loop(rows[300:307].numpy(), 20, 6)),
        *(307 + i for i in farthest_loop(rows[307:].numpy(), 20, 0)),
    ]
    assert index.tolist() == wanted


@pytest.mark.parametrize("dims", [2, 3, 8, 20])
def test_torch_form_equals_library(dims: int):
    rows, counts = cloud(6000, 40, 0, 900, dims=dims, seed=1)
    start = torch.tensor([17, 39, 0, 5])
    index, _ = farthest_points(rows, counts, 128, start=start)
    assert torch.equal(_farthest_torch(rows, counts, 128, start), index)


def test_tree_is_used_and_starts_where_asked(monkeypatch: pytest.MonkeyPatch):
    # The plain form of the library is right too, but some twenty times slower: it must stay the exception.
    plain = []
    monkeypatch.setattr(fpsample, "fps_sampling", lambda *args, **kw: plain.append(1))
    rows, _ = cloud(20_000, seed=2)
    for start in range(0, 20_000, 400):
        index, _ = farthest_points(rows, torch.tensor([20_000]), 4, start=torch.tensor([start]))
        assert index[0] == start
    assert not plain


def test_farthest_does_not_depend_on_the_order_of_points():
    rows, counts = cloud(500, seed=3)
    shuffle = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    index, _ = farthest_points(rows, counts, 50)
    place = int((shuffle == 0).nonzero())
    moved, _ = farthest_points(rows[shuffle], counts, 50, start=torch.tensor([place]))
    assert torch.equal(shuffle[moved], index)


def test_bird_s_eye_view_ignores_height():
    rows, counts = cloud(400, seed=4)
    flat, _ = farthest_points(rows[:, :2], counts, 30)
    raised = rows + torch.tensor([0.0, 0.0, 1.0]) * torch.linspace(0, 100, 400)[:, None]
    assert torch.equal(farthest_points(raised[:, :2], counts, 30)[0], flat)


def test_joint_space_distances():
    points, _ = cloud(5)
    features, _ = cloud(5, dims=6, seed=1)
    rows = joint_space(points, features, point_weight=2.5)
    wanted = torch.cdist(features, features).square() + 2.5 * torch.cdist(points, points).square()
    torch.testing.assert_close(torch.cdist(rows, rows).square(), wanted)
    with pytest.raises(ValueError, match="point_weight"):
        joint_space(points, features, point_weight=-1.0)


@pytest.mark.parametrize("size", [5, 400])
def test_copies_of_chosen_points_come_last_and_once(size: int):
    rows = torch.ones(size, 3)
    rows[2] = 5.0
    rows[4] = -7.0
    counts = torch.tensor([size])
    for index in (farthest_points(rows, counts, size)[0], _farthest_torch(rows, counts, size, torch.tensor([0]))):
        assert index[:3].tolist() == [0, 4, 2]
        assert index.sort().values.tolist() == list(range(size))


def test_farthest_of_nothing():
    index, chosen = farthest_points(torch.zeros(0, 3), torch.tensor([0, 0]), 4)
    assert index.tolist() == []
    assert chosen.tolist() == [0, 0]
    assert farthest_points(torch.zeros(3, 3), torch.tensor([3]), 0)[0].tolist() == []


def test_refused_input():
    rows, counts = cloud(4, 4)
    with pytest.raises(ValueError, match="add up to 8, but there are 7"):
        farthest_points(rows[:7], counts, 2)
    with pytest.raises(ValueError, match="start 4 of sample 1"):
        farthest_points(rows, counts, 2, start=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="num = -1"):
        farthest_points(rows, counts, -1)
    rows[6, 1] = torch.nan
    with pytest.raises(ValueError, match=r"row 6 .* not finite"):
        farthest_points(rows, counts, 2)


def test_random_points_are_of_their_sample_distinct_and_repeatable():
    counts = torch.tensor([50, 0, 3, 20])
    index, chosen = random_points(counts, 10, generator=torch.Generator().manual_seed(0))
    assert chosen.tolist() == [10, 0, 3, 10]
    assert len(index.unique()) == 23
    sample = torch.repeat_interleave(torch.arange(4), counts)[index]
    assert sample.tolist() == [0] * 10 + [2] * 3 + [3] * 10
    again, _ = random_points(counts, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(index, again)


def test_random_points_are_chosen_equally_often():
    counts, generator = torch.tensor([4, 6]), torch.Generator().manual_seed(0)
    times = torch.zeros(10)
    for _ in range(2000):
        times[random_points(counts, 3, generator=generator)[0]] += 1
    torch.testing.assert_close(times[:4], torch.full((4,), 1500.0), rtol=0.05, atol=0)
    torch.testing.assert_close(times[4:], torch.full((6,), 1000.0), rtol=0.08, atol=0)


def test_ragged_helpers():
    assert sample_counts(torch.tensor([0, 0, 2]), 4).tolist() == [2, 0, 1, 0]
    with pytest.raises(ValueError, match="must not decrease"):
        sample_counts(torch.tensor([1, 0]), 2)
    with pytest.raises(ValueError, match="from 0 to 2, expected 0 to 1"):
        sample_counts(torch.tensor([0, 2]), 2)
    assert bounds(torch.tensor([2, 0, 1]), 3) == [(0, 2), (2, 2), (2, 3)]
    values, real, index = pad(torch.arange(3.0)[:, None], torch.tensor([2, 0, 1]))
    assert values.squeeze(2).tolist() == [[0, 1], [0, 0], [2, 0]]
    assert real.tolist() == [[True, True], [False, False], [True, False]]
    assert index.tolist() == [[0, 1], [0, 0], [2, 0]]
    assert np.prod(pad(torch.zeros(0, 2), torch.tensor([0, 0]))[0].shape) == 0
