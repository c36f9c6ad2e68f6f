"""Semantic tolerance: against loops, in odd cases, on two processes."""

import pytest
import torch

from models.contrast.losses import info_nce
from models.contrast.tolerance import SemanticToleranceConfig, semantic_tolerance
from tests.helpers.distributed import run_distributed
from tests.reference.contrast import info_nce_loop, tolerance_loop

ALL = SemanticToleranceConfig(weighted=True, removed=0.25)


def _features(rows: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    features = torch.rand(rows, 4, generator=generator, dtype=torch.float64) - 0.3
    features[1] = 2 * features[0]  # two patches of one road
    return features


def test_equals_the_loop() -> None:
    features = _features()
    weights, removed, rows = tolerance_loop(features, ALL.removed, ALL.vote_threshold)
    got = semantic_tolerance(features, ALL)
    assert got.log_weights is not None
    assert got.excluded is not None
    torch.testing.assert_close(got.log_weights.exp(), weights, atol=1e-12, rtol=0)
    assert torch.equal(got.excluded, removed)
    assert removed.sum(dim=1).tolist() == [2] * 9
    torch.testing.assert_close(got.row_weights, rows)
    a, b = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = info_nce(
        a,
        b,
        temperature=0.4,
        excluded=got.excluded,
        log_weights=got.log_weights,
        row_weights=got.row_weights,
    )
    torch.testing.assert_close(loss, info_nce_loop(a, b, 0.4, removed, weights, rows))


def test_what_is_off_is_none() -> None:
    off = SemanticToleranceConfig(weighted=False, removed=0.0, balanced=False)
    got = semantic_tolerance(_features(), off)
    assert (got.excluded, got.log_weights, got.row_weights) == (None, None, None)


def test_the_same_look_is_no_negative_at_all() -> None:
    got = semantic_tolerance(_features(), SemanticToleranceConfig(weighted=True, removed=0.0))
    assert got.log_weights is not None
    assert got.log_weights[0, 1] < -30


@pytest.mark.parametrize("features", [torch.ones(5, 3), torch.zeros(5, 3), torch.ones(1, 3), torch.ones(0, 3)])
def test_odd_features_give_a_finite_loss(features: torch.Tensor) -> None:
    got = semantic_tolerance(features, ALL)
    a = torch.randn(len(features), 4, requires_grad=True)
    loss = info_nce(
        a,
        a.detach(),
        temperature=0.1,
        excluded=got.excluded,
        log_weights=got.log_weights,
        row_weights=got.row_weights,
    )
    loss.backward()
    assert loss.isfinite()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    if got.row_weights is not None and len(features):
        assert (got.row_weights == 1).all()


@pytest.mark.parametrize("settings", [{"removed": 1.5}, {"vote_threshold": -0.1}])
def test_refused_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SemanticToleranceConfig(**settings)


def _rank_tolerance(rank: int, world_size: int, parts: list[tuple[int, int]]) -> list[torch.Tensor | None]:
    got = semantic_tolerance(_features()[slice(*parts[rank])], ALL, gather=True)
    return [got.excluded, got.log_weights, got.row_weights]


@pytest.mark.slow
def test_two_processes_equal_one() -> None:
    ranks = run_distributed(_rank_tolerance, 2, [(0, 0), (0, 9)]), run_distributed(_rank_tolerance, 2, [(0, 4), (4, 9)])
    whole = semantic_tolerance(_features(), ALL)
    for found in ranks:
        for both, expected in zip(
            zip(*found, strict=True), (whole.excluded, whole.log_weights, whole.row_weights), strict=True
        ):
            torch.testing.assert_close(torch.cat(both), expected)
