"""Sets of tens of millions of samples: opening one, finding samples in a loader's worker, planning, checking the table.

    python -m benchmarks.big_sets [--samples 28000000] [--folder FOLDER] [--skip-lists]

Simulates a set of so many samples without its shards (100 samples a shard, 200 a log), once with shards and logs in
lists (the form of small sets, and of all sets before version 0.3; with the first version of the order of samples) and
once as mapped columns (with the second), and measures each in a process of its own. Memory: `anon` is the process's own
(RssAnon), `file` are mapped pages, which the machine has once for all processes (RssFile), `shmem` are shared tables.
In the process itself a figure is what was added by that step, in a worker what it has beyond one with nothing to do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from data.loading.in_use import fingerprint, order_of
from data.loading.workers import Loaded, WorkerConfig, run_workers
from data.order import Order, batch_positions
from data.storage.columns import Shards
from data.storage.manifest import Manifest, load_manifest
from data.storage.manifest_writer import write_manifest
from data.storage.mixture import SetConfig, open_sets
from data.storage.reader import Reader

_SHARD, _LOG = 100, 200
_RANKS, _WORKERS, _MICRO_BATCH = 4096, 8, 4


def simulated(root: str, num: int) -> Manifest:
    """A manifest of `num` samples, the last tenth of its logs for validation."""
    rows = np.arange(num)
    num_shards, num_logs = -(-num // _SHARD), -(-num // _LOG)
    rng = np.random.default_rng(0)
    files = numbered(np.arange(num_shards), b"shard-", 7, b".tar")
    sha256 = np.frombuffer(rng.bytes(32 * num_shards).hex().encode(), "S64")
    per_shard = np.minimum(_SHARD, num - _SHARD * np.arange(num_shards))
    size = rng.integers(1_000_000, 2_000_000, num)
    return Manifest(
        root=root,
        set_name="simulated",
        camera_names=("front",),
        logs=tuple(f"log-{number:07d}" for number in range(num_logs)),
        splits=tuple("val" if number * 10 >= num_logs * 9 else "train" for number in range(num_logs)),
        shards=Shards(files, per_shard, per_shard * 1_500_000, sha256),
        keys=numbered(rows, b"log_", 10, b""),
        sample_shard=(rows // _SHARD).astype(np.int32),
        sample_offset=(rows % _SHARD) * 2_000_000,
        sample_size=size,
        sample_crc32=rng.integers(0, 1 << 32, num),
        sample_log=(rows // _LOG).astype(np.int32),
        sample_timestamp_us=rows * 100_000,
        num_points=np.full(num, 30_000, np.int32),
        num_pairs=np.full(num, 20_000, np.int32),
        num_labelled=np.zeros(num, np.int32),
    )


def numbered(numbers: Shaped[np.ndarray, " n"], before: bytes, digits: int, behind: bytes) -> Shaped[np.ndarray, " n"]:
    """Texts with a number in each, made without a Python object for each."""
    text = np.empty((len(numbers), len(before) + digits + len(behind)), dtype=np.uint8)
    text[:, : len(before)] = np.frombuffer(before, np.uint8)
    text[:, len(before) + digits :] = np.frombuffer(behind, np.uint8)
    for place in range(digits):
        text[:, len(before) + digits - 1 - place] = ord("0") + numbers // 10**place % 10
    return text.view(f"S{text.shape[1]}").reshape(-1)


# ---- measured in a process of its own
def memory_mb() -> dict[str, float]:
    """The process's own memory, mapped files, and shared memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"anon": values["RssAnon"], "file": values["RssFile"], "shmem": values["RssShmem"]}


def step(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it gives, seconds, and what it added to memory."""
    before, began = memory_mb(), time.perf_counter()
    made = work()
    seconds = time.perf_counter() - began
    return made, {"s": seconds, **{f"{k}_mb": v - before[k] for k, v in memory_mb().items()}}


@dataclass(frozen=True)
class Job:
    """A loader worker's job, as far as it depends on the size of a set: finding samples. Tells its memory."""

    reader: Reader | None
    order: Order | None

    def __call__(self, number: int) -> Loaded:
        """Seconds for the samples of a batch, with the worker's memory."""
        began = time.perf_counter()
        if self.order is not None and self.reader is not None:
            for sample in batch_of(self.order, number):
                self.reader.shard_of(sample)
        return Loaded(batch=None, num_seen=1, notes=({"s": time.perf_counter() - began, **memory_mb()},))


def child(root: str, version: int) -> dict[str, dict[str, float]]:
    """Open, take the order, hand it to a worker and find batches there."""
    figures = {}
    _, figures["open"] = step(lambda: load_manifest(root))
    opened, figures["open, choose a split"] = step(lambda: open_sets([SetConfig(shards=root)]))
    _, figures["fingerprint"] = step(lambda: fingerprint(opened, version))
    order, figures["order"] = step(lambda: order_of(opened, version, seed=0, shards_per_group=8))
    config = WorkerConfig(num_workers=1, prefetch=1)
    (bare,) = (loaded.notes[0] for loaded in run_workers(Job(None, None), [0], config))
    steps = [loaded.notes[0] for loaded in run_workers(Job(opened.reader, order), range(3), config)]
    for name, told in zip(("first batch", "second", "third"), steps, strict=True):
        figures[f"a worker's {name}"] = {"s": told["s"]} | {f"{k}_mb": told[k] - bare[k] for k in bare if k != "s"}
    return figures


def batch_of(order: Order, number: int) -> list[int]:
    """The samples of one batch of the last rank."""
    positions = batch_positions(number, rank=_RANKS - 1, world_size=_RANKS, micro_batch_size=_MICRO_BATCH)
    return [order.at(position)[1] for position in positions]


# ---- the whole
def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=28_000_000)
    parser.add_argument("--folder", help="where the simulated sets are made (some 100 bytes a sample and set)")
    parser.add_argument("--skip-lists", action="store_true", help="columns only")
    parser.add_argument("--child", nargs=2, metavar=("ROOT", "ORDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child[0], int(options.child[1]))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for columnar in (True,) if options.skip_lists else (False, True):
            root = Path(folder) / ("columns" if columnar else "lists")
            root.mkdir()
            began = time.perf_counter()
            write_manifest(simulated(str(root), options.samples), columnar=columnar)
            sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in sorted(root.iterdir()))
            print(f"\n{root.name}: made in {time.perf_counter() - began:.1f} s; {sizes}", flush=True)
            command = [sys.executable, "-m", "benchmarks.big_sets", "--child", str(root), str(2 if columnar else 1)]
            found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            for name, figures in json.loads(found.stdout.splitlines()[-1]).items():
                print(f"  {name:28}", "  ".join(f"{key} {value:10.4f}" for key, value in figures.items()))
            if columnar:
                for verb in (
                    ["prepare", "--verify", str(root), "--fraction", "0"],
                    ["plan", "slidr_nuscenes", f"data.shards={root}", "data.expected_superpixels=null", "--json"],
                ):
                    began = time.perf_counter()
                    subprocess.run(
                        [sys.executable, "-m", "launchers.cli", *verb], stdout=subprocess.DEVNULL, check=True
                    )
                    print(f"  tandem {' '.join(verb[:1])}: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
