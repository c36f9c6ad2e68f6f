"""The panoptic network: targets, losses and objects by slow references, and batches that lack what it learns from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.lovasz import lovasz_softmax
from data.batch_spec import VoxelConfig
from data.loading.evaluation import load_batch
from data.loading.loader import DataConfig
from data.sample import IGNORE_LABEL, Batch
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.shared_voxels import sharing_maps
from models.lidar.sparse import SubmanifoldConv3d, SubmanifoldRows, sparse_tensor
from models.segmentation.panoptic import PanopticConfig, PanopticNetwork, objects_of, offset_loss
from models.segmentation.targets import offset_targets
from tests.helpers.street_set import write_street_set
from tests.reference.segmentation import lovasz_by_loop

THINGS = ("car", "truck", "bus", "pedestrian", "cyclist")
VOXELS = VoxelConfig(kind="cartesian", size=(0.4, 0.4, 0.4), features="xyz_intensity", reduce="mean")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SampleReader:
    return SampleReader(load_manifest(write_street_set(tmp_path_factory.mktemp("set") / "shards")))


@pytest.fixture(scope="module")
def batch(reader: SampleReader) -> Batch:
    return load_batch(
        reader, [0, 4], DataConfig(shards=reader.manifest.root, voxel=VOXELS), config(reader).batch_spec()
    )


def config(reader: SampleReader) -> PanopticConfig:
    backbone = Res16UNetConfig(preset="res16unet_tiny", in_channels=4, bn_momentum=0.1)
    return PanopticConfig(classes=reader.manifest.class_names, things=THINGS, backbone=backbone)


@pytest.fixture
def network(reader: SampleReader) -> PanopticNetwork:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return config(reader).build()


# ---- targets and losses
def test_offsets_point_to_the_middle_of_the_objects_box() -> None:
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.normal(0, 3, (60, 3)))
    sample, classes = torch.arange(60) // 30, torch.from_numpy(rng.integers(0, 2, 60))
    objects = torch.from_numpy(rng.integers(0, 3, 60))
    rows, targets = offset_targets(points, sample, classes, objects)
    assert rows.tolist() == [n for n in range(60) if objects[n] > 0]
    for row, target in zip(rows.tolist(), targets, strict=True):
        own = [n for n in range(60) if all(part[n] == part[row] for part in (sample, classes, objects))]
        low, high = points[own].min(0).values, points[own].max(0).values
        torch.testing.assert_close(target, (low + high) / 2 - points[row])


def test_the_offsets_loss_is_a_mean_over_samples_of_means(batch: Batch) -> None:
    assert batch.labels is not None
    assert batch.instances is not None
    offsets = torch.randn(batch.num_points, 3)
    objects = torch.where(batch.labels >= 10, batch.instances, 0)
    rows, targets = offset_targets(batch.points, batch.point_sample, batch.labels, objects)
    sums, counts = [0.0, 0.0], [0, 0]
    for row, target in zip(rows.tolist(), targets, strict=True):
        number = int(batch.point_sample[row])
        sums[number] += float((offsets[row] - target).abs().sum())
        counts[number] += 1
    assert min(counts) > 0
    expected = (sums[0] / counts[0] + sums[1] / counts[1]) / 2
    assert float(offset_loss(offsets, batch, batch.labels, objects)) == pytest.approx(expected, rel=1e-4)


def test_losses_of_the_classes(batch: Batch, network: PanopticNetwork) -> None:
    """Unlabelled points count in the Lovász term alone, as a class of their own."""
    assert batch.labels is not None
    few = torch.randperm(batch.num_points, generator=torch.Generator().manual_seed(0))[:300]
    labels = torch.full_like(batch.labels, IGNORE_LABEL)
    labels[few] = batch.labels[few]
    network.eval()
    scores, _ = network._outputs(batch)
    parts = network(dataclasses.replace(batch, labels=labels)).parts
    wanted = F.cross_entropy(scores, torch.where(labels == IGNORE_LABEL, -100, labels))
    assert float(parts["cross_entropy"]) == pytest.approx(2 * wanted.item(), rel=1e-4)
    known = torch.where(labels == IGNORE_LABEL, 15, labels)
    rows = torch.cat([few[:60], torch.arange(60)])
    probabilities = scores.detach().double().softmax(1)
    by_loop = lovasz_by_loop(probabilities[rows], known[rows])
    assert lovasz_softmax(probabilities[rows], known[rows]).item() == pytest.approx(by_loop.item(), rel=1e-6)
    whole = lovasz_softmax(probabilities, known)
    assert float(parts["lovasz"]) == pytest.approx(6 * whole.item(), rel=1e-4)


# ---- the network
def test_heads_share_the_backbones_neighbour_maps(batch: Batch) -> None:
    mixed = torch.randperm(len(batch.voxel_coords), generator=torch.Generator().manual_seed(1))
    coords, features = batch.voxel_coords[mixed], batch.voxel_features[mixed]
    convolution, head = SubmanifoldConv3d(4, 5), SubmanifoldRows(4, 5)
    head.load_state_dict(convolution.state_dict())
    x, rows = sparse_tensor(coords, features, 2)
    assert rows is not None
    expected = convolution(x).features[rows]
    with sharing_maps(coords, 2) as voxels:
        inside, _ = sparse_tensor(coords, features, 2)
        assert inside.grid is voxels.grid
        torch.testing.assert_close(voxels.rows(head(voxels.sorted(features), voxels.grid)), expected)
    of_point = torch.randint(len(coords), (30,))
    torch.testing.assert_close(voxels.sorted(features)[voxels.point_rows(of_point)], features[of_point])


def test_points_that_are_moved_together_are_an_object(
    batch: Batch, network: PanopticNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the true classes and offsets: the true objects, each with its class."""
    assert batch.labels is not None
    assert batch.instances is not None
    scores = F.one_hot(batch.labels, 16).float() * 9
    objects = torch.where(batch.labels >= 10, batch.instances, 0)
    rows, targets = offset_targets(batch.points, batch.point_sample, batch.labels, objects)
    offsets = torch.zeros(batch.num_points, 3).index_copy(0, rows, targets)
    monkeypatch.setattr(network, "_outputs", lambda _: (scores, offsets))
    segments = network.segment(batch)
    assert torch.equal(segments.point_class, batch.labels)
    assert torch.equal(segments.point_object >= 0, batch.labels >= 10)
    true = torch.stack([batch.point_sample, objects], dim=1)[rows]
    pairs = torch.cat([true, segments.point_object[rows, None]], dim=1).unique(dim=0)
    apart = len(true.unique(dim=0))
    assert apart > 4
    assert len(pairs) == apart, "no true object is in two parts"
    for number, kind in enumerate(segments.object_class.tolist()):
        own = segments.point_object == number
        assert kind == batch.labels[own].mode().values
        assert len(batch.point_sample[own].unique()) == 1
    assert segments.object_score.min() > 0.99 or len(pairs[:, 2].unique()) < apart


def test_class_and_score_of_an_object() -> None:
    probabilities = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.1, 0.9], [0.7, 0.3]])
    found = objects_of(probabilities, probabilities.argmax(1), torch.tensor([0, 0, 0, -1]))
    assert found["object_class"].tolist() == [1]
    assert found["object_score"].tolist() == pytest.approx([(0.4 + 0.8 + 0.9) / 3])
    nothing = objects_of(probabilities, probabilities.argmax(1), torch.full((4,), -1))
    assert [len(part) for part in nothing.values()] == [0, 0]


def _one_point(batch: Batch) -> Batch:
    return dataclasses.replace(
        batch,
        keys=batch.keys[:1],
        points=batch.points[:1],
        point_sample=batch.point_sample[:1],
        point_voxel=torch.zeros(1, dtype=torch.long),
        voxel_coords=batch.voxel_coords[:1],
        voxel_features=batch.voxel_features[:1],
        T_aug_lidar=batch.T_aug_lidar[:1],
        labels=batch.need("labels", by="the test")[:1],
        instances=batch.need("instances", by="the test")[:1],
    )


def _all(values: Tensor | None, value: int) -> Tensor:
    assert values is not None
    return torch.full_like(values, value)


ODD = {
    "no things": lambda b: dataclasses.replace(b, labels=_all(b.labels, 0), instances=_all(b.instances, 0)),
    "things without objects": lambda b: dataclasses.replace(b, labels=_all(b.labels, 10), instances=_all(b.labels, 0)),
    "nothing labelled": lambda b: dataclasses.replace(b, labels=_all(b.labels, IGNORE_LABEL)),
    "one point": _one_point,
    "one object of everything": lambda b: dataclasses.replace(
        b, labels=_all(b.labels, 13), instances=_all(b.labels, 7)
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_batches_are_learnt_from_and_looked_at(case: str, batch: Batch, network: PanopticNetwork) -> None:
    odd = ODD[case](batch)
    terms = network.train()(odd)
    terms.total.backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert bool(terms.total.isfinite())
    with torch.no_grad():
        segments = network.eval().segment(odd)
    assert len(segments.point_class) == odd.num_points
    assert int(segments.point_class.max()) < 15
    assert len(segments.object_class) == len(segments.object_score) == int(segments.point_object.max()) + 1


def test_it_learns_one_frame(reader: SampleReader, batch: Batch, network: PanopticNetwork) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    first = None
    for _ in range(8):
        terms = network(batch)
        first = terms.parts if first is None else first
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
    assert first is not None
    last = network(batch).parts
    assert float(last["cross_entropy"]) < 0.7 * float(first["cross_entropy"])
    assert float(last["offset"]) < 0.9 * float(first["offset"])


def test_things_are_needed() -> None:
    with pytest.raises(ValueError, match="things"):
        PanopticConfig(classes=("road", "car"))
    with pytest.raises(ValueError, match="negative_slope"):
        PanopticConfig(classes=("road", "car"), things=("car",), negative_slope=1.5)
