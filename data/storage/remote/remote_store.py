"""A set behind a URL, read through a local cache; satisfies `data.storage.store.Store`.

Announced shards (`expect`) are fetched whole, ahead and into the cache: the training order stays within a group of
shards, so all of a shard is read at about the same time. From other shards only the one sample is fetched: reading a
few samples, or the replacement of a damaged one, should not cost gigabytes.

A shard's SHA-256 is compared on arrival. Wrong bytes are fetched again. The same wrong bytes twice are what the set
holds: they are kept, and the checksums of the samples decide which of them are damaged, as in a folder. So the stream
of samples equals that of a local copy, whatever happened during the download.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.retry import read_at
from data.storage.remote.ahead import FetchAhead
from data.storage.remote.download import Download, digest_of
from data.storage.remote.requests import Remote
from data.storage.remote.shard_cache import CacheConfig, ShardCache, release
from data.storage.shard import Shard

logger = logging.getLogger(__name__)

_TRIES = 4
"""Reads of one sample with wrong bytes."""


_held: list[int] = []
"""Descriptors of cached files that this process has mapped, each with a lock that ends with the process."""


class RemoteStore:
    """See the module."""

    def __init__(self, root: str, config: CacheConfig, retry_min: float) -> None:
        """Requests nothing yet; nothing arriving for `retry_min` minutes is an error."""
        wait_s = retry_min * 60
        self._config = config
        self._download = Download(Remote(root, config.stall_s), wait_s)
        self._cache = ShardCache(config, wait_s=max(wait_s, 2 * config.stall_s))
        self._ahead = self._new_ahead()
        self._expected: frozenset[str] = frozenset()
        self._given_up: dict[str, str] = {}
        self._as_stored: set[str] = set()

    def __del__(self) -> None:
        if "_ahead" in self.__dict__:  # else the constructor failed
            self._ahead.stop()

    def _new_ahead(self) -> FetchAhead:
        return FetchAhead(self._cache, self._download.shard, self._config.downloads)

    def read_file(self, name: str, sha256: str | None = None) -> bytes:
        """See `data.storage.store.Store.read_file`."""
        return self._download.file(name, sha256)

    def local_file(self, name: str, sha256: str, num_bytes: int) -> Path:
        """See `data.storage.store.Store.local_file`: a copy in the cache, which nobody removes while it is held."""
        file = Shard(file=name, num_samples=0, num_bytes=num_bytes, sha256=sha256)
        _held.append(self._cache.fetch(file, lambda part: self._download.shard(file, part)))
        path = self._config.path / f"{sha256}.tar"
        if not path.is_file():
            raise OSError(f"{name} has another checksum than the set's manifest says")
        return path

    def blocks(self, name: str) -> Iterator[bytes]:
        """See `data.storage.store.Store.blocks`; the cache is left alone."""
        return self._download.blocks(name)

    def expect(self, shards: Sequence[Shard]) -> None:
        """See `data.storage.store.Store.expect`."""
        # A shard that the cache can never hold would be fetched for nothing: its samples are read one by one.
        fitting = [shard for shard in shards if shard.num_bytes <= self._config.max_bytes]
        self._expected = frozenset(shard.sha256 for shard in fitting)
        self._ahead.expect(fitting)

    def close(self) -> None:
        """See `data.storage.store.Store.close`; downloads that have begun are finished."""
        self._ahead.stop()
        self._ahead = self._new_ahead()

    def read_at(self, shard: Shard, size: int, offset: int, crc32: int) -> bytes:
        """See `data.storage.store.Store.read_at`."""
        if shard.file in self._given_up:
            raise OSError(self._given_up[shard.file])
        try:
            data = self._read_once(shard, size, offset)
            for _ in range(1, _TRIES):
                # A mismatch is no error here: the reader compares the checksum last, after all other damage.
                if zlib.crc32(data) == crc32 or not self._may_improve(shard):
                    break
                data = self._read_once(shard, size, offset)
        except OSError as error:
            self._given_up[shard.file] = str(error)  # its other samples need not be waited for, too
            raise
        return data

    def _read_once(self, shard: Shard, size: int, offset: int) -> bytes:
        file = self._cache.open(shard)
        if file is None and shard.sha256 in self._expected:
            file = self._cache.fetch(shard, lambda part: self._download.shard(shard, part))
        if file is None:
            return self._download.piece(shard.file, size, offset)
        try:
            return read_at(file, size, offset)
        finally:
            release(file)

    def _may_improve(self, shard: Shard) -> bool:
        """Whether reading wrong bytes again may give the right ones; a copy that changed on our disk is removed."""
        file = None if shard.sha256 in self._as_stored else self._cache.open(shard)
        if file is None:
            return shard.sha256 not in self._as_stored
        try:
            changed = digest_of(file).hexdigest() != shard.sha256
        finally:
            release(file)
        if changed and self._cache.discard(shard):
            logger.warning("%s: its copy in the cache has changed; fetching it again", shard.file)
            return True
        self._as_stored.add(shard.sha256)
        return False
