"""Semantic and instance segmentation: targets, losses, clustering, and what a batch may lack."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.lovasz import lovasz_softmax
from data.sample import IGNORE_LABEL, Batch
from models.segmentation.base import Segmenter, SegmenterConfig
from models.segmentation.instance import Instance, InstanceConfig, offset_losses
from models.segmentation.semantic import SemanticConfig, class_losses
from models.segmentation.voxels import agreed, voxel_classes, voxel_means
from tests.helpers.toy_batches import PointwiseConfig
from tests.reference.instance_targets import agreed_by_sets, objects_breadth_first

CLASSES, THINGS = ("wall", "chair", "table"), ("chair", "table")
NETWORK = PointwiseConfig(in_channels=3)
SEMANTIC = SemanticConfig(classes=CLASSES, backbone=NETWORK)
INSTANCE = InstanceConfig(classes=CLASSES, things=THINGS, backbone=NETWORK, radius_m=0.3, min_voxels=3)
every_network = pytest.mark.parametrize("config", [SEMANTIC, INSTANCE], ids=["semantic", "instance"])


def room(samples: int = 2, num_points: int = 90, num_voxels: int = 40, seed: int = 0) -> Batch:
    """Points in random voxels, with classes and objects of which the last voxels of a sample have none."""
    rng = np.random.default_rng(seed)
    more = rng.integers(0, num_voxels, (samples, num_points - num_voxels))
    of_voxel = np.concatenate(
        [np.sort(np.append(np.arange(num_voxels), part)) + num_voxels * s for s, part in enumerate(more)]
    )
    sample = np.repeat(np.arange(samples), num_points)
    voxel_object = rng.integers(0, 5, num_voxels * samples)
    voxel_class = np.array([0, 1, 1, 2, 2])[voxel_object]
    labels = np.where(rng.random(len(of_voxel)) < 0.15, IGNORE_LABEL, voxel_class[of_voxel])
    labels = np.where(rng.random(len(of_voxel)) < 0.1, 1, labels)
    coords = np.column_stack(
        [np.repeat(np.arange(samples), num_voxels), rng.integers(-9, 9, (num_voxels * samples, 3))]
    )
    return Batch(
        keys=tuple(f"room-{s}" for s in range(samples)),
        points=torch.from_numpy(rng.normal(0, 1, (len(of_voxel), 3))).float(),
        point_sample=torch.from_numpy(sample),
        point_voxel=torch.from_numpy(of_voxel),
        voxel_coords=torch.from_numpy(coords).int(),
        voxel_features=torch.from_numpy(rng.normal(0, 1, (num_voxels * samples, 3))).float(),
        T_aug_lidar=torch.eye(4).repeat(samples, 1, 1),
        labels=torch.from_numpy(labels).long(),
        instances=torch.from_numpy(voxel_object[of_voxel]).long(),
    )


def built(config: SegmenterConfig) -> Segmenter:
    torch.manual_seed(0)
    return config.build()


# ---- targets
@pytest.mark.parametrize("seed", range(5))
def test_a_voxel_has_the_class_that_its_points_agree_on(seed: int) -> None:
    batch = room(seed=seed)
    assert batch.labels is not None
    want = agreed_by_sets(batch.labels.tolist(), batch.point_voxel.tolist(), 80, IGNORE_LABEL)
    assert voxel_classes(batch, "the test").tolist() == want
    assert {0, 1, 2, IGNORE_LABEL} == set(want)


def test_agreement_of_nothing() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    assert agreed(nothing, nothing, 3, 7).tolist() == [7, 7, 7]
    with pytest.raises(ValueError, match=r"the test needs classes of points"):
        voxel_classes(dataclasses.replace(room(), labels=None), "the test")


def test_offsets_point_to_the_mean_of_the_objects_voxels() -> None:
    batch = room()
    assert batch.labels is not None
    assert batch.instances is not None
    network = built(INSTANCE)
    assert isinstance(network, Instance)
    classes = voxel_classes(batch, "the test")
    targets, rows = network.offset_targets(batch, classes)
    places = [batch.points[batch.point_voxel == voxel].mean(0) for voxel in range(80)]
    objects = agreed_by_sets(batch.instances.tolist(), batch.point_voxel.tolist(), 80, 0)
    sample = batch.voxel_coords[:, 0].tolist()
    wanted = [v for v in range(80) if classes[v] in (1, 2) and objects[v] > 0]
    assert rows.tolist() == wanted
    for voxel in wanted:
        alike = [
            v for v in wanted if (sample[v], classes[v], objects[v]) == (sample[voxel], classes[voxel], objects[voxel])
        ]
        centre = torch.stack([places[v] for v in alike]).mean(0)
        torch.testing.assert_close(targets[voxel], centre - places[voxel])
    # The same number in both samples is two objects.
    assert {sample[v] for v in wanted} == {0, 1}


# ---- losses
def test_class_losses_are_of_labelled_voxels() -> None:
    logits = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    classes = torch.arange(20) % 4
    classes[classes == 3] = IGNORE_LABEL
    known = classes != IGNORE_LABEL
    parts = class_losses(logits, classes, 0.5)
    torch.testing.assert_close(parts["classes"], F.cross_entropy(logits[known], classes[known]))
    torch.testing.assert_close(parts["lovasz"], 0.5 * lovasz_softmax(logits[known].softmax(1), classes[known]))
    assert set(class_losses(logits, classes, 0.0)) == {"classes"}
    nothing = class_losses(logits, torch.full((20,), IGNORE_LABEL), 1.0)
    assert all(float(part.detach()) == 0 for part in nothing.values())
    sum(nothing.values()).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_offset_losses_by_hand() -> None:
    offsets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.5, 0.5, 0.5]])
    parts = offset_losses(offsets, targets)
    assert float(parts["offset"].detach()) == pytest.approx((1 + 3 + 1.5) / 3)
    # Cosines 1/sqrt 2, -1, and 0 of an offset without direction.
    assert float(parts["direction"].detach()) == pytest.approx(-(2**-0.5 - 1 + 0) / 3)
    (parts["offset"] + parts["direction"]).backward()
    assert torch.isfinite(offsets.grad).all()
    right = offset_losses(targets, targets)
    assert (float(right["offset"]), float(right["direction"])) == (0, pytest.approx(-1))


# ---- clustering
@pytest.mark.parametrize("seed", range(6))
def test_objects_against_a_search_breadth_first(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = room(seed=seed)
    network = built(dataclasses.replace(INSTANCE, radius_m=0.35 + 0.1 * seed)).eval()
    assert isinstance(network, Instance)
    with torch.no_grad():
        found = network.segment(batch)
        features = network.features(batch)
        probabilities = network.class_layer(features).softmax(1)
        shifted = voxel_means(batch.points, batch.point_voxel, 80) + network.offset_layers(features)
    classes, samples = probabilities.argmax(1).numpy(), batch.voxel_coords[:, 0].numpy()
    config = network.clustering
    want = objects_breadth_first(shifted.numpy(), classes, samples, (1, 2), config.radius_m, config.min_voxels)
    assert want
    want.sort(key=lambda one: (one[0], one[1], min(one[2])))
    of_voxel = voxel_objects(found.point_object, batch)
    assert [frozenset(np.flatnonzero(of_voxel == o).tolist()) for o in range(len(want))] == [one[2] for one in want]
    assert found.object_class.tolist() == [kind for _, kind, _ in want]
    surest = [float(probabilities[sorted(inside), kind].max()) for _, kind, inside in want]
    assert found.object_score.tolist() == pytest.approx(surest)
    np.testing.assert_array_equal(found.point_class, classes[batch.point_voxel])
    assert of_voxel.max() == len(want) - 1


def voxel_objects(point_object: Tensor, batch: Batch) -> np.ndarray:
    of_voxel = np.full(len(batch.voxel_coords), -2)
    for voxel, number in zip(batch.point_voxel.tolist(), point_object.tolist(), strict=True):
        assert of_voxel[voxel] in (-2, number), "all points of a voxel are of one object"
        of_voxel[voxel] = number
    return of_voxel


# ---- what a batch may lack, and settings
@every_network
@pytest.mark.parametrize("case", ["nothing labelled", "no objects", "one class", "one point", "a class of none"])
def test_odd_batches_have_finite_losses_and_gradients(config: SegmenterConfig, case: str) -> None:
    batch = room()
    assert batch.labels is not None
    assert batch.instances is not None
    changed = {
        "nothing labelled": {"labels": torch.full_like(batch.labels, IGNORE_LABEL)},
        "no objects": {"instances": torch.zeros_like(batch.instances)},
        "one class": {"labels": torch.ones_like(batch.labels)},
        "a class of none": {"labels": batch.labels.where(batch.labels != 2, IGNORE_LABEL)},
    }
    batch = (
        dataclasses.replace(batch, **changed[case]) if case in changed else room(samples=1, num_points=1, num_voxels=1)
    )
    network = built(config).train()
    terms = network(batch)
    assert torch.isfinite(terms.total)
    terms.total.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name}: all parameters take part in every pass"
        assert torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        found = network.eval().segment(batch)
    assert found.point_class.shape == found.point_object.shape == batch.point_voxel.shape
    assert int(found.point_object.max()) == len(found.object_class) - 1


@every_network
def test_a_network_learns_a_batch_by_heart(config: SegmenterConfig) -> None:
    """Voxels whose input tells class and object: the loss falls to what no network can avoid."""
    batch = room(samples=1)
    truth = agreed_by_sets(batch.instances.tolist(), batch.point_voxel.tolist(), 40, 0)  # type: ignore[union-attr]
    features = F.one_hot(torch.tensor(truth), 5)[:, 1:4].float()
    batch = dataclasses.replace(batch, voxel_features=features)
    network = built(config).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    first = float(network(batch).parts["classes"])
    for _ in range(100):
        optimizer.zero_grad()
        loss = network(batch).total
        loss.backward()
        optimizer.step()
    assert float(network(batch).parts["classes"]) < 0.5 * first


def test_settings_say_whether_objects_are_told_apart() -> None:
    with pytest.raises(ValueError, match=r"things: .*model.name=instance"):
        SemanticConfig(classes=CLASSES, things=THINGS, backbone=NETWORK)
    with pytest.raises(ValueError, match=r"things: .*objects are told apart; model.name=semantic tells none apart"):
        InstanceConfig(classes=CLASSES, backbone=NETWORK)
    with pytest.raises(ValueError, match=rf"things: .*some of the classes .*; did you mean '{THINGS[0]}'"):
        InstanceConfig(classes=CLASSES, things=(f"{THINGS[0]}s",), backbone=NETWORK)
    with pytest.raises(ValueError, match="radius_m"):
        dataclasses.replace(INSTANCE, radius_m=0.0)
    with pytest.raises(ValueError, match="lovasz_weight"):
        dataclasses.replace(SEMANTIC, lovasz_weight=-1.0)
    assert SEMANTIC.batch_spec().instances is False
    assert INSTANCE.batch_spec().instances is True
    assert INSTANCE.batch_spec().point_classes == CLASSES
