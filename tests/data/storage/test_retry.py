from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common import retry as patience
from common.retry import StorageAwayError, StorageRetry
from data.batch_spec import BatchSpec
from data.loading.loader import DataConfig, build_loader
from data.storage import store
from data.storage.manifest import load_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.shard import ShardError
from data.storage.teacher_cache import TeacherCache, TeacherCacheWriter
from tests.helpers.samples import write_toy_set


@pytest.fixture
def root(tmp_path: Path) -> str:
    return write_toy_set(tmp_path / "set", num_logs=3, frames_per_log=4, num_points=200)


def away_for(root: str, seconds: float) -> threading.Timer:
    hidden = f"{root}.hidden"
    os.rename(root, hidden)
    timer = threading.Timer(seconds, os.rename, (hidden, root))
    timer.start()
    return timer


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shards_that_are_away_for_a_while_cost_no_sample(root: str, num_workers: int) -> None:
    config = DataConfig(
        shards=root, image_size=(40, 72), micro_batch_size=2, num_workers=num_workers, prefetch=1, max_skip_share=0.0
    )
    expected = [
        batch.keys
        for batch in itertools.islice(
            build_loader(config, spec=BatchSpec(superpixels=True), seed=0, rank=0, world_size=1).batches(0), 8
        )
    ]
    source = build_loader(config, spec=BatchSpec(superpixels=True), seed=0, rank=0, world_size=1)
    stream = source.batches(0)
    keys = [next(stream).keys]
    timer = away_for(root, 2.0)
    keys += [next(stream).keys for _ in range(7)]
    timer.join()
    assert keys == expected
    assert source.counters == {}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_storage_that_does_not_come_back_is_one_clear_error(root: str, num_workers: int) -> None:
    config = DataConfig(shards=root, image_size=(40, 72), num_workers=num_workers, retry_min=0.01)
    source = build_loader(config, spec=BatchSpec(superpixels=True), seed=0, rank=0, world_size=1)
    os.rename(root, f"{root}.hidden")
    with pytest.raises(ShardError, match=r"did not come back in 0.01 min \(data.retry_min\)") as caught:
        next(iter(source.batches(0)))
    assert "Traceback" not in str(caught.value)


def test_a_shard_that_is_not_there_is_damage_at_once(root: str) -> None:
    reader = SampleReader(load_manifest(root))
    os.remove(reader.manifest.shard_path(0))
    began = time.monotonic()
    for index in range(4):
        with pytest.raises(SampleError, match="shard-missing"):
            reader.read(index)
    assert time.monotonic() - began < 1.0


def failing(codes: list[int]) -> Callable[[], bytes]:
    def read() -> bytes:
        if codes:
            raise OSError(codes.pop(0), "no")
        return b"data"

    return read


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_a_hiccup_passes(tmp_path: Path, code: int) -> None:
    (tmp_path / "there").write_text("x")
    assert StorageRetry(tmp_path / "there", 1.0).read(failing([code, code])) == b"data"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EISDIR])
def test_other_errors_are_not_waited_for(tmp_path: Path, code: int) -> None:
    (tmp_path / "there").write_text("x")
    with pytest.raises(OSError, match="no"):
        StorageRetry(tmp_path / "there", 1.0).read(failing([code]))


def test_a_bad_sector_is_given_up_after_a_few_tries_and_its_shard_remembered(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_HICCUPS_S", (0.0, 0.01))
    calls = []

    def unreadable(file: int, size: int, offset: int) -> bytes:
        calls.append(offset)
        raise OSError(errno.EIO, "Input/output error")

    reader = SampleReader(load_manifest(root))
    monkeypatch.setattr(store, "read_at", unreadable)
    for expected in (3, 1):  # tries
        with pytest.raises(SampleError, match="Input/output error"):
            reader.read(0)
        assert len(calls) == expected
        calls.clear()


def test_waiting_is_told_once_and_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(StorageAwayError, match="did not come back"):
        StorageRetry(tmp_path / "gone" / "manifest.json", 0.02).read(failing([errno.EIO] * 1000))
    assert sum("waiting for it" in r.message for r in caplog.records) == 1


def test_a_teacher_cache_that_is_away_for_a_while(root: str) -> None:
    manifest = load_manifest(root)
    writer = TeacherCacheWriter(root, "key", 4, manifest)
    features = np.arange(12, dtype=np.float32).reshape(3, 4)
    counts = [3, *[0] * (len(manifest.camera_names) - 1)]
    writer.add(5, features, counts)
    cache = writer.finish()
    timer = away_for(root, 1.0)
    assert np.array_equal(cache.features(5, manifest.key(5)), features)
    timer.join()
    os.remove(next(Path(root).glob("teacher_cache/*/part-*.npy")))
    again = TeacherCache(cache.path, json.loads((cache.path / "cache.json").read_text()))
    with pytest.raises(ShardError, match="cannot be read"):
        again.features(5, manifest.key(5))
