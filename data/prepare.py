"""Raw logs to a finished shard set: in parallel, restartable, with the same bytes however often it was interrupted.

The set is cut into units (`data.prepare_unit`), each of which becomes one shard with a record beside it. Running again
continues with the units that have no record; the manifest is joined from the records at the end. The settings are
stored first, so that a folder cannot be continued with others, and a lock keeps a second process out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import torch

from data.codec import SCHEMA_VERSION, CodecConfig
from data.convert.base import Converter
from data.prepare_unit import RECORDS, Unit, UnitJob, UnitRecord, load_record, plan_units, run_unit
from data.shard_writer import SetInfo, join_manifest
from data.shards import MANIFEST_NAME, Manifest, ShardError, replace_file
from data.superpixels import SuperpixelConfig

_log = logging.getLogger(__name__)
_SETTINGS = "settings.json"
_POLL_S = 0.2

Progress = Callable[[int, int], None]
"""Called with the source frames done so far and in all."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What a prepared set is made with, whatever the data set.

    Attributes:
        samples_per_shard: source frames a shard, at most. The loader shuffles whole shards first, so smaller ones mix
            better; larger ones suit network file systems.
        limit: use only the first so many frames of the set; None for all.
        superpixels: how images are cut; None for no superpixels.
        codec: compression of images.
        max_skip_share: share of frames that may be skipped before the set is refused; one is always allowed. Not
            part of what must stay the same when a folder is continued.
    """

    samples_per_shard: int = 64
    limit: int | None = None
    superpixels: SuperpixelConfig | None = field(default_factory=SuperpixelConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    max_skip_share: float = 0.01

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {self.samples_per_shard}, expected at least 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, expected at least 1, or null for all")
        if not 0 <= self.max_skip_share <= 1:
            raise ValueError(f"max_skip_share is {self.max_skip_share}, expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """What was done.

    Attributes:
        manifest: of the finished set.
        num_reused_units: shards that were there already.
        num_units: shards in all, counting those of which every frame was skipped.
        seconds: of this call.
    """

    manifest: Manifest
    num_reused_units: int
    num_units: int
    seconds: float


def prepare(
    converter: Converter,
    root: str,
    config: PrepareConfig,
    *,
    workers: int = 1,
    verify: bool = False,
    on_progress: Progress | None = None,
) -> PrepareSummary:
    """Write, or go on writing, a shard set.

    Args:
        converter: the source.
        root: folder of the set, made if absent.
        config: how.
        workers: processes; 1 works in this one.
        verify: make shards again whose checksum is wrong; otherwise those that are absent or of another size.
        on_progress: for a progress bar.

    Raises:
        ShardError: the folder was begun with other settings or is in use, the source has another layout, too many
            frames were damaged, or a worker died. After the cause is removed, the same call continues.
    """
    started = time.monotonic()
    report = on_progress or (lambda done, total: None)
    units = plan_units(converter, config.samples_per_shard, config.limit)
    with _locked(root):
        _same_settings(root, _settings(converter, config, units))
        for leftover in [*Path(root).glob("*.tmp"), *(Path(root) / RECORDS).glob("*.tmp")]:
            leftover.unlink()
        records = {unit.number: load_record(root, unit, verify=verify) for unit in units}
        todo = [unit for unit in units if records[unit.number] is None]
        done_before = sum(unit.num_frames for unit in units) - sum(unit.num_frames for unit in todo)
        job = UnitJob(root=root, converter=converter, superpixels=config.superpixels, codec=config.codec)
        meter = _Meter(report, done_before, sum(unit.num_frames for unit in units))
        records |= _run(job, todo, workers, meter)
        manifest = _join(root, converter, config, [record for record in records.values() if record is not None])
    return PrepareSummary(
        manifest=manifest,
        num_reused_units=len(units) - len(todo),
        num_units=len(units),
        seconds=time.monotonic() - started,
    )


# -------------------------------------------------------------------------------------- lock and settings
@contextlib.contextmanager
def _locked(root: str) -> Iterator[None]:
    """One process at a time. The lock is the kernel's: it goes with the process, however that ends."""
    folder = Path(root) / RECORDS
    if (Path(root) / MANIFEST_NAME).exists() and not folder.is_dir():
        raise ShardError(f"{root} holds a shard set that was not prepared here; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(
                f"another process is preparing {root}; wait for it, or stop it and run this again to continue"
            ) from None
        yield


def _settings(converter: Converter, config: PrepareConfig, units: Sequence[Unit]) -> dict[str, Any]:
    """All that the bytes of the set depend on."""
    write = dataclasses.asdict(config)
    del write["max_skip_share"]
    frames = json.dumps([dataclasses.asdict(unit) for unit in units])
    settings = {
        "schema_version": SCHEMA_VERSION,
        "set_name": converter.set_name,
        "set": converter.settings(),
        **write,
        "source_frames": hashlib.sha256(frames.encode()).hexdigest(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _same_settings(root: str, settings: dict[str, Any]) -> None:
    path = Path(root) / RECORDS / _SETTINGS
    if not path.is_file():
        replace_file(path, (json.dumps(settings, indent=1) + "\n").encode())
        return
    before, now = dict(_leaves(json.loads(path.read_bytes()))), dict(_leaves(settings))
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        name = differing[0]
        hint = " (the source's logs or frames have changed since)" if name == "source_frames" else ""
        raise ShardError(
            f"{root} was begun with {name} = {before.get(name)!r}, now it is {now.get(name)!r}{hint}; continue with "
            "the settings that it was begun with, or choose a new folder"
        )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


# ----------------------------------------------------------------------------------------------- running
class _Meter:
    """Frames done, as a sum over processes, for the progress bar."""

    def __init__(self, report: Progress, done: int, total: int) -> None:
        self._report = report
        self._before = done
        self._total = total
        self.show(0)

    def show(self, done_now: int) -> None:
        self._report(self._before + done_now, self._total)


def _run(job: UnitJob, units: Sequence[Unit], workers: int, meter: _Meter) -> dict[int, UnitRecord]:
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    if workers == 1 or len(units) <= 1:
        return _run_here(job, units, meter)
    return _run_parallel(job, units, min(workers, len(units)), meter)


def _run_here(job: UnitJob, units: Sequence[Unit], meter: _Meter) -> dict[int, UnitRecord]:
    done = 0

    def on_frame() -> None:
        nonlocal done
        done += 1
        meter.show(done)

    return {unit.number: run_unit(job, unit, on_frame) for unit in units}


def _run_parallel(job: UnitJob, units: Sequence[Unit], workers: int, meter: _Meter) -> dict[int, UnitRecord]:
    # spawn: OpenCV's and torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(job, counter))
    try:
        futures = {pool.submit(_work, unit): unit for unit in units}
        records = _collect(futures, lambda: meter.show(counter.value))
    except BrokenProcessPool as error:
        raise ShardError(
            f"a worker process died while preparing {job.root} (killed, or out of memory?); run the same command "
            "again to continue, with fewer workers if memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return records


def _collect(futures: Mapping[Future[UnitRecord], Unit], show: Callable[[], None]) -> dict[int, UnitRecord]:
    records: dict[int, UnitRecord] = {}
    pending = set(futures)
    while pending:
        finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        records |= {futures[future].number: future.result() for future in finished}
        show()
    return records


_worker_job: UnitJob | None = None
_worker_counter: Any = None


def _start_worker(job: UnitJob, counter: Any) -> None:
    """Set up a worker process: one thread, no Ctrl-C of its own, and no life without its parent."""
    global _worker_job, _worker_counter
    _worker_job, _worker_counter = job, counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """After kill -9 of the parent a pool's workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(unit: Unit) -> UnitRecord:
    assert _worker_job is not None

    def on_frame() -> None:
        with _worker_counter.get_lock():
            _worker_counter.value += 1

    return run_unit(_worker_job, unit, on_frame)


# ----------------------------------------------------------------------------------------------- joining
def _join(root: str, converter: Converter, config: PrepareConfig, records: Sequence[UnitRecord]) -> Manifest:
    tables = [record.table for record in records if record.table is not None]
    skips = [skip for record in records for skip in record.skipped]
    skipped: dict[str, tuple[str, ...]] = {}
    for skip in skips:
        _log.warning("skipped %s: %s (%s)", skip.key, skip.reason, skip.detail)
        skipped[skip.reason] = (*skipped.get(skip.reason, ()), skip.key)
    num_written = sum(table.shard.num_samples for table in tables)
    num_frames = num_written + len(skips)
    if num_written == 0 or len(skips) > max(config.max_skip_share * num_frames, 1):
        listed = "; ".join(f"{reason}: {len(keys)}, e.g. {keys[0]}" for reason, keys in skipped.items())
        raise ShardError(
            f"{len(skips)} of {num_frames} frames cannot be used, allowed are {config.max_skip_share:.1%}. "
            f"{listed or 'The source holds no frames'}. Repair the source and prepare into a new folder, or allow more "
            "(--max-skip-share) and run again, which only finishes what is there"
        )
    used = {log for table in tables for log in table.logs}
    logs = tuple(log for log in converter.logs() if log in used)
    info = SetInfo(
        set_name=converter.set_name,
        camera_names=converter.camera_names(),
        class_names=converter.class_names,
        logs=logs,
        splits=tuple(converter.split_of(log) for log in logs),
        notes=converter.notes(),
        skipped=skipped,
    )
    return join_manifest(root, info, tables)
