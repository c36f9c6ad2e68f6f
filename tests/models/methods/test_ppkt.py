"""PPKT: against a slow reference, reading at pairs against whole maps, the draw, degenerate batches, two processes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.sample import Batch
from models.methods import METHODS
from models.methods.ppkt import Ppkt, PpktConfig
from tests.helpers.degenerate_batches import with_pairs
from tests.helpers.distributed import run_distributed
from tests.helpers.image_networks import RecordedTeacher, teacher_config
from tests.helpers.learning import assert_mean_of_ranks, learn_by_heart
from tests.helpers.toy_batches import PointwiseConfig, toy_batch, with_changed
from tests.reference.contrast import bilinear_at, info_nce_loop

LITE = teacher_config(name="efficientnet_lite0", weights="imagenet")


def _ppkt(**settings) -> Ppkt:
    torch.manual_seed(0)
    defaults = {"backbone": PointwiseConfig(in_channels=3), "teacher": LITE, "embedding_dim": 8}
    return PpktConfig(**(defaults | settings)).build()


def _kept(batch: Batch, pairs: Tensor | slice) -> Batch:
    return with_pairs(batch, pairs)


def test_registry_and_the_papers_values():
    assert METHODS["ppkt"] is PpktConfig
    config = PpktConfig()
    assert (config.num_pairs, config.temperature, config.embedding_dim, config.symmetric) == (4096, 0.07, 64, False)
    assert (config.teacher.name, config.teacher.dilated) == ("resnet50", False)
    spec = config.batch_spec()
    assert spec.images
    assert not spec.superpixels


def test_loss_equals_the_slow_reference():
    model, batch = _ppkt(num_pairs=None).double(), toy_batch([0, 1], pairs=20, dtype=torch.float64)
    batch = with_changed(batch, pairs={"uv": batch.pairs.uv.double() + 0.25})
    terms = model(batch)

    maps = model.teacher(batch.images)
    voxels = model.backbone(batch.voxel_coords, batch.voxel_features, 2)
    points, pixels = [], []
    for point, image, (u, v) in zip(batch.pairs.point, batch.pairs.image, batch.pairs.uv.tolist(), strict=True):
        feature = bilinear_at(maps[image], u, v, model.teacher.stride, model.teacher.origin_px)
        pixel = model.pixel_head.linear.weight @ feature + model.pixel_head.linear.bias
        embedding = model.point_head.linear(voxels[batch.point_voxel[point]])
        points.append(embedding / embedding.norm())
        pixels.append(pixel / pixel.norm())
    wanted = info_nce_loop(torch.stack(points), torch.stack(pixels), 0.07)
    torch.testing.assert_close(terms.total, wanted)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for got, want in zip(
        torch.autograd.grad(terms.total, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("name", "settings"), [("efficientnet_lite0", {}), ("resnet10_tiny", {"dilated": False})])
def test_reading_at_the_pairs_equals_upsampling_whole_maps(name: str, settings: dict[str, bool]):
    """Pairs on whole pixels; the map is read at stride 4 and, with the ResNet, at stride 32."""
    model = _ppkt(teacher=teacher_config(name=name, **settings)).double()
    batch = toy_batch([0, 1], dtype=torch.float64)
    with torch.no_grad():
        everywhere = model.pixel_embeddings(batch.images)
        u, v = batch.pairs.uv.long().unbind(dim=1)
        wanted = everywhere[batch.pairs.image, :, v, u]
        got = model.pixels_at(batch.images, batch.pairs)
    torch.testing.assert_close(got, wanted)


def test_as_many_different_pairs_as_asked_for_are_drawn():
    model, batch = _ppkt(num_pairs=50), toy_batch([0, 1])
    torch.manual_seed(3)
    state = torch.get_rng_state()
    loss = model(batch).total
    chosen = torch.randperm(len(batch.pairs.point), generator=torch.Generator().manual_seed(3))[:50]
    whole = _ppkt(num_pairs=None)
    torch.testing.assert_close(whole(_kept(batch, chosen)).total, loss)
    assert model(batch).total != loss
    torch.set_rng_state(state)  # as after a resume: checkpoints hold this state
    assert model(batch).total == loss
    few = _kept(batch, slice(0, 50))
    assert model(few).total == whole(few).total


def test_gradients_reach_everything_that_trains_and_nothing_else():
    model = _ppkt().train()
    model(toy_batch([0])).total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith("teacher.")), name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kept", ["no pairs", "one pair", "same features"])
def test_degenerate_batches_give_a_finite_loss_and_gradient(kept: str, symmetric: bool):
    model, batch = _ppkt(symmetric=symmetric, num_pairs=64), toy_batch([0])
    if kept == "same features":
        with torch.no_grad():
            model.point_head.linear.weight.zero_()
            model.pixel_head.linear.weight.zero_()
    else:
        batch = _kept(batch, slice(0, ["no pairs", "one pair"].index(kept)))
    terms = model(batch)
    terms.total.backward()
    rows = min(len(batch.pairs.point), 64)
    assert terms.total.item() == pytest.approx(math.log(max(rows, 1)), rel=1e-4, abs=1e-6)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert all(value.isfinite() for value in terms.watch.values())


def test_refused_batches_and_settings():
    with pytest.raises(ValueError, match="needs images"):
        _ppkt()(dataclasses.replace(toy_batch([0]), images=None))
    for settings, message in (
        ({"num_pairs": 1}, "num_pairs: got 1"),
        ({"embedding_dim": 0}, "embedding_dim: got 0"),
        ({"temperature": 0.0}, "temperature: got 0"),
        ({"chunk_rows": 0}, "chunk_rows: got 0"),
        ({"watch_rows": 1}, "watch_rows: got 1"),
        ({"teacher": dataclasses.replace(LITE, cache=True)}, "means over superpixels"),
    ):
        with pytest.raises(ValueError, match=message):
            PpktConfig(**settings)


def test_it_learns_a_batch_by_heart():
    model, batch = _ppkt(embedding_dim=16), toy_batch([0, 1])
    chosen = torch.unique(batch.point_voxel[batch.pairs.point], return_inverse=True)[1]
    batch = _kept(batch, torch.stack([torch.nonzero(chosen == n)[0, 0] for n in range(int(chosen.max()) + 1)]))
    model.teacher = RecordedTeacher(model.teacher, batch.images)
    first, terms = learn_by_heart(model, batch, steps=120, lr=1e-2)
    assert terms.total < 0.6 * first.total
    assert terms.watch["contrastive_accuracy"] > first.watch["contrastive_accuracy"] + 0.15


def test_under_autocast():
    model, batch = _ppkt(), toy_batch([0, 1])
    plain = model(batch).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = model(batch).total
    assert under.dtype == torch.float32
    assert under.item() == pytest.approx(plain.item(), rel=0.05)


def test_sketch_of_agreement():
    model, batch = _ppkt(), toy_batch([0])
    sketch = model.eval().sketches(batch)["agreement"]
    assert len(sketch.uv) == len(sketch.values) == int((batch.pairs.image == 0).sum())
    points = model.point_embeddings(batch)[batch.point_voxel[batch.pairs.point]][: len(sketch.uv)]
    u, v = sketch.uv.long().unbind(dim=1)
    pixels = model.pixel_embeddings(batch.images)[0, :, v, u].T
    torch.testing.assert_close(sketch.values, F.cosine_similarity(points, pixels), rtol=1e-3, atol=1e-4)
    assert model.sketches(dataclasses.replace(batch, images=None)) == {}


# ---- two processes


def _step(samples: list[int], symmetric: bool) -> tuple[Tensor, dict[str, Tensor | None]]:
    model = _ppkt(num_pairs=None, gather_negatives=True, symmetric=symmetric).double()
    loss = model(toy_batch(samples, dtype=torch.float64)).total
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def _rank_steps(rank: int, world_size: int, shares: list[list[int]]) -> list[tuple]:
    return [_step(shares[rank], symmetric) for symmetric in (False, True)]


@pytest.mark.slow
def test_two_processes_equal_one_with_the_global_batch():
    """All pairs are taken; ranks hold different numbers of them."""
    ranks = run_distributed(_rank_steps, 2, [[0], [1, 2]])
    for number, symmetric in enumerate((False, True)):
        assert_mean_of_ranks([rank[number] for rank in ranks], _step([0, 1, 2], symmetric))
