"""A set behind a URL, read by way of a local cache; satisfies `data.storage.store.Store`.

Shards that were announced (`expect`) are fetched whole, ahead and into the cache: the training order stays within a
group of shards, so all of a shard is wanted at about the same time. Of others the one sample is fetched: a look at a
few samples, or the replacement of a damaged one, should not cost gigabytes.

A shard's SHA-256 is compared on arrival. Wrong bytes are fetched again. The same wrong bytes twice are what the set
holds: they are kept, and the checksums of the samples decide which of them are damaged, as in a folder. So a stream
of samples is the one of a local copy, whatever happened on the way.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from common.retry import read_at
from data.storage.remote.ahead import FetchAhead
from data.storage.remote.download import Download, digest_of
from data.storage.remote.requests import Remote
from data.storage.remote.shard_cache import CacheConfig, ShardCache, release
from data.storage.shard import Shard

logger = logging.getLogger(__name__)

_TRIES = 4
"""Reads of one sample with wrong bytes."""


class RemoteStore:
    """See the module."""

    def __init__(self, root: str, config: CacheConfig, retry_min: float) -> None:
        """Nothing is asked for yet.

        Args:
            root: URL of the set.
            config: of the cache.
            retry_min: minutes for which nothing may come before it is an error.
        """
        wait_s = retry_min * 60
        self._config = config
        self._download = Download(Remote(root, config.stall_s), wait_s)
        self._cache = ShardCache(config, wait_s=max(wait_s, 2 * config.stall_s))
        self._ahead = self._new_ahead()
        self._expected: frozenset[str] = frozenset()
        self._given_up: dict[str, str] = {}
        self._as_stored: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Threads stay where they are."""
        return {name: value for name, value in self.__dict__.items() if name != "_ahead"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With threads of its own."""
        self.__dict__.update(state)
        self._ahead = self._new_ahead()

    def __del__(self) -> None:
        if "_ahead" in self.__dict__:
            self._ahead.stop()

    def _new_ahead(self) -> FetchAhead:
        return FetchAhead(self._cache, self._download.shard, threads=self._config.downloads)

    def read_file(self, name: str, sha256: str | None = None) -> bytes:
        """See `data.storage.store.Store.read_file`."""
        return self._download.file(name, sha256)

    def blocks(self, name: str) -> Iterator[bytes]:
        """See `data.storage.store.Store.blocks`; the cache is left alone."""
        return self._download.blocks(name)

    def expect(self, shards: Sequence[Shard]) -> None:
        """See `data.storage.store.Store.expect`."""
        fitting = [shard for shard in shards if shard.num_bytes <= self._config.max_bytes]
        self._expected = frozenset(shard.sha256 for shard in fitting)
        self._ahead.expect(fitting)

    def close(self) -> None:
        """See `data.storage.store.Store.close`; downloads that have begun go on."""
        self._ahead.stop()
        self._ahead = self._new_ahead()

    def read_at(self, shard: Shard, size: int, offset: int, crc32: int) -> bytes:
        """See `data.storage.store.Store.read_at`."""
        if shard.file in self._given_up:
            raise OSError(self._given_up[shard.file])
        try:
            data = self._read_once(shard, size, offset)
            for _ in range(1, _TRIES):
                if zlib.crc32(data) == crc32 or not self._worth_another(shard):
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

    def _worth_another(self, shard: Shard) -> bool:
        """Whether wrong bytes may come right; a copy that has changed on our disk is removed."""
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
