"""Whatever a sample makes the code do is a counted skip with key and shard; a set that cannot suit says so at once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import data.loading.image_evaluation
import data.preparing.verify
import data.storage.reader
import data.storage.shard_writer
import data.views.making
import data.views.voxelize
from data.batch_spec import BatchSpec, VoxelConfig
from data.loading.evaluation import image_batches, load_batch, point_batches
from data.loading.image_evaluation import ImageTruthBatches, ImageTruthConfig, ImageTruthSpec
from data.loading.in_use import check_suits
from data.loading.loader import DataConfig, ShardLoader, build_loader
from data.loading.skips import Skip, SkipLedger
from data.preparing.prepare import PrepareConfig
from data.preparing.samples import prepare_samples
from data.preparing.verify import verify
from data.sample import Sample
from data.storage.damage import REASONS
from data.storage.manifest import SetInfo, load_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.shard import ShardError
from data.storage.shard_writer import join_manifest, write_shard
from tests.helpers.samples import toy_log, write_toy_set

BAD = "log-001_000002"
ERRORS = (
    MemoryError(),
    np.linalg.LinAlgError("Singular matrix"),
    cv2.error("OpenCV: assertion failed"),
    KeyError("front"),
    ValueError("largest cell index is 100000000"),
    RuntimeError("DataLoader worker would be blamed for this one"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("set"), num_logs=4, frames_per_log=4, num_points=300)


def failing(function: Callable[..., Any], error: Exception, bad: str | None = BAD) -> Callable[..., Any]:
    """The function, which raises for one sample, or for all."""
    points = {sample.key: sample.points_lidar for number in range(4) for sample in toy_log(number, 4, num_points=300)}

    def is_bad(value: object) -> bool:
        if isinstance(value, Sample):
            return value.key == bad
        return isinstance(value, np.ndarray) and bad is not None and np.array_equal(value, points[bad])

    def call(*args: Any, **options: Any) -> Any:
        if bad is None or any(is_bad(value) for value in args):
            raise type(error)(*error.args)  # a new one: each has its own traceback
        return function(*args, **options)

    return call


def loader(root: str, **options: Any) -> ShardLoader:
    config = DataConfig(**{"shards": root, "micro_batch_size": 3, "image_size": (24, 48), "num_workers": 0, **options})
    return build_loader(config, spec=BatchSpec(), seed=0, rank=0, world_size=1)


def keys_of(source: ShardLoader, count: int) -> set[str]:
    stream = source.batches(0)
    batches = list(itertools.islice(stream, count))
    stream.close()  # type: ignore[attr-defined]
    assert {len(batch.keys) for batch in batches} == {3}
    return {key for batch in batches for key in batch.keys}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_training_goes_on_without_the_sample(
    root: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = failing(data.views.making.point_pixel_pairs, error)
    monkeypatch.setattr(data.views.making, "point_pixel_pairs", wrong)
    source = loader(root)
    assert BAD not in keys_of(source, 8)  # two epochs
    assert source.counters == {"error": 1}
    skipped = [record.getMessage() for record in caplog.records if "skipped sample" in record.getMessage()]
    assert len(skipped) == 1
    assert f"{BAD} in shard-000001.tar: error ({type(error).__name__}" in skipped[0]
    assert "test_sample_errors.py:" in skipped[0]
    traced = [record for record in caplog.records if "Traceback" in record.getMessage()]
    assert len(traced) == 1  # though met in each epoch
    assert "in _record" in traced[0].getMessage()


def test_an_error_in_a_worker_is_no_dead_worker(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = failing(data.views.making.point_pixel_pairs, MemoryError())
    monkeypatch.setattr(data.views.making, "point_pixel_pairs", wrong)
    source = loader(root, num_workers=1, start_method="fork")
    assert BAD not in keys_of(source, 5)
    assert source.counters == {"error": 1}


def test_a_mistake_in_the_code_ends_the_run_and_is_shown(
    root: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(data.views.making, "voxelize", failing(int, TypeError("takes 2 arguments"), bad=None))
    with pytest.raises(ShardError, match=r"(?s)error: \d+, e\.g\. .*TypeError: takes 2 arguments.*please report"):
        keys_of(loader(root), 3)
    assert sum("Traceback" in record.getMessage() for record in caplog.records) == 1


def test_other_loaders_count_it_too(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SampleReader(load_manifest(root))
    row = next(row for row in range(16) if reader.manifest.key(row) == BAD)
    with monkeypatch.context() as patch:
        wrong = failing(data.storage.reader.check_fits_set, MemoryError())
        patch.setattr(data.storage.reader, "check_fits_set", wrong)
        with pytest.raises(SampleError, match=rf"{BAD} in shard-000001\.tar: error \(MemoryError \(tests/data/"):
            reader.read(row)
        points = list(point_batches(reader, np.arange(16), VoxelConfig(), batch_size=1))
        assert len(points) == 15
        assert [(p.reason, p.key) for p in verify(root).problems] == [("error", BAD)]
    with monkeypatch.context() as patch:
        wrong = failing(data.views.making.point_pixel_pairs, KeyError("front"))
        patch.setattr(data.views.making, "point_pixel_pairs", wrong)
        config = DataConfig(shards=root, image_size=(40, 72), num_workers=0)
        images = image_batches(reader, np.arange(16), config, spec=BatchSpec(), batch_size=4)
        assert sum(len(indices) for indices, _ in images) == 15
        with pytest.raises(SampleError, match="error"):
            load_batch(reader, [row], config, BatchSpec())
    with monkeypatch.context() as patch:
        wrong = failing(data.loading.image_evaluation.lidar_depth, ValueError("axes do not match"))
        patch.setattr(data.loading.image_evaluation, "lidar_depth", wrong)
        truth = ImageTruthBatches(
            reader=reader,
            indices=np.arange(16),
            batch_size=4,
            size=(40, 72),
            config=ImageTruthConfig(depth="lidar"),
            truth=ImageTruthSpec(depth=True),
        )
        assert sum(len(batch.keys) for batch in truth.batches()) == 15
    with monkeypatch.context() as patch:
        wrong = failing(data.preparing.verify.count_pairs, ZeroDivisionError())
        patch.setattr(data.preparing.verify, "count_pairs", wrong)
        assert [(p.reason, p.key) for p in verify(root).problems] == [("error", BAD)]


def test_nothing_usable_is_an_error_and_no_endless_epoch(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SampleReader(load_manifest(root))
    row = next(row for row in range(16) if reader.manifest.key(row) == BAD)

    wrong = failing(data.storage.reader.check_fits_set, MemoryError())
    monkeypatch.setattr(data.storage.reader, "check_fits_set", wrong)
    with pytest.raises(ShardError, match=r"1 of the 1 samples seen .*cannot be used"):
        list(point_batches(reader, np.array([row]), VoxelConfig(), batch_size=1))
    assert len(list(point_batches(reader, np.array([row, 0]), VoxelConfig(), batch_size=1))) == 1


@pytest.mark.parametrize("part", ["encode_sample", "count_pairs"])
def test_preparing_goes_on_and_the_shard_is_whole(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = failing(getattr(data.storage.shard_writer, part), MemoryError())
    monkeypatch.setattr(data.storage.shard_writer, part, wrong)
    config = PrepareConfig(superpixels=None)
    done = prepare_samples(toy_log(1, 4, num_points=300), str(tmp_path / "set"), config=config)
    assert done.manifest.skipped == {"error": (BAD,)}
    assert sum(record.exc_info is not None for record in caplog.records) == 1
    monkeypatch.undo()
    assert verify(str(tmp_path / "set")).problems == ()


def test_more_voxels_than_any_memory_holds(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.views.voxelize, "MAX_VOXELS", 20)
    with pytest.raises(ShardError, match=r"(?s)too-large: .*voxels, expected at most 20; size is .*enlarge the cells"):
        keys_of(loader(root), 3)


# ---- what to do
DAMAGE = {
    reason for reason in REASONS if reason.startswith(("shard", "tar", "check", "member", "meta", "array", "image"))
}
ADVICE = {
    "zero-pairs": "needs points that a camera sees",
    "no-points": "range_min",
    "no-images": "cameras",
    "superpixels-missing": "prepared without",
    "not-cached": "the next run builds it again",
    "no-partner": "larger distance in time",
    "error": "please report",
}


@pytest.mark.parametrize("reason", [*REASONS, *sorted(ADVICE.keys() - {"error"})])
def test_each_reason_has_its_own_remedy(reason: str) -> None:
    ledger = SkipLedger(max_share=0.0, num_samples=10, root="SET")
    skips = [Skip(index=index, reason=reason, key=f"k{index}", shard="s.tar", detail="so") for index in range(10)]
    with pytest.raises(ShardError) as error:
        ledger.account(10, skips)
    message = str(error.value)
    assert f"{reason}: 10, e.g. k0 in s.tar (so)" in message
    assert ADVICE.get(reason, "copy the named shards again" if reason in DAMAGE else "prepare --verify SET") in message
    assert ("copy the named shards again" in message) == (reason in DAMAGE)


def test_a_set_without_cameras_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    samples = [dataclasses.replace(sample, cameras=()) for sample in toy_log(0, 4)]
    table = write_shard(tmp_path / "shard-000000.tar", samples)
    info = SetInfo(set_name="bare", camera_names=(), logs=("log-000",), splits=("train",))
    reader = SampleReader(join_manifest(str(tmp_path), info, [table]))
    with pytest.raises(ShardError, match=r"4 of 4 samples have none: the set has no cameras\. Take a method"):
        loader(str(tmp_path))
    with pytest.raises(ShardError, match="the set has no cameras"):
        next(image_batches(reader, np.arange(4), DataConfig(shards="."), spec=BatchSpec(), batch_size=2))
    with pytest.raises(ShardError, match="needs images, and the set has no cameras"):
        next(
            image_batches(reader, np.arange(4), DataConfig(shards="."), spec=BatchSpec(need_pairs=False), batch_size=2)
        )
    config = DataConfig(shards=str(tmp_path), num_workers=0)
    assert build_loader(config, spec=BatchSpec(images=False), seed=0, rank=0, world_size=1).samples_per_epoch == 4


def test_points_that_no_camera_sees_are_no_damage(root: str) -> None:
    pairs = np.zeros(16, np.int32)
    manifest = dataclasses.replace(load_manifest(root), num_pairs=pairs)
    with pytest.raises(ShardError, match=r"12 of 12 samples have none in any of front, left: the calibration"):
        check_suits(manifest, [manifest.num_pairs[:12]], BatchSpec(), 1.0)
    pairs[:6] = 5
    check_suits(manifest, [manifest.num_pairs[:12]], BatchSpec(), 0.01)
    check_suits(manifest, [manifest.num_pairs[:12]], BatchSpec(images=False), 0.01)
    check_suits(manifest, [np.zeros(12, np.int32)], BatchSpec(need_pairs=False), 0.01)
