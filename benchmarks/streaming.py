"""Sets behind a URL against the same set on a local disk, in one run, by ratio.

    python -m benchmarks.streaming              # about 3 minutes on 2 cores
    python -m benchmarks.streaming --rounds 1 --shards 6

A server of files (a process of its own on this machine) waits before each answer and limits each connection, as an
object store does. Two things are measured over one epoch of the training order: reading alone (the bytes of each
sample, nothing decoded), and batches as training takes them (one worker). A cold cache is empty at the start.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.common import markdown, seconds_of, setting
from data.batch_spec import BatchSpec
from data.loading.loader import DataConfig, build_loader
from data.order import SampleOrder
from data.storage.manifest import Manifest, load_manifest
from data.storage.prefetch import shards_of
from data.storage.reader import SampleReader
from data.storage.remote.shard_cache import CacheConfig
from tests.helpers.object_server import serving
from tests.helpers.samples import write_toy_set

_SEED = 0
_SAMPLES_A_SHARD = 16
_SHARDS_PER_GROUP = 3
_MICRO_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Where the set lies.

    Attributes:
        name: for the table.
        remote: behind the server.
        warm: all shards are in the cache before.
        latency_s: of an answer.
        megabytes_per_s: of a connection; None for no limit.
    """

    name: str
    remote: bool = True
    warm: bool = False
    latency_s: float = 0.0
    megabytes_per_s: float | None = None


CONDITIONS = (
    Condition(name="folder", remote=False),
    Condition(name="URL, warm cache", warm=True),
    Condition(name="URL, cold cache"),
    Condition(name="URL, cold, 50 ms", latency_s=0.05),
    Condition(name="URL, cold, 50 ms, 100 MB/s a connection", latency_s=0.05, megabytes_per_s=100),
    Condition(name="URL, cold, 50 ms, 25 MB/s a connection", latency_s=0.05, megabytes_per_s=25),
)


def _serve(root: str, condition: Condition, ours: Connection) -> None:
    rate = condition.megabytes_per_s
    limits = {"latency_s": condition.latency_s, "bytes_per_s": None if rate is None else rate * 1e6}
    with serving(root, **limits) as server:
        ours.send(server.url)
        ours.recv()


@contextmanager
def place(root: str, condition: Condition) -> Iterator[str]:
    """Folder or URL of the set under a condition."""
    if not condition.remote:
        yield root
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(root, condition, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join()


def seconds_of_reading(manifest: Manifest) -> float:
    """One epoch, bytes alone."""
    indices = manifest.indices()
    order = SampleOrder(indices, manifest.sample_shard[indices], _SEED, _SHARDS_PER_GROUP)
    reader = SampleReader(manifest)
    began = time.perf_counter()
    for position in range(len(order)):
        reader.expect(shards_of(manifest, order.window(position, _SAMPLES_A_SHARD * _SHARDS_PER_GROUP)))
        reader._sample_bytes(order.at(position)[1])
    seconds = time.perf_counter() - began
    reader.close()
    return seconds


def seconds_of_batches(shards: str, cache: CacheConfig) -> tuple[float, float]:
    """One epoch as training takes it: until the first batch, and from there on."""
    sizes: dict[str, Any] = {"micro_batch_size": _MICRO_BATCH, "shards_per_group": _SHARDS_PER_GROUP, "num_workers": 1}
    config = DataConfig(shards=shards, split=None, cache=cache, **sizes)
    loader = build_loader(config, spec=BatchSpec(superpixels=True), seed=_SEED, rank=0, world_size=1)
    began = time.perf_counter()
    stream = loader.batches(0)
    next(stream)
    first = time.perf_counter() - began
    rest = itertools.islice(stream, loader.samples_per_epoch // _MICRO_BATCH - 1)
    later = seconds_of(lambda: [None for _ in rest], time.perf_counter)
    stream.close()  # type: ignore[attr-defined]
    return first, later


def measure(root: str, condition: Condition, folder: Path, *, batches: bool) -> list[float]:
    """Seconds of reading and, if asked for, to the first batch and of the batches after it."""
    results: list[float] = []
    with place(root, condition) as shards:
        for part in ("reading", "batches") if batches else ("reading",):
            cache = CacheConfig(folder=str(folder / "cache"))
            if not condition.warm:
                shutil.rmtree(folder / "cache", ignore_errors=True)
            manifest = load_manifest(shards, cache)
            if condition.warm and part == "reading":
                seconds_of_reading(manifest)
            results += [seconds_of_reading(manifest)] if part == "reading" else seconds_of_batches(shards, cache)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return results


def _row(name: str, found: list[float], base: list[float], stored: float, batches: int) -> list[str]:
    row = [name, f"{stored / found[0]:.0f}", f"{base[0] / found[0]:.2f}"]
    if len(found) > 1:
        row += [f"{found[1]:.1f}", f"{batches / found[2]:.1f}", f"{base[2] / found[2]:.2f}"]
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of all conditions by turns; medians are shown")
    parser.add_argument("--reading-only", action="store_true", help="no batches")
    parser.add_argument("--shards", type=int, default=12, help="of 16 samples")
    options = parser.parse_args(argv)
    print(setting(_SEED))
    with tempfile.TemporaryDirectory() as temporary:
        size: dict[str, Any] = {"num_points": 35_000, "image_size": (448, 800)}  # two images a sample
        root = write_toy_set(Path(temporary) / "set", options.shards, _SAMPLES_A_SHARD, **size)
        manifest = load_manifest(root)
        stored = sum(shard.num_bytes for shard in manifest.shards) / 1e6
        print(f"{len(manifest)} samples, {stored:.0f} MB in {options.shards} shards\n")
        found: dict[str, list[list[float]]] = {c.name: [] for c in CONDITIONS}
        for _ in range(options.rounds):
            for condition in CONDITIONS:
                taken = measure(root, condition, Path(temporary), batches=not options.reading_only)
                found[condition.name].append(taken)
        medians = {name: list(map(statistics.median, zip(*rows, strict=True))) for name, rows in found.items()}
        base = medians[CONDITIONS[0].name]
        batches = len(manifest) - _MICRO_BATCH
        rows = [_row(name, found, base, stored, batches) for name, found in medians.items()]
    header = ["set in", "reading, MB/s", "to folder", "first batch, s", "batches, samples/s", "to folder"]
    print(markdown(header[: len(rows[0])], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
