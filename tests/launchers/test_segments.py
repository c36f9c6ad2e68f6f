"""From what a segmenter says of a batch to what is judged of a frame: every point, objects by frame, bare frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from data.batch_spec import VoxelConfig
from data.loading.loader import DataConfig
from data.loading.segment_frames import PointTruth, point_truth
from data.sample import Batch
from data.storage.manifest import SetInfo, load_manifest
from data.storage.reader import SampleReader
from data.storage.shard_writer import join_manifest, write_shard
from engine.segmentation.frames import SegmentNames
from launchers.evaluation.segments import FoundSegments, judged_frame, nothing_found, segmented
from models.methods.base import LossTerms
from models.segmentation.base import Segmenter, Segments
from tests.helpers.samples import CAMERA_NAMES, CLASS_NAMES, toy_log

GRID = VoxelConfig(kind="cartesian", size=(1.0, 1.0, 1.0), range_min=(-5.0, -5.0, -5.0), range_max=(5.0, 5.0, 5.0))


class BySign(Segmenter):
    """Class 1 left of the middle, else 0; the points of class 1 are two objects, above and below 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.batches: list[tuple[str, ...]] = []

    def forward(self, batch: Batch) -> LossTerms:
        return LossTerms(total=self.weight.sum())

    def segment(self, batch: Batch) -> Segments:
        self.batches.append(batch.keys)
        left, up = batch.points[:, 1] > 0, batch.points[:, 2] > 0
        objects = torch.where(left, 2 * batch.point_sample + up.long(), -1)
        number = torch.arange(2 * batch.num_samples)
        return Segments(
            point_class=left.long(),
            point_object=objects,
            object_class=torch.ones_like(number),
            object_score=(1 + number % 2) / 2,
        )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four frames: one is unlabelled, of one no objects are told apart."""
    folder = tmp_path_factory.mktemp("set")
    frames = toy_log(0, 4, num_points=200)
    frames[1] = dataclasses.replace(frames[1], labels=None, instances=None, boxes=None)
    frames[2] = dataclasses.replace(frames[2], instances=None)
    table = write_shard(folder / "shard-000000.tar", frames)
    info = SetInfo(
        set_name="toy", camera_names=CAMERA_NAMES, class_names=CLASS_NAMES, logs=("log-000",), splits=("val",)
    )
    join_manifest(str(folder), info, [table])
    return str(folder)


def look(
    root: str, indices: list[int], network: BySign, **options: object
) -> list[tuple[PointTruth, FoundSegments] | None]:
    settings: dict[str, object] = {"batch_size": 2, "device": torch.device("cpu")} | options
    reader, data = SampleReader(load_manifest(root)), DataConfig(shards=root, voxel=GRID, num_workers=0)
    return list(segmented(network, reader, np.array(indices), data, **settings))  # type: ignore[arg-type]


def test_every_recorded_point_is_given_a_class_and_objects_are_numbered_by_frame(root: str) -> None:
    network = BySign()
    found = [frame for frame in look(root, [3, 0, 1], network) if frame is not None]
    assert network.batches == [("log-000_000003", "log-000_000000"), ("log-000_000001",)]
    reader = SampleReader(load_manifest(root))
    for index, (truth, segments) in zip([3, 0, 1], found, strict=True):
        points = reader.read(index).points_lidar
        assert (truth.frame.index, truth.num_points) == (index, len(points))
        assert np.abs(points).max() > 5, "some lie outside the grid"
        np.testing.assert_array_equal(segments.found_class, points[:, 1] > 0)
        np.testing.assert_array_equal(segments.found_object, np.where(points[:, 1] > 0, points[:, 2] > 0, -1))
        assert segments.object_score.tolist() == [0.5, 1.0]


def test_frames_in_the_terms_of_the_metrics(root: str) -> None:
    manifest = load_manifest(root)
    names = SegmentNames(classes=(CLASS_NAMES[2], CLASS_NAMES[0]), things=(CLASS_NAMES[2],))
    sample = SampleReader(manifest).read(0)
    assert sample.labels is not None
    truth = point_truth(SampleReader(manifest), 0)
    frame = judged_frame(truth, nothing_found(truth.num_points), names, manifest)
    expected = {2: 0, 0: 1}
    assert frame.true_class.tolist() == [expected.get(label, -1) for label in sample.labels.tolist()]
    assert frame.true_object is not None
    assert frame.true_object.tolist() == [7 if label == 2 else -1 for label in sample.labels.tolist()]
    assert {-1, 0, 1} == set(frame.true_class.tolist())
    bare = point_truth(SampleReader(manifest), 2)
    assert judged_frame(bare, nothing_found(bare.num_points), names, manifest).true_object is None
    assert point_truth(SampleReader(manifest), 1).labels is None


def test_it_ends_when_it_is_told_to(root: str) -> None:
    asked: list[int] = []

    def go_on() -> bool:
        asked.append(1)
        return len(asked) < 2

    found = look(root, [0, 1, 2, 3], BySign(), go_on=go_on)
    assert found[2:] == [None]
    assert len(asked) == 2


def test_ranks_that_share_weights_pass_as_often(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all frames of a batch are damaged."""
    monkeypatch.setattr("launchers.evaluation.segments.segment_frames", lambda *_, **__: iter(()))
    for equal, batches in ((False, []), (True, [("",)])):
        network = BySign()
        assert look(root, [0], network, equal_passes=equal) == []
        assert network.batches == batches
