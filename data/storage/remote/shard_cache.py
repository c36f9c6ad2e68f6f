"""Shards of sets behind a URL, kept on the machine that reads them: bounded, shared by all its processes.

Files of the folder, named by the shard's SHA-256, so that nothing depends on what a set calls its files:

    <sha256>.tar                 whole, with the right checksum
    <sha256>.unsound             whole, as the store of the set holds it, with another checksum
                                 (`data.storage.remote.download`)
    <sha256>.<num_bytes>.part    being downloaded; counts with all its bytes from the start
    lock                         held while room is made and names change
    slot-<n>                     held while a shard is fetched ahead

All locks are `flock`s on open files: they end with their process, however it ends. A process that reads or writes a
shard holds a lock on that file itself, so nothing is ever removed under a reader, and what is removed is free at once.
The least recently read file is removed first. A `.part` whose process died is continued by the next one to need it.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.files import private_folder
from common.ranges import at_least, below, positive
from common.retry import StorageAwayError, growing_delays
from data.storage.shard import Shard

_GIB = 1 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_TOUCH_S = 1.0
"""Reads within this time count as one, so that not every read of a sample writes an inode."""
_STALE_PART_S = 86400.0
"""A part that has not grown for this long is removed."""
_UNSOUND_S = 3600.0
"""After this long an unsound shard is fetched again: the set may have been repaired."""
_POLL_S = (0.01, 0.25)
"""First and longest wait for another process."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The local cache of a set behind a URL; without effect for a set in a folder.

    Attributes:
        folder: on a disk of the machine itself, shared by all its processes and runs; None: `tandem-shards-<user>`
            below $TMPDIR.
        max_gib: what all files in it may take together, including those being downloaded.
        downloads: shards that one machine fetches ahead at a time.
        stall_s: a piece of a shard (8 MiB) that has not come after this many seconds is requested again.
        teacher_folder: where the features of a frozen teacher are kept, seen by all machines of a run; needed with
            `method.teacher.cache`, because they cannot lie beside the shards.
    """

    folder: str | None = None
    max_gib: float = 64.0
    downloads: int = 4
    stall_s: float = 30.0
    teacher_folder: str | None = None

    def __post_init__(self) -> None:
        positive(self, "max_gib", "stall_s")
        below(self, max_gib=float("inf"), stall_s=float("inf"))
        at_least(self, downloads=1)

    @property
    def max_bytes(self) -> int:
        """The bound in bytes."""
        return int(self.max_gib * _GIB)

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder or os.path.join(tempfile.gettempdir(), f"tandem-shards-{getpass.getuser()}"))


Fill = Callable[[int], bool]
"""Writes a shard into a file (descriptor) that may hold its beginning; whether its checksum came out right."""


class ShardCache:
    """Access to the folder; picklable, safe for threads and processes."""

    def __init__(self, config: CacheConfig, *, wait_s: float) -> None:
        """Creates nothing yet; `wait_s`: how long to wait for another process's download that makes no progress."""
        self._folder, self._is_default = config.path, config.folder is None
        self._is_made = False
        self._max_bytes = config.max_bytes
        self._slots = config.downloads
        self._wait_s = wait_s

    def open(self, shard: Shard) -> int | None:
        """Descriptor of a shard that is here, under a shared lock; give it to `release`. None: it is not here."""
        sha256 = _checked(shard)
        if self._is_default and not self._is_made:
            self._make_folder()  # before anything is read from a folder that others could have made
        for suffix in ("tar", "unsound"):
            try:
                file = os.open(self._folder / f"{sha256}.{suffix}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            fcntl.flock(file, fcntl.LOCK_SH)
            state = os.fstat(file)
            age = time.time() - state.st_mtime
            # Unlinked between the open and the lock; or left by a machine that crashed before its disk had the bytes.
            gone = state.st_nlink == 0 or (suffix == "tar" and state.st_size != shard.num_bytes)
            if gone or (suffix == "unsound" and age > _UNSOUND_S):
                release(file)
                continue
            if suffix == "tar" and age > _TOUCH_S:
                os.utime(file)
            return file
        return None

    def fetch(self, shard: Shard, fill: Fill) -> int:
        """As `open`, after having it filled where it is not here; of several callers one does, the others wait.

        Raises:
            StorageAwayError: another process's download stands still, or there is no room for too long.
            Exception: of `fill`.
        """
        since, seen, pauses = time.monotonic(), -1, growing_delays(*_POLL_S)
        while True:
            file = self.open(shard)
            if file is None:
                part = self._claim(shard, keep=())
                file = None if part is None else self._filled(shard, part, fill)
            if file is not None:
                return file
            now, size = time.monotonic(), self._part_size(shard)
            if size != seen:
                since, seen = now, size
            if now - since > self._wait_s:
                raise StorageAwayError(
                    f"{shard.file}: another process's download into {self._folder} has stood still for "
                    f"{self._wait_s:.0f} s, or all of the cache is being read (data.cache.max_gib)"
                )
            time.sleep(next(pauses))

    def fetch_ahead(self, shard: Shard, fill: Fill, keep: Collection[str]) -> bool:
        """Fill it, unless it is here, another process does it, or there is no room without removing `keep`.

        `keep` are the SHA-256 of shards that are needed sooner or as soon. False where it may be worth another try.
        """
        if self._is_here(shard):
            return True
        slot = self._free_slot()
        if slot is None:
            return self._is_here(shard)
        try:
            part = self._claim(shard, keep)
            if part is None:
                return self._is_here(shard)
            release(self._filled(shard, part, fill))
        finally:
            release(slot)
        return True

    def discard(self, shard: Shard) -> bool:
        """Remove a copy that has changed on disk; False: there was none."""
        with self._locked(), contextlib.suppress(FileNotFoundError):
            self._unlink(self._folder / f"{_checked(shard)}.tar")
            return True
        return False

    # ------------------------------------------------------------------------------------------- one shard
    def _is_here(self, shard: Shard) -> bool:
        file = self.open(shard)
        if file is not None:
            release(file)
        return file is not None

    def _part(self, shard: Shard) -> Path:
        return self._folder / f"{_checked(shard)}.{shard.num_bytes}.part"

    def _part_size(self, shard: Shard) -> int:
        try:
            return self._part(shard).stat().st_size
        except FileNotFoundError:
            return -1

    def _claim(self, shard: Shard, keep: Collection[str]) -> int | None:
        """The shard's part, locked and with room for all of it; None: another process has it, or there is no room."""
        with self._locked():
            if self._is_here(shard):
                return None
            path = self._part(shard)
            part = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not _lock_or_close(part):
                return None
            if not self._make_room(shard.num_bytes, path.name, keep):
                path.unlink()
                release(part)
                return None
            os.utime(part)
            return part

    def _filled(self, shard: Shard, part: int, fill: Fill) -> int:
        """The part's descriptor once it is whole and has its name, under a shared lock."""
        try:
            suffix = "tar" if fill(part) else "unsound"
            with self._locked():
                self._part(shard).replace(self._folder / f"{shard.sha256}.{suffix}")
            os.utime(part)
            fcntl.flock(part, fcntl.LOCK_SH)
        except BaseException:
            release(part)
            raise
        return part

    # ------------------------------------------------------------------------------------------- the folder
    @contextmanager
    def _locked(self) -> Iterator[None]:
        file = self._lock_file("lock")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            release(file)

    def _free_slot(self) -> int | None:
        """One of the machine's places for fetching ahead, held until its `release`; None: all are taken."""
        files = (self._lock_file(f"slot-{number}") for number in range(self._slots))
        return next((file for file in files if _lock_or_close(file)), None)

    def _make_folder(self) -> None:
        if self._is_default:  # a name that others can guess
            private_folder(self._folder)
        else:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._is_made = True

    def _lock_file(self, name: str) -> int:
        self._make_folder()
        return os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _make_room(self, num_bytes: int, part: str, keep: Collection[str]) -> bool:
        """Remove what was read longest ago until `num_bytes` fit in for a part; False: all else is in use.

        Called under the lock of the folder.
        """
        total, removable = num_bytes, []
        for entry in os.scandir(self._folder):
            kind = entry.name.rpartition(".")[2]
            if entry.name == part or kind not in ("tar", "unsound", "part"):
                continue
            state, middle = entry.stat(), entry.name.split(".")[1]
            # A part counts with all the bytes that its name promises.
            size = max(state.st_size, int(middle) if middle.isdigit() else 0)
            if kind == "part" and time.time() - state.st_mtime > _STALE_PART_S and self._unlink(Path(entry.path)):
                continue
            total += size
            if entry.name.partition(".")[0] not in keep:
                removable.append((state.st_mtime, size, entry.path))
        for _, size, path in sorted(removable):
            if total <= self._max_bytes:
                break
            if self._unlink(Path(path)):
                total -= size
        return total <= self._max_bytes

    def _unlink(self, path: Path) -> bool:
        """Remove a file unless it is being read or written; whether it is gone. Called under the folder's lock."""
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if not _lock_or_close(file):
            return False
        try:
            path.unlink()
        finally:
            release(file)
        return True


def _lock_or_close(file: int) -> bool:
    """Lock an open file for writing; False, with the file closed, where another process reads or writes it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    return True


def release(file: int) -> None:
    """End a lock and close its file."""
    # Closing alone would not do: a child forked meanwhile holds the descriptor too, and with it the lock.
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _checked(shard: Shard) -> str:
    """The checksum, which becomes a file name."""
    if not _SHA256.match(shard.sha256):
        raise OSError(f"{shard.file}: the manifest gives {shard.sha256!r} as its SHA-256")
    return shard.sha256
