"""Works through a list in this process or in several, with one progress bar: units to make, shards to verify.

Workers are spawned, keep to one thread each, and end with their parent however it ends.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import cv2
import torch

from common.processes import end_with_parent
from data.storage.shard import ShardError

_POLL_S = 0.2

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Item, Callable[[], None]], Result]
"""What is done with one item; calls its second argument after each frame. Picklable."""

Progress = Callable[[int, int], None]
"""Called with the source frames done so far and in all."""


class Meter:
    """Frames done, as a sum over processes, for the progress bar."""

    def __init__(self, report: Progress, done: int, total: int) -> None:
        self._report = report
        self._before = done
        self._total = total
        self.show(0)

    def show(self, done_now: int) -> None:
        """Frames done since the start of this call."""
        self._report(self._before + done_now, self._total)


def run_all(work: Work[Item, Result], items: Sequence[Item], workers: int, meter: Meter, what: str) -> list[Result]:
    """Do the work; results in the order of the items.

    Args:
        work: with one item.
        items: all of them.
        workers: processes; 1 works in this one.
        meter: told of each frame.
        what: is being done, for the message about a worker that died, e.g. "preparing <folder>".

    Raises:
        ShardError: the source is damaged in a way that no frame can be blamed for, or a worker died.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    if workers == 1 or len(items) <= 1:
        return _run_here(work, items, meter)
    return _run_parallel(work, items, min(workers, len(items)), meter, what)


def _run_here(work: Work[Item, Result], items: Sequence[Item], meter: Meter) -> list[Result]:
    done = 0

    def on_frame() -> None:
        nonlocal done
        done += 1
        meter.show(done)

    return [work(item, on_frame) for item in items]


def _run_parallel(
    work: Work[Item, Result], items: Sequence[Item], workers: int, meter: Meter, what: str
) -> list[Result]:
    # spawn: OpenCV's and torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(work, counter))
    try:
        futures = [pool.submit(_work, item) for item in items]
        _wait(futures, lambda: meter.show(counter.value))
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise ShardError(
            f"a worker process died while {what} (killed, or out of memory?); run the same command again to continue, "
            "with fewer workers if memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _wait(futures: Sequence[Future[Result]], show: Callable[[], None]) -> None:
    """Until all are done or one has failed."""
    pending = set(futures)
    while pending:
        finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        for future in finished:
            future.result()
        show()


_worker_work: Work[Any, Any] | None = None
_worker_counter: Any = None


def _start_worker(work: Work[Any, Any], counter: Any) -> None:
    """Set up a worker process: one thread, no Ctrl-C of its own, and no life without its parent."""
    global _worker_work, _worker_counter
    _worker_work, _worker_counter = work, counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    end_with_parent()


def _work(item: Any) -> Any:
    assert _worker_work is not None

    def on_frame() -> None:
        with _worker_counter.get_lock():
            _worker_counter.value += 1

    return _worker_work(item, on_frame)
