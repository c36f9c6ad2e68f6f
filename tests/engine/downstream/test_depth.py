from __future__ import annotations

import dataclasses

import pytest
import torch

from engine.downstream.confusion import LabelError
from engine.downstream.depth import (
    METRIC_NAMES,
    START_DEPTH_M,
    DepthConfig,
    DepthTask,
    depth_metrics,
    predicted_depth,
    silog_loss,
)
from engine.downstream.metrics import METRICS
from tests.helpers.toy_dense import toy_images
from tests.reference import depth as slow

CAP = DepthConfig(cap_m=30.0)


def outputs(seed: int, images: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(images, 1, height, width, generator=torch.Generator().manual_seed(seed))


def test_metrics_are_those_of_each_image_averaged() -> None:
    batch = toy_images([3, 4], truth="depth")
    truth = batch.image_depth_m
    assert truth is not None
    truth[2] = 0.0  # nothing known: this image does not count
    truth[3, :, :5] = 31.0  # beyond the cap
    output = outputs(0, *truth.shape)
    measure = DepthTask(CAP).measure()
    bare = dataclasses.replace(batch, images=None)
    measure.update(output[:2], dataclasses.replace(bare, image_depth_m=truth[:2]))
    measure.update(output[2:], dataclasses.replace(bare, image_depth_m=truth[2:]))
    predicted = START_DEPTH_M * output.double().exp()
    per_image = [
        slow.metrics(predicted[i].flatten().tolist(), truth[i].flatten().tolist(), 1e-3, 30.0) for i in (0, 1, 3)
    ]
    got = measure.metrics()
    assert tuple(got) == METRIC_NAMES
    for name in METRIC_NAMES:
        assert got[name] == pytest.approx(sum(m[name] for m in per_image) / 3, rel=1e-5), name
    assert set(METRIC_NAMES) <= set(METRICS)


def test_a_perfect_prediction_has_no_error_and_a_scaled_one_no_silog() -> None:
    truth = torch.tensor([2.0, 5.0, 40.0], dtype=torch.float64)
    perfect = dict(zip(METRIC_NAMES, depth_metrics(truth, truth).tolist(), strict=True))
    assert [perfect[n] for n in METRIC_NAMES] == [0.0] * 6 + [100.0] * 3
    scaled = dict(zip(METRIC_NAMES, depth_metrics(1.3 * truth, truth).tolist(), strict=True))
    assert scaled["abs_rel"] == pytest.approx(0.3)
    assert scaled["silog"] == pytest.approx(0.0, abs=1e-5)
    assert (scaled["delta1"], scaled["delta2"]) == (0.0, 100.0)


def test_predictions_stay_within_the_limits() -> None:
    depth = predicted_depth(torch.tensor([-1e4, 0.0, 1e4]), low=0.5, high=80.0)
    torch.testing.assert_close(depth, torch.tensor([0.5, START_DEPTH_M, 80.0]))


@pytest.mark.parametrize("scale_invariance", [0.0, 0.5, 1.0])
def test_loss_is_the_papers_double_sum_with_its_gradient(scale_invariance: float) -> None:
    truth = toy_images([1, 2], truth="depth").image_depth_m
    assert truth is not None
    truth = truth[:3, 2:8, :6].clone()
    truth[2] = 0.0  # an image without truth counts nothing
    output = outputs(1, 3, 6, 6)[:, 0].requires_grad_()
    loss = silog_loss(output, truth, truth > 0, scale_invariance)
    expected = sum(
        slow.silog(output[i].flatten().tolist(), (truth[i] / START_DEPTH_M).flatten().tolist(), scale_invariance)
        for i in (0, 1)
    )
    assert float(loss.detach()) == pytest.approx(expected / 2, rel=1e-4)
    loss.backward()
    assert output.grad is not None
    assert not output.grad[2].any()
    n, d = 36, (output[0] - (truth[0] / START_DEPTH_M).log()).detach()
    by_hand = 2 * d / n - scale_invariance * 2 * d.sum() / n**2
    torch.testing.assert_close(output.grad[0], by_hand / 2, rtol=1e-4, atol=1e-6)


def test_full_invariance_does_not_see_the_scale() -> None:
    truth = toy_images([5], truth="depth").image_depth_m
    assert truth is not None
    output = outputs(2, *truth.shape)[:, 0]
    losses = [float(silog_loss(output + shift, truth, truth > 0, 1.0)) for shift in (0.0, 3.0)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_root_form_is_that_of_all_known_pixels_together() -> None:
    truth = toy_images([1, 2], truth="depth").image_depth_m
    assert truth is not None
    output = outputs(4, *truth.shape).requires_grad_()
    batch = dataclasses.replace(toy_images([1, 2], truth="depth"), image_depth_m=truth)
    loss = DepthTask(DepthConfig(scale_invariance=0.85, root_scale=10.0)).loss(output, batch, torch.Generator())
    known = truth > 1e-3
    predicted = START_DEPTH_M * output.detach()[:, 0].double().exp()
    expected = slow.root_silog(predicted[known].tolist(), truth[known].tolist())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert output.grad is not None
    assert bool(output.grad[:, 0][known].any())
    assert not output.grad[:, 0][~known].any()


def test_the_root_of_no_error_has_a_finite_gradient() -> None:
    batch = toy_images([1], truth="depth")
    assert batch.image_depth_m is not None
    exact = torch.where(batch.image_depth_m > 0, batch.image_depth_m, 1.0).div(START_DEPTH_M).log().unsqueeze(1)
    for truth in (batch.image_depth_m, torch.zeros_like(batch.image_depth_m)):
        output = exact.clone().requires_grad_()
        of_truth = dataclasses.replace(batch, image_depth_m=truth)
        task = DepthTask(DepthConfig(scale_invariance=0.85, root_scale=10.0))
        loss = task.loss(output, of_truth, torch.Generator())
        loss.backward()
        assert float(loss.detach()) < 1e-4
        assert output.grad is not None
        assert bool(torch.isfinite(output.grad).all())


def test_nothing_known_gives_no_loss_with_gradient_and_no_metrics() -> None:
    batch = toy_images([0], truth="depth")
    assert batch.image_depth_m is not None
    batch = dataclasses.replace(batch, image_depth_m=torch.zeros_like(batch.image_depth_m))
    output = outputs(3, *batch.image_depth_m.shape).requires_grad_()
    task = DepthTask(DepthConfig())
    loss = task.loss(output, batch, torch.Generator())
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert output.grad is not None
    assert not output.grad.any()
    measure = task.measure()
    measure.update(output.detach(), batch)
    with pytest.raises(LabelError, match="not one pixel of known depth"):
        measure.metrics()
    with pytest.raises(LabelError, match="have no depth"):
        task.loss(output, toy_images([0], truth=None), torch.Generator())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale_invariance": 1.5}, "scale_invariance"),
        ({"cap_m": 1e-4}, "cap_m"),
        ({"root_scale": 0.0}, "root_scale"),
        ({"lrs": (0.0,)}, "lrs"),
        ({"steps": 0}, "steps"),
    ],
)
def test_refused_settings(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthConfig(**values)  # type: ignore[arg-type]
