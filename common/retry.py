"""Reading from shared storage that is away for a while: wait for it instead of calling every sample damaged.

An error of one file while the set's manifest can be read concerns that file; when the manifest cannot be read either,
the storage is away (unmounted, its server restarted, the network gone), and waiting costs less than a run that ends.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

RETRY_MIN = 10.0
"""Minutes for which storage may be away."""

_AWAY = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH}
    | {errno.ENODEV, errno.ENXIO, errno.ECONNRESET, errno.ECONNABORTED, errno.EREMOTEIO, errno.ENOTDIR}
)
"""What a file system answers that has lost its server or its mount."""

_HICCUPS_S = (0.0, 0.5, 2.0)
"""Waits before tries again where the rest of the set can be read."""
_FIRST_DELAY_S, _MAX_DELAY_S = 0.2, 15.0


def growing_delays(first_s: float, longest_s: float, total_s: float = math.inf) -> Iterator[float]:
    """Waits between tries: each twice the one before, up to `longest_s`, until their sum is `total_s`.

    Args:
        first_s: the first wait, seconds.
        longest_s: at which they stop to grow, seconds.
        total_s: of all of them, seconds; the last one is cut to fit.
    """
    delay = first_s
    while total_s > 0:
        yield min(delay, total_s)
        total_s -= delay
        delay = min(2 * delay, longest_s)


Read = TypeVar("Read")


class StorageAwayError(RuntimeError):
    """The storage did not come back in time."""


class StorageRetry:
    """Calls a reading function until the storage answers."""

    def __init__(self, probe: Path, retry_min: float) -> None:
        """Nothing is read yet.

        Args:
            probe: a file that can be read whenever the storage is there.
            retry_min: how long to wait for it, minutes; 0: not at all.
        """
        self._probe = probe
        self._retry_s = retry_min * 60

    def read(self, read: Callable[[], Read]) -> Read:
        """What `read` returns.

        Args:
            read: may be called several times; opens its file again after an error.

        Raises:
            OSError: of `read`, where it is that file and not the storage.
            StorageAwayError: the storage did not come back.
        """
        hiccups, waited = iter(_HICCUPS_S), 0.0
        delays = growing_delays(_FIRST_DELAY_S, _MAX_DELAY_S)
        while True:
            try:
                data = read()
            except OSError as error:
                if self._retry_s == 0 or error.errno not in _AWAY:
                    raise
                if self._present():  # the rest of the set can be read: it is this file
                    pause = next(hiccups, None)
                    # A file that is simply not there is looked for once more: the storage may just have come back.
                    if pause is None or (error.errno == errno.ENOENT and pause > 0):
                        raise
                    time.sleep(pause)
                    continue
                if waited >= self._retry_s:
                    raise StorageAwayError(
                        f"{self._probe.parent} cannot be read ({error}) and did not come back in "
                        f"{self._retry_s / 60:g} min (data.retry_min); fix the storage and start the run again: it "
                        "continues from the last checkpoint"
                    ) from error
                if waited == 0:
                    logger.warning("%s cannot be read (%s); waiting for it", self._probe.parent, error)
                delay = next(delays)
                time.sleep(delay)
                waited += delay
            else:
                if waited > 0:
                    logger.warning("%s is back after %.0f s", self._probe.parent, waited)
                return data

    def _present(self) -> bool:
        try:
            with self._probe.open("rb") as file:
                file.read(1)
        except OSError:
            return False
        return True


def read_at(file: int, size: int, offset: int) -> bytes:
    """Bytes of a file, fewer at its end: one system call may return fewer on network file systems.

    Args:
        file: descriptor.
        size: bytes wanted.
        offset: of the first.
    """
    data = os.pread(file, size, offset)
    while data and len(data) < size:
        more = os.pread(file, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
