"""Log files of a run, on storage that may be full or unavailable for a while.

Nothing here ends a run: what cannot be written is kept in memory and written when the storage is back, with one warning
for each outage. Both classes drop what an earlier attempt wrote beyond the step at which this one begins.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.files import replace_file

logger = logging.getLogger("tandem.pretrain")

_Event = tuple[int, Callable[[Any], None]]
_MAX_PENDING_EVENTS = 1000
"""Events that wait for TensorBoard's file to be writable again; older ones are given up (metrics.jsonl has them)."""


class MetricsFile:
    """Appends JSON lines to a file that can only be read whole lines from."""

    def __init__(self, path: Path, step: int) -> None:
        """Drop the lines beyond `step` and open the file, or do it later if the storage is away."""
        self._path, self._step = path, step
        self._fd: int | None = None
        self._ready = False
        self._pending = b""
        self._away = False
        self.flush()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line."""
        self._pending += json.dumps(record).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as the storage lets us."""
        try:
            self._write()
        except OSError as error:
            if not self._away:
                logger.warning("%s: cannot be written (%s); its lines wait in memory", self._path, error)
            self._away = True
            self._close()  # a handle of a file system that went away stays dead when it is back
        else:
            if self._away:
                logger.warning("%s: written again, nothing is lost", self._path)
            self._away = False

    def close(self) -> None:
        """Write what waits and close."""
        self.flush()
        if self._pending:
            logger.error("%s: %d lines could not be written", self._path, self._pending.count(b"\n"))
        self._close()

    def _write(self) -> None:
        if not self._ready:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            drop_lines_after(self._path, self._step)
            self._ready = True
        if self._fd is None:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        while self._pending:
            # On a disk that is nearly full a part may fit; the rest follows right behind it.
            written = os.write(self._fd, self._pending)
            self._pending = self._pending[written:]

    def _close(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None


class EventFile:
    """TensorBoard's file."""

    def __init__(self, folder: Path, step: int) -> None:
        """Nothing is written before the first event; events of earlier attempts beyond `step` are hidden."""
        self._folder, self._step = folder, step
        self._writer: Any = None
        self._pending: deque[_Event] = deque(maxlen=_MAX_PENDING_EVENTS)
        self._newest: list[_Event] = []  # written, all of one step
        self._away = self._broken = False

    def add(self, step: int, event: Callable[[Any], None]) -> None:
        """Add an event, which is called with torch's SummaryWriter, and see that it is on the disk."""
        if self._broken:
            return
        self._pending.append((step, event))
        try:
            self._write()
        except OSError as error:
            if not self._away:
                logger.warning("%s: TensorBoard's file cannot be written (%s); events wait", self._folder, error)
            self._away = True
            self._drop_writer()
        except Exception as error:  # a package that does not fit, an event that it does not take: no end of a run
            reason = f"{type(error).__name__}: {error}"
            logger.warning("%s: TensorBoard's file is not written any more (%s)", self._folder, reason)
            self._broken = True
            self._pending.clear()
            self._drop_writer()
        else:
            self._away = False

    def close(self) -> None:
        """Close; events that still wait are lost here, metrics.jsonl has their numbers."""
        if self._pending:
            logger.error("%s: %d events could not be written", self._folder, len(self._pending))
        self._drop_writer()

    def _write(self) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        events = list(self._pending)
        if self._writer is None:
            # A new file, which hides what older ones have from a step on. After an outage that is the first step with
            # an event that was not known to be written: the events of that step which were are written again.
            first = self._pending[0][0] if self._away else self._step + 1
            _put_before(self._folder, int(time.time()))
            self._writer = SummaryWriter(str(self._folder), purge_step=first)
            events = [event for event in self._newest if event[0] == first] + events
        for _, event in events:  # a second time for those whose first call was lost with the storage
            event(self._writer)
        self._writer.flush()
        earlier = self._newest if len(events) == len(self._pending) else []
        self._newest = [event for event in (*earlier, *events) if event[0] == events[-1][0]]
        self._pending.clear()

    def _drop_writer(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None


def _put_before(folder: Path, now: int) -> None:
    """Rename TensorBoard's files that are dated this second or later, by a machine whose clock was ahead of this one's.

    TensorBoard reads a folder's files in the order of their names, `events.out.tfevents.<second>.<host>...`. Read last,
    the file of an earlier attempt would hide what comes after the step at which that one began.
    """
    names = sorted(path.name.split(".", 4) for path in folder.glob("events.out.tfevents.*.*"))
    for number, parts in enumerate(names):
        if parts[3] >= f"{now:010d}":
            # The letter puts it behind most hosts' files of that second, the number behind those renamed before.
            new = (*parts[:3], f"{now - 1:010d}", f"z{number:04d}", parts[4])
            (folder / ".".join(parts)).rename(folder / ".".join(new))


def drop_lines_after(path: Path, step: int) -> None:
    """Remove lines of metrics.jsonl beyond a step (and a last line cut short by a crash): they will be run again.

    Raises:
        OSError: it cannot be read or written.
    """
    try:
        before = path.read_text()
    except FileNotFoundError:
        return
    kept = []
    for line in before.splitlines():
        try:
            keep = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError, RecursionError):
            logger.warning("%s: dropped a line that is cut short or damaged: %.40r", path, line)
            continue
        if keep:
            kept.append(line)
    after = "".join(f"{line}\n" for line in kept)
    if after == before:
        return
    replace_file(path, after.encode(), durable=False)
