"""Files that are there whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool) -> Iterator[Path]:
    """Give a new file's temporary name; what is written there takes the place of `path` at the end of the block.

    A crash leaves the old file or the new one, never a part; an error removes the temporary file.

    Args:
        path: the file, in a folder that exists.
        durable: wait until the content is on the disk, so that a power cut leaves no empty file either.
    """
    # With the host: processes of two machines may have the same id and write into the same folder.
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all, see `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data)


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
