"""Frames for detection: each once, in order, with their whole truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data.batch_spec import BatchSpec, VoxelConfig
from data.loading.detection_frames import DetectionFrames, detection_frames, frame_truth
from data.loading.loader import DataConfig
from data.sample import IGNORE_LABEL, Boxes
from data.storage.manifest import SetInfo, load_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.storage.shard_writer import join_manifest, write_shard
from data.views.augment import AugmentConfig, PointAugmentConfig
from tests.helpers.samples import CAMERA_NAMES, CLASS_NAMES, toy_log

CARS = BatchSpec(images=False, boxes=("car",))
GRID = VoxelConfig(kind="cartesian", range_min=(-50.0, -50.0, -25.0), range_max=(50.0, 50.0, 25.0))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five frames: one has no box, one is unlabelled, one lies outside of the grid, one has a box that is ignored."""
    folder = tmp_path_factory.mktemp("set")
    frames = toy_log(0, 5, num_points=200)
    boxes = frames[0].boxes
    assert boxes is not None
    everything = {field.name: getattr(boxes, field.name) for field in dataclasses.fields(Boxes)}
    none = Boxes(**{name: None if values is None else values[:0] for name, values in everything.items()})
    ignored = dataclasses.replace(boxes, classes=np.array([IGNORE_LABEL, 2], dtype=np.int32))
    frames[1] = dataclasses.replace(frames[1], boxes=none)
    frames[2] = dataclasses.replace(frames[2], points_lidar=frames[2].points_lidar + np.float32(200))
    frames[3] = dataclasses.replace(frames[3], boxes=ignored)
    frames[4] = dataclasses.replace(frames[4], boxes=None)
    table = write_shard(folder / "shard-000000.tar", frames)
    info = SetInfo(
        set_name="toy", camera_names=CAMERA_NAMES, class_names=CLASS_NAMES, logs=("log-000",), splits=("val",)
    )
    join_manifest(str(folder), info, [table])
    return str(folder)


def frames_of(root: str, indices: list[int], spec: BatchSpec = CARS, **options: object) -> list[DetectionFrames]:
    strong = AugmentConfig(points=PointAugmentConfig(scale_range=(0.5, 2.0)))
    settings = {"shards": root, "split": "val", "voxel": GRID, "augment": strong, "num_workers": 0}
    config = DataConfig(**(settings | options))  # type: ignore[arg-type]
    reader = SampleReader(load_manifest(root))
    return list(detection_frames(reader, np.array(indices), config, spec=spec, batch_size=2))


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_each_frame_comes_once_and_in_order_with_its_truth(root: str, num_workers: int) -> None:
    found = frames_of(root, [3, 2, 1, 0], num_workers=num_workers, prefetch=1)
    assert [[truth.index for truth in part.truths] for part in found] == [[3, 2], [1, 0]]
    assert [part.batch.keys for part in found if part.batch is not None] == [
        ("log-000_000003",),  # frame 2 has no point in the grid, but a truth
        ("log-000_000001", "log-000_000000"),
    ]
    reader = SampleReader(load_manifest(root))
    for part in found:
        for truth in part.truths:
            sample = reader.read(truth.index)
            assert (truth.key, truth.log, truth.timestamp_us) == (sample.key, sample.log, sample.timestamp_us)
            assert truth.boxes is not None
            assert sample.boxes is not None
            np.testing.assert_array_equal(truth.boxes.centers_m, sample.boxes.centers_m)
            np.testing.assert_array_equal(truth.boxes.classes, sample.boxes.classes)
            camera = truth.cameras[0]
            assert (camera.name, camera.image, camera.superpixels, camera.depth_m) == ("front", None, None, None)
            np.testing.assert_array_equal(truth.T_cam_lidar(camera), sample.T_cam_lidar(sample.cameras[0]))
    # The ignored one is part of the truth, and none of those that are learnt from.
    assert [len(truth.boxes.classes) for part in found for truth in part.truths] == [2, 2, 0, 2]  # type: ignore[union-attr]
    assert found[0].batch is not None
    assert len(found[0].batch.need("boxes", by="the test").boxes) == 1
    assert found[1].batch is not None
    assert found[1].batch.need("boxes", by="the test").sample.tolist() == [1, 1]


def test_images_of_frames_without_points_are_looked_at(root: str) -> None:
    spec = dataclasses.replace(CARS, images=True, need_pairs=False)
    found = frames_of(root, [3, 2, 1, 0], spec=spec, image_size=(24, 48))
    batches = [part.batch for part in found]
    assert [batch.keys for batch in batches if batch is not None] == [
        ("log-000_000003", "log-000_000002"),
        ("log-000_000001", "log-000_000000"),
    ]
    assert batches[0] is not None
    assert (batches[0].point_sample == 0).all()  # frame 2 has no point in the grid
    assert batches[0].need("images", by="the test").shape == (4, 3, 24, 48)


def test_nothing_is_augmented(root: str) -> None:
    (found,) = frames_of(root, [0])
    assert found.batch is not None
    sample = SampleReader(load_manifest(root)).read(0)
    np.testing.assert_array_equal(found.batch.points.numpy(), sample.points_lidar)
    np.testing.assert_array_equal(found.batch.T_aug_lidar[0].numpy(), np.eye(4))
    assert found.batch.labels is None


def test_an_unlabelled_split_gives_frames_without_boxes(root: str) -> None:
    with pytest.raises(ShardError, match="learns from labelled boxes, and these samples have none"):
        frames_of(root, [4], max_skip_share=0.0)
    (found,) = frames_of(root, [4], spec=dataclasses.replace(CARS, boxes=()))
    assert found.truths[0].boxes is None
    assert found.batch is not None
    assert found.batch.boxes is None
    (outside,) = frames_of(root, [2])
    assert outside.batch is None
    assert len(outside.truths) == 1


def test_unknown_classes_are_refused_before_anything_is_read(root: str) -> None:
    with pytest.raises(ShardError, match=r"no class 'Cyclist' .*classes are road, building, car, pedestrian"):
        frames_of(root, [0], spec=BatchSpec(images=False, boxes=("Cyclist",)))


def test_the_truth_of_one_frame(root: str) -> None:
    truth = frame_truth(SampleReader(load_manifest(root)), 3)
    assert truth.boxes is not None
    assert truth.boxes.classes.tolist() == [IGNORE_LABEL, 2]
