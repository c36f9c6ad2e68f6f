"""Where the bytes of a prepared set come from: a folder (`LocalStore`), or a URL through a local cache."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from common.retry import StorageRetry, read_at
from data.storage.remote.shard_cache import CacheConfig
from data.storage.shard import Shard

MANIFEST_NAME = "manifest.json"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_OPEN_SHARDS = 32
"""Tars that one store keeps open."""
_BLOCK_BYTES = 1 << 20


@runtime_checkable
class Store(Protocol):
    """Bytes of one set. Picklable, usable on both sides of a fork; one a thread."""

    def read_file(self, name: str, sha256: str | None = None) -> bytes:
        """A small file as it is now.

        Where its SHA-256 is known, bytes that a network delivers with another one are requested again, and returned
        as they are if they stay that way.

        Raises:
            FileNotFoundError: it is not there; the message names it.
            OSError: it cannot be read; the message says why.
        """

    def local_file(self, name: str, sha256: str, num_bytes: int) -> Path:
        """A large file on this machine, to be mapped; it stays until the process ends. Raises as `read_file`.

        Bytes that a network delivers are compared with the checksum, those of a folder are not.
        """

    def blocks(self, name: str) -> Iterator[bytes]:
        """A large file, piece by piece; raises as `read_file`."""

    def read_at(self, shard: Shard, size: int, offset: int, crc32: int) -> bytes:
        """Bytes of a shard, fewer at its end.

        A store that holds copies replaces those without the given CRC-32, and returns what the set itself holds even
        where that is damaged.

        Raises:
            OSError: of this shard, while the set's other files can be read.
            StorageAwayError: the storage went away and did not come back in time.
        """

    def expect(self, shards: Sequence[Shard]) -> None:
        """These will be read next, in this order."""

    def close(self) -> None:
        """Let go of files; the next read opens them again."""


def is_url(root: str) -> bool:
    """Whether a set lies behind a URL and not in a folder."""
    return _URL.match(root) is not None


def join(root: str, name: str) -> str:
    """Path or URL of a file of a set."""
    return f"{root.rstrip('/')}/{name}" if is_url(root) else os.path.join(root, name)


class LocalStore:
    """A folder, whose file `probe` can be read whenever its storage is there.

    A sample is one `pread`, which shares no file position.
    """

    def __init__(self, root: str, retry_min: float, probe: str = MANIFEST_NAME) -> None:
        self._root = Path(root)
        self._open: OrderedDict[str, int] = OrderedDict()
        self._retry = StorageRetry(self._root / probe, retry_min)
        self._given_up: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """File descriptors mean nothing in another process."""
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        self.close()

    def read_file(self, name: str, sha256: str | None = None) -> bytes:
        """See `Store.read_file`."""
        return (self._root / name).read_bytes()

    def local_file(self, name: str, sha256: str, num_bytes: int) -> Path:
        """See `Store.local_file`."""
        return self._root / name

    def blocks(self, name: str) -> Iterator[bytes]:
        """See `Store.blocks`."""
        with (self._root / name).open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block

    def read_at(self, shard: Shard, size: int, offset: int, crc32: int) -> bytes:
        """See `Store.read_at`."""
        return self.piece(shard.file, size, offset)

    def piece(self, file: str, size: int, offset: int) -> bytes:
        """Bytes of a file, fewer at its end; raises as `Store.read_at`."""
        try:
            if file in self._given_up:
                return self._pread(file, size, offset)
            return self._retry.read(lambda: self._pread(file, size, offset))
        except OSError:
            self._given_up.add(file)  # no waiting again for each of its other samples
            raise

    def expect(self, shards: Sequence[Shard]) -> None:
        """Nothing to do: the operating system reads ahead."""

    def close(self) -> None:
        """See `Store.close`."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _pread(self, file: str, size: int, offset: int) -> bytes:
        try:
            return read_at(self._descriptor(file), size, offset)
        except OSError:
            self.close()  # descriptors of a file system that went away stay dead when it is back
            raise

    def _descriptor(self, file: str) -> int:
        descriptor = self._open.pop(file, None)
        if descriptor is None:
            descriptor = os.open(self._root / file, os.O_RDONLY | os.O_CLOEXEC)
        self._open[file] = descriptor
        if len(self._open) > _OPEN_SHARDS:  # close the one unused for longest
            os.close(self._open.popitem(last=False)[1])
        return descriptor


def open_store(root: str, cache: CacheConfig, *, retry_min: float) -> Store:
    """The store of a set in a folder or behind a URL, whose storage may be away for `retry_min` minutes."""
    if not is_url(root):
        return LocalStore(root, retry_min)
    # Not before it is needed: the libraries of URLs take a quarter of a second.
    from data.storage.remote.remote_store import RemoteStore

    return RemoteStore(root, cache, retry_min)
