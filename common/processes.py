"""Worker processes that leave signals to the process that started them, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker


@contextmanager
def signals_held_back(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Start processes inside that inherit blocked signals; ours come when the block is left.

    A signal to the whole process group (Ctrl-C, SLURM's way) would otherwise kill a worker, or the fork server, in the
    first seconds, before it can say that it leaves signals to its parent.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    # Its start lifts the block of SIGINT and SIGTERM (CPython 3.11), so it must have happened before the others'.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_interrupts_to_parent() -> None:
    """Start a pool's worker: Ctrl-C reaches all processes, and the parent decides; without it this one ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Make this worker end when its parent is gone; after `kill -9` it would wait for work for ever.

    torch's own check looks at the parent's process id, which is the fork server's and outlives a killed trainer.
    """
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)  # sys.exit would end this thread only
