"""Ctrl-C ends a command within seconds, whatever it waits for.

SIGINT raises KeyboardInterrupt as ever, so that files that are half written are removed on the way out. But pools and
loader workers may take a minute to leave, and some libraries swallow the exception: what still runs after a short
while is ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells have it: 128 + SIGINT."""
_PATIENCE_S = 1.5

_pending: list[threading.Timer] = []
_told: list[bool] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C inside the block ends the process soon; nothing changes where somebody else handles it (training)."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if not _pending:  # else the process is on its way out: a second Ctrl-C must not bring a traceback
            signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_on() -> None:
    """Whoever has caught the KeyboardInterrupt ends by itself, and may take its time."""
    while _pending:
        _pending.pop().cancel()


def tell() -> None:
    """Say once that the command was interrupted."""
    if not _told:
        _told.append(True)
        os.write(2, b"interrupted\n")  # not print: another thread may hold the buffer's lock


def kill_children() -> None:
    """End the worker processes that `multiprocessing` knows of, without waiting for what they do."""
    if "multiprocessing" in sys.modules:  # not imported, it has started none; `tandem --help` does without it
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _pending:
        _end()  # asked a second time
    # Raised in a destructor or a callback, KeyboardInterrupt would be printed and lost.
    sys.unraisablehook = lambda _: None
    timer = threading.Timer(_PATIENCE_S, _end)
    timer.daemon = True
    _pending.append(timer)
    timer.start()
    raise KeyboardInterrupt


def _end() -> None:
    tell()
    kill_children()
    os._exit(INTERRUPTED)
