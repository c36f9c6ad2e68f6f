"""The order of samples: what it costs at any size of a set, and how well it shuffles.

    python -m benchmarks.order [--sizes 10000 1000000 ...] [--seeds 200]

Cost: seconds until a fresh loader worker (of the last of 4,096 ranks, 8 workers each, micro-batches of 4) has its first
batch, and from then on for its next one (median of 50), and what it keeps; shards of 500 samples, groups of 8.

Quality, over seeds, of 6,400 samples in 100 shards:

- chi-square of (sample, position) in 16 x 16 cells, summed over 10 seeds, over its degrees of freedom: 1 where every
  sample is equally likely to come at every place by itself; groups of shards move together, which makes it larger;
- correlation of the numbers of neighbouring samples in the stream;
- share of the pairs in a batch of 64 that are of one shard;
- share of the pairs in a batch that are together again in a batch of the next epoch.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from jaxtyping import Int

from data.order import Order, SampleOrder, batch_positions
from data.shard_order import Blocks, ShardOrder

_RANKS, _WORKERS, _MICRO_BATCH, _SHARD = 4096, 8, 4, 500
_MOST_IN_ONE = 10_000_000
"""Samples up to which the first version is measured: it takes some 100 bytes of each while it is made."""
_NUM, _NUM_SHARDS, _BATCH, _CELLS, _SUMMED = 6400, 100, 64, 16, 10


def shard_order(num: int, per_shard: int, seed: int, group: int) -> Order:
    """The second version, of shards of equal size."""
    first = np.arange(0, num, per_shard)
    count = np.minimum(per_shard, num - first)
    return ShardOrder(Blocks.of_runs(first, count, np.arange(len(first))), seed, group)


def sample_order(num: int, per_shard: int, seed: int, group: int) -> Order:
    """The first one."""
    rows = np.arange(num)
    return SampleOrder(rows, rows // per_shard, seed, group)


ORDERS = {1: sample_order, 2: shard_order}


def cost(version: int, num: int) -> str:
    """A line of the table."""
    order, times = ORDERS[version](num, _SHARD, 0, 8), []
    for number in range(51):
        began = time.perf_counter()
        for position in batch_positions(
            number * _WORKERS, rank=_RANKS - 1, world_size=_RANKS, micro_batch_size=_MICRO_BATCH
        ):
            order.at(position)
        # An epoch of a small set ends within these batches: the cost of its end is that of the first one.
        times.append(time.perf_counter() - began)
    rest = np.array(times[1:])
    return f"{num:>13,} | {version} | {times[0]:9.4f} s | {np.median(rest) * 1e3:7.3f} ms | {kept(order) / 1e6:8.2f} MB"


def kept(order: Order) -> int:
    """Bytes that a worker holds of its own."""
    held = [order._epochs, getattr(order, "_groups", {})]  # type: ignore[attr-defined]
    return sum(array.nbytes for table in held for made in table.values() for array in _arrays(made))


def _arrays(made: object) -> list[np.ndarray]:
    if isinstance(made, np.ndarray):
        return [made]
    assert isinstance(made, tuple)
    return [array for part in made for array in _arrays(part)]


def quality(version: int, group: int, seeds: int) -> str:
    """A line of the table: mean and standard deviation over seeds."""
    cells, measured = np.zeros((seeds // _SUMMED, _CELLS, _CELLS)), []
    for seed in range(seeds // _SUMMED * _SUMMED):
        order = ORDERS[version](_NUM, _NUM // _NUM_SHARDS, seed, group)
        epochs = [order.window(epoch * _NUM, _NUM) for epoch in (0, 1)]
        place = np.arange(_NUM) * _CELLS // _NUM
        np.add.at(cells[seed // _SUMMED], (epochs[0] * _CELLS // _NUM, place), 1)
        measured.append(
            (np.corrcoef(epochs[0][:-1], epochs[0][1:])[0, 1], same_shard(epochs[0]), together_again(*epochs))
        )
    expected = _SUMMED * _NUM / _CELLS**2
    # Rows and columns have fixed sums, which leaves (c - 1)^2 of c^2 degrees of freedom.
    chi = ((cells - expected) ** 2 / expected).sum(axis=(1, 2)) / (_CELLS - 1) ** 2
    figures = " | ".join(
        f"{m:.4f} ± {s:.4f}" for m, s in zip(np.mean(measured, axis=0), np.std(measured, axis=0), strict=True)
    )
    return f"{version} | {group:>3} | {chi.mean():.3f} ± {chi.std():.3f} | {figures}"


def same_shard(samples: Int[np.ndarray, " n"]) -> float:
    """Share of the pairs in a batch."""
    shards = (samples // (_NUM // _NUM_SHARDS)).reshape(-1, _BATCH)
    alike = (shards[:, :, None] == shards[:, None, :]).sum() - shards.size
    return float(alike / (shards.size * (_BATCH - 1)))


def together_again(first: Int[np.ndarray, " n"], second: Int[np.ndarray, " n"]) -> float:
    """Share of the pairs in a batch of the first epoch that are in one batch of the second."""
    batch = np.empty(_NUM, dtype=np.int64)
    batch[second] = np.arange(_NUM) // _BATCH
    again = batch[first].reshape(-1, _BATCH)
    alike = (again[:, :, None] == again[:, None, :]).sum() - again.size
    return float(alike / (again.size * (_BATCH - 1)))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10**power for power in range(4, 10)])
    parser.add_argument("--seeds", type=int, default=200)
    options = parser.parse_args()
    print("      samples | version | first batch | next batch | kept")
    for num in options.sizes:
        for version in ORDERS:
            if version == 2 or num <= _MOST_IN_ONE:
                print(cost(version, num), flush=True)
    print("version | shards_per_group | chi2 / dof | neighbours' correlation | same shard | together again")
    for version, group in ((1, _NUM_SHARDS), (1, 8), (2, _NUM_SHARDS), (2, 8)):
        print(quality(version, group, options.seeds), flush=True)


if __name__ == "__main__":
    main()
