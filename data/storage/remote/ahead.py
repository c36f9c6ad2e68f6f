"""Threads that fetch shards before they are read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from common.retry import StorageAwayError
from data.storage.remote.shard_cache import ShardCache
from data.storage.shard import Shard

logger = logging.getLogger(__name__)

_POLL_S = 0.5
"""Wait before retrying shards that other processes fetch, or that there was no room for."""


class FetchAhead:
    """Fetches the announced shards into the cache, in order; starts its threads when there is something to do.

    `fill` downloads a shard into a file (descriptor). `cache` bounds the downloads over all processes of the machine.
    """

    def __init__(self, cache: ShardCache, fill: Callable[[Shard, int], bool], threads: int) -> None:
        self._cache, self._fill, self._threads = cache, fill, threads
        self._changed = threading.Condition()
        self._announced: tuple[Shard, ...] = ()
        self._waiting: list[Shard] = []
        self._busy: set[str] = set()
        self._running: list[threading.Thread] = []
        self._stopped = False

    def __reduce__(self) -> tuple[type[FetchAhead], tuple[object, ...]]:
        """Threads stay in their process: a copy starts its own."""
        return FetchAhead, (self._cache, self._fill, self._threads)

    def expect(self, shards: Sequence[Shard]) -> None:
        """Fetch these next, in this order, and nothing else any more."""
        if tuple(shards) == self._announced or not shards:
            return
        with self._changed:
            self._announced, self._waiting = tuple(shards), list(shards)
            self._changed.notify_all()
        if not self._running and not self._stopped:
            self._running = [threading.Thread(target=self._run, daemon=True) for _ in range(self._threads)]
            for thread in self._running:
                thread.start()

    def stop(self) -> None:
        """End the threads once their present downloads are over; they are not waited for."""
        with self._changed:
            self._stopped, self._waiting = True, []
            self._changed.notify_all()

    def _run(self) -> None:
        while (shard := self._next()) is not None:
            done = True
            try:
                keep = {other.sha256 for other in self._announced}
                done = self._cache.fetch_ahead(shard, lambda part, s=shard: self._fill(s, part), keep)  # type: ignore[misc]
            except (OSError, StorageAwayError) as error:
                # No error here: whoever reads a sample of the shard tries again, and reports it then.
                logger.info("%s was not fetched ahead: %s", shard.file, error)
            finally:
                self._finished(shard, done)

    def _next(self) -> Shard | None:
        """The next shard that no other thread is fetching; None once stopped."""
        with self._changed:
            while not self._stopped:
                shard = next((s for s in self._waiting if s.sha256 not in self._busy), None)
                if shard is not None:
                    self._waiting.remove(shard)
                    self._busy.add(shard.sha256)
                    return shard
                self._changed.wait()
        return None

    def _finished(self, shard: Shard, done: bool) -> None:
        with self._changed:
            self._busy.discard(shard.sha256)
            if not done and not self._stopped and shard in self._announced:
                # Another process fetches it, or there is no room yet. What is announced may change during the wait.
                self._changed.wait(_POLL_S)
                if shard in self._announced and shard not in self._waiting:
                    self._waiting.append(shard)
            self._changed.notify_all()
