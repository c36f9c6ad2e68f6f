"""Shards from samples that a program makes: any iterator, or a source with frames that can be asked for one by one.

`prepare_samples` takes an iterator. It is read in this process and in its own order; `workers` processes cut the images
into superpixels. Started again after an interruption it reads the whole iterator, checks that it gives the same keys,
and only writes the shards that are not there yet.

`FrameSource` is for logs with random access: `SourceConverter` makes it a data set like any other, so that
`data.preparing.prepare` reads it in several processes, continues without reading what is done, and makes shares on a
cluster. docs/custom_data.md has an example of both.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import operator
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from common.processes import leave_interrupts_to_parent
from data.convert.base import FrameConverter, Skipped, read_or_skip
from data.preparing.early import SampleLooks, StoppedEarlyError, Tally
from data.preparing.folder import forget_if_empty, locked, same_settings, sweep
from data.preparing.prepare import PrepareConfig, PrepareSummary, allowed, join_records, plain_settings
from data.preparing.shard_task import (
    FrameRange,
    ShardRecord,
    ShardTask,
    finished,
    forget_skips,
    load_record,
    save_record,
    write_sample,
)
from data.sample import Sample
from data.storage.encode import SetBounds
from data.storage.manifest import SetInfo
from data.storage.shard import ShardError
from data.storage.shard_writer import ShardWriter

_AHEAD = 2
"""Samples in work or waiting for each worker: bounds memory, whatever the iterator's speed."""


# ---- frames one by one
@runtime_checkable
class FrameSource(Protocol):
    """Logs whose frames can be asked for one by one; picklable, as each worker gets a copy."""

    def logs(self) -> Mapping[str, int]:
        """Name of each log and how many frames it has; cheap, and the same each time."""
        ...

    def frame(self, log: str, index: int) -> Sample:
        """One frame, the same each time; `DamagedError` where it cannot be used, which skips and counts it."""
        ...


@dataclass(frozen=True, kw_only=True)
class SourceConverter(FrameConverter):
    """A `FrameSource` as a data set for `data.preparing.prepare.prepare`.

    Attributes:
        frames_of: the source. If it is a dataclass, its fields are what a prepared folder remembers, and continuing
            with others is refused.
        cameras: names in the order of `Sample.cameras`.
        classes: of labels and boxes, () if unlabelled.
        categories: of `Boxes.categories`, () where boxes have none.
        val_logs: logs of the split "val"; all others are "train".
        drives_forward: as in `Converter`; False for vehicles that really drive another way than they look.
    """

    frames_of: FrameSource
    cameras: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    val_logs: tuple[str, ...] = ()
    drives_forward: bool = True

    set_name: ClassVar[str] = "custom"

    @property
    def class_names(self) -> tuple[str, ...]:
        """As given."""
        return self.classes

    @property
    def box_categories(self) -> tuple[str, ...]:
        """As given."""
        return self.categories

    def camera_names(self) -> tuple[str, ...]:
        """As given."""
        return self.cameras

    def settings(self) -> dict[str, Any]:
        """The source's kind and fields, and what else was given."""
        source: Any = self.frames_of
        fields = dataclasses.fields(source) if dataclasses.is_dataclass(source) else ()
        settings = {"cameras": self.cameras, "classes": self.classes, "val_logs": self.val_logs}
        settings |= _if_any(self.categories)
        settings |= {f"source.{field.name}": getattr(source, field.name) for field in fields}
        return {"source": type(source).__qualname__, **settings}

    @property
    def _logs(self) -> dict[str, int]:
        """Frames of each log, by name."""
        return dict(sorted(self.frames_of.logs().items()))

    def split_of(self, log: str) -> str:
        """As `val_logs` says."""
        return _split_of(log, self.val_logs)

    def _frames(self, log: str) -> list[tuple[str, int]]:
        return [(f"{log}_{index}", index) for index in range(self._logs[log])]

    def _reader(self, log: str) -> Callable[[int], Sample]:
        def read(index: int) -> Sample:
            sample = self.frames_of.frame(log, index)
            _check_fits(sample, self.cameras, log)
            return sample

        return read


def _if_any(categories: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {"box_categories": categories} if categories else {}


def _split_of(log: str, val_logs: tuple[str, ...]) -> str:
    return "val" if log in val_logs else "train"


def _check_fits(sample: Sample, cameras: tuple[str, ...], log: str | None = None) -> None:
    names = tuple(camera.name for camera in sample.cameras)
    if names != cameras:
        expected = f"expected {cameras} in this order, as in the set"
        raise ShardError(f"sample {sample.key} has the cameras {names}, {expected}")
    if log is not None and sample.log != log:
        raise ShardError(f"sample {sample.key} says that its log is {sample.log!r}, expected {log!r}")


# ---- an iterator
def prepare_samples(
    samples: Iterable[Sample],
    root: str,
    *,
    class_names: tuple[str, ...] = (),
    box_categories: tuple[str, ...] = (),
    val_logs: tuple[str, ...] = (),
    config: PrepareConfig | None = None,
    workers: int = 1,
    retry_skipped: bool = False,
    drives_forward: bool = True,
) -> PrepareSummary:
    """Write, or continue, a shard set from an iterator of samples.

    Args:
        samples: in an order that is the same each time, each log in order of time; without superpixels.
        root: folder of the set, made if absent.
        class_names: of labels and boxes.
        box_categories: of `Boxes.categories`.
        val_logs: logs of the split "val"; all others are "train".
        config: how it is written; its `limit` is that of samples taken from the iterator.
        workers: processes that cut superpixels; 1 works in this one. A script that uses more needs the usual
            ``if __name__ == "__main__":``.
        retry_skipped: make finished shards again of which samples were skipped.
        drives_forward: as of `SourceConverter`.

    Raises:
        ShardError: the folder was begun with other settings or from other samples, is in use, samples differ in their
            cameras, or too many are damaged: with 20 alike, and more than are allowed of the samples that the iterator
            has (where it does not say: as many as were read), as soon as that is so.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    started = time.monotonic()
    config = config or PrepareConfig()
    with locked(root), contextlib.ExitStack() as closing:
        forget_if_empty(root)
        own = {"source": "iterator", "class_names": class_names, "val_logs": val_logs, **_if_any(box_categories)}
        same_settings(root, plain_settings(config, "custom", own))
        sweep(root)
        num_samples = min(operator.length_hint(samples) or sys.maxsize, config.limit or sys.maxsize)
        shards = closing.enter_context(
            _OpenShards(
                root,
                config,
                val_logs,
                len(class_names),
                len(box_categories),
                num_samples,
                retry_skipped,
                drives_forward,
            )
        )
        pool = None
        if workers > 1:
            # spawn: OpenCV's and torch's threads do not survive a fork.
            context, start = multiprocessing.get_context("spawn"), leave_interrupts_to_parent
            pool = closing.enter_context(ProcessPoolExecutor(workers, context, initializer=start))
        for task, item in _cut(shards.placed(samples), config, pool, workers):
            shards.write(task, item)
        records = shards.finish()
        info = SetInfo(
            set_name="custom",
            camera_names=shards.cameras or (),
            class_names=class_names,
            box_categories=box_categories,
            logs=tuple(shards.logs),
            splits=tuple(_split_of(log, val_logs) for log in shards.logs),
        )
        manifest = join_records(root, info, config, records, drives_forward=drives_forward)
    return PrepareSummary(
        manifest=manifest,
        num_reused_shards=shards.num_reused,
        num_shards=len(records),
        seconds=time.monotonic() - started,
    )


_Placed = tuple[ShardTask, Sample]
_Result = tuple[ShardTask, Sample | Skipped]


def _cut(
    placed: Iterator[_Placed], config: PrepareConfig, pool: ProcessPoolExecutor | None, workers: int
) -> Iterator[_Result]:
    """The samples with their images finished, in their order; a few are in work at once."""
    if pool is None:
        yield from ((task, _finished(sample, config)) for task, sample in placed)
        return
    pending: collections.deque[tuple[ShardTask, Future[Sample | Skipped]]] = collections.deque()
    for task, sample in placed:
        pending.append((task, pool.submit(_finished, sample, config)))
        if len(pending) > _AHEAD * workers:
            first, future = pending.popleft()
            yield first, future.result()
    for first, future in pending:
        yield first, future.result()


def _finished(sample: Sample, config: PrepareConfig) -> Sample | Skipped:
    return read_or_skip(lambda: finished(sample, config.superpixels, config.image_reduction), sample.key, sample.log)


@dataclass
class _Open:
    """A shard that is being written."""

    task: ShardTask
    writer: ShardWriter
    looks: SampleLooks
    skipped: list[Skipped] = field(default_factory=list)
    count: int = 0


@dataclass
class _Filling:
    """The shard that a split's next samples go to; `recorded_keys` where it was finished before."""

    task: ShardTask
    recorded_keys: set[str] | None
    num_placed: int = 0


class _OpenShards:
    """Which shard each sample belongs to, and the shards that are open: at most one a split."""

    def __init__(
        self,
        root: str,
        config: PrepareConfig,
        val_logs: tuple[str, ...],
        num_classes: int,
        num_categories: int,
        num_samples: int,
        retry_skipped: bool,
        drives_forward: bool,
    ) -> None:
        """`num_samples`: at most; sys.maxsize where that is not known."""
        self._root = root
        self._config = config
        self._num_samples = num_samples
        self._retry_skipped = retry_skipped
        self._drives_forward = drives_forward
        self._num_classes = num_classes
        self._num_categories = num_categories
        self._val_logs = val_logs
        self._filling: dict[str, _Filling] = {}
        self._open: dict[int, _Open] = {}
        self._tally = Tally()
        self._records: dict[int, ShardRecord] = {}
        self._made: list[ShardTask] = []
        self._num_tasks = 0
        self.num_reused = 0
        self.logs: dict[str, None] = {}
        self.cameras: tuple[str, ...] | None = None

    def __enter__(self) -> _OpenShards:
        return self

    def __exit__(self, *error: object) -> None:
        for shard in self._open.values():  # not whole
            shard.writer.discard()

    def placed(self, samples: Iterable[Sample]) -> Iterator[_Placed]:
        """Samples that are still to be written, each with its shard.

        Raises:
            ShardError: the samples are others than those that the folder was begun with.
        """
        for number, sample in enumerate(samples):
            if number == self._config.limit:
                return
            self.cameras = tuple(c.name for c in sample.cameras) if self.cameras is None else self.cameras
            _check_fits(sample, self.cameras)
            self.logs.setdefault(sample.log)
            task, known = self._place(_split_of(sample.log, self._val_logs))
            if known is None:
                yield task, sample
            elif sample.key not in known:
                raise ShardError(
                    f"{self._root} was begun from other samples: {sample.key} is not in {task.shard_name}, where the "
                    "iterator puts it now; give the same samples in the same order, or choose a new folder"
                )

    def _place(self, split: str) -> tuple[ShardTask, set[str] | None]:
        """The shard of the split's next sample, and the keys that its record has if it is finished."""
        size = self._config.samples_per_shard
        if split not in self._filling or self._filling[split].num_placed == size:
            task = ShardTask(number=self._num_tasks, stretches=(FrameRange(log="samples", start=0, stop=size),))
            self._num_tasks += 1
            record = load_record(self._root, task, verify=False, retry_skipped=self._retry_skipped)
            known = None
            if record is not None:
                known = {skip.key for skip in record.skipped} | set(record.table.keys if record.table else ())
                self._records[task.number] = record
                self.num_reused += 1
            self._filling[split] = _Filling(task=task, recorded_keys=known)
        filling = self._filling[split]
        filling.num_placed += 1
        return filling.task, filling.recorded_keys

    def write(self, task: ShardTask, item: Sample | Skipped) -> None:
        """Append to the shard, and close it when it is full."""
        if task.number not in self._open:
            path = Path(self._root) / task.shard_name
            bounds = SetBounds(
                camera_names=self.cameras or (),
                num_classes=self._num_classes or None,
                num_categories=self._num_categories,
            )
            self._open[task.number] = _Open(
                task=task,
                writer=ShardWriter(path, self._config.codec, bounds),
                looks=SampleLooks(self._tally, begun=self.num_reused > 0, drives_forward=self._drives_forward),
            )
        shard = self._open[task.number]
        if isinstance(item, Sample):
            item = write_sample(shard.writer, item, None, 1)
        if isinstance(item, Sample):
            shard.looks.add(item)
            self._tally.frame()
        else:
            shard.skipped.append(item)
            self._tally.frame(item)
            self._check_skips()
        shard.count += 1
        if shard.count == self._config.samples_per_shard:
            self._close(shard)

    def _check_skips(self) -> None:
        known = self._num_samples < sys.maxsize
        try:
            self._tally.check(allowed(self._config, self._num_samples) if known else self._tally.num_frames - 1)
        except StoppedEarlyError:
            forget_skips(self._root, self._made)
            raise

    def _close(self, shard: _Open) -> None:
        shard.looks.judge()
        record = ShardRecord.of(shard.writer.finish_or_discard(), shard.skipped, shard.looks)
        save_record(self._root, shard.task, record)
        self._made.append(shard.task)
        self._records[shard.task.number] = record
        del self._open[shard.task.number]

    def finish(self) -> list[ShardRecord]:
        """Close what is open; the records of all shards in order."""
        for shard in list(self._open.values()):
            self._close(shard)
        return [record for _, record in sorted(self._records.items())]
