"""Labelled boxes of a view: they follow the points, and those that no network can find are left out."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from common.boxes.points import points_in_boxes
from data.batch_spec import BatchSpec, SecondCloud, VoxelConfig
from data.loading.collate import collate
from data.loading.evaluation import load_batch
from data.order import SampleDraws
from data.sample import IGNORE_LABEL, Boxes, Sample
from data.storage.manifest import load_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.shard import ShardError
from data.views.augment import NO_AUGMENTATION, AugmentConfig, PointAugmentConfig
from data.views.boxes import BoxConfig, ViewBoxes, class_numbers, num_points_inside, rows_inside, wanted_boxes
from data.views.making import make_view
from data.views.pairs import cut_to_cameras, point_pixel_pairs
from data.views.view import ViewConfig
from tests.helpers.samples import CLASS_NAMES, make_sample, write_toy_set

POINTS = BatchSpec(images=False)
MOVED = PointAugmentConfig(scale_range=(0.8, 1.25), translate_m=(5.0, 5.0, 0.5), drop_max_side=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("set"), num_logs=2, frames_per_log=2, num_points=300)


def boxes_of(rows: list[list[float]], velocities: list[list[float]], classes: list[int]) -> ViewBoxes:
    return ViewBoxes(
        boxes=np.array(rows, dtype=np.float64).reshape(-1, 7),
        velocities_mps=np.array(velocities, dtype=np.float64).reshape(-1, 2),
        classes=np.array(classes, dtype=np.int64),
    )


def random_boxes(rng: np.random.Generator, count: int) -> ViewBoxes:
    rows = np.concatenate(
        (
            rng.uniform((-15, -15, -1), (15, 15, 1), (count, 3)),
            rng.uniform((2, 0.5, 1), (9, 3, 3), (count, 3)),
            rng.uniform(-10, 10, (count, 1)),
        ),
        axis=1,
    )
    return ViewBoxes(boxes=rows, velocities_mps=rng.normal(size=(count, 2)), classes=rng.integers(0, 3, count))


def headings(boxes: ViewBoxes) -> np.ndarray:
    return np.stack((np.cos(boxes.boxes[:, 6]), np.sin(boxes.boxes[:, 6]))).T


def in_box_coordinates(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Along the heading, across, up; in units of half the box: -1 to 1 inside."""
    turn = np.array([[math.cos(box[6]), math.sin(box[6]), 0], [-math.sin(box[6]), math.cos(box[6]), 0], [0, 0, 1]])
    return np.asarray((points - box[:3]) @ turn.T / (box[3:6] / 2))


# ---- motion
def test_a_turned_mirrored_scaled_box_by_hand() -> None:
    box = boxes_of([[10, 0, 1, 4, 2, 1.5, 0.0]], [[3, 0]], [0])
    quarter = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    turned = box.moved(quarter)
    np.testing.assert_allclose(turned.boxes, [[0, 10, 1, 4, 2, 1.5, math.pi / 2]], atol=1e-12)
    np.testing.assert_allclose(turned.velocities_mps, [[0, 3]], atol=1e-12)
    # Mirroring y sends the heading to its negative, mirroring x to pi minus it.
    slanted = boxes_of([[10, 5, 1, 4, 2, 1.5, 0.3]], [[3, 1]], [0])
    np.testing.assert_allclose(slanted.moved(np.diag([1.0, -1, 1, 1])).boxes[0, [1, 6]], [-5, -0.3], atol=1e-12)
    np.testing.assert_allclose(slanted.moved(np.diag([-1.0, 1, 1, 1])).boxes[0, [0, 6]], [-10, math.pi - 0.3])
    np.testing.assert_allclose(slanted.moved(np.diag([-1.0, 1, 1, 1])).velocities_mps, [[-3, 1]])
    larger = slanted.moved(np.diag([1.1, 1.1, 1.1, 1]))
    np.testing.assert_allclose(larger.boxes, [[11, 5.5, 1.1, 4.4, 2.2, 1.65, 0.3]])
    np.testing.assert_allclose(larger.velocities_mps, [[3.3, 1.1]])
    np.testing.assert_array_equal(larger.classes, [0])


@pytest.mark.parametrize("flip_axes", ["x", "y", "xy"])
def test_points_keep_their_place_in_their_box(flip_axes: str) -> None:
    augment = dataclasses.replace(MOVED, flip_axes=flip_axes)
    config = ViewConfig(voxel=VoxelConfig(kind="cartesian"), augment=AugmentConfig(points=augment))
    flipped = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        boxes = random_boxes(rng, 6)
        sample = make_sample(rng, num_points=500)
        view = make_view(sample, config, POINTS, SampleDraws(0, 0, seed), boxes=boxes)
        assert view.boxes is not None
        assert len(view.points) == 500
        T = view.T_aug_lidar
        flipped.add(np.linalg.det(T[:2, :2]) < 0)
        for before, after in zip(boxes.boxes, view.boxes.boxes, strict=True):
            place, moved = in_box_coordinates(sample.points_lidar, before), in_box_coordinates(view.points, after)
            # A mirrored world has left and right of a box exchanged; front and back stay what they are.
            np.testing.assert_allclose(moved[:, [0, 2]], place[:, [0, 2]], atol=1e-4)
            np.testing.assert_allclose(np.abs(moved[:, 1]), np.abs(place[:, 1]), atol=1e-4)
            assert -math.pi <= after[6] <= math.pi
        # An object that drives where it is heading still does.
        gone = dataclasses.replace(boxes, velocities_mps=headings(boxes)).moved(T)
        scale = math.sqrt(abs(np.linalg.det(T[:2, :2])))
        np.testing.assert_allclose(gone.velocities_mps, scale * headings(gone), atol=1e-9)
    assert flipped == {True, False}


def test_one_axis_alone_is_mirrored() -> None:
    for axis, kept in (("x", 1), ("y", 0)):
        config = PointAugmentConfig(rotate=False, flip_axes=axis, drop_max_side=0.0)  # type: ignore[arg-type]
        signs = set()
        for seed in range(16):
            sample = make_sample(np.random.default_rng(0), num_points=50)
            view = make_view(sample, ViewConfig(augment=AugmentConfig(points=config)), POINTS, SampleDraws(0, 0, seed))
            assert view.T_aug_lidar[kept, kept] == 1
            signs.add(view.T_aug_lidar[1 - kept, 1 - kept])
        assert signs == {1.0, -1.0}


def test_a_second_view_of_the_sweep_has_its_own_boxes() -> None:
    spec = BatchSpec(images=False, second_cloud=SecondCloud(source="same"))
    boxes = random_boxes(np.random.default_rng(0), 3)
    config = ViewConfig(augment=AugmentConfig(points=MOVED))
    view = make_view(make_sample(np.random.default_rng(0)), config, spec, SampleDraws(), boxes=boxes)
    assert view.second is not None
    assert view.second.boxes is not None
    np.testing.assert_allclose(view.second.boxes.boxes, boxes.moved(view.second.T_aug_lidar).boxes)
    assert not np.allclose(view.second.boxes.boxes, view.boxes.boxes)  # type: ignore[union-attr]


# ---- which boxes
def test_a_box_counts_where_its_centre_is_in_the_grid() -> None:
    voxel = VoxelConfig(
        kind="cartesian", size=(1.0, 1.0, 1.0), range_min=(0.0, -10.0, -2.0), range_max=(20.0, 10.0, 2.0)
    )
    boxes = boxes_of(
        [[0, 0, 0, 4, 2, 1, 0], [-0.01, 0, 0, 4, 2, 1, 0], [20, 0, 0, 4, 2, 1, 0], [5, -10, 1.9, 4, 2, 1, 0]],
        [[0, 0]] * 4,
        [0, 1, 2, 3],
    )
    nothing = np.zeros((0, 3), dtype=np.float32)
    np.testing.assert_array_equal(boxes.kept(nothing, voxel, BoxConfig()).classes, [0, 3])
    assert len(boxes.kept(nothing, VoxelConfig(), BoxConfig())) == 4


def test_a_box_needs_points() -> None:
    rows: list[list[float]] = [[0, 0, 0, 4, 2, 2, 0], [10, 0, 0, 4, 2, 2, math.pi / 2], [0, 9, 0, 1, 1, 1, 0]]
    boxes = boxes_of(rows, [[0, 0]] * 3, [0, 1, 2])
    # Two in the first box, one in the second (its heading is along y), none in the third.
    points = np.array([[0, 0, 0], [1.5, 0.5, 0.5], [10.9, 1.9, 0], [12, 0, 0]], dtype=np.float32)
    np.testing.assert_array_equal(num_points_inside(points, boxes.boxes), [2, 1, 0])
    for least, kept in ((0, [0, 1, 2]), (1, [0, 1]), (2, [0]), (3, [])):
        np.testing.assert_array_equal(boxes.kept(points, VoxelConfig(), BoxConfig(min_points=least)).classes, kept)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        crowd, cloud = random_boxes(rng, 9).boxes, rng.uniform(-16, 16, (4000, 3)).astype(np.float32)
        inside = points_in_boxes(torch.from_numpy(cloud.astype(np.float64)), torch.from_numpy(crowd)).numpy()
        for column, rows in zip(inside.T, rows_inside(cloud, crowd), strict=True):
            np.testing.assert_array_equal(rows, np.flatnonzero(column))
    assert rows_inside(points, crowd[:0]) == []
    assert [len(rows) for rows in rows_inside(points[:0], crowd[:2])] == [0, 0]
    empty = boxes_of([], [], [])
    assert len(empty.kept(points, VoxelConfig(), BoxConfig(min_points=1))) == 0
    with pytest.raises(ValueError, match=r"min_points: got -1, expected at least 0"):
        BoxConfig(min_points=-1)


def test_wanted_classes_are_numbered_as_they_were_asked_for(root: str) -> None:
    numbers = class_numbers(load_manifest(root), ("pedestrian", "car"))
    boxes = Boxes(
        centers_m=np.arange(15.0).reshape(5, 3),
        sizes_m=np.ones((5, 3)),
        yaws=np.arange(5.0),
        velocities_mps=np.full((5, 2), np.nan),
        classes=np.array([2, IGNORE_LABEL, 0, 3, 2], dtype=np.int32),
        track_ids=np.arange(5),
    )
    wanted = wanted_boxes(boxes, numbers)
    np.testing.assert_array_equal(wanted.classes, [1, 0, 1])
    np.testing.assert_array_equal(wanted.boxes[:, 6], [0, 3, 4])
    np.testing.assert_array_equal(wanted.boxes[:, 0], [0, 9, 12])
    assert np.isnan(wanted.velocities_mps).all()
    with pytest.raises(ShardError, match=r"no class 'Car' .*classes are road, building, car, pedestrian; did you mean"):
        class_numbers(load_manifest(root), ("Car",))


# ---- batches
def test_a_batch_has_the_boxes_of_its_samples(root: str) -> None:
    reader = SampleReader(load_manifest(root))
    spec = BatchSpec(images=False, boxes=("pedestrian", "car"))
    batch = load_batch(reader, [1, 0], ViewConfig(), spec)
    stored = [reader.read(index).boxes for index in (1, 0)]
    boxes = batch.need("boxes", by="the test")
    assert boxes.sample.tolist() == [0, 0, 1, 1]
    assert boxes.classes.tolist() == [1, 1, 1, 1]
    expected = np.concatenate([part.centers_m for part in stored if part is not None]).astype(np.float32)
    np.testing.assert_array_equal(boxes.boxes[:, :3].numpy(), expected)
    assert (boxes.boxes.dtype, boxes.classes.dtype, boxes.sample.dtype) == (torch.float32, torch.int64, torch.int64)
    assert load_batch(reader, [0], ViewConfig(), BatchSpec(images=False)).boxes is None


def test_a_frame_without_objects_is_a_frame() -> None:
    samples = [make_sample(np.random.default_rng(seed), num_points=60) for seed in range(3)]
    parts = [random_boxes(np.random.default_rng(0), 2), boxes_of([], [], []), random_boxes(np.random.default_rng(2), 1)]
    views = [
        make_view(sample, ViewConfig(augment=NO_AUGMENTATION), POINTS, SampleDraws(), boxes=boxes)
        for sample, boxes in zip(samples, parts, strict=True)
    ]
    boxes = collate(views).need("boxes", by="the test")
    assert boxes.sample.tolist() == [0, 0, 2]
    none = collate(views[1:2]).need("boxes", by="the test")
    assert (none.boxes.shape, none.velocities_mps.shape, none.classes.shape) == ((0, 7), (0, 2), (0,))


def test_an_unlabelled_frame_is_skipped_by_reason(tmp_path: Path) -> None:
    bare = write_toy_set(tmp_path, num_logs=2, frames_per_log=1, labels=False)
    reader = SampleReader(dataclasses.replace(load_manifest(bare), class_names=CLASS_NAMES))
    with pytest.raises(SampleError, match="no-boxes"):
        load_batch(reader, [0], ViewConfig(), BatchSpec(images=False, boxes=("car",)))
    with pytest.raises(ShardError, match="it has no classes"):
        load_batch(SampleReader(load_manifest(bare)), [0], ViewConfig(), BatchSpec(images=False, boxes=("car",)))


# ---- cameras' share of the sweep
def test_only_points_inside_some_image_stay() -> None:
    sample: Sample = make_sample(np.random.default_rng(0), num_points=2000)
    cut = cut_to_cameras(sample)
    seen = np.unique(point_pixel_pairs(sample).point)
    # Two cameras of 90 degrees at right angles, so half of the circle, less what is too high or low.
    assert len(seen) < len(cut.points_lidar) < 1000
    assert set(map(tuple, sample.points_lidar[seen])) <= set(map(tuple, cut.points_lidar))
    rows = [int(np.flatnonzero((sample.points_lidar == point).all(axis=1))[0]) for point in cut.points_lidar]
    for name, values in cut.point_fields().items():
        np.testing.assert_array_equal(values, getattr(sample, name)[rows])
    assert set(cut.point_fields()) >= {"points_lidar", "intensity", "labels", "instances"}
    without = dataclasses.replace(sample, cameras=())
    assert len(cut_to_cameras(without).points_lidar) == 0
