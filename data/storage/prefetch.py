"""Prefetch hints for shards behind a URL: which ones are needed next. They affect speed, never content."""

from __future__ import annotations

import logging

import numpy as np
from jaxtyping import Int

from data.storage.manifest import Manifest
from data.storage.mixture import Opened
from data.storage.reader import SampleReader
from data.storage.remote.shard_cache import CacheConfig

logger = logging.getLogger(__name__)

_DENSE = 0.25
"""Share of the shards' bytes that must be read for fetching whole shards to pay."""
_AHEAD_SHARDS = 4
"""Shards announced beyond those of the batch."""
_AHEAD_SAMPLES = 4096
"""Following samples among which those shards are looked for."""
_GIB = 1 << 30


def shards_of(manifest: Manifest, indices: Int[np.ndarray, " n"]) -> list[int]:
    """Shards of these samples, in the order of their first use."""
    shards, first = np.unique(manifest.sample_shard[indices], return_index=True)
    return [int(shard) for shard in shards[np.argsort(first)]]


def check_cache(cache: CacheConfig, opened: Opened, shards_per_group: int, *, warn: bool) -> None:
    """Refuse a cache for sets behind URLs that the training order would fill and empty over and over.

    The order reads `shards_per_group` shards at the same time (`data.order`). With `warn`, the log says where the cache
    works, but leaves no room to fetch ahead.

    Raises:
        ValueError: there is no room for a group of shards and one that follows.
    """
    manifest, remote = opened.reader.manifest, opened.reader.remote_shards
    in_use = np.unique(opened.blocks.shard).tolist() if remote else []
    sizes = sorted((manifest.shards[shard].num_bytes for shard in in_use if shard in remote), reverse=True)
    needed, good = sum(sizes[: shards_per_group + 1]), sum(sizes[: 2 * shards_per_group])
    if needed > cache.max_bytes:
        raise ValueError(
            f"data.cache.max_gib is {cache.max_gib:g}, expected at least {_gib(needed)}: {shards_per_group} shards "
            f"(data.shards_per_group) are read at a time, and one more is fetched; {_gib(good)} leaves room to fetch "
            "all of the next ones ahead"
        )
    if warn and good > cache.max_bytes:
        logger.warning(
            "data.cache.max_gib=%g holds the shards that are read at a time, but not all of the next ones; with %s "
            "nothing is waited for",
            cache.max_gib,
            _gib(good),
        )


def _gib(num_bytes: int) -> str:
    """Rounded up, so that the number in the message is enough."""
    return f"{np.ceil(num_bytes / _GIB * 1000) / 1000:g}"


class PrefetchHints:
    """Announces the shards of a list of samples to its reader; picklable."""

    def __init__(self, reader: SampleReader, indices: Int[np.ndarray, " n"]) -> None:
        """Decide whether fetching whole shards pays for these samples, in the order in which they are read.

        It does not where only a few samples of each are read, or where the list jumps between more shards than the
        cache holds.
        """
        self._reader, self._indices, self._dense = reader, indices, False
        if reader.remote_shards and len(indices):
            manifest = reader.manifest
            visited = manifest.sample_shard[indices]
            stored = sum(manifest.shards[shard].num_bytes for shard in np.unique(visited))
            needed = int(manifest.sample_size[np.unique(indices)].sum())
            # On average fewer than two visits a shard: the list runs through the shards instead of jumping about.
            in_stretches = int((np.diff(visited) != 0).sum()) < 2 * len(np.unique(visited))
            self._dense = needed >= _DENSE * stored and (in_stretches or stored <= manifest.cache.max_bytes)

    def before(self, start: int, stop: int) -> None:
        """The samples `start` to `stop` of the list are read next."""
        if self._dense:
            manifest = self._reader.manifest
            now = shards_of(manifest, self._indices[start:stop])
            later = shards_of(manifest, self._indices[stop : stop + _AHEAD_SAMPLES])
            self._reader.expect([*now, *[shard for shard in later if shard not in now][:_AHEAD_SHARDS]])
