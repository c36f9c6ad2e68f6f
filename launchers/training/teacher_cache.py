"""Fills the teacher cache: a frozen teacher sees each image once, and its features are pooled over superpixels."""

from __future__ import annotations

import logging
import math
import socket
import time

from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from configs.load import ConfigError
from data.batch_spec import BatchSpec
from data.loading.evaluation import image_batches
from data.loading.loader import DataConfig
from data.sample import Batch
from data.storage.manifest import Manifest, load_manifest
from data.storage.mixture import open_set
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.storage.store import is_url
from data.storage.teacher_cache import (
    CacheBusyError,
    CacheDamagedError,
    TeacherCache,
    TeacherCacheWriter,
    teacher_cache_key,
)
from engine.distributed import World, agree_any, agree_signal
from engine.errors import StopRequested
from engine.preempt import StopSignals
from launchers.runs.terminal import drawn_late
from launchers.training.supervision import Supervised
from models.methods.base import MethodConfig, PoolsTeacher

logger = logging.getLogger("tandem.pretrain")

_SAMPLES_AT_A_TIME = 4
_PIXELS = BatchSpec(superpixels=True)
_FLUSH_EVERY_S = 60.0
"""What a killed build loses at most."""
_POLL_S = 1.0
_TELL_EVERY_S = 60.0
"""How often a run that waits says for whom."""
_AGREE_EVERY_S = 5.0


def cache_root(config: DataConfig) -> str:
    """Folder that the cache of a set lies in: the set's own, or the one named for sets behind a URL.

    Raises:
        ConfigError: the set lies behind a URL and no folder is named.
    """
    if not is_url(config.shards):
        return config.shards
    if config.cache.teacher_folder is None:
        raise ConfigError(
            f"data.cache.teacher_folder: got null, expected a folder that all machines of the run see: with "
            f"method.teacher.cache=true the features are kept in files, which cannot lie in {config.shards}"
        )
    return config.cache.teacher_folder


def teacher_cache(
    objective: nn.Module, method: MethodConfig, config: DataConfig, run: Supervised
) -> TeacherCache | None:
    """The finished cache, if the method asks for one; see `open_or_build`."""
    if not method.caches_teacher:
        return None
    if not isinstance(objective, PoolsTeacher):
        logger.warning(
            "method.teacher.cache=true has no effect: this method does not pool its teacher over superpixels"
        )
        return None
    run.watchdog.phase("teacher cache", 0)
    cache = open_or_build(objective, config, run.world, run.signals)
    run.watchdog.phase("start", 0)
    run.stop_if_signalled()
    return cache


def open_or_build(
    objective: PoolsTeacher, config: DataConfig, world: World, signals: StopSignals | None = None
) -> TeacherCache:
    """The finished cache of this teacher and this set; rank 0 builds what is missing while the others wait.

    An interrupted build continues where it stopped, and a damaged part is built again. Of several runs that want the
    same cache one builds; the others wait for it, and go on themselves if it dies. The wait may be longer than the time
    limit of a collective: rank 0 tells the others every few seconds that it still builds or waits, and hears whether
    one of them got a stop signal. All processes of the run call it.

    Raises:
        ShardError: damaged samples, or those of which the teacher makes no finite features, beyond
            `config.max_skip_share`; or a cache that cannot be read or written.
        ConfigError: see `cache_root`; or this rank does not see the folder that rank 0 has written to.
        StopRequested: before the cache was finished, on all ranks.
    """
    manifest, root = open_set(config, config.cache), cache_root(config)
    key = teacher_cache_key(objective.teacher.fingerprint(), manifest, config.image_size)
    indices = manifest.indices(config.split)[: config.limit].tolist()
    signals = signals or StopSignals()  # one that is not in a `with` block hears nothing
    stopped = False
    if world.is_main:
        try:
            cache = TeacherCache.open(root, key)
        except CacheDamagedError as error:
            logger.warning("%s; its damaged parts are built again now", error)
            cache = None
        if cache is None or any(index not in cache for index in indices):
            stopped = _build_or_wait(objective, config, key, world, signals)
    while not stopped and any(flags := agree_any([False, signals.number > 0], world)):
        stopped = flags[1]
    if stopped:
        raise StopRequested(str(agree_signal(signals, world)))
    cache = TeacherCache.open(root, key, verify=False)  # rank 0 has just seen that it is whole
    if cache is None:
        raise ConfigError(
            f"data.cache.teacher_folder: rank {world.rank} on {socket.gethostname()} does not see the teacher cache "
            f"{key} that rank 0 has finished: there is none in {root} here; expected a folder that all machines see"
        )
    return cache


def _build_or_wait(objective: PoolsTeacher, config: DataConfig, key: str, world: World, signals: StopSignals) -> bool:
    """Add what is missing once no other run builds; True if some rank got a stop signal before the end."""
    manifest, told_at = load_manifest(config.shards, config.cache), -math.inf
    while True:
        try:
            with TeacherCacheWriter(cache_root(config), key, objective.teacher.num_features, manifest) as writer:
                return _build(objective, config, writer, manifest, world, signals)
        except CacheBusyError as busy:
            if time.monotonic() - told_at >= _TELL_EVERY_S:
                logger.info("waiting for the teacher cache: %s", busy)
                told_at = time.monotonic()
        if agree_any([True, signals.number > 0], world)[1]:
            return True
        time.sleep(_POLL_S)


def _build(
    objective: PoolsTeacher,
    config: DataConfig,
    writer: TeacherCacheWriter,
    manifest: Manifest,
    world: World,
    signals: StopSignals,
) -> bool:
    """Add what is missing; True if some rank got a stop signal before the end."""
    wanted = manifest.indices(config.split)[: config.limit]
    missing = writer.missing(wanted)  # of a finished cache those that could not be used
    teacher_was_on = next(objective.teacher.parameters()).device
    objective.teacher.to(world.device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    flushed = agreed_at = time.monotonic()
    not_finite: list[str] = []
    try:
        progress = Progress(*columns)
        task, done = progress.add_task("teacher features", total=len(missing)), 0
        with drawn_late(progress) as draw:
            batches = image_batches(
                SampleReader(manifest), missing, config, spec=_PIXELS, batch_size=_SAMPLES_AT_A_TIME, among=wanted
            )
            for indices, batch in batches:
                draw()
                not_finite += _add(writer, indices, batch, objective.pool_teacher(batch.to(world.device)).cpu())
                if len(not_finite) > max(1, config.max_skip_share * len(wanted)):
                    raise ShardError(
                        f"the features of {type(objective.teacher).__name__} are not finite in float16 for "
                        f"{len(not_finite)} samples, such as {not_finite[-1]}; are its weights (method.teacher) right?"
                    )
                progress.advance(task, len(indices))
                done += len(indices)
                if time.monotonic() - flushed >= _FLUSH_EVERY_S:
                    writer.flush()
                    flushed = time.monotonic()
                if signals.number > 0 or time.monotonic() - agreed_at >= _AGREE_EVERY_S:
                    if agree_any([True, signals.number > 0], world)[1]:
                        return True
                    agreed_at = time.monotonic()
                    writer.note(f"{done} of {len(missing)} samples")
    finally:
        writer.flush()  # an interrupted build keeps what it has
    writer.finish()
    objective.teacher.to(teacher_was_on)
    return False


def _add(
    writer: TeacherCacheWriter, indices: tuple[int, ...], batch: Batch, features: Float[Tensor, "S C"]
) -> list[str]:
    """Add the samples of a batch; keys of those whose features are not finite, which are left out."""
    not_finite = []
    superpixels, cameras = batch.need("superpixels", by="a teacher cache"), batch.need("cameras", by="a teacher cache")
    for number, index in enumerate(indices):
        counts = superpixels.per_image[cameras.sample == number].tolist()
        rows, features = features[: sum(counts)], features[sum(counts) :]
        if rows.half().isfinite().all():
            writer.add(index, rows.numpy(), counts)
        else:
            logger.warning("sample %s: the teacher's features are not finite; it is left out", batch.keys[number])
            not_finite.append(batch.keys[number])
    return not_finite
