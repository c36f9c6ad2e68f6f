"""One run folder, one run: `<run>/run.lock` is held (flock) by rank 0 for as long as it trains.

The kernel lets go of the lock however the process ends, so nothing has to be cleaned up, and no clock is compared.
The file's text names the holder, for the message that the second job gets. No torch import.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from common.run_files import LOCK_FILE
from engine.errors import RunLockedError

POLL_S = 0.5
logger = logging.getLogger("tandem.pretrain")

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What flock answers where the file system has no locks (Lustre mounted without -o flock, some FUSE systems)."""


class RunLock:
    """Holds a run's folder inside a `with` block.

    Attributes:
        path: the lock file.
    """

    def __init__(
        self, run_dir: str | Path, *, wait_s: float, job: str | None = None, stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Nothing is touched before the `with` block begins.

        Args:
            run_dir: folder of the run.
            wait_s: how long to wait for a holder that may be about to end, seconds.
            job: SLURM's id of this job, shown to whom we keep out.
            stop: asked while waiting; True ends the wait at once.
        """
        self.path = Path(run_dir) / LOCK_FILE
        self._wait_s, self._job, self._stop = wait_s, job, stop
        self._fd: int | None = None

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            RunLockedError: another process holds it.
            OSError: the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._take(fd)
            os.ftruncate(fd, 0)
            since = datetime.now(tz=timezone.utc).isoformat(timespec="seconds")
            holder = {"host": socket.gethostname(), "pid": os.getpid(), "job": self._job, "since": since}
            os.pwrite(fd, json.dumps(holder).encode() + b"\n", 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _take(self, fd: int) -> None:
        deadline, announced = time.monotonic() + self._wait_s, False
        while not _try(fd, self.path):
            if time.monotonic() >= deadline or self._stop():
                raise RunLockedError(
                    f"{self.path.parent} is being trained by {_describe(fd)}; got no lock on {self.path.name} in "
                    f"{self._wait_s:.0f} s. Wait for that job or cancel it, or choose another run_dir; two jobs in one "
                    "folder would spoil each other's checkpoints"
                )
            if not announced:
                logger.info(
                    "%s is still held by %s; waiting up to %.0f s", self.path.parent, _describe(fd), self._wait_s
                )
                announced = True
            time.sleep(min(POLL_S, max(deadline - time.monotonic(), 0.01)))


def holder(run_dir: str | Path) -> str | None:
    """Who trains in a folder at this moment, in words; None if no process does or there is no lock file."""
    try:
        fd = os.open(Path(run_dir) / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _try(fd, Path(run_dir) / LOCK_FILE) else _describe(fd)
    finally:
        os.close(fd)


def _try(fd: int, path: Path) -> bool:
    """Whether the lock is ours now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "%s: this file system has no file locks (%s); a second job in the same folder would not be noticed",
            path,
            error,
        )
    return True


def _describe(fd: int) -> str:
    try:
        content = json.loads(os.pread(fd, 4096, 0))
        job = f"job {content['job']}, " if content["job"] is not None else ""
        return f"{job}process {content['pid']} on {content['host']} (since {content['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process (it has not written its name yet)"
