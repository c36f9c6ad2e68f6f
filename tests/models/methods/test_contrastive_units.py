"""Contrastive units: against a slow reference, invariances, degenerate and refused batches, one and two processes."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from data.sample import Batch
from engine.sync_bn import convert_sync_batchnorm
from models.lidar.res16unet import Res16UNetConfig
from models.methods import METHODS
from models.methods.contrastive_units import ContrastiveUnits, ContrastiveUnitsConfig
from models.visuals import PointSketch
from tests.helpers.degenerate_batches import degenerate_batches
from tests.helpers.distributed import run_distributed
from tests.helpers.image_networks import teacher_config
from tests.helpers.learning import assert_mean_of_ranks, learn_by_heart
from tests.helpers.toy_batches import PointwiseConfig, toy_batch, with_changed
from tests.reference.contrastive_units import excluded_loop, loss_loop, pixel_features_loop, unit_mean, units_loop

LITE = teacher_config(name="efficientnet_lite0", weights="imagenet")
SMALL = teacher_config(name="resnet10_tiny")
MODES = ("cross", "single", "single_plus", "multi")


def _model(**settings) -> ContrastiveUnits:
    torch.manual_seed(0)
    defaults = {
        "backbone": PointwiseConfig(in_channels=3),
        "teacher": SMALL,
        "num_units": 25,
        "num_neighbors": 4,
        "num_negatives": 12,
        "embedding_dim": 8,
        "hidden_dim": 16,
    }
    return ContrastiveUnitsConfig(**(defaults | settings)).build()


def _batch(samples: tuple[int, ...] = (0, 1), dtype: torch.dtype = torch.float32) -> Batch:
    return toy_batch(list(samples), ground=True, clusters=7, second="cloud", superpixels=False, dtype=dtype)


def _head(head: torch.nn.Module, rows: Tensor) -> Tensor:
    """The MLP head in training mode, from its parameters alone."""
    first, norm, _, last = head.layers
    x = rows @ first.weight.T
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
    x = x.clamp(min=0) @ last.weight.T + last.bias
    return x / x.norm(dim=1, keepdim=True)


def _wanted(model: ContrastiveUnits, batch: Batch) -> Tensor:
    config = model.config
    units = units_loop(batch, config)
    points = model.backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples)
    first = unit_mean(units, {p: points[batch.point_voxel[p]] for p in range(batch.num_points)})
    total, excluded = torch.zeros((), dtype=torch.float64), None
    if config.uses_images:
        maps = model.teacher(batch.images)
        pixels = unit_mean(units, pixel_features_loop(batch, maps, model.teacher.stride, model.teacher.origin_px))
        targets = _head(model.pixel_head, pixels)
        if config.num_negatives is not None:
            compared = targets.detach() if config.similarity == "head" else pixels
            excluded = excluded_loop(compared, config.num_negatives)
        total = loss_loop(_head(model.point_head, first), targets, config.temperature, excluded)
    if config.uses_views:
        rows = model.backbone(batch.second.voxel_coords, batch.second.voxel_features, batch.num_samples)
        partner = dict(zip(batch.matches.first.tolist(), batch.matches.second.tolist(), strict=True))
        second = unit_mean(units, {p: rows[batch.second.point_voxel[q]] for p, q in partner.items()})
        weight = config.single_weight if config.mode == "multi" else 1.0
        # One pass: the head normalises over both views.
        first, second = _head(model.view_head, torch.cat([first, second])).tensor_split(2)
        total = total + weight * loss_loop(first, second, config.temperature, excluded)
    return total


def test_registry_and_defaults():
    assert METHODS["contrastive_units"] is ContrastiveUnitsConfig
    config = ContrastiveUnitsConfig()
    assert (config.mode, config.context, config.sampling, config.instances) == ("cross", "knn", "fps", True)
    assert (config.teacher.name, config.teacher.levels) == ("resnet50_levels", (4, 8, 16))
    assert config.similarity == "head", "s_ij is of the representations after the projection head (section II-B)"
    assert config.batch_spec().ground.kind == "lines"
    assert config.batch_spec().clusters.kind == "radius"


def test_what_each_mode_wants():
    spec = {mode: ContrastiveUnitsConfig(mode=mode).batch_spec() for mode in MODES}
    assert [spec[mode].images for mode in MODES] == [True, False, False, True]
    assert [spec[mode].second_cloud is not None for mode in MODES] == [False, True, True, True]
    assert [spec[mode].ground is not None for mode in MODES] == [True, False, True, True]
    assert [spec[mode].clusters is not None for mode in MODES] == [True, False, True, True]
    bare = ContrastiveUnitsConfig(ground_removal=False, instances=False).batch_spec()
    assert (bare.ground, bare.clusters) == (None, None)


CASES = [
    {"teacher": LITE},
    {"teacher": LITE, "similarity": "teacher"},
    {"mode": "single"},
    {"mode": "single_plus"},
    {"mode": "multi", "single_weight": 0.3},
    {"mode": "multi", "similarity": "teacher"},
    {"context": "pillar"},
    {"context": "none", "mode": "multi"},
    {"ground_removal": False},
    {"instances": False},
    {"num_negatives": None},
    {"num_negatives": None, "instances": False, "ground_removal": False, "context": "none"},
    {"chunk_rows": 7},
    {"teacher": dataclasses.replace(LITE, levels=(8,))},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_loss_and_gradient_equal_the_slow_reference(settings: dict):
    model, batch = _model(**settings).double().train(), _batch(dtype=torch.float64)
    batch = dataclasses.replace(
        batch, second=dataclasses.replace(batch.second, voxel_features=batch.second.voxel_features.double())
    )
    terms, wanted = model(batch).total, _wanted(model, batch)
    torch.testing.assert_close(terms, wanted)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for got, want in zip(torch.autograd.grad(terms, parameters), torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def test_parts_and_watch_of_each_mode():
    for mode in MODES:
        terms = _model(mode=mode)(_batch())
        assert set(terms.parts) == {"cross": {"cross"}, "multi": {"cross", "single"}}.get(mode, {"single"})
        assert "contrastive_accuracy" in terms.watch
        assert ("single_contrastive_accuracy" in terms.watch) == (mode == "multi")


@pytest.mark.parametrize("mode", ["cross", "multi"])
def test_order_of_pairs_does_not_matter(mode: str):
    model, batch = _model(mode=mode).double(), _batch(dtype=torch.float64)
    order = torch.randperm(len(batch.pairs.point), generator=torch.Generator().manual_seed(0))
    moved = dataclasses.replace(batch, pairs=batch.pairs.select(order))
    torch.testing.assert_close(model(moved).total, model(batch).total)


@pytest.mark.parametrize("context", ["knn", "none"])
def test_turning_the_cloud_does_not_change_its_units(context: str):
    model, batch = _model(context=context), _batch()
    turn = torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    turned = dataclasses.replace(batch, points=batch.points @ turn.T + torch.tensor([3.0, -5.0, 1.0]))
    before, after = model.units(batch), model.units(turned)
    assert torch.equal(before.center, after.center)
    assert {tuple(row) for row in torch.stack([before.member_point, before.member_unit], 1).tolist()} == {
        tuple(row) for row in torch.stack([after.member_point, after.member_unit], 1).tolist()
    }


def test_ground_and_unseen_points_are_in_no_unit():
    model, batch = _model(), _batch()
    units = model.units(batch)
    assert not batch.ground[units.member_point].any()
    assert torch.isin(units.member_point, batch.pairs.point).all()
    cluster = batch.clusters.of_point[units.center]
    assert len(torch.unique(cluster[cluster >= 0])) == int((cluster >= 0).sum()) > 3


def test_what_the_image_finds_similar_is_no_negative():
    """Without balancing a unit's gradient comes from all others, with it from the least similar ones only."""
    model, batch = _model(num_negatives=3), _batch()
    pixels = model.unit_pixels(batch, model.units(batch))
    excluded = model._excluded(pixels)
    similarity = torch.nn.functional.normalize(pixels, dim=1) @ torch.nn.functional.normalize(pixels, dim=1).T
    for row in range(len(pixels)):
        assert similarity[row][~excluded[row]].sort().values[:3].max() <= similarity[row][excluded[row]].min()


@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_everything_that_trains_and_nothing_else(mode: str):
    model = _model(mode=mode).train()
    model(_batch()).total.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("mode", "context"), [*itertools.product(MODES, ("knn",)), ("cross", "pillar"), ("cross", "none")]
)
def test_degenerate_batches_give_a_finite_loss_and_gradient(mode: str, context: str):
    for case, batch in degenerate_batches(_batch()).items():
        model = _model(mode=mode, context=context).train()
        terms = model(batch)
        terms.total.backward()
        assert terms.total.isfinite(), case
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, (case, name)
                assert parameter.grad.isfinite().all(), (case, name)
        assert all(value.isfinite() for value in terms.watch.values()), case
        empty = {"no pairs", "one pair"} if mode in ("cross", "multi") else set()
        empty |= {"no matches", "one match"} if mode != "cross" else set()
        empty |= {"all ground"} if mode != "single" else set()
        if case in empty | {"one point"}:
            assert terms.total == 0, case
        with torch.no_grad():
            for sketch in model.eval().sketches(batch).values():
                assert torch.as_tensor(sketch.values).isfinite().all(), case


def test_one_object_is_one_unit_and_has_nothing_to_contrast():
    batch = _batch((0,))
    batch = with_changed(batch, clusters={"of_point": torch.zeros_like(batch.clusters.of_point), "num": 1})
    model = _model()
    assert len(model.units(batch)) == 1
    assert model(batch).total == 0


def test_identical_features_are_a_known_loss():
    same = degenerate_batches(_batch())["identical features"]
    model = _model().eval()
    assert model(same).total.item() == pytest.approx(math.log(13), rel=0.02)  # but for the borders of the images


def test_refused_batches():
    model, batch = _model(mode="multi"), _batch()
    for field, message in (
        ("ground", "needs a ground mask"),
        ("clusters", "needs clusters"),
        ("pairs", "needs point-pixel pairs"),
        ("images", "needs images"),
        ("second", "needs a second view"),
        ("matches", "needs a second cloud"),
    ):
        with pytest.raises(ValueError, match=message):
            model(dataclasses.replace(batch, **{field: None}))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_units": 0},
        {"num_neighbors": 0},
        {"num_negatives": 0},
        {"embedding_dim": 0},
        {"hidden_dim": 0},
        {"pillar_m": 0.0},
        {"temperature": 0.0},
        {"single_weight": 0.0},
        {"chunk_rows": 0},
        {"watch_rows": 1},
    ],
    ids=str,
)
def test_refused_settings(settings: dict):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ContrastiveUnitsConfig(**settings)


@pytest.mark.parametrize(("mode", "sampling"), [(mode, "fps") for mode in MODES] + [("cross", "random")])
def test_sketches(mode: str, sampling: str):
    model, batch = _model(mode=mode, sampling=sampling).eval(), _batch((0,))
    state = torch.get_rng_state()
    with torch.no_grad():
        sketches = model.sketches(batch)
    assert torch.equal(state, torch.get_rng_state())  # pictures do not change what a run draws
    assert set(sketches) == {"ground", "units", "negatives", "image_similarity", "similarity"}
    for name, sketch in sketches.items():
        assert isinstance(sketch, PointSketch)
        assert len(sketch.points) == len(sketch.values), name
        assert sketch.values.isfinite().all()
        assert name == "ground" or (len(sketch.marked) == len(sketch.points) and sketch.marked.any())
    assert sketches["negatives"].marked.sum() == 1
    assert sketches["similarity"].values.abs().max() <= 1.0001


@pytest.mark.parametrize("mode", ["cross", "multi"])
def test_with_the_real_network_under_autocast(mode: str):
    model = _model(mode=mode, backbone=Res16UNetConfig(preset="res16unet_tiny", in_channels=3, backend="torch"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model(_batch())
    terms.total.backward()
    assert terms.total.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())


def test_it_learns_a_batch_by_heart():
    model, batch = _model(embedding_dim=16, instances=False, num_negatives=None), _batch()
    first, terms = learn_by_heart(model, batch, steps=100, lr=1e-2)
    assert terms.total < 0.5 * first.total
    assert terms.watch["contrastive_accuracy"] > first.watch["contrastive_accuracy"] + 0.3


# ---- two processes


def _rank_steps(rank: int, world_size: int, shares: list[tuple[int, ...]]) -> list[tuple]:
    return [_step(mode, shares[rank], sync=True) for mode in ("cross", "multi")]


def _step(mode: str, samples: tuple[int, ...], *, sync: bool) -> tuple:
    model = _model(mode=mode, gather_negatives=True).double().train()
    if sync:
        convert_sync_batchnorm(model)
    batch = _batch(samples, dtype=torch.float64)
    total = model(batch).total
    total.backward()
    return total.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.slow
def test_two_processes_equal_one_with_the_global_batch():
    shares = [(0,), (1, 2)]
    ranks = run_distributed(_rank_steps, 2, shares)
    for number, mode in enumerate(("cross", "multi")):
        assert_mean_of_ranks(
            [rank[number] for rank in ranks],
            _step(mode, shares[0] + shares[1], sync=False),
            loss=(1e-9, 1e-12),
            gradient=(1e-6, 1e-10),
        )
