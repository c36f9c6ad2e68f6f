"""The training stream of a detector: fractions, balanced classes, objects of other sweeps; pure however it is read."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from common.file_lock import FileLock
from data.batch_spec import BatchSpec, VoxelConfig
from data.loading.fractions import FractionConfig
from data.loading.labelled import class_balanced, with_fraction
from data.loading.loader import DataConfig, ShardLoader, build_loader, open_samples, samples_fingerprint
from data.loading.objects import open_objects
from data.order import SampleOrder
from data.sample import Batch
from data.storage.manifest import load_manifest
from data.storage.mixture import open_sets
from data.storage.object_database import POINTS_FILE, ObjectDatabase
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.views.augment import AugmentConfig, PointAugmentConfig
from data.views.object_sampling import ObjectSamplingConfig
from tests.helpers.box_set import CAR, PEDESTRIAN, POINTS_EACH, box_frame, frame_of, write_frames

SPEC = BatchSpec(images=False, boxes=("pedestrian", "car"))
SAMPLING = ObjectSamplingConfig(counts={"car": 6, "pedestrian": 3})
VOXEL = VoxelConfig(kind="cartesian", size=(0.02, 0.02, 0.02), features="xyz_intensity")
FRAMES = 8
FEW = FractionConfig(kind="random", count=3, seed=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_frames(tmp_path_factory.mktemp("set"), [box_frame(number) for number in range(FRAMES)])


def config_of(root: str, **options: object) -> DataConfig:
    settings: dict[str, object] = {
        "shards": root,
        "micro_batch_size": 2,
        "voxel": VOXEL,
        "sampling": SAMPLING,
        "num_workers": 0,
    }
    return DataConfig(**(settings | options))  # type: ignore[arg-type]


def loader(root: str, *, seed: int = 0, rank: int = 0, world_size: int = 1, **options: object) -> ShardLoader:
    return build_loader(config_of(root, **options), spec=SPEC, seed=seed, rank=rank, world_size=world_size)


def take(source: ShardLoader, start: int, count: int) -> list[Batch]:
    stream = source.batches(start)
    batches = list(itertools.islice(stream, count))
    stream.close()  # type: ignore[attr-defined]
    return batches


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert [batch.keys for batch in a] == [batch.keys for batch in b]
    for one, other in zip(a, b, strict=True):
        assert one.tensors().keys() == other.tensors().keys()
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, other.tensors()[name]), name


def frames_in(batch: Batch) -> set[int]:
    """Which frames the points of a batch were recorded in."""
    return set(frame_of(batch.voxel_features[:, 3].numpy()).tolist())


def own(batch: Batch) -> set[int]:
    return {int(key[-6:]) for key in batch.keys}


# ---- the stream
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stream_goes_on_at_any_batch(root: str, num_workers: int) -> None:
    alone = take(loader(root), 0, 6)
    assert any(frames_in(batch) - own(batch) for batch in alone)
    assert all("boxes.boxes" in batch.tensors() and batch.labels is None for batch in alone)
    assert_same(alone[2:5], take(loader(root, num_workers=num_workers, prefetch=1), 2, 3))


def test_two_ranks_see_what_one_sees(root: str) -> None:
    whole = take(loader(root, micro_batch_size=4), 0, 3)
    ranks = [take(loader(root, rank=rank, world_size=2), 0, 3) for rank in range(2)]
    for batch, first, second in zip(whole, *ranks, strict=True):
        assert batch.keys == first.keys + second.keys
        for name in ("points", "boxes.boxes", "boxes.classes", "boxes.velocities_mps", "voxel_features"):
            both = torch.cat([part.tensors()[name] for part in (first, second)])
            assert torch.equal(batch.tensors()[name], both), name


def test_points_of_objects_lie_in_their_boxes_after_augmentation(root: str) -> None:
    whole = AugmentConfig(points=PointAugmentConfig(drop_max_side=0.0, scale_range=(0.9, 1.1)))
    for batch in take(loader(root, augment=whole), 0, 2):
        boxes = batch.need("boxes", by="the test")
        for box, sample, number in zip(boxes.boxes.double(), boxes.sample, boxes.classes.tolist(), strict=True):
            offset = batch.points[batch.point_sample == sample].double() - box[:3]
            c, s = box[6].cos(), box[6].sin()
            turned = torch.stack((offset[:, 0] * c + offset[:, 1] * s, offset[:, 1] * c - offset[:, 0] * s), dim=1)
            inside = (turned.abs() <= box[3:5] / 2).all(dim=1) & (offset[:, 2].abs() <= box[5] / 2)
            assert int(inside.sum()) == POINTS_EACH[(PEDESTRIAN, CAR)[number]]
        speed = boxes.velocities_mps.norm(dim=1)
        heading = torch.stack((boxes.boxes[:, 6].cos(), boxes.boxes[:, 6].sin()), dim=1)
        torch.testing.assert_close(boxes.velocities_mps, speed[:, None] * heading, rtol=0, atol=1e-4)


def test_sampling_ends_after_its_epochs(root: str) -> None:
    source = loader(root, sampling=dataclasses.replace(SAMPLING, epochs=1))
    batches = take(source, 0, 8)  # four batches an epoch
    assert all(frames_in(batch) == own(batch) for batch in batches[4:])
    assert any(frames_in(batch) > own(batch) for batch in batches[:4])
    # What the sweeps themselves look like does not change with it.
    assert_same(batches[4:], take(loader(root, sampling=ObjectSamplingConfig()), 4, 4))


# ---- few labels
def test_no_object_of_an_unlabelled_sweep_is_known(root: str, tmp_path: Path) -> None:
    source = loader(root, fraction=FEW, objects_folder=str(tmp_path))
    labelled = set(open_samples(config_of(root, fraction=FEW)).indices.tolist())
    assert len(labelled) == 3
    seen: set[int] = set()
    for batch in take(source, 0, 12):
        seen |= frames_in(batch)
    assert seen == labelled
    (folder,) = (tmp_path / "objects").iterdir()
    database = ObjectDatabase.open(folder)
    assert database is not None
    assert set(database.samples.tolist()) == labelled
    assert set(database.table.samples.tolist()) == labelled
    stored = np.fromfile(folder / POINTS_FILE, dtype="<f4").reshape(-1, 4)
    assert set(frame_of(stored[:, 3]).tolist()) == labelled


def test_a_run_goes_on_with_the_same_fraction_alone(root: str) -> None:
    source = loader(root, fraction=FEW)
    assert source.samples_per_epoch == 3
    source.check_state(loader(root, fraction=FEW).state(5))
    other = dataclasses.replace(FEW, seed=2)
    with pytest.raises(ValueError, match=r"samples is .* in the checkpoint.*splits, limits, fraction and weights"):
        source.check_state(loader(root, fraction=other).state(5))
    assert samples_fingerprint(config_of(root, fraction=FEW)) == source.state(0)["samples"]
    assert samples_fingerprint(config_of(root)) == loader(root).state(0)["samples"]
    with pytest.raises(ValueError, match=r"data\.fraction: count is 9, but there are only 8 samples"):
        loader(root, fraction=dataclasses.replace(FEW, count=9))


# ---- balanced classes
def test_each_class_has_its_share(tmp_path: Path) -> None:
    kinds = [[CAR]] * 6 + [[CAR, PEDESTRIAN]] * 2 + [[]] * 2 + [[CAR]] * 2
    root = write_frames(tmp_path, [box_frame(number, kind) for number, kind in enumerate(kinds)])
    source = loader(root, class_balanced=True, micro_batch_size=1)
    # Cars in 10 sweeps, pedestrians in 2: T = 12. A sweep with a car alone comes 12 / (2 x 10) = 0.6 times, one with
    # both 0.6 + 3 times.
    assert source.samples_per_epoch == 12  # round(8 x 0.6) + round(2 x 3.6) = 5 + 7
    visits = [source._make.order.at(position) for position in range(12 * 20)]
    counts = Counter(index for _, index in visits)
    assert counts.keys() == {number for number, kind in enumerate(kinds) if kind}
    assert counts[6] == counts[7] == 70  # 7 an epoch: as equally often as can be
    cars_alone = [counts[number] for number, kind in enumerate(kinds) if kind == [CAR]]
    assert sum(cars_alone) == 100
    assert max(cars_alone) - min(cars_alone) <= 1
    # No two visits of a sweep have the same random numbers.
    assert len(set(visits)) == len(visits)
    source.check_state(loader(root, class_balanced=True, micro_batch_size=1).state(3))


def test_nothing_to_balance(tmp_path: Path) -> None:
    root = write_frames(tmp_path, [box_frame(number, []) for number in range(3)])
    with pytest.raises(ValueError, match=r"class_balanced=true, but none of the samples has a box"):
        loader(root, class_balanced=True)
    # Objects of no sweep are nothing to put in, and that is no mistake.
    (batch,) = take(loader(root), 0, 1)
    assert len(batch.need("boxes", by="the test").boxes) == 0


def test_a_rare_class_does_not_come_without_end(root: str) -> None:
    opened = open_sets(config_of(root).sets)
    database = open_objects(SampleReader(load_manifest(root)), opened.indices, SPEC, **OPTIONS)  # type: ignore[arg-type]
    # Of 10,000 sweeps one has the second class.
    database.samples, database.num_boxes = np.arange(10000), np.ones((10000, 2), dtype=np.int64)
    database.num_boxes[1:, 1] = 0
    many = opened.of_rows([np.arange(10000)], [1.0])
    chosen = class_balanced(many, database)
    assert {stretch.num: stretch.weight for stretch in chosen.stretches} == {1: 1000.0, 9999: pytest.approx(0.50005)}
    SampleOrder(chosen.indices, np.zeros(10000, dtype=np.int64), 0, 8, chosen.stretches)


# ---- the database
OPTIONS = {"folder": None, "cut_to_cameras": False, "num_workers": 0, "max_skip_share": 0.0}


def test_a_database_is_made_once_and_waited_for(root: str, tmp_path: Path) -> None:
    options = OPTIONS | {"folder": str(tmp_path)}
    reader, samples = SampleReader(load_manifest(root)), np.arange(FRAMES)
    made = open_objects(reader, samples, SPEC, **options)  # type: ignore[arg-type]
    content = (made.path / POINTS_FILE).read_bytes()
    written = (made.path / POINTS_FILE).stat().st_mtime_ns
    open_objects(reader, samples[::-1], SPEC, **options)  # type: ignore[arg-type]
    assert (made.path / POINTS_FILE).stat().st_mtime_ns == written
    # Somebody else is at it: this process waits until it is there.
    for file in made.path.glob("*[zf4]"):
        file.unlink()
    lock = FileLock(made.path / "build.lock")
    assert lock.take()
    found: list[ObjectDatabase] = []
    waiting = threading.Thread(target=lambda: found.append(open_objects(reader, samples, SPEC, **options)))  # type: ignore[arg-type]
    waiting.start()
    time.sleep(0.1)
    assert not found
    lock.release()
    waiting.join(timeout=30)
    assert (found[0].path / POINTS_FILE).read_bytes() == content


def test_damage_is_told(root: str, tmp_path: Path) -> None:
    options = OPTIONS | {"folder": str(tmp_path)}
    reader, samples = SampleReader(load_manifest(root)), np.arange(FRAMES)
    made = open_objects(reader, samples, SPEC, **options)  # type: ignore[arg-type]
    (made.path / POINTS_FILE).write_bytes(b"short")
    with pytest.raises(ShardError, match=r"points.f4 has 5 bytes, expected \d+\); delete that folder"):
        open_objects(reader, samples, SPEC, **options)  # type: ignore[arg-type]


def test_settings_that_exclude_each_other(root: str) -> None:
    with pytest.raises(ValueError, match=r"data\.sampling\.counts is about labelled boxes"):
        build_loader(config_of(root), spec=BatchSpec(images=False), seed=0, rank=0, world_size=1)
    with pytest.raises(ValueError, match=r"puts objects into the cloud that no image shows"):
        build_loader(config_of(root), spec=BatchSpec(boxes=("car",)), seed=0, rank=0, world_size=1)
    with pytest.raises(ValueError, match=r"set data\.more=\[\]"):
        loader(root, more=(config_of(root),))
    two = open_sets((config_of(root), config_of(root)))
    with pytest.raises(ValueError, match=r"is a choice within one set; set data\.more=\[\]"):
        with_fraction(two, FEW)
    with pytest.raises(ShardError, match=r"no class 'cyclist'"):
        build_loader(config_of(root), spec=BatchSpec(images=False, boxes=("cyclist",)), seed=0, rank=0, world_size=1)


def test_classes_of_which_nothing_can_be_put_in_are_named(root: str, caplog: pytest.LogCaptureFixture) -> None:
    """By rank 0 alone; the classes that have objects are put in all the same."""
    few = dataclasses.replace(SAMPLING, min_points=POINTS_EACH[PEDESTRIAN] + 1)
    loader(root, sampling=few, rank=1, world_size=2)
    loader(root)
    assert not caplog.records
    loader(root, sampling=few)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("data.sampling.counts: no pedestrian is put in: the ")
    assert "Use more labels (data.fraction), or looser limits" in record.message
