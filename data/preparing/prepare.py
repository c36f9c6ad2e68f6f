"""Raw logs to a finished shard set: in parallel, restartable, with the same bytes however often it was interrupted.

Each shard is a task (`data.preparing.shard_task`) and has a record beside it. Running again continues with the tasks
that have no record; the manifest is joined from the records at the end. The settings are stored first, so that a folder
cannot be continued with others, and a lock keeps a second process out.

On a cluster several processes make a share of the shards each (`prepare_share`), in one folder and at once; when all
have ended, `join_shares` writes the manifest. The set is the same, byte for byte. Needs a file system with locks that
hold across machines (NFS, Lustre with -o flock).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.printable import listed
from common.ranges import at_least, between, share
from data.calibration.heading import Heading, troubles
from data.convert.base import Converter
from data.preparing.defaults import MAX_SKIP_SHARE, SAMPLES_PER_SHARD
from data.preparing.early import StoppedEarlyError, Tally, grouped, judge_intensity, refuse
from data.preparing.folder import forget_if_empty, locked, same_settings, storage_errors_named, sweep, tasks_locked
from data.preparing.pool import Progress, run_all
from data.preparing.shard_task import (
    RECORDS,
    ShardJob,
    ShardRecord,
    ShardTask,
    forget_skips,
    load_record,
    plan_tasks,
    run_task,
)
from data.preparing.superpixels import SuperpixelConfig
from data.storage.encode import SCHEMA_VERSION, CodecConfig
from data.storage.manifest import Manifest, SetInfo
from data.storage.shard import ShardError
from data.storage.shard_writer import join_manifest

logger = logging.getLogger(__name__)

_MAX_NOTES = 3
"""About how single logs look, where many look odd."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What a prepared set is made with, whatever the data set.

    Attributes:
        samples_per_shard: source frames a shard, at most. The loader shuffles whole shards first, so smaller ones mix
            better; larger ones suit network file systems.
        limit: use only this many frames, the first of the set; None for all.
        superpixels: how images are cut; None for no superpixels.
        image_reduction: images are stored at 1/n of their height and width, 1 to 8, and cut into superpixels then.
        codec: compression of images.
        max_skip_share: share of frames that may be skipped before the set is refused; one is always allowed. Not
            part of what must stay the same when a folder is continued.
    """

    samples_per_shard: int = SAMPLES_PER_SHARD
    limit: int | None = None
    superpixels: SuperpixelConfig | None = field(default_factory=SuperpixelConfig)
    image_reduction: int = 1
    codec: CodecConfig = field(default_factory=CodecConfig)
    max_skip_share: float = MAX_SKIP_SHARE

    def __post_init__(self) -> None:
        at_least(self, samples_per_shard=1)
        at_least(self, "null: all", limit=1)
        between(self, image_reduction=(1, 8))
        share(self, "max_skip_share")


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """What was done.

    Attributes:
        manifest: of the finished set.
        num_reused_shards: shards that were there already.
        num_shards: shards in all, counting those of which every frame was skipped.
        seconds: of this call.
    """

    manifest: Manifest
    num_reused_shards: int
    num_shards: int
    seconds: float


def prepare(
    converter: Converter,
    root: str,
    config: PrepareConfig,
    *,
    workers: int = 1,
    verify: bool = False,
    retry_skipped: bool = False,
    on_progress: Progress | None = None,
) -> PrepareSummary:
    """Write a shard set into the folder `root`, or continue one, in `workers` processes (1 works in this one).

    With `verify`, shards whose checksum is wrong are made again, otherwise those that are absent or of another size;
    with `retry_skipped` also those of which frames were skipped, as after a repair of the source.

    Raises:
        ShardError: the folder was begun with other settings or is in use, the source has another layout, too many
            frames were damaged, or a worker died. After the cause is removed, the same call continues.
    """
    started = time.monotonic()
    tasks = plan_tasks(converter, config.samples_per_shard, config.limit)
    info = _set_info(converter)  # before anything is written: what the source lacks is said here
    with storage_errors_named(root), locked(root):
        forget_if_empty(root)
        same_settings(root, _settings(converter, config, tasks))
        sweep(root)
        checks = {"verify": verify, "retry_skipped": retry_skipped}
        records, num_reused = _complete(root, converter, config, tasks, tasks, workers, checks, on_progress)
        manifest = join_records(root, info, config, records, drives_forward=converter.drives_forward)
    return PrepareSummary(
        manifest=manifest, num_reused_shards=num_reused, num_shards=len(tasks), seconds=time.monotonic() - started
    )


# ---- shares
@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of a set a process makes: neighbouring shards, so that it reads neighbouring logs.

    Attributes:
        number: 0 to `count` - 1.
        count: shares in all.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(f"share {self.number}/{self.count}: expected i/n with i from 0 to n - 1, such as 0/8")

    def of(self, tasks: Sequence[ShardTask]) -> Sequence[ShardTask]:
        """This share of all tasks; shares differ by one task at most."""
        return tasks[self.number * len(tasks) // self.count : (self.number + 1) * len(tasks) // self.count]


@dataclass(frozen=True, kw_only=True)
class ShareSummary:
    """What a share did.

    Attributes:
        num_reused_shards: shards that were there already.
        num_shards: of this share.
        num_all_shards: of the whole set.
        num_skipped: source frames of this share that could not be used; whether too many are is asked when joining.
        seconds: of this call.
    """

    num_reused_shards: int
    num_shards: int
    num_all_shards: int
    num_skipped: int
    seconds: float


def prepare_share(
    converter: Converter,
    root: str,
    config: PrepareConfig,
    share: Share,
    *,
    workers: int = 1,
    verify: bool = False,
    retry_skipped: bool = False,
    on_progress: Progress | None = None,
) -> ShareSummary:
    """Make one share of a set; other shares may be made in the same folder at the same time. Arguments as `prepare`.

    Raises:
        ShardError: as `prepare`; a plain `prepare`, a joining or the same share is at work in the folder.
    """
    started = time.monotonic()
    every = plan_tasks(converter, config.samples_per_shard, config.limit)
    tasks = share.of(every)
    _set_info(converter)  # as in `prepare`
    with storage_errors_named(root), locked(root, shared=True), tasks_locked(root, tasks):
        same_settings(root, _settings(converter, config, every))
        sweep(root, tasks)
        checks = {"verify": verify, "retry_skipped": retry_skipped}
        records, num_reused = _complete(root, converter, config, every, tasks, workers, checks, on_progress)
    return ShareSummary(
        num_reused_shards=num_reused,
        num_shards=len(tasks),
        num_all_shards=len(every),
        num_skipped=sum(len(record.skipped) for record in records),
        seconds=time.monotonic() - started,
    )


def join_shares(converter: Converter, root: str, config: PrepareConfig, *, verify: bool = False) -> PrepareSummary:
    """Write the manifest of a set whose shares are all made; `verify` compares checksums, which reads the shards whole.

    Raises:
        ShardError: shards are missing or damaged (run their shares again), shares are still at work, other settings,
            or too many frames were damaged.
    """
    started = time.monotonic()
    tasks = plan_tasks(converter, config.samples_per_shard, config.limit)
    if not (Path(root) / RECORDS).is_dir():
        raise ShardError(f"{root}: no share of a set was made here; make all shares first, or name another folder")
    with storage_errors_named(root), locked(root):
        same_settings(root, _settings(converter, config, tasks))
        records = [load_record(root, task, verify=verify) for task in tasks]
        made = [record for record in records if record is not None]
        if len(made) < len(tasks):
            raise ShardError(
                f"{root}: {len(tasks) - len(made)} of {len(tasks)} shards are not made or no longer whole (the first "
                f"is {tasks[records.index(None)].shard_name}); run their shares again, or prepare without --share and "
                "--join, which makes what is missing"
            )
        manifest = join_records(root, _set_info(converter), config, made, drives_forward=converter.drives_forward)
    return PrepareSummary(
        manifest=manifest, num_reused_shards=len(tasks), num_shards=len(tasks), seconds=time.monotonic() - started
    )


def _complete(
    root: str,
    converter: Converter,
    config: PrepareConfig,
    every: Sequence[ShardTask],
    tasks: Sequence[ShardTask],
    workers: int,
    checks: Mapping[str, bool],
    on_progress: Progress | None,
) -> tuple[list[ShardRecord], int]:
    """Make what is missing of some tasks; their records in order, and how many were there before."""
    records = {task.number: load_record(root, task, **checks) for task in tasks}
    todo = [task for task in tasks if records[task.number] is None]
    total = sum(task.num_frames for task in tasks)
    before = total - sum(task.num_frames for task in todo)
    job = ShardJob(
        root=root,
        converter=converter,
        superpixels=config.superpixels,
        codec=config.codec,
        image_reduction=config.image_reduction,
        allowed_skips=allowed(config, sum(task.num_frames for task in every)),
        begun=len(todo) < len(tasks),
    )

    def show(tally: Tally) -> None:
        if on_progress is not None:
            on_progress(before + tally.num_frames, total, tally.skipped)

    try:
        made = run_all(functools.partial(run_task, job), todo, workers, show, f"preparing {root}")
    except StoppedEarlyError:
        forget_skips(root, todo)  # the same command shall go on with a repaired source
        raise
    records |= {task.number: record for task, record in zip(todo, made, strict=True)}
    return [record for record in records.values() if record is not None], len(tasks) - len(todo)


# ---- settings and joining
def plain_settings(config: PrepareConfig, set_name: str, own: dict[str, Any], **more: str) -> dict[str, Any]:
    """All that the bytes of a set depend on, as plain JSON: the config, and what a converter has of its own."""
    write = dataclasses.asdict(config)
    del write["max_skip_share"]  # may change when a folder is continued
    if config.image_reduction == 1:
        del write["image_reduction"]  # folders that were begun before it was a setting are continued
    settings = {"schema_version": SCHEMA_VERSION, "set_name": set_name, "set": own, **write, **more}
    plain: dict[str, Any] = json.loads(json.dumps(settings))  # as it will be read back: tuples are lists
    return plain


def _settings(converter: Converter, config: PrepareConfig, tasks: Sequence[ShardTask]) -> dict[str, Any]:
    frames = json.dumps([dataclasses.asdict(task) for task in tasks])
    source_frames = hashlib.sha256(frames.encode()).hexdigest()
    return plain_settings(config, converter.set_name, converter.settings(), source_frames=source_frames)


def _set_info(converter: Converter) -> SetInfo:
    """What the manifest says about a source as a whole."""
    logs = converter.logs()
    return SetInfo(
        set_name=converter.set_name,
        camera_names=converter.camera_names(),
        class_names=converter.class_names,
        box_categories=converter.box_categories,
        logs=logs,
        splits=tuple(converter.split_of(log) for log in logs),
        notes=converter.notes(),
    )


def allowed(config: PrepareConfig, num_frames: int) -> int:
    """How many frames of so many may be skipped."""
    return max(int(config.max_skip_share * num_frames), 1)


def _looks(records: Sequence[ShardRecord]) -> tuple[str, ...]:
    """What looks odd about the samples of single logs."""
    by_log = {log: note for record in reversed(records) for log, note in record.notes.items()}  # of a log's first task
    notes = list(dict.fromkeys(by_log[log] for log in sorted(by_log)))
    rest = sorted(log for log, note in by_log.items() if note in notes[_MAX_NOTES:])
    return (*notes[:_MAX_NOTES], *([f"{listed(rest, 20)} look odd as well"] if rest else []))


def join_records(
    root: str, source: SetInfo, config: PrepareConfig, records: Sequence[ShardRecord], *, drives_forward: bool
) -> Manifest:
    """Write the manifest of finished tasks, without the source's logs of which nothing was written.

    Raises:
        ShardError: nothing was written, more frames were skipped than the config allows, a vehicle that must drive
            forward (`Converter.drives_forward`) does not by its poses, or every intensity is next to 0.
    """
    tables = [record.table for record in records if record.table is not None]
    skips = [skip for record in records for skip in record.skipped]
    skipped: dict[str, tuple[str, ...]] = {}
    for skip in skips:
        skipped[skip.reason] = (*skipped.get(skip.reason, ()), skip.key)
    num_written = sum(len(table.keys) for table in tables)
    num_frames = num_written + len(skips)
    if num_written == 0 or len(skips) > allowed(config, num_frames):
        raise ShardError(
            f"{len(skips)} of {num_frames} frames cannot be used, allowed are {config.max_skip_share:.1%}. "
            f"{'; '.join(grouped(skips)) or 'The source holds no frames'}. Repair the source and run again with "
            "--retry-skipped (shares: each of them), or allow more (--max-skip-share) and run again, which only "
            "finishes what is there"
        )
    of_logs: dict[str, list[tuple[float, ...]]] = {}
    for record in records:
        for log, heading in record.headings.items():
            of_logs.setdefault(log, []).append(heading)
    wrong_ways = troubles({log: Heading.of_records(parts) for log, parts in of_logs.items()})
    if drives_forward:
        refuse(wrong_ways)
    brightest: dict[str, float] = {}
    for record in records:
        for log, largest in record.brightest.items():
            brightest[log] = max(brightest.get(log, 0.0), largest)
    dark = judge_intensity(brightest)
    for line in grouped(skips):
        logger.warning("skipped, %s", line)
    used = {log for table in tables for log in table.logs}
    splits = {log: split for log, split in zip(source.logs, source.splits, strict=True) if log in used}
    info = dataclasses.replace(
        source,
        logs=tuple(splits),
        splits=tuple(splits.values()),
        skipped=skipped,
        superpixels=config.superpixels.record() if config.superpixels and source.camera_names else None,
        image_reduction=config.image_reduction if source.camera_names else 1,
        notes=(*source.notes, *_looks(records), *wrong_ways, *dark),
    )
    return join_manifest(root, info, tables)
