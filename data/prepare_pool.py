"""Makes units in this process or in several, with one progress bar.

Workers are spawned, keep to one thread each, and end with their parent however it ends.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2
import torch

from data.prepare_unit import Unit, UnitJob, UnitRecord, run_unit
from data.shards import ShardError

_POLL_S = 0.2

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


def run_units(job: UnitJob, units: Sequence[Unit], workers: int, meter: Meter) -> dict[int, UnitRecord]:
    """Make units; their records by number.

    Args:
        job: settings.
        units: what is to be made.
        workers: processes; 1 works in this one.
        meter: told of each frame.

    Raises:
        ShardError: the source is damaged in a way that no frame can be blamed for, or a worker died.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    if workers == 1 or len(units) <= 1:
        return _run_here(job, units, meter)
    return _run_parallel(job, units, min(workers, len(units)), meter)


def _run_here(job: UnitJob, units: Sequence[Unit], meter: Meter) -> dict[int, UnitRecord]:
    done = 0

    def on_frame() -> None:
        nonlocal done
        done += 1
        meter.show(done)

    return {unit.number: run_unit(job, unit, on_frame) for unit in units}


def _run_parallel(job: UnitJob, units: Sequence[Unit], workers: int, meter: Meter) -> dict[int, UnitRecord]:
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
