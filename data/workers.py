"""Worker processes that make batches from numbers, in order; 0 workers: the calling process makes them.

Workers are safe beside any parent: they leave signals to it (a pre-emption signal reaches every process of a job, and
the trainer must still be able to write its checkpoint), use one thread each, and end when the parent is gone, however
it died.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Literal

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from data.sample import Batch
from data.shards import ShardError
from data.skips import Skip

_PRELOADED = ["data.loader"]
"""Imported once by the fork server instead of once by every worker."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a worker sends: a batch and what happened on the way.

    Attributes:
        batch: None where not one sample was usable.
        num_seen: samples that were asked for.
        skips: those of them that were damaged.
        indices: samples in the batch, where the caller wants to know.
    """

    batch: Batch | None
    num_seen: int
    skips: tuple[Skip, ...] = ()
    indices: tuple[int, ...] = ()

    def pin_memory(self) -> Loaded:
        """The same in page-locked memory (called by torch's DataLoader)."""
        batch = None if self.batch is None else self.batch.pin_memory()
        return Loaded(batch=batch, num_seen=self.num_seen, skips=self.skips, indices=self.indices)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """How batches are made beside the caller's work; fields as in `DataConfig`."""

    num_workers: int = 1
    prefetch: int = 4
    start_method: Literal["forkserver", "spawn", "fork"] = "forkserver"


class _Numbered(Dataset[Loaded]):
    """A dataset whose items are whole batches."""

    def __init__(self, make: Callable[[int], Loaded]) -> None:
        self._make = make

    def __getitem__(self, number: int) -> Loaded:
        return self._make(number)


def run_workers(make: Callable[[int], Loaded], numbers: Iterable[int], config: WorkerConfig) -> Iterator[Loaded]:
    """`make(number)` for each number, in order, made ahead by workers.

    Closing the iterator ends the workers.

    Args:
        make: picklable and without state.
        numbers: finite or endless.
        config: how many workers, and how far ahead.

    Raises:
        ShardError: a worker died.
    """
    parallel = config.num_workers > 0
    context = None
    if parallel:
        context = multiprocessing.get_context(config.start_method)
        if config.start_method == "forkserver":
            context.set_forkserver_preload(_PRELOADED)
    loader = DataLoader(
        _Numbered(make),
        batch_size=None,
        sampler=numbers,
        num_workers=config.num_workers,
        prefetch_factor=config.prefetch if parallel else None,
        collate_fn=_as_is,
        worker_init_fn=_start_worker if parallel else None,
        multiprocessing_context=context,
        pin_memory=torch.cuda.is_available(),
        # Of its own, because DataLoader draws from it: the global generator's state belongs to the training.
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ShardError(
            f"a data worker died: {error}. The usual cause is memory: lower num_workers or prefetch, or give the job "
            "more memory (workers hand over batches through /dev/shm); num_workers=0 shows other errors directly"
        ) from error


def _as_is(loaded: Any) -> Any:
    # torch types it for lists of items, while batch_size=None hands over one.
    return loaded


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent is gone.

    torch's own check looks at the parent's process id, which is the fork server's and outlives a killed trainer.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
