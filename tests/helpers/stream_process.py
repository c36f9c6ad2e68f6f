"""A process that reads a set behind a URL by way of a cache, as a worker of the loader would."""

from __future__ import annotations

import hashlib
import itertools
from multiprocessing.connection import Connection

from data.order import SampleOrder
from data.storage.manifest import load_manifest
from data.storage.prefetch import shards_of
from data.storage.reader import SampleReader
from data.storage.remote import download
from data.storage.remote.shard_cache import CacheConfig


def read_stream(url: str, cache: CacheConfig, part: tuple[int, int], num: int, told: Connection | None) -> None:
    """Read every n-th sample of the training order and send a line for each, and None at the end.

    Args:
        url: of the set.
        cache: shared with others.
        part: which of how many readers this is.
        num: positions of the stream.
        told: for lines; closed at the end.
    """
    download._PIECE_BYTES = 1 << 14
    assert told is not None
    for line in sample_lines(url, cache, part, num):
        told.send(line)
    told.send(None)
    told.close()


def sample_lines(url: str, cache: CacheConfig, part: tuple[int, int], num: int) -> list[str] | itertools.chain[str]:
    """Position, key and a checksum of the points, position after position."""
    manifest = load_manifest(url, cache)
    reader = SampleReader(manifest, retry_min=0.5)
    indices = manifest.indices()
    order = SampleOrder(indices, manifest.sample_shard[indices], 5, 2)

    def line(position: int) -> str:
        reader.expect(shards_of(manifest, order.window(position, 6)))
        sample = reader.read(order.at(position)[1])
        return f"{position} {sample.key} {hashlib.sha256(sample.points_lidar.tobytes()).hexdigest()[:8]}"

    return itertools.chain.from_iterable([line(p)] for p in range(part[0], num, part[1]))
