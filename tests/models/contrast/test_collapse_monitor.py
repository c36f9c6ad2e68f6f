"""The collapse watch on features whose state is known."""

import math

import pytest
import torch

from models.contrast.collapse_monitor import alignment, collapse_watch, contrastive_accuracy, effective_rank, uniformity


def test_collapsed_features():
    same = torch.nn.functional.normalize(torch.ones(20, 8), dim=1)
    watch = collapse_watch(same, same)
    assert watch["contrastive_accuracy"] == 0  # ties do not count
    assert watch["alignment"].item() == pytest.approx(1.0)
    assert watch["uniformity"].item() == pytest.approx(0.0, abs=1e-5)
    assert watch["effective_rank"].item() == pytest.approx(1.0, abs=1e-2)


def test_perfect_features():
    basis = torch.eye(16)
    watch = collapse_watch(basis, basis)
    assert watch["contrastive_accuracy"] == 1
    assert watch["alignment"] == 1
    assert watch["effective_rank"].item() == pytest.approx(16, rel=1e-5)
    assert watch["uniformity"].item() == pytest.approx(-4.0, rel=1e-5)  # squared distance 2 between all


def test_contrastive_accuracy_counts_rows():
    anchors = torch.eye(4)
    targets = torch.eye(4)[[0, 1, 3, 2]]
    assert contrastive_accuracy(anchors, targets) == 0.5
    assert alignment(anchors, targets) == 0.5


def test_effective_rank_equals_its_definition():
    # Singular values 2 and 1: exp(entropy of 2/3, 1/3).
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    wanted = math.exp(-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3))
    assert effective_rank(rows).item() == pytest.approx(wanted, rel=1e-5)
    assert effective_rank(torch.zeros(4, 3)) == 0


def test_uniformity_equals_its_definition():
    rows = torch.nn.functional.normalize(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    values = [math.exp(-2 * float((rows[i] - rows[j]).square().sum())) for i in range(12) for j in range(i)]
    assert uniformity(rows).item() == pytest.approx(math.log(sum(values) / len(values)), rel=1e-4)


def test_subsampling_draws_no_random_numbers_and_keeps_the_numbers_close():
    generator = torch.Generator().manual_seed(1)
    a = torch.nn.functional.normalize(torch.randn(1000, 16, generator=generator), dim=1)
    state = torch.get_rng_state()
    few, all_rows = collapse_watch(a, a, max_rows=200), collapse_watch(a, a, max_rows=1000)
    assert torch.equal(state, torch.get_rng_state())
    assert few["uniformity"].item() == pytest.approx(all_rows["uniformity"].item(), abs=0.05)
    assert few["effective_rank"].item() == pytest.approx(all_rows["effective_rank"].item(), abs=0.5)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_give_zeros(rows: int):
    watch = collapse_watch(torch.ones(rows, 4, requires_grad=True), torch.ones(rows, 4))
    assert set(watch) == {"contrastive_accuracy", "alignment", "uniformity", "effective_rank"}
    assert all(value == 0 and not value.requires_grad for value in watch.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_diverged_rows_are_watched_without_an_error(value: float) -> None:
    """It is only for show: whether the update is skipped is decided by the loss."""
    rows = torch.randn(20, 8)
    rows[3, 2] = value
    watch = collapse_watch(rows, rows)
    assert all(number.shape == () for number in watch.values())
    assert value == 3e38 or watch["effective_rank"].isnan()
