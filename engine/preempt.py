"""Signals that ask a run to stop: finish the step, write a checkpoint, leave.

SIGUSR1 is what our batch scripts ask SLURM for some minutes before the time limit, SIGUSR2 what submitit asks for,
SIGTERM what pre-emption sends, SIGINT is Ctrl-C. A handler only sets a flag; the loop asks for it once an update and
agrees on it with the other ranks, because a signal may reach one of them only. A second SIGINT stops at once.

No torch import: the handlers are to be there before torch is, which takes seconds in which a signal would kill.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)

_active: list[StopSignals] = []
"""The outermost block comes first: it notes the signals, and the blocks inside it share what it has noted."""


class StopSignals:
    """Catches the stop signals inside a `with` block.

    A block inside another one changes nothing and hands out the outer one, so that a signal that came while torch was
    imported is still known in the training loop.
    """

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def number(self) -> int:
        """The first signal that came, 0 before one did."""
        return self._number

    @property
    def received(self) -> str | None:
        """Name of the first signal, None before one came."""
        return name_of(self._number)

    def catch(self) -> StopSignals:
        """Begin, as the `with` block does; without an end, for a whole process."""
        _active.append(self)
        # Python allows handlers in the main thread only; elsewhere the caller keeps its own.
        if _active[0] is self and threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return _active[0]

    def __enter__(self) -> StopSignals:
        return self.catch()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _active.remove(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number == 0:
            self._number = int(number)


def name_of(number: int) -> str | None:
    """Name of a signal, None for 0."""
    return signal.Signals(number).name if number else None


def ignore_stop_signals() -> None:
    """From here on the stop signals do nothing: for the last moments of a process whose result is already decided."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
