"""Fills the teacher cache: a frozen teacher sees each image once, and its features are pooled over superpixels."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from data.loader import DataConfig, image_batches
from data.sample import Batch
from data.shards import SampleReader, load_manifest
from data.teacher_cache import TeacherCache, TeacherCacheWriter, teacher_cache_key
from engine.distributed import World, barrier
from models.image.teacher import FrozenTeacher

_SAMPLES_AT_A_TIME = 4
_FLUSH_EVERY_S = 60.0
"""What a killed build loses at most."""


@runtime_checkable
class PoolsTeacher(Protocol):
    """An objective whose teacher's features can be pooled over superpixels beforehand."""

    teacher: FrozenTeacher

    def pool_teacher(self, batch: Batch) -> Float[Tensor, "S C"]:
        """Mean feature of each superpixel of the batch."""
        ...


def open_or_build(objective: PoolsTeacher, config: DataConfig, world: World) -> TeacherCache:
    """The finished cache of this teacher and this set; rank 0 builds what is missing while the others wait.

    An interrupted build goes on where it stopped. Several runs that build the same cache at once write the same
    bytes, one after the other's rename.

    Raises:
        ShardError: damaged samples beyond `config.max_skip_share`, or a damaged cache.
    """
    manifest = load_manifest(config.shards)
    key = teacher_cache_key(objective.teacher.fingerprint(), manifest, config.image_size)
    cache = TeacherCache.open(config.shards, key)
    indices = manifest.indices(config.split)[: config.limit].tolist()
    if world.is_main and (cache is None or any(index not in cache for index in indices)):
        _build(objective, config, key, world.device)
        cache = None
    barrier(world)
    cache = cache or TeacherCache.open(config.shards, key)
    assert cache is not None  # rank 0 has just finished it
    return cache


def _build(objective: PoolsTeacher, config: DataConfig, key: str, device: torch.device) -> None:
    manifest = load_manifest(config.shards)
    writer = TeacherCacheWriter(config.shards, key, objective.teacher.num_features, manifest)
    missing = writer.missing(manifest.indices(config.split)[: config.limit])
    teacher_was_on = next(objective.teacher.parameters()).device
    objective.teacher.to(device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    flushed = time.monotonic()
    try:
        with Progress(*columns) as progress:
            task = progress.add_task("teacher features", total=len(missing))
            for indices, batch in image_batches(SampleReader(manifest), missing, config, batch_size=_SAMPLES_AT_A_TIME):
                _add(writer, indices, batch, objective.pool_teacher(batch.to(device)).cpu())
                progress.advance(task, len(indices))
                if time.monotonic() - flushed >= _FLUSH_EVERY_S:
                    writer.flush()
                    flushed = time.monotonic()
    finally:
        writer.flush()  # an interrupted build keeps what it has
    writer.finish()
    objective.teacher.to(teacher_was_on)


def _add(writer: TeacherCacheWriter, indices: tuple[int, ...], batch: Batch, features: Float[Tensor, "S C"]) -> None:
    assert batch.segments_per_image is not None
    assert batch.image_sample is not None
    for number, index in enumerate(indices):
        counts = batch.segments_per_image[batch.image_sample == number].tolist()
        rows, features = features[: sum(counts)], features[sum(counts) :]
        writer.add(index, rows.numpy(), counts)
