"""A lock on a file that several processes share: one holder at a time, on any machine that sees the folder.

It is the kernel's (`flock`), which lets go however the process ends: nothing has to be cleaned up, and no clock is
compared. The file's text names the holder, for the message that the others get. No torch import.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What flock answers where the file system has no locks (Lustre mounted without -o flock, some FUSE systems)."""

logger = logging.getLogger("tandem.locks")


class FileLock:
    """Held from a successful `take` to `release`, or to the end of a `with` block around them.

    Attributes:
        path: the lock file, made by the first `take`.
        holder: who has it, in words, after a `take` in vain.
    """

    def __init__(self, path: Path, *, job: str | None = None) -> None:
        """Nothing is touched yet; `job` is SLURM's id of this job, shown to whom we keep out."""
        self.path = path
        self.holder = ""
        self._job = job
        self._since = ""
        self._fd: int | None = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def take(self) -> bool:
        """Try to get the lock, without waiting; whether it is ours now.

        Raises:
            OSError: the file cannot be made or written.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _try(fd, self.path):
                self.holder = _describe(fd)
                os.close(fd)
                return False
            self._fd, self._since = fd, datetime.now(tz=timezone.utc).isoformat(timespec="seconds")
            self.note("")
        except BaseException:
            self._fd = None
            os.close(fd)
            raise
        return True

    def note(self, how_far: str) -> None:
        """Say how far the holder has come, for those who wait."""
        assert self._fd is not None, "only the holder has something to say"
        name = {"host": socket.gethostname(), "pid": os.getpid(), "job": self._job, "since": self._since}
        line = json.dumps({**name, "how_far": how_far}).encode() + b"\n"
        os.pwrite(self._fd, line, 0)
        os.ftruncate(self._fd, len(line))  # after the text: a reader never finds the file empty

    def release(self) -> None:
        """Let go, if it is held."""
        if self._fd is not None:
            # Closing alone would not do: a child forked meanwhile holds the descriptor too, and with it the lock.
            with contextlib.suppress(OSError):  # no locks here
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = None


def holder(path: Path) -> str | None:
    """Who holds a lock file at this moment, in words; None if no process does or there is no such file."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _try(fd, path) else _describe(fd)
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
            "%s: this file system has no file locks (%s); a second process in the same place would not be noticed",
            path,
            error,
        )
    return True


def _describe(fd: int) -> str:
    try:
        content = json.loads(os.pread(fd, 4096, 0).partition(b"\n")[0])
        job = f"job {content['job']}, " if content["job"] is not None else ""
        far = f": {content['how_far']}" if content.get("how_far") else ""
        return f"{job}process {content['pid']} on {content['host']} (since {content['since']}){far}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "another process (it has not written its name yet)"
