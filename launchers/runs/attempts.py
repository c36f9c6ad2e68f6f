"""What became of each attempt at a run: `<run>/attempts.jsonl`, one line an event, written by rank 0.

Beside it, `attempts/0001/` and so on hold what each was started with, also where it was refused or had nothing to do.

A run that is pre-empted, dies and is queued again has several attempts. Each begins with one line and ends with one,
unless it died too suddenly to write it. The order of the lines counts, never their clocks: the next attempt may run on
a machine whose clock is an hour off. Reading needs neither torch nor the rest of the run's folder.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common.files import replace_file
from common.run_files import json_lines
from common.small_files import DamagedFileError, Kind, checked, read_text
from launchers.runs.files import ATTEMPTS_FILE, ATTEMPTS_FOLDER

logger = logging.getLogger("tandem.pretrain")

Status = Literal["running", "finished", "preempted", "failed", "died"]

_ENDS = ("finished", "preempted", "failed")
_WRITE_DELAYS_S = (0.5, 1.0, 2.0)
"""Waits between tries to write a line: a short failure of the storage should not lose why a run ended."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a run.

    Attributes:
        job: SLURM's id, "12" or "12_0" in an array; None outside SLURM.
        host: of rank 0.
        pid: of rank 0 on that host.
        nodes: SLURM's list of nodes, or the host.
        began: when, seconds since 1970 by the clock of rank 0.
        resumed: updates that were done when it began to train; None if it did not come so far.
        changes: what it went on with that the run did not have: name -> value before and now.
        ended: when; None while it runs, or if it died.
        status: "running" until an end is seen; "died" if another attempt began without one.
        step: updates done in all when it ended.
        signal: that stopped it, e.g. "SIGUSR1".
        reason: why it failed, one line.
    """

    job: str | None
    host: str
    pid: int
    world_size: int
    nodes: str | None
    began: float
    resumed: int | None = None
    changes: Mapping[str, tuple[object, object]] = field(default_factory=dict)
    ended: float | None = None
    status: Status = "running"
    step: int | None = None
    signal: str | None = None
    reason: str | None = None


class AttemptRecord:
    """Writes one attempt's events. A line that cannot be written is a warning, never the end of a run."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path, self._folder = path, folder
        self._ended = False
        self._lock = threading.Lock()

    def keep(self, name: str, text: str) -> None:
        """Keep a file of this attempt."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._folder / name, text.encode(), durable=False)
        except OSError as error:
            logger.warning("%s: cannot be written (%s)", self._folder / name, error)

    def resumed(self, step: int, changes: Mapping[str, tuple[object, object]] | None = None) -> None:
        """The attempt begins to train, after `step` updates, with these changes (name -> value before and now)."""
        event = {"event": "resumed", "time": time.time(), "step": step}
        self._write({**event, "changes": dict(changes)} if changes else event)

    def end(
        self,
        status: Literal["finished", "preempted", "failed"],
        *,
        step: int | None = None,
        signal: str | None = None,
        reason: str | None = None,
    ) -> None:
        """The attempt is over. Only the first call counts: who sees the end first knows best why.

        `step` counts all updates, also of earlier attempts. Line breaks in the reason become spaces.
        """
        with self._lock:
            if self._ended:
                return
            self._ended = True
        line = " ".join(reason.split()) if reason is not None else None
        self._write(
            {"event": "end", "time": time.time(), "status": status, "step": step, "signal": signal, "reason": line}
        )

    def _write(self, event: Mapping[str, Any]) -> None:
        for delay in (*_WRITE_DELAYS_S, None):
            try:
                return _append(self._path, event)
            except OSError as error:
                if delay is None:
                    logger.warning("%s: cannot be written (%s); lost: %s", self._path, error, json.dumps(event))
                else:
                    time.sleep(delay)


def begin(run_dir: str | Path, world_size: int, *, job: str | None = None, nodes: str | None = None) -> AttemptRecord:
    """Note that an attempt begins. Rank 0 calls it, holding the run's lock; the run's folder is made if need be."""
    host, number = socket.gethostname(), len(read_attempts(run_dir)) + 1
    record = AttemptRecord(Path(run_dir) / ATTEMPTS_FILE, Path(run_dir) / ATTEMPTS_FOLDER / f"{number:04d}")
    place = {"job": job, "host": host, "pid": os.getpid(), "world_size": world_size, "nodes": nodes or host}
    record._write({"event": "begin", "time": time.time(), **place})
    return record


def _append(path: Path, event: Mapping[str, Any]) -> None:
    """One line in one write, on a line of its own also after one that a crash cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        whole = size == 0 or os.pread(file.fileno(), 1, size - 1) == b"\n"
        data = (b"" if whole else b"\n") + json.dumps(event).encode() + b"\n"
        written = file.write(data)
        if written != len(data):
            raise OSError(f"only {written} of {len(data)} bytes fitted")
        os.fsync(file.fileno())


def read_attempts(run_dir: str | Path, trouble: list[str] | None = None) -> list[Attempt]:
    """Attempts at a run, oldest first; [] if there was none.

    What a damaged line would have said shows in those around it, so that it is passed over.

    Args:
        run_dir: folder of the run.
        trouble: what is wrong with the file is added here.
    """
    path = Path(run_dir) / ATTEMPTS_FILE
    noted = [] if trouble is None else trouble
    try:
        lines = (read_text(path, errors="replace") or "").splitlines()
    except DamagedFileError as error:
        noted.append(str(error))
        lines = []
    attempts: list[Attempt] = []
    for event in json_lines(lines):
        try:
            checked(event, {"event": "text"}, _KINDS)
        except ValueError as error:
            noted.append(f"{path}: a line is damaged: {error}")
            continue
        if event.get("event") == "begin":
            if attempts and attempts[-1].status == "running":
                attempts[-1] = replace(attempts[-1], status="died")
            attempts.append(_begun(event))
        elif attempts and attempts[-1].status == "running":
            attempts[-1] = _continued(attempts[-1], event)
    return attempts


def is_finished(run_dir: str | Path) -> bool:
    """Whether the last attempt that trained got to the end of its schedule."""
    last = last_that_trained(read_attempts(run_dir))
    return last is not None and last.status == "finished"


def last_that_trained(attempts: Sequence[Attempt]) -> Attempt | None:
    """The attempt that says how a run stands: the last one, but for those behind a finished one that did not train.

    A finished run stays finished when it is started again and refused or stopped before it found nothing to do.
    """
    for attempt in reversed(attempts):
        if attempt.status == "finished":
            return attempt
        if attempt.resumed is not None or attempt.status == "running":
            break
    return attempts[-1] if attempts else None


_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("job", "host", "nodes", "status", "signal", "reason"), "text"),
    **dict.fromkeys(("pid", "world_size", "step"), "count"),
    "time": "number",
}
"""Of an event's fields."""


def _begun(event: Mapping[str, Any]) -> Attempt:
    return Attempt(
        job=event.get("job"),
        host=str(event.get("host")),
        pid=event.get("pid") or 0,
        world_size=event.get("world_size") or 1,
        nodes=event.get("nodes"),
        began=event.get("time") or 0.0,
    )


def _continued(attempt: Attempt, event: Mapping[str, Any]) -> Attempt:
    if event.get("event") == "resumed":
        given = event.get("changes")
        pairs = given.items() if isinstance(given, dict) else ()
        changes = {name: (pair[0], pair[1]) for name, pair in pairs if isinstance(pair, list) and len(pair) == 2}
        return replace(attempt, resumed=event.get("step"), changes=changes)
    if event.get("event") == "end":
        known: dict[str, Any] = {name: event.get(name) for name in ("step", "signal", "reason")}
        status = event.get("status")
        return replace(attempt, status=status if status in _ENDS else "failed", ended=event.get("time"), **known)
    return attempt
