"""Downloads of whole shards and pieces of files, repeated until they arrive with the right bytes."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from common.files import sha256_of
from common.retry import read_at
from data.storage.remote.requests import BackOff, PassingError, Remote
from data.storage.shard import Shard

logger = logging.getLogger(__name__)

_PROBE = "manifest.json"
"""Every set has it, so it can be read whenever the storage can be reached."""
_PIECE_BYTES = 8 << 20
_BLOCK_BYTES = 1 << 20
_TRIES = 4
"""Downloads of one file that arrive with wrong bytes."""
_BELIEVED_AFTER = 3
"""Answers such as 404 in a row before they are believed; a single one may be a mistake of the server."""
_OPENING_WAIT_S = 30.0
"""How long opening a set retries; short, since somebody is watching when a run starts."""


class Download:
    """Downloads of one set; picklable, safe for threads."""

    def __init__(self, remote: Remote, wait_s: float) -> None:
        """Requests nothing yet; nothing arriving for `wait_s` seconds is an error."""
        self._remote, self._wait_s = remote, wait_s

    def file(self, name: str, sha256: str | None) -> bytes:
        """A small file, see `data.storage.store.Store.read_file`; without a checksum it has to come twice the same."""
        back_off = BackOff(self._url(name), _OPENING_WAIT_S, "fix the address or the network")
        before: bytes | None = None
        for _ in range(_TRIES):
            data = self._patiently(lambda: self._remote.whole(name), back_off, probe=False)
            if data == before or hashlib.sha256(data).hexdigest() == sha256:
                break
            before = data
        return data

    def blocks(self, name: str) -> Iterator[bytes]:
        """A large file, see `data.storage.store.Store.blocks`."""
        back_off = self._back_off(name)
        at, length = 0, _PIECE_BYTES
        # A shorter piece is the end; a longer one is the whole file, from a server without range requests.
        while length == _PIECE_BYTES:
            data = self._patiently(self._asking(name, at, at + _PIECE_BYTES), back_off, probe=False)
            yield data
            length = len(data)
            at += length

    def piece(self, name: str, size: int, offset: int) -> bytes:
        """Some bytes of a file, fewer at its end.

        Raises:
            OSError: of this file, while the manifest can be read.
            StorageAwayError: nothing came for too long.
        """
        data = self._patiently(self._asking(name, offset, offset + size), self._back_off(name))
        return data if len(data) <= size else data[offset : offset + size]

    def shard(self, shard: Shard, part: int) -> bool:
        """Download a whole shard into a file (descriptor) that may hold its beginning already.

        The same wrong bytes twice are what the set holds; they are left in the file.

        Returns:
            Whether its checksum is that of the manifest.

        Raises:
            OSError: the file cannot be read, or came with different wrong bytes each time.
            StorageAwayError: nothing came for too long.
        """
        url, seen = self._url(shard.file), set[str]()
        for _ in range(_TRIES):
            digest = self._to_file(shard, part)
            if digest == shard.sha256:
                return True
            if digest in seen:
                logger.warning("%s is not what the set's manifest says; its damaged samples will be skipped", url)
                return False
            seen.add(digest)
            os.ftruncate(part, 0)
            logger.warning("%s arrived with wrong bytes; fetching it again", url)
        os.ftruncate(part, 0)
        raise OSError(f"{url} arrived {_TRIES} times with wrong bytes, others each time")

    def _to_file(self, shard: Shard, part: int) -> str:
        """Continue the download; SHA-256 of the file when it is whole, or the server has no more of it."""
        digest, back_off, empty = digest_of(part), self._back_off(shard.file), 0
        at = os.fstat(part).st_size
        while at < shard.num_bytes and empty < _BELIEVED_AFTER:
            stop = min(at + _PIECE_BYTES, shard.num_bytes)
            data = self._patiently(self._asking(shard.file, at, stop), back_off)
            if len(data) > stop - at:  # the whole file, from a server without range requests
                at, data, digest = 0, data[: shard.num_bytes], hashlib.sha256()
                os.ftruncate(part, 0)
            empty = 0 if data else empty + 1
            _write(part, data, at, back_off)
            digest.update(data)
            at += len(data)
        return str(digest.hexdigest())

    def _asking(self, name: str, start: int, stop: int) -> Callable[[], bytes]:
        return lambda: self._remote.piece(name, start, stop)

    def _patiently(self, ask: Callable[[], bytes], back_off: BackOff, *, probe: bool = True) -> bytes:
        """What a request (`ask`) returns once it succeeds; `back_off` waits between tries.

        With `probe`, a refusal of this file counts only while the manifest can be read; otherwise the storage is away.
        """
        refusals = 0
        while True:
            try:
                answer = ask()
            except PassingError as error:
                back_off.after(error)
            except OSError as error:
                refusals = refusals + 1 if not probe or self._present() else 0
                if refusals == _BELIEVED_AFTER:
                    raise
                back_off.after(error)
            else:
                back_off.progressed()
                return answer

    def _present(self) -> bool:
        try:
            self._remote.piece(_PROBE, 0, 1)
        except (OSError, PassingError):
            return False
        return True

    def _back_off(self, name: str) -> BackOff:
        return BackOff(
            self._url(name),
            self._wait_s,
            "restore the storage or the network and start the run again: it continues from the last checkpoint; "
            "data.retry_min sets how long it waits",
        )

    def _url(self, name: str) -> str:
        return f"{self._remote.root}/{name}"


def digest_of(file: int) -> Any:
    """SHA-256 object fed with a file (descriptor) from its beginning."""
    return sha256_of(read_at(file, _BLOCK_BYTES, at) for at in range(0, os.fstat(file).st_size, _BLOCK_BYTES))


def _write(part: int, data: bytes, at: int, back_off: BackOff) -> None:
    """Write all of it, waiting while the disk is full."""
    view = memoryview(data)
    while view:
        try:
            done = os.pwrite(part, view, at)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            back_off.after(OSError(f"the disk of the cache is full, lower data.cache.max_gib: {error.strerror}"))
            continue
        view, at = view[done:], at + done
