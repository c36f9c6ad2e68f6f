"""Files that are there whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20
_ABANDONED_S = 86400.0
"""A temporary file of another machine that has not grown for so long has no writer any more."""


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool) -> Iterator[Path]:
    """Give a new file's temporary name; what is written there takes the place of `path` at the end of the block.

    A crash leaves the old file or the new one, never a part; an error removes the temporary file, and what a killed
    writer left is removed by the next one. Permissions are those that the umask gives a new file, whatever library
    writes it and whatever the old file had.

    Args:
        path: the file, in a folder that exists.
        durable: wait until the content is on the disk, so that a power cut leaves no empty file either.
    """
    remove_leftovers(path)
    temporary = temporary_name(path)
    try:
        temporary.unlink(missing_ok=True)  # of a killed process that had our number
        with usual_permissions(temporary):
            yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the error to be told is the first one
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # a failed write names no file, and nobody knows the temporary one
        raise


@contextlib.contextmanager
def usual_permissions(path: Path) -> Iterator[None]:
    """Give a new file that is written within the block the permissions that the umask says.

    Libraries do otherwise: safetensors writes files that their owner alone can read.
    """
    path.touch()  # made the usual way: asking for the umask itself would mean to change it for all threads
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def temporary_name(path: Path) -> Path:
    """Where this process writes what is to take the place of a file or folder: beside it."""
    return path.with_name(f"{path.name}.{_here()}.{os.getpid()}.tmp")


@functools.cache
def _here() -> str:
    """Where a process id means this process: the host, and what tells its containers and its reboots apart."""
    try:
        numbers = os.readlink("/proc/self/ns/pid") + Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # no Linux, or a container without them
        numbers = ""
    return f"{socket.gethostname()}-{hashlib.sha256(numbers.encode()).hexdigest()[:8]}"


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left under `temporary_name(path)`, as far as the storage lets us.

    Of this machine's (or container's) processes those that are gone, of others' what nobody has written to for a day.
    """
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        host, _, pid = leftover.name.removeprefix(f"{path.name}.").removesuffix(".tmp").rpartition(".")
        if not host or not pid.isdecimal():  # somebody else's file
            continue
        with contextlib.suppress(OSError):
            dead = host == _here() and not process_exists(int(pid))
            if dead or time.time() - leftover.lstat().st_mtime > _ABANDONED_S:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def process_exists(pid: int) -> bool:
    """Whether a process of this machine is there, whoever's it is."""
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all, see `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def check_room(path: Path, num_bytes: int) -> None:
    """Try whether a file of this size can be written, before hours of work whose result is to go there.

    Raises:
        OSError: it cannot; names the file.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(bytes(num_bytes))
        sync(temporary)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def private_folder(path: Path, *, moved_by: str = "TMPDIR") -> Path:
    """Make a folder that this user alone can use, or take it as it is; returns it.

    For caches whose names others can guess, in places where all may write: whoever had made the folder first could put
    there what this user's programs then load.

    Args:
        path: the folder.
        moved_by: environment variable that says where it is, for the message.

    Raises:
        OSError: it cannot be made, is a link, belongs to another user, or others may write into it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = path.lstat()
    for wrong, what in (
        (not stat.S_ISDIR(state.st_mode), "is a link"),
        (state.st_uid != os.getuid(), f"belongs to another user (id {state.st_uid})"),
        (state.st_mode & 0o022, f"can be written by others (mode {stat.S_IMODE(state.st_mode):o})"),
    ):
        if wrong:
            raise PermissionError(
                errno.EPERM, f"the folder {what}; remove it, or set {moved_by} to another place", str(path)
            )
    return path


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(blocks: Iterable[bytes]) -> Any:
    """SHA-256 object fed with these blocks; hashlib has no public type to name."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest


def file_sha256(path: Path) -> str | None:
    """Hex digest of a file, None if it is not there."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return str(sha256_of(iter(lambda: file.read(_BLOCK_BYTES), b"")).hexdigest())
