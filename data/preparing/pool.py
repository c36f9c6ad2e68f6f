"""Works through a list in this process or in several, with one progress bar: shards to make or to verify.

Workers are spawned, keep to one thread each, and end with their parent however it ends.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import cv2

from common.interrupt import kill_children
from common.processes import leave_interrupts_to_parent, signals_held_back
from data.convert.base import Skipped
from data.preparing.early import Tally
from data.storage.shard import ShardError

_POLL_S = 0.2

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Item, Tally], Result]
"""What is done with one item; counts each frame. Picklable."""

Progress = Callable[[int, int, Mapping[str, int]], None]
"""Called with the source frames done so far and in all, and those left out by reason."""


def run_all(
    work: Work[Item, Result], items: Sequence[Item], workers: int, show: Callable[[Tally], None], what: str
) -> list[Result]:
    """Do the work; results in the order of the items.

    Args:
        work: with one item.
        items: all of them.
        workers: processes; 1 works in this one.
        show: is called with the counts so far, first with none.
        what: is being done, for the message about a worker that died, e.g. "preparing <folder>".

    Raises:
        ShardError: the source is damaged in a way that no frame can be blamed for, or a worker died.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    if workers > 1 and len(items) > 1:
        return _run_parallel(work, items, min(workers, len(items)), show, what)
    tally = _ShownTally(show)
    show(tally)
    return [work(item, tally) for item in items]


class _ShownTally(Tally):
    """Counts that are shown after each frame."""

    def __init__(self, show: Callable[[Tally], None]) -> None:
        super().__init__()
        self._show = show

    def frame(self, skipped: Skipped | None = None) -> None:
        super().frame(skipped)
        self._show(self)


def _run_parallel(
    work: Work[Item, Result], items: Sequence[Item], workers: int, show: Callable[[Tally], None], what: str
) -> list[Result]:
    # spawn: OpenCV's and torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    counts: Any = context.Array("q", Tally.SIZE)
    tally = Tally(counts)
    show(tally)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(work, counts))
    try:
        with signals_held_back((signal.SIGINT,)):
            futures = [pool.submit(_work, item) for item in items]
        pending: set[Future[Result]] = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()  # the first failure ends the run
            show(tally)
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise ShardError(
            f"a worker process died while {what} (killed, or out of memory?); run the same command again to continue, "
            "with fewer workers if memory is short"
        ) from error
    except KeyboardInterrupt:
        kill_children()  # a shard may take a minute; one that is not whole is made again
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_work: Work[Any, Any] | None = None
_worker_tally: Tally | None = None


def _start_worker(work: Work[Any, Any], counts: Any) -> None:
    """Set up a worker process: one thread, no Ctrl-C of its own, and no life without its parent."""
    global _worker_work, _worker_tally
    _worker_work, _worker_tally = work, Tally(counts)
    leave_interrupts_to_parent()
    cv2.setNumThreads(1)
    if torch := sys.modules.get("torch"):  # else nothing of the work uses it
        torch.set_num_threads(1)


def _work(item: Any) -> Any:
    assert _worker_work is not None
    assert _worker_tally is not None
    return _worker_work(item, _worker_tally)
