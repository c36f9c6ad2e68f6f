from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.lovasz import lovasz_softmax
from engine.downstream.confusion import ConfusionMatrix
from engine.downstream.losses import SegmentationLossConfig, class_weights, segmentation_loss
from engine.downstream.runner import SharedConfig
from tests.reference.segmentation import iou_by_sets, lovasz_by_loop


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_lovasz_agrees_with_the_definition_in_value_and_gradient(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (9,), generator=generator)
    ours, slow = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    a, b = lovasz_softmax(ours.softmax(1), labels), lovasz_by_loop(slow.softmax(1), labels)
    a.backward()
    b.backward()
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours.grad, slow.grad)


def test_lovasz_of_a_hard_prediction_is_one_minus_mean_iou() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    predicted = torch.tensor([0, 1, 1, 1, 0, 2])
    matrix = ConfusionMatrix(3, 255)
    matrix.update(predicted, labels)
    loss = lovasz_softmax(F.one_hot(predicted, 3).double(), labels)
    assert float(loss) == pytest.approx(1 - matrix.miou())


def test_lovasz_does_not_depend_on_the_order_of_the_rows() -> None:
    logits, labels = torch.randn(50, 5).softmax(1), torch.randint(0, 5, (50,))
    order = torch.randperm(50)
    torch.testing.assert_close(lovasz_softmax(logits, labels), lovasz_softmax(logits[order], labels[order]))


def test_ignored_rows_change_neither_loss_nor_gradient() -> None:
    logits, labels = torch.randn(20, 3), torch.randint(0, 3, (20,))
    config = SegmentationLossConfig(class_balance=0.5)
    weights = class_weights(torch.bincount(labels, minlength=3), 0.5)
    some = logits.clone().requires_grad_()
    segmentation_loss(some, labels, weights, config, 255).backward()
    more = torch.cat([logits, torch.randn(7, 3)]).requires_grad_()
    segmentation_loss(more, torch.cat([labels, torch.full((7,), 255)]), weights, config, 255).backward()
    assert some.grad is not None
    assert more.grad is not None
    torch.testing.assert_close(more.grad[:20], some.grad)
    assert not more.grad[20:].any()


def test_loss_without_a_labelled_row_is_zero_with_gradient() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((4,), 255), None, SegmentationLossConfig(), 255)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_class_weights_average_to_one_over_rows_and_favour_rare_classes() -> None:
    counts = torch.tensor([900, 90, 10, 0])
    weights = class_weights(counts, 1.0)
    torch.testing.assert_close(weights[:3] * counts[:3], torch.full((3,), 1000 / 3))
    assert weights[3] == 0.0
    torch.testing.assert_close(class_weights(counts, 0.0), torch.tensor([1.0, 1.0, 1.0, 0.0]))


@given(st.lists(st.tuples(st.integers(-1, 3), st.sampled_from([0, 1, 2, 3, 255])), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_iou_agrees_with_sets_of_points(pairs: list[tuple[int, int]]) -> None:
    # -1: no prediction was asked for, so the point does not exist for the metric.
    asked = [(p, y) for p, y in pairs if p >= 0]
    expected = iou_by_sets([p for p, _ in asked], [y for _, y in asked], 4, 255)
    matrix = ConfusionMatrix(4, 255)
    for at in range(0, len(pairs), 7):
        chunk = pairs[at : at + 7]
        matrix.update(torch.tensor([p for p, _ in chunk]), torch.tensor([y for _, y in chunk]))
    found = {c: v for c, v in enumerate(matrix.iou().tolist()) if not math.isnan(v)}
    assert found == pytest.approx(expected)
    if expected:
        assert matrix.miou() == pytest.approx(sum(expected.values()) / len(expected))
        assert matrix.accuracy() == pytest.approx(
            sum(p == y for p, y in asked if y != 255) / sum(y != 255 for _, y in asked)
        )


def ring(correct: int, confused: int, said_to_be_last: int) -> torch.Tensor:
    """Counts of 16 classes, the last never true: of each other one, some points are taken for the next, or the last."""
    counts = torch.zeros(16, 16, dtype=torch.int64)
    for c in range(15):
        counts[c, c], counts[c, (c + 1) % 15], counts[c, 15] = correct, confused, said_to_be_last
    return counts


@pytest.mark.parametrize(
    ("dataset", "setting", "nowhere"),
    [
        ("nuscenes", "benchmark", 45.151),
        ("semantickitti", "benchmark", 42.329),
        ("synthetic", "benchmark", 45.151),
        ("nuscenes", "one", 48.579),
        ("semantickitti", "left-out", 45.151),
    ],
)
def test_a_class_that_is_not_there_counts_as_in_the_set_s_own_tool(dataset: str, setting: str, nowhere: float) -> None:
    """The values are those that the official tools gave for 16 classes with these IoUs, the last one absent."""
    config = SharedConfig(absent_class=setting)  # type: ignore[arg-type]
    matrix = ConfusionMatrix(16, 255, absent=config.absent_class_of(dataset))
    matrix.counts = ring(90302, 54849, 0)  # IoU of each class 0.45151
    assert 100 * matrix.miou() == pytest.approx(nowhere, abs=1e-3)
    matrix.counts = ring(91404, 54000, 596)  # 0.45702, and the last class is predicted
    assert 100 * matrix.miou() == pytest.approx(42.846, abs=1e-3)
    assert matrix.iou()[15] == 0


def test_metric_refuses_labels_that_are_no_class() -> None:
    matrix = ConfusionMatrix(3, 255)
    with pytest.raises(ValueError, match="label 3 is outside of the 3 classes"):
        matrix.update(torch.tensor([0, 1]), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="not one labelled point"):
        matrix.miou()


@pytest.mark.parametrize("bad", [{"class_balance": 1.5}, {"lovasz_weight": -1.0}, {"lovasz_weight": math.inf}])
def test_loss_config_refuses(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SegmentationLossConfig(**bad)
