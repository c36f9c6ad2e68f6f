"""Objects of other sweeps in a sweep: which ones, where, and what becomes of the points."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from common.boxes.overlap import bev_intersection
from common.ranges import RangeError
from data.batch_spec import BatchSpec, GroundConfig
from data.loading.objects import open_objects
from data.order import SampleDraws
from data.sample import Boxes, Sample
from data.storage.manifest import load_manifest
from data.storage.object_database import ObjectDatabase, ObjectTable
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.views.boxes import ViewBoxes, class_numbers, rows_inside, wanted_boxes
from data.views.object_sampling import ObjectSampler, ObjectSamplingConfig
from tests.helpers.box_set import POINTS_EACH, box_frame, frame_of, write_frames

NAMES = ("pedestrian", "car")
FRAMES = 12


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SampleReader:
    root = write_frames(tmp_path_factory.mktemp("set"), [box_frame(number) for number in range(FRAMES)])
    return SampleReader(load_manifest(root))


@pytest.fixture(scope="module")
def database(reader: SampleReader) -> ObjectDatabase:
    return open_objects(
        reader,
        np.arange(FRAMES),
        BatchSpec(images=False, boxes=NAMES),
        folder=None,
        cut_to_cameras=False,
        num_workers=0,
        max_skip_share=0.0,
    )


def put_into(
    sampler: ObjectSampler, reader: SampleReader, index: int, epoch: int = 0, seed: int = 0
) -> tuple[Sample, ViewBoxes, Sample, ViewBoxes]:
    """The sweep and its boxes, before and after."""
    sample = reader.read(index, images=False, superpixels=False)
    assert sample.boxes is not None
    boxes = wanted_boxes(sample.boxes, class_numbers(reader.manifest, NAMES))
    return (sample, boxes, *sampler.put_into(sample, boxes, index, SampleDraws(seed, epoch, index)))


def areas(boxes: np.ndarray) -> np.ndarray:
    """Areas that different boxes share."""
    rows = torch.from_numpy(boxes)
    return bev_intersection(rows, rows).fill_diagonal_(0).numpy()


def test_objects_stand_where_they_stood_and_nothing_overlaps(reader: SampleReader, database: ObjectDatabase) -> None:
    sampler = ObjectSampler(database, NAMES, ObjectSamplingConfig(counts={"car": 6, "pedestrian": 3}, fill_up=False))
    stored = {tuple(box): number for number, box in enumerate(database.table.boxes)}
    num_added = num_refused = 0
    for index in range(FRAMES):
        before, boxes, after, joined = put_into(sampler, reader, index)
        added = len(joined) - len(boxes)
        np.testing.assert_array_equal(joined.boxes[: len(boxes)], boxes.boxes)
        assert (areas(joined.boxes) == 0).all()
        numbers = [stored[tuple(box)] for box in joined.boxes[len(boxes) :]]
        np.testing.assert_array_equal(joined.classes[len(boxes) :], database.table.classes[numbers])
        np.testing.assert_array_equal(joined.velocities_mps[len(boxes) :], database.table.velocities_mps[numbers])
        assert (database.table.samples[numbers] != index).all()  # its own stand there already
        # Their points come first, at their places, with all that was measured of them.
        start = 0
        for number, box in zip(numbers, joined.boxes[len(boxes) :], strict=True):
            own = reader.read(int(database.table.samples[number]), images=False)
            (rows,) = rows_inside(own.points_lidar, box[None])
            stop = start + len(rows)
            np.testing.assert_allclose(after.points_lidar[start:stop], own.points_lidar[rows], atol=1e-5)
            np.testing.assert_array_equal(after.intensity[start:stop], own.intensity[rows])
            start = stop
        # Of the scene's own points those inside are gone, and no others.
        inside = np.zeros(len(before.points_lidar), dtype=bool)
        for rows in rows_inside(before.points_lidar, joined.boxes[len(boxes) :]):
            inside[rows] = True
        np.testing.assert_array_equal(after.points_lidar[start:], before.points_lidar[~inside])
        num_added += added
        num_refused += 9 - added
    assert num_added > 20
    assert num_refused > 20


def test_points_of_the_scene_inside_an_object_are_removed(reader: SampleReader, database: ObjectDatabase) -> None:
    sampler = ObjectSampler(database, NAMES, ObjectSamplingConfig(counts={"car": 4}, fill_up=False))
    sample = reader.read(0, images=False)
    none = ViewBoxes(boxes=np.zeros((0, 7)), velocities_mps=np.zeros((0, 2)), classes=np.zeros(0, dtype=np.int64))
    assert sample.boxes is not None
    columns = {field.name: getattr(sample.boxes, field.name) for field in dataclasses.fields(Boxes)}
    bare = Boxes(**{name: None if values is None else values[:0] for name, values in columns.items()})
    dense = np.random.default_rng(0).uniform((-20, -20, -1), (20, 20, 1), (20000, 3)).astype(np.float32)
    filled = dataclasses.replace(
        sample, points_lidar=dense, intensity=np.full(20000, 0.99, np.float32), boxes=bare, cameras=()
    )
    after, boxes = sampler.put_into(filled, none, 0, SampleDraws())
    assert len(boxes) >= 2
    inside = np.concatenate(rows_inside(after.points_lidar, boxes.boxes))
    assert (frame_of(after.intensity[inside]) < FRAMES).all()
    assert len(inside) == len(boxes) * POINTS_EACH[2]


def test_the_scene_is_filled_up_to_the_wanted_number(reader: SampleReader, database: ObjectDatabase) -> None:
    config = ObjectSamplingConfig(counts={"car": 2, "pedestrian": 1})
    sampler = ObjectSampler(database, NAMES, config)
    seen = Counter()
    for index in range(FRAMES):
        _, boxes, _, joined = put_into(sampler, reader, index)
        for number, name in enumerate(NAMES):
            present, now = int((boxes.classes == number).sum()), int((joined.classes == number).sum())
            assert present <= now <= max(present, config.counts[name])
            seen[name] += now - present
    assert seen["car"] > 0
    assert seen["pedestrian"] > 0


def test_all_objects_come_equally_often(reader: SampleReader, database: ObjectDatabase) -> None:
    """Of the groups before collisions are looked at: a class's objects are walked through again and again."""
    sampler = ObjectSampler(database, NAMES, ObjectSamplingConfig(counts={"car": 5, "pedestrian": 50}))
    cars = np.flatnonzero(database.table.classes == 1)
    epochs = len(cars)  # epochs x 12 sweeps x 5 cars: each car 60 times
    drawn = Counter(
        int(car)
        for epoch in range(epochs)
        for index in range(FRAMES)
        for car in sampler._walk(1, 5, index, SampleDraws(3, epoch, index))
    )
    assert set(drawn) == set(cars.tolist())
    # A car that would be twice in one group, at the seam of two permutations, is in it once.
    assert 0.9 * 60 <= min(drawn.values()) <= max(drawn.values()) <= 60
    # More are wanted than there are: each of them once.
    pedestrians = sampler._walk(0, 50, 4, SampleDraws(3, 1, 4))
    assert sorted(pedestrians.tolist()) == np.flatnonzero(database.table.classes == 0).tolist()


def test_a_sweep_gets_what_seed_epoch_and_sweep_say(reader: SampleReader, database: ObjectDatabase) -> None:
    config = ObjectSamplingConfig(counts={"car": 4, "pedestrian": 2}, fill_up=False)
    used = ObjectSampler(database, NAMES, config)
    for index in range(FRAMES):
        put_into(used, reader, index, epoch=1)
    fresh = ObjectSampler(database, NAMES, config)
    first, again = put_into(used, reader, 5, epoch=2), put_into(fresh, reader, 5, epoch=2)
    np.testing.assert_array_equal(first[2].points_lidar, again[2].points_lidar)
    np.testing.assert_array_equal(first[3].boxes, again[3].boxes)
    others = [put_into(fresh, reader, 5, epoch=3), put_into(fresh, reader, 5, epoch=2, seed=1)]
    assert all(not np.array_equal(first[3].boxes, other[3].boxes) for other in others)


def test_two_candidates_in_the_same_place_are_both_refused(tmp_path: Path) -> None:
    """And none is put into an object of a class that nobody asked for."""
    car = box_frame(0, [2])
    twice = [dataclasses.replace(car, key=f"log-000_{number:06d}") for number in range(2)]
    ignored = dataclasses.replace(car.boxes, classes=np.array([255], dtype=np.int32))  # type: ignore[type-var]
    frames = [*twice, box_frame(3, []), dataclasses.replace(car, key="log-000_000004", boxes=ignored)]
    reader = SampleReader(load_manifest(write_frames(tmp_path, frames)))
    spec = BatchSpec(images=False, boxes=NAMES)
    options = {"folder": None, "cut_to_cameras": False, "num_workers": 0, "max_skip_share": 0.0}
    both = open_objects(reader, np.array([0, 1, 2, 3]), spec, **options)  # type: ignore[arg-type]
    one = open_objects(reader, np.array([0, 2, 3]), spec, **options)  # type: ignore[arg-type]
    counts = ObjectSamplingConfig(counts={"car": 2})
    assert len(put_into(ObjectSampler(both, NAMES, counts), reader, 2)[3]) == 0
    assert len(put_into(ObjectSampler(one, NAMES, counts), reader, 2)[3]) == 1
    assert len(put_into(ObjectSampler(one, NAMES, counts), reader, 3)[3]) == 0


def test_objects_are_chosen_by_what_is_known_of_them(database: ObjectDatabase) -> None:
    first = {name: values[:5] for name, values in vars(database.table).items()}
    known = {
        "num_points": np.array([4, 5, 6, 7, 8]),
        "difficulties": np.array([0, -1, 1, 2, 2]),
        "truncations": np.array([0, 0, 0.6, np.nan, 0.5]),
        "occlusions": np.array([0, 3, 2, -1, 2]),
        "image_heights_px": np.array([np.nan, 25, 24.9, 30, 30]),
    }
    table = ObjectTable(**(first | known))

    def usable(**options: object) -> list[int]:
        return np.flatnonzero(ObjectSamplingConfig(**options).usable(table)).tolist()  # type: ignore[arg-type]

    assert usable() == [1, 2, 3, 4]
    assert usable(min_points=7) == [3, 4]
    assert usable(unknown_difficulty=False) == [2, 3, 4]
    assert usable(min_image_height_px=25.0) == [1, 3, 4]
    assert usable(max_truncation=0.5) == [1, 4]
    assert usable(max_occlusion=2) == [2, 4]


def test_objects_are_put_onto_the_ground(reader: SampleReader, database: ObjectDatabase) -> None:
    """Frame 3's ground is half a metre higher than the others'."""
    ground = GroundConfig(kind="plane", distance_m=0.1)
    sampler = ObjectSampler(database, NAMES, ObjectSamplingConfig(counts={"car": 9}, fill_up=False, ground=ground))
    sample = reader.read(3, images=False)
    assert sample.boxes is not None
    grid = np.stack(np.meshgrid(np.arange(-20.0, 20), np.arange(-20.0, 20)), axis=-1).reshape(-1, 2)
    flat = np.concatenate((grid, np.full((len(grid), 1), -0.5)), axis=1).astype(np.float32)
    raised = dataclasses.replace(sample, points_lidar=flat, intensity=np.zeros(len(flat), np.float32))
    boxes = wanted_boxes(sample.boxes, class_numbers(reader.manifest, NAMES))
    after, joined = sampler.put_into(raised, boxes, 3, SampleDraws())
    added = joined.boxes[len(boxes) :]
    assert len(added) > 0
    np.testing.assert_allclose(added[:, 2] - added[:, 5] / 2, -0.5, atol=1e-6)
    for rows in rows_inside(after.points_lidar, added):
        assert len(rows) == POINTS_EACH[2]  # the points came along


def test_classes_without_objects_and_mistakes(reader: SampleReader, database: ObjectDatabase) -> None:
    none = ObjectSampler(database, NAMES, ObjectSamplingConfig(counts={"car": 3}, min_points=1000))
    sample, boxes, after, joined = put_into(none, reader, 0)
    assert after is sample
    assert joined is boxes
    with pytest.raises(
        RangeError, match=r"data\.sampling\.counts: got 'cars', expected .*pedestrian, car; did you mean 'car'"
    ):
        ObjectSampler(database, NAMES, ObjectSamplingConfig(counts={"cars": 3}))
    with pytest.raises(RangeError, match=r"counts: got .*expected 1 or more of each class"):
        ObjectSamplingConfig(counts={"car": 0})
    timed = dataclasses.replace(sample, times_s=np.zeros(len(sample.points_lidar), np.float32))
    sampler = ObjectSampler(database, NAMES, ObjectSamplingConfig(counts={"car": 5}, fill_up=False))
    with pytest.raises(ShardError, match=r"points have x, y, z, intensity, those of sample .* intensity, times_s"):
        sampler.put_into(timed, boxes, 0, SampleDraws())
