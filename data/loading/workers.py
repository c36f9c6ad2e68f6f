"""Worker processes that make batches from numbers, in order; 0 workers: the calling process makes them.

Workers are safe beside any parent: they leave signals to it (a pre-emption signal reaches every process of a job, and
the trainer must still be able to write its checkpoint), use one thread each, and end when the parent is gone, however
it died.
"""

from __future__ import annotations

import io
import itertools
import math
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import util
from typing import Any, Literal

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from common.processes import end_with_parent, signals_held_back
from common.ranges import at_least
from data.loading.memory import handed_over_alone, keep_freed_memory, room
from data.loading.skips import Skip
from data.sample import Batch
from data.storage.shard import ShardError

_ALIGN = 64
"""Bytes; the buffer's parts begin at cache lines."""

_LEFT_TO_THE_TRAINER = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_PRELOADED = ["data.loading.loader"]
"""Imported once by the fork server instead of once by every worker."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a worker sends: a batch and what happened on the way.

    Attributes:
        batch: None where not one sample was usable.
        num_seen: samples that were asked for.
        skips: those of them that were damaged.
        indices: samples in the batch, where the caller wants to know.
        notes: what else was found out about the usable samples, see `SequentialBatches.notes`.
    """

    batch: Batch | None
    num_seen: int
    skips: tuple[Skip, ...] = ()
    indices: tuple[int, ...] = ()
    notes: tuple[Any, ...] = ()


class _Packed:
    """A `Loaded` whose small tensors lie in one buffer: handing each over by itself costs a file descriptor and a round
    trip through the worker, 10 ms a batch. The few large ones stay where they were made.
    """  # noqa: D205

    def __init__(self, loaded: Loaded) -> None:
        content = io.BytesIO()
        pickler = _WithoutTensors(content)
        pickler.dump(loaded)
        tensors = [tensor for _, tensor in pickler.numbered.values()]
        self._large = {number: tensor for number, tensor in enumerate(tensors) if handed_over_alone(tensor)}
        sizes = [0 if n in self._large else -(-t.nbytes // _ALIGN) * _ALIGN for n, t in enumerate(tensors)]
        starts = [0, *itertools.accumulate(sizes)]
        self._content = content.getvalue()
        self._layout = [(t.dtype, tuple(t.shape), start) for t, start in zip(tensors, starts[:-1], strict=True)]
        self._buffer = room((starts[-1],), torch.uint8)
        for number, (place, tensor) in enumerate(zip(self._layout, tensors, strict=True)):
            if number not in self._large:
                _window(self._buffer, *place).copy_(tensor)

    def pin_memory(self) -> _Packed:
        """The same in page-locked memory (called by torch's DataLoader)."""
        self._buffer = self._buffer.pin_memory()
        self._large = {number: tensor.pin_memory() for number, tensor in self._large.items()}
        return self

    def unpack(self) -> Loaded:
        """The `Loaded`, its small tensors being windows of the buffer."""
        unpickler = _WithTensors(io.BytesIO(self._content))
        unpickler.tensors = [
            self._large[number] if number in self._large else _window(self._buffer, *place)
            for number, place in enumerate(self._layout)
        ]
        loaded: Loaded = unpickler.load()
        return loaded


class _WithoutTensors(pickle.Pickler):
    """Writes the number of each tensor instead of its content.

    A tensor that two views share has one number: it is handed over once, and shared again on the other side.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.numbered: dict[int, tuple[int, torch.Tensor]] = {}

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        return self.numbered.setdefault(id(value), (len(self.numbered), value))[0]


class _WithTensors(pickle.Unpickler):
    """Reads what `_WithoutTensors` wrote."""

    tensors: Sequence[torch.Tensor] = ()

    def persistent_load(self, number: int) -> torch.Tensor:
        return self.tensors[number]


def _window(buffer: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], start: int) -> torch.Tensor:
    stop = start + math.prod(shape) * dtype.itemsize
    return buffer[start:stop].view(dtype).view(shape)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """How batches are made beside the caller's work.

    Attributes:
        num_workers: processes that make batches; 0: the calling process itself.
        prefetch: batches that each worker makes ahead.
        start_method: how workers are started; "forkserver" and "spawn" are safe beside threads and CUDA, "fork" starts
            fastest.
    """

    num_workers: int = 1
    prefetch: int = 4
    start_method: Literal["forkserver", "spawn", "fork"] = "forkserver"

    def __post_init__(self) -> None:
        at_least(self, prefetch=1, num_workers=0)


class _Numbered(Dataset[_Packed | str]):
    """A dataset whose items are whole batches, or the message of a `ShardError`."""

    def __init__(self, make: Callable[[int], Loaded]) -> None:
        self._make = make

    def __getitem__(self, number: int) -> _Packed | str:
        try:
            return _Packed(self._make(number))
        except ShardError as error:  # raised here, torch would wrap it into the worker's traceback
            return str(error)


def run_workers(make: Callable[[int], Loaded], numbers: Iterable[int], config: WorkerConfig) -> Iterator[Loaded]:
    """`make(number)` for each number, in order, made ahead by workers; `make` is picklable and without state.

    The numbers may be endless. Closing the iterator ends the workers.

    Raises:
        ShardError: a worker died.
    """
    parallel = config.num_workers > 0
    context = None  # what torch asks for without workers
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
    with signals_held_back(_LEFT_TO_THE_TRAINER) if parallel else nullcontext():
        batches: Any = iter(loader)
    at_exit = util.Finalize(None, _kill, args=(batches._workers if parallel else (),), exitpriority=0)
    try:
        for packed in batches:
            if isinstance(packed, str):
                raise ShardError(packed)
            yield packed.unpack()
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ShardError(
            f"a data worker died: {error}. The usual cause is memory: lower num_workers or prefetch, or give the job "
            "more memory (workers hand over batches through /dev/shm); num_workers=0 shows other errors directly"
        ) from error
    finally:
        # Not left to the garbage collector: an exception that is kept would keep the workers, too.
        if parallel:
            batches._shutdown_workers()
        at_exit()


def _as_is(loaded: Any) -> Any:
    # torch types it for lists of items, while batch_size=None hands over one.
    return loaded


def _kill(workers: Iterable[multiprocessing.process.BaseProcess]) -> None:
    """End workers that are still there after the iterator or, if it was left open, when the interpreter exits.

    multiprocessing would send them SIGTERM, which they ignore, and then wait for them for ever.
    """
    for worker in workers:
        worker.kill()


def _start_worker(worker: int) -> None:
    keep_freed_memory()
    # The worker is one of many on the machine's cores.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in _LEFT_TO_THE_TRAINER:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_THE_TRAINER)
    end_with_parent()
