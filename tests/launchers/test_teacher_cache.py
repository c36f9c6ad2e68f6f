"""The teacher cache in a real run: what is in it, an interrupted build goes on, another teacher builds anew."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.load import ConfigError
from data.loading.evaluation import load_batch
from data.sample import Batch
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.storage.teacher_cache import TeacherCache, TeacherCacheWriter, teacher_cache_key
from engine.distributed import World
from engine.errors import StopRequested
from engine.preempt import StopSignals
from launchers.training import teacher_cache as builder
from launchers.training.train import load_run
from models.methods.slidr import Slidr
from tests.helpers.pretrain_run import arguments, pretrain_here
from tests.helpers.samples import write_toy_set
from tests.helpers.toy_batches import with_changed
from tests.helpers.toy_run import losses

RANDOM = "method.teacher.weights=random"


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Own shards: the tests look at which caches lie beside them."""
    return write_toy_set(tmp_path / "set", num_logs=4, frames_per_log=3)


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the samples that the teacher has looked at."""
    keys: list[str] = []
    original = Slidr.pool_teacher

    def counted(self: Slidr, batch: Batch) -> Any:
        keys.extend(batch.keys)
        return original(self, batch)

    monkeypatch.setattr(Slidr, "pool_teacher", counted)
    return keys


def built(shards: str, *overrides: str) -> tuple[Any, Slidr]:
    path, *rest = arguments("unused", shards, *overrides)
    config = load_run(path, rest)
    torch.manual_seed(config.seed)
    objective = config.method.build()
    assert isinstance(objective, Slidr)
    return config, objective


def caches(shards: str) -> set[str]:
    folder = Path(shards) / "teacher_cache"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.mark.slow
def test_each_image_is_seen_once_and_the_run_trains(
    shards: str, pooled: list[str], world: World, one_thread: None, tmp_path: Path
) -> None:
    """9 samples, 18 steps of 4: the loss falls. A second run reuses the cache and does the same, bit for bit."""
    options = (RANDOM, "schedule.kind=constant", "data.augment.points.enabled=false")
    pretrain_here(tmp_path / "first", shards, *options, "schedule.steps=18")
    assert sorted(pooled) == sorted({f"log-{log:03d}_{frame:06d}" for log in range(3) for frame in range(3)})
    first = losses(tmp_path / "first")
    assert np.mean(first[-5:]) < 0.97 * np.mean(first[:5])
    pretrain_here(tmp_path / "second", shards, *options, "schedule.steps=4")
    assert len(pooled) == 9
    assert losses(tmp_path / "second") == first[:4]


def test_what_is_cached_is_what_the_teacher_gives(shards: str, world: World) -> None:
    """Every sample, pooled alone; stored as float16: 11 bits, half a unit in the last place."""
    config, objective = built(shards)
    cache = builder.open_or_build(objective, config.data, world)
    manifest = load_manifest(shards)
    reader = SampleReader(manifest)
    for index in manifest.indices("train").tolist():
        batch = load_batch(reader, [index], config.data, config.method.batch_spec())
        assert batch.superpixels is not None
        expected = objective.pool_teacher(batch).numpy()
        stored = cache.features(index, manifest.key(index))
        assert stored.dtype == np.float16
        assert cache.offsets(index).tolist() == [0, *np.cumsum(batch.superpixels.per_image.tolist()).tolist()]
        np.testing.assert_allclose(stored.astype(np.float32), expected, rtol=2**-11, atol=1e-6)
        assert np.abs(expected).max() > 0.1
    assert all(index not in cache for index in manifest.indices("val").tolist())


def test_loss_with_and_without_cache_agree_where_the_method_says_so(shards: str, world: World) -> None:
    """The same samples: cached features are those of the batch's own images, in the batch's order."""
    from data.loading.loader import build_loader

    config, objective = built(shards, "data.augment.points.enabled=false")
    cache = builder.open_or_build(objective, config.data, world)
    streams = [
        build_loader(
            config.data, spec=config.method.batch_spec(), seed=0, rank=0, world_size=1, teacher_cache=teacher_cache
        ).batches(2)
        for teacher_cache in (cache, None)
    ]
    with_cache, with_images = (next(stream) for stream in streams)
    assert with_cache.keys == with_images.keys
    assert with_cache.superpixels.features is not None
    pooled = objective.pool_teacher(with_images)
    torch.testing.assert_close(with_cache.superpixels.features, pooled, rtol=2**-10, atol=1e-5)
    filled = with_changed(with_images, superpixels={"features": pooled})
    objective.eval()
    torch.testing.assert_close(objective(with_cache).total, objective(filled).total, rtol=1e-3, atol=0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_goes_on(
    shards: str,
    pooled: list[str],
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    config, objective = built(shards, RANDOM)
    counting = Slidr.pool_teacher

    def breaks(self: Slidr, batch: Batch) -> Any:
        if len(pooled) >= 8:
            raise error("pulled the plug")
        return counting(self, batch)

    monkeypatch.setattr(Slidr, "pool_teacher", breaks)
    with pytest.raises(error):
        builder.open_or_build(objective, config.data, world)
    assert len(pooled) == 8
    manifest = load_manifest(shards)
    key = teacher_cache_key(objective.teacher.fingerprint(), manifest, config.data.image_size)
    assert TeacherCache.open(shards, key) is None

    monkeypatch.setattr(Slidr, "pool_teacher", counting)
    cache = builder.open_or_build(objective, config.data, world)
    assert len(pooled) == len(set(pooled)) == 9, "what was done is not done again"
    assert all(index in cache for index in manifest.indices("train").tolist())
    last = int(manifest.indices("train")[-1])
    expected = objective.pool_teacher(
        load_batch(SampleReader(manifest), [last], config.data, config.method.batch_spec())
    ).numpy()
    np.testing.assert_allclose(
        cache.features(last, manifest.key(last)).astype(np.float32), expected, rtol=2**-11, atol=1e-6
    )


def test_a_killed_build_loses_little(
    shards: str, pooled: list[str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves no time to flush: finished parts are written every so often."""
    config, objective = built(shards, RANDOM)
    monkeypatch.setattr(builder, "_FLUSH_EVERY_S", 0.0)
    parts: list[int] = []
    counting = Slidr.pool_teacher

    def spying(self: Slidr, batch: Batch) -> Any:
        parts.append(len(list(Path(shards).glob("teacher_cache/*/part-*.npy"))))
        return counting(self, batch)

    monkeypatch.setattr(Slidr, "pool_teacher", spying)
    builder.open_or_build(objective, config.data, world)
    assert parts == [0, 1, 2]


def variants() -> Iterator[tuple[str, ...]]:
    yield (RANDOM,)
    yield (RANDOM, "method.teacher.random_seed=1")
    yield (RANDOM, "method.teacher.levels=[8,16]")
    yield (RANDOM, "data.image_size=[32,64]")
    yield ("method.teacher.weights=imagenet",)


def test_another_teacher_or_image_size_builds_its_own(shards: str, pooled: list[str], world: World) -> None:
    for number, overrides in enumerate(variants(), start=1):
        config, objective = built(shards, *overrides)
        cache = builder.open_or_build(objective, config.data, world)
        assert len(caches(shards)) == number, overrides
        assert len(pooled) == 9 * number
        assert cache.dim == objective.teacher.num_features
    # What changes no feature takes the cache that is there.
    config, objective = built(shards, RANDOM, "method.embedding_dim=8", "data.voxel.reduce=first", "seed=7")
    builder.open_or_build(objective, config.data, world)
    assert len(pooled) == 9 * len(list(variants()))


def test_more_samples_are_added_to_a_cache(shards: str, pooled: list[str], world: World) -> None:
    for limit, seen in ((4, 4), (9, 9), (5, 9)):
        config, objective = built(shards, RANDOM, f"data.limit={limit}")
        builder.open_or_build(objective, config.data, world)
        assert len(pooled) == seen
    assert len(caches(shards)) == 1


class Waits:
    """Another run holds the cache; each pause of the one that waits is a chance to do something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shards: str, key: str, then: Callable[[], None]) -> None:
        manifest = load_manifest(shards)
        self.other = TeacherCacheWriter(shards, key, 4, manifest)
        self.other.note("3 of 9 samples")
        self.pauses = 0
        self._then = then
        monkeypatch.setattr(builder.time, "sleep", self._pause)

    def _pause(self, seconds: float) -> None:
        self.pauses += 1
        if self.pauses == 3:
            self._then()


def test_a_rank_that_does_not_see_the_finished_cache_says_so(
    shards: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, objective = built(shards, RANDOM)
    monkeypatch.setattr(builder, "agree_any", lambda flags, world: [False, False])
    other = dataclasses.replace(world, rank=1, world_size=2)
    with pytest.raises(
        ConfigError, match=r"teacher_folder: rank 1 on .* does not see the teacher cache \w+ that rank 0"
    ):
        builder.open_or_build(objective, config.data, other)


@pytest.mark.parametrize("stopped", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_waits_for_another_that_builds(
    shards: str,
    pooled: list[str],
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stopped: bool,
) -> None:
    """It says for whom, builds itself when the other one has died, and hears a stop signal meanwhile."""
    caplog.set_level(logging.INFO)
    config, objective = built(shards, RANDOM)
    key = teacher_cache_key(objective.teacher.fingerprint(), load_manifest(shards), config.data.image_size)
    with StopSignals() as signals:
        then = (
            (lambda: os.kill(os.getpid(), signal.SIGUSR1)) if stopped else (lambda: waits.other.__exit__(*[None] * 3))
        )
        waits = Waits(monkeypatch, shards, key, then)
        if stopped:
            with pytest.raises(StopRequested, match="SIGUSR1"):
                builder.open_or_build(objective, config.data, world, signals)
        else:
            builder.open_or_build(objective, config.data, world, signals)
    assert len(pooled) == (0 if stopped else 9)
    assert waits.pauses == 3
    told = [record.getMessage() for record in caplog.records if "waiting for the teacher cache" in record.getMessage()]
    assert len(told) == 1
    assert f"process {os.getpid()} on" in told[0]
    assert told[0].endswith("3 of 9 samples")


@pytest.mark.slow
def test_a_damaged_cache_is_built_again_with_a_word(
    shards: str, pooled: list[str], world: World, caplog: pytest.LogCaptureFixture
) -> None:
    config, objective = built(shards, RANDOM)
    builder.open_or_build(objective, config.data, world)
    part = next(Path(shards).glob("teacher_cache/*/part-*.npy"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    cache = builder.open_or_build(objective, config.data, world)
    assert "does not have the checksum" in caplog.text
    assert len(pooled) == 18
    assert all(index in cache for index in load_manifest(shards).indices("train").tolist())


@pytest.mark.parametrize("bad", [1, 4])
def test_a_sample_without_finite_features_is_left_out(
    shards: str, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bad: int
) -> None:
    config, objective = built(shards, RANDOM)
    seen, original = itertools.count(), Slidr.pool_teacher

    def overflows(self: Slidr, batch: Batch) -> torch.Tensor:
        features = original(self, batch)
        if next(seen) < bad:  # in its first sample
            features[0] = 1e6
        return features

    monkeypatch.setattr(Slidr, "pool_teacher", overflows)
    monkeypatch.setattr(builder, "_SAMPLES_AT_A_TIME", 2)
    if bad > 1:
        with pytest.raises(ShardError, match=r"not finite in float16 for 2 samples, such as log-.*weights"):
            builder.open_or_build(objective, config.data, world)
        return
    cache = builder.open_or_build(objective, config.data, world)
    missing = [index for index in load_manifest(shards).indices("train").tolist() if index not in cache]
    assert [f"sample {load_manifest(shards).key(index)}: the teacher's" in caplog.text for index in missing] == [True]


def test_a_sample_that_cannot_be_used_is_no_reason_to_refuse_the_next_start(
    shards: str, pooled: list[str], world: World
) -> None:
    shard = min(Path(shards).glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[600:700] = bytes(100)  # in the first sample
    shard.write_bytes(content)
    config, objective = built(shards, RANDOM)
    for _ in range(2):
        cache = builder.open_or_build(objective, config.data, world)
        assert sum(index in cache for index in range(12)) == 8
    assert len(pooled) == 8
