"""PointContrast: both losses against slow references, drawing of pairs, degenerate batches, one and two processes."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from data.batch_spec import SecondCloud
from data.sample import Batch
from models.lidar.res16unet import Res16UNetConfig
from models.methods import METHODS
from models.methods.pointcontrast import PointContrast, PointContrastConfig, draw_pairs, hardest_contrastive
from models.visuals import PointSketch
from tests.helpers.degenerate_batches import degenerate_batches, with_matches
from tests.helpers.distributed import run_distributed
from tests.helpers.learning import assert_mean_of_ranks, learn_by_heart
from tests.helpers.toy_batches import PointwiseConfig, toy_points
from tests.reference.contrast import info_nce_loop
from tests.reference.point_contrast import hardest_loop


def _model(**settings) -> PointContrast:
    torch.manual_seed(0)
    return PointContrastConfig(**({"backbone": PointwiseConfig(in_channels=3), "embedding_dim": 8} | settings)).build()


def _one_to_one(batch: Batch) -> Batch:
    """Only matches between voxels that occur once, so that nothing is left to chance."""
    kept, seen_first, seen_second = [], set(), set()
    for row, (p, q) in enumerate(zip(batch.matches.first.tolist(), batch.matches.second.tolist(), strict=True)):
        a, b = int(batch.point_voxel[p]), int(batch.second.point_voxel[q])
        if a not in seen_first and b not in seen_second:
            kept.append(row)
            seen_first.add(a)
            seen_second.add(b)
    return with_matches(batch, kept)


def _double(batch: Batch) -> Batch:
    second = dataclasses.replace(batch.second, voxel_features=batch.second.voxel_features.double())
    return dataclasses.replace(batch, voxel_features=batch.voxel_features.double(), second=second)


def _rows(model: PointContrast, batch: Batch) -> tuple[Tensor, Tensor]:
    """Embeddings of all matches, from the layers alone."""
    rows = []
    for view, points in ((batch, batch.matches.first), (batch.second, batch.matches.second)):
        voxels = model.point_head.linear(model.backbone(view.voxel_coords, view.voxel_features, view.num_samples))
        rows.append(torch.stack([voxels[view.point_voxel[p]] / voxels[view.point_voxel[p]].norm() for p in points]))
    return rows[0], rows[1]


def test_registry_and_the_papers_values():
    assert METHODS["pointcontrast"] is PointContrastConfig
    config = PointContrastConfig()
    spec = config.batch_spec()
    assert (spec.images, spec.second_cloud) == (False, SecondCloud(source="other", min_overlap=0.3))
    assert (config.num_pairs, config.embedding_dim, config.loss) == (4096, 32, "info_nce")
    assert (config.positive_margin, config.negative_margin) == (0.1, 1.4)


@pytest.mark.parametrize("settings", [{}, {"symmetric": True}, {"chunk_rows": 7}, {"loss": "hardest"}], ids=str)
def test_loss_and_gradient_equal_the_slow_reference(settings: dict):
    model = _model(**settings).double()
    batch = _double(_one_to_one(toy_points([0, 1], second=True)))
    assert len(batch.matches.first) > 20
    terms = model(batch)
    a, b = _rows(model, batch)
    if settings.get("loss") == "hardest":
        pull, push = hardest_loop(a, b, 0.1, 1.4)
        torch.testing.assert_close(terms.parts["pull"], pull.detach())
        torch.testing.assert_close(terms.parts["push"], push.detach())
        wanted = pull + push
    else:
        wanted = info_nce_loop(a, b, 0.07)
        if settings.get("symmetric"):
            wanted = (wanted + info_nce_loop(b, a, 0.07)) / 2
    torch.testing.assert_close(terms.total, wanted)
    parameters = list(model.parameters())
    for got, want in zip(
        torch.autograd.grad(terms.total, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_drawn_pairs_are_matches_and_no_voxel_comes_twice():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 40, (500,), generator=generator)
    second = torch.randint(0, 60, (500,), generator=generator)
    matches = set(zip(first.tolist(), second.tolist(), strict=True))
    torch.manual_seed(0)
    a, b = draw_pairs(first, second, 1000)
    assert len(a) > 20
    assert set(zip(a.tolist(), b.tolist(), strict=True)) <= matches
    assert len(torch.unique(a)) == len(torch.unique(b)) == len(a)
    few = draw_pairs(first, second, 5)
    assert len(few[0]) == 5


def test_draws_repeat_with_the_generators_state_and_differ_without():
    first, second = torch.arange(100).repeat(3) % 60, torch.arange(300) % 70
    state = torch.get_rng_state()
    a = draw_pairs(first, second, 30)
    b = draw_pairs(first, second, 30)
    torch.set_rng_state(state)
    c = draw_pairs(first, second, 30)
    assert torch.equal(a[0], c[0])
    assert torch.equal(a[1], c[1])
    assert not torch.equal(a[0], b[0])


def test_each_anchor_is_drawn_equally_often():
    """Voxel 0 has 50 matches, the others one: it must not come more often for that."""
    first = torch.cat([torch.zeros(50, dtype=torch.long), torch.arange(1, 40)])
    second = torch.arange(len(first))
    torch.manual_seed(0)
    hits = sum(bool((draw_pairs(first, second, 10)[0] == 0).any()) for _ in range(600))
    assert hits / 600 == pytest.approx(10 / 40, abs=0.06)


def test_order_of_matches_and_rows_does_not_matter():
    model, batch = _model().double(), _double(_one_to_one(toy_points([0, 1], second=True)))
    order = torch.randperm(len(batch.matches.first), generator=torch.Generator().manual_seed(3))
    moved = with_matches(batch, order)
    torch.testing.assert_close(model(moved).total, model(batch).total)


def test_equal_views_have_nothing_to_pull():
    rows = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    rows.requires_grad_()
    pull, push = hardest_contrastive(rows, rows, positive_margin=0.1, negative_margin=1.4)
    assert pull == 0
    assert push > 0
    (pull + push).backward()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("loss", ["info_nce", "hardest"])
def test_degenerate_batches_give_a_finite_loss_and_gradient(loss: str):
    for case, batch in degenerate_batches(toy_points([0, 1], second=True)).items():
        model = _model(loss=loss)
        terms = model(batch)
        terms.total.backward()
        assert terms.total.isfinite(), case
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (case, name)
            assert parameter.grad.isfinite().all(), (case, name)
        assert all(value.isfinite() for value in terms.watch.values()), case
        if case == "no matches" or (case in ("one match", "one point") and loss == "info_nce"):
            assert terms.total == 0, case


def test_identical_features_are_a_known_loss():
    batch = _one_to_one(toy_points([0, 1], second=True))
    same = degenerate_batches(batch)["identical features"]
    assert _model()(same).total.item() == pytest.approx(math.log(len(batch.matches.first)), rel=1e-5)
    terms = _model(loss="hardest")(same)
    assert terms.parts["push"].item() == pytest.approx(1.4**2, rel=1e-4)
    assert terms.watch["contrastive_accuracy"] == 0


def test_refused():
    with pytest.raises(ValueError, match="PointContrast needs a second view"):
        _model()(toy_points([0]))
    for settings in (
        {"num_pairs": 0},
        {"temperature": 0.0},
        {"positive_margin": 1.5},
        {"chunk_rows": 0},
        {"watch_rows": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            PointContrastConfig(**settings)


def test_sketches_show_both_clouds():
    model, batch = _model().eval(), toy_points([0], second=True)
    state = torch.get_rng_state()
    with torch.no_grad():
        sketches = model.sketches(batch)
    assert torch.equal(state, torch.get_rng_state())  # pictures do not change what a run draws
    assert set(sketches) == {"matches_first", "matches_second"}
    for sketch in sketches.values():
        assert isinstance(sketch, PointSketch)
        assert len(sketch.points) == len(sketch.values) == len(batch.matches.first)
        assert sketch.values.abs().max() <= 1.0001


@pytest.mark.parametrize("loss", ["info_nce", "hardest"])
def test_with_the_real_network_under_autocast(loss: str):
    model = _model(backbone=Res16UNetConfig(preset="res16unet_tiny", in_channels=3, backend="torch"), loss=loss)
    batch = toy_points([0, 1], second=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model(batch)
    terms.total.backward()
    assert terms.total.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_it_learns_a_batch_by_heart():
    """The second view is the first one mirrored: of unrelated views so small a network learns a third, by luck."""
    model, batch = _model(embedding_dim=16), _one_to_one(toy_points([0, 1], second=True))
    of_first, of_second = batch.point_voxel[batch.matches.first], batch.second.point_voxel[batch.matches.second]
    mirrored = batch.second.voxel_features.clone()
    mirrored[of_second] = batch.voxel_features[of_first] * torch.tensor([-1.0, 1.0, 1.0])
    batch = dataclasses.replace(batch, second=dataclasses.replace(batch.second, voxel_features=mirrored))
    first, terms = learn_by_heart(model, batch, steps=80, lr=1e-2)
    assert terms.total < 0.5 * first.total
    assert terms.watch["contrastive_accuracy"] > first.watch["contrastive_accuracy"] + 0.5


# ---- two processes


def _rank_steps(rank: int, world_size: int, shares: list[list[int]]) -> list[tuple]:
    return [
        _step(loss, _double(_one_to_one(toy_points(shares[rank], second=True)))) for loss in ("info_nce", "hardest")
    ]


def _step(loss: str, batch: Batch) -> tuple:
    model = _model(loss=loss, gather_negatives=True, symmetric=True).double()
    total = model(batch).total
    total.backward()
    return total.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.slow
def test_two_processes_equal_one_with_the_global_batch():
    shares = [[0], [1, 2]]
    ranks = run_distributed(_rank_steps, 2, shares)
    for number, loss in enumerate(("info_nce", "hardest")):
        assert_mean_of_ranks(
            [rank[number] for rank in ranks],
            _step(loss, _double(_one_to_one(toy_points(shares[0] + shares[1], second=True)))),
        )
