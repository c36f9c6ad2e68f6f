"""Plain distillation: against a slow reference, degenerate batches, two processes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from benchmarks.fidelity import paper_config
from data.sample import Batch
from models.image.base import DenseNetwork
from models.methods import METHODS
from models.methods.distill import Distill, DistillConfig
from tests.helpers.degenerate_batches import with_pairs
from tests.helpers.distributed import run_distributed
from tests.helpers.image_networks import RecordedTeacher, teacher_config
from tests.helpers.learning import assert_mean_of_ranks, learn_by_heart
from tests.helpers.toy_batches import PointwiseConfig, toy_batch, with_changed
from tests.reference.contrast import bilinear_at

LITE = teacher_config(name="efficientnet_lite0", weights="imagenet")


def _distill(**settings) -> Distill:
    torch.manual_seed(0)
    return DistillConfig(**({"backbone": PointwiseConfig(in_channels=3), "teacher": LITE} | settings)).build()


def test_scalrs_config_shows_the_student_what_one_camera_sees() -> None:
    config = paper_config("distill_nuscenes")
    assert config.method.batch_spec().only_seen
    assert config.data.cameras_per_sample == 1


def _kept(batch: Batch, pairs: slice) -> Batch:
    return with_pairs(batch, pairs)


def test_registry_and_the_papers_values():
    assert METHODS["distill"] is DistillConfig
    config = DistillConfig()
    assert (config.teacher.name, config.teacher.normalise_levels, config.hidden_features) == (
        "vit_large_14",
        False,
        None,
    )
    assert not config.batch_spec().superpixels
    assert [DistillConfig(only_seen=only).batch_spec().only_seen for only in (False, True)] == [False, True]


@pytest.mark.parametrize("hidden", [None, 10])
def test_loss_equals_the_slow_reference(hidden: int | None):
    model, batch = _distill(hidden_features=hidden).double(), toy_batch([0, 1], pairs=20, dtype=torch.float64)
    batch = with_changed(batch, pairs={"uv": batch.pairs.uv.double() + 0.25})
    terms = model(batch)
    maps = model.teacher(batch.images)
    voxels = model.backbone(batch.voxel_coords, batch.voxel_features, 2)
    distances, cosines = [], []
    for point, image, (u, v) in zip(batch.pairs.point, batch.pairs.image, batch.pairs.uv.tolist(), strict=True):
        teacher = bilinear_at(maps[image], u, v, model.teacher.stride, model.teacher.origin_px)
        student = model.point_head(voxels[batch.point_voxel[point]])
        difference = student / student.norm() - teacher / teacher.norm()
        distances.append(torch.sqrt((difference**2).sum()))
        cosines.append(torch.dot(student, teacher) / student.norm() / teacher.norm())
    wanted = torch.stack(distances).mean()
    torch.testing.assert_close(terms.total, wanted)
    # The distance of unit vectors is their cosine in other words.
    torch.testing.assert_close(wanted, torch.sqrt(2 - 2 * torch.stack(cosines)).mean())
    parameters = [p for p in model.parameters() if p.requires_grad]
    for got, want in zip(
        torch.autograd.grad(terms.total, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_lengths_of_features_do_not_matter():
    model, batch = _distill(), toy_batch([0, 1])
    plain = model(batch).total
    with torch.no_grad():
        model.point_head.weight.mul_(7.0)
        model.point_head.bias.mul_(7.0)
    torch.testing.assert_close(model(batch).total, plain)


def test_gradients_reach_everything_that_trains_and_nothing_else():
    model = _distill().train()
    model(toy_batch([0])).total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith("teacher.")), name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, name


class _Constant(DenseNetwork):
    """Stands in for the teacher: the same feature everywhere, of length 1 or 0."""

    num_features, stride, origin_px = 176, 4, 3.0

    def __init__(self, length: float) -> None:
        super().__init__()
        self.length = length

    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 176, 8, 12), self.length / math.sqrt(176))


@pytest.mark.parametrize("case", ["no pairs", "one pair", "student is teacher", "zero features"])
def test_degenerate_batches_give_a_finite_loss_and_gradient(case: str):
    model, batch = _distill(), toy_batch([0])
    if case in ("no pairs", "one pair"):
        batch = _kept(batch, slice(0, ["no pairs", "one pair"].index(case)))
    else:
        model.teacher = _Constant(0.0 if case == "zero features" else 1.0)
        with torch.no_grad():
            model.point_head.weight.zero_()
            model.point_head.bias.fill_(0.0 if case == "zero features" else 1.0)
    terms = model(batch)
    terms.total.backward()
    assert terms.total.isfinite()
    assert terms.total == 0 or case == "one pair" or terms.total < 1e-6
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert set(terms.watch) == {"alignment", "effective_rank"}
    assert all(value.isfinite() for value in terms.watch.values())


def test_refused_batches_and_settings():
    with pytest.raises(ValueError, match="needs images"):
        _distill()(dataclasses.replace(toy_batch([0]), images=None))
    for settings, message in (
        ({"hidden_features": 0}, "hidden_features: got 0"),
        ({"watch_rows": 1}, "watch_rows: got 1"),
        ({"teacher": dataclasses.replace(LITE, cache=True)}, "means over superpixels"),
    ):
        with pytest.raises(ValueError, match=message):
            DistillConfig(**settings)


def test_it_learns_a_batch_by_heart():
    model, batch = _distill(), toy_batch([0, 1])
    model.teacher = RecordedTeacher(model.teacher, batch.images)
    first, terms = learn_by_heart(model, batch, steps=40, lr=1e-2)
    assert terms.total < 0.7 * first.total
    assert terms.watch["alignment"] > first.watch["alignment"] + 0.2


def test_under_autocast():
    model, batch = _distill(), toy_batch([0, 1])
    plain = model(batch).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = model(batch).total
    assert under.dtype == torch.float32
    assert under.item() == pytest.approx(plain.item(), rel=0.02)


def test_sketch_of_agreement():
    model, batch = _distill(), toy_batch([0])
    sketch = model.eval().sketches(batch)["agreement"]
    assert len(sketch.uv) == len(sketch.values) == int((batch.pairs.image == 0).sum())
    assert sketch.values.abs().max() <= 1 + 1e-5
    # Unit vectors: |s - t|^2 = 2 - 2 cos. The loss over the first image's pairs says the same.
    loss = model(_kept(batch, slice(0, len(sketch.uv)))).total
    torch.testing.assert_close(torch.sqrt(2 - 2 * sketch.values).mean(), loss, rtol=1e-4, atol=1e-5)
    assert model.sketches(dataclasses.replace(batch, images=None)) == {}


def _step(samples: list[int]) -> tuple[Tensor, dict[str, Tensor | None]]:
    model = _distill().double()
    loss = model(toy_batch(samples, dtype=torch.float64)).total
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def _rank_step(rank: int, world_size: int, shares: list[list[int]]) -> tuple:
    return _step(shares[rank])


@pytest.mark.slow
def test_two_processes_with_equally_many_pairs_equal_one():
    assert_mean_of_ranks(run_distributed(_rank_step, 2, [[0], [1]]), _step([0, 1]))
