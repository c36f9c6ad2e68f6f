"""Which shards are needed next: what sets behind a URL are told, so that they fetch them ahead. Never what is read."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from data.storage.manifest import Manifest
from data.storage.reader import SampleReader
from data.storage.remote.shard_cache import CacheConfig
from data.storage.shard import Shard

logger = logging.getLogger(__name__)

_DENSE = 0.25
"""Share of the shards' bytes above which whole shards are worth it."""
_AHEAD_SHARDS = 4
"""Of a list, beyond those of the batch."""
_AHEAD_SAMPLES = 4096
"""Among which these are looked for."""
_GIB = 1 << 30


def shards_of(manifest: Manifest, indices: Int[np.ndarray, " n"]) -> list[int]:
    """Shards of some samples, by their first use."""
    shards, first = np.unique(manifest.sample_shard[indices], return_index=True)
    return [int(shard) for shard in shards[np.argsort(first)]]


def check_cache(cache: CacheConfig, shards: Sequence[Shard], shards_per_group: int, *, warn: bool = True) -> None:
    """Refuse a cache that the training order would fill and empty over and over.

    Args:
        cache: the settings.
        shards: in use, behind URLs.
        shards_per_group: that are read at the same time, see `data.order`.
        warn: say where it works, but leaves no room to fetch ahead.

    Raises:
        ValueError: there is no room for a group of shards and one that follows.
    """
    sizes = sorted((shard.num_bytes for shard in shards), reverse=True)
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
    """Rounded up, so that the number that is told is enough."""
    return f"{np.ceil(num_bytes / _GIB * 1000) / 1000:g}"


class PrefetchHints:
    """Tells a reader what a list of samples needs; picklable."""

    def __init__(self, reader: SampleReader, indices: Int[np.ndarray, " n"]) -> None:
        """Decide whether whole shards are worth it.

        They are not where a few samples of each are wanted, or where a list jumps about among more shards than the
        cache holds.

        Args:
            reader: of the set.
            indices: samples, in the order in which they are read.
        """
        self._reader, self._indices, self._dense = reader, indices, False
        if reader.remote_shards and len(indices):
            manifest = reader.manifest
            visited = manifest.sample_shard[indices]
            stored = sum(manifest.shards[shard].num_bytes for shard in np.unique(visited))
            wanted = int(manifest.sample_size[np.unique(indices)].sum())
            in_stretches = int((np.diff(visited) != 0).sum()) < 2 * len(np.unique(visited))
            self._dense = wanted >= _DENSE * stored and (in_stretches or stored <= manifest.cache.max_bytes)

    def before(self, start: int, stop: int) -> None:
        """The samples `start` to `stop` of the list are read next."""
        if self._dense:
            manifest = self._reader.manifest
            now = shards_of(manifest, self._indices[start:stop])
            later = shards_of(manifest, self._indices[stop : stop + _AHEAD_SAMPLES])
            self._reader.expect([*now, *[shard for shard in later if shard not in now][:_AHEAD_SHARDS]])
