"""The index arithmetic of a large run, with the real functions: 4,096 ranks x 8 loader workers, in seconds.

torch's DataLoader hands batch number k of a rank to worker k % num_workers, and a worker makes the batch of any number
it is told, so a worker's share are the numbers of one residue.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from data.order import SampleOrder, batch_positions, epoch_order

RANKS, WORKERS, MICRO_BATCH = 4096, 8, 4
SAMPLES = 1_000_003
"""A prime: no epoch ends with a batch, and no count divides it."""
SAMPLES_PER_SHARD = 500
GLOBAL_BATCH = RANKS * MICRO_BATCH
STEPS = 8 * WORKERS
"""64 micro-steps of 16,384 samples: the first epoch whole, and part of the second."""


@pytest.fixture(scope="module")
def order() -> SampleOrder:
    samples = np.arange(SAMPLES)
    return SampleOrder(samples, (samples // SAMPLES_PER_SHARD).astype(np.int32), seed=5)


def positions(step: int, *, world_size: int, micro_batch_size: int) -> np.ndarray:
    """[ranks, micro-batch] positions of the stream at one micro-step, from the function that every rank calls."""
    taken = [
        batch_positions(step, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size)
        for rank in range(world_size)
    ]
    assert {len(one) for one in taken} == {micro_batch_size}
    return np.fromiter(itertools.chain.from_iterable(taken), np.int64).reshape(world_size, micro_batch_size)


@pytest.fixture(scope="module")
def taken() -> np.ndarray:
    """[steps, ranks, micro-batch] positions of all ranks in the whole window."""
    return np.stack([positions(s, world_size=RANKS, micro_batch_size=MICRO_BATCH) for s in range(STEPS)])


def test_every_position_once_and_equal_counts_for_ranks_and_workers(taken: np.ndarray) -> None:
    assert np.array_equal(np.sort(taken, axis=None), np.arange(STEPS * GLOBAL_BATCH))
    workers = taken.reshape(STEPS // WORKERS, WORKERS, RANKS, MICRO_BATCH)
    counts = {(rank, worker): workers[:, worker, rank].size for rank in (0, 1, RANKS - 1) for worker in range(WORKERS)}
    assert set(counts.values()) == {STEPS // WORKERS * MICRO_BATCH}
    # No worker shares a position with another one of its own rank or of the next.
    for rank in (0, RANKS - 2):
        pair = workers[:, :, rank : rank + 2].transpose(1, 2, 0, 3).reshape(2 * WORKERS, -1)
        assert len(np.unique(pair)) == pair.size


def test_each_sample_once_an_epoch_over_all_ranks(order: SampleOrder, taken: np.ndarray) -> None:
    stream = taken.reshape(-1)
    epochs, offsets = np.divmod(stream, SAMPLES)
    assert set(np.unique(epochs)) == {0, 1}
    for epoch in (0, 1):
        permutation = epoch_order(
            order.indices, order.shards, seed=order.seed, epoch=epoch, shards_per_group=order.shards_per_group
        )
        samples = permutation[offsets[epochs == epoch]]
        times = np.bincount(samples, minlength=SAMPLES)
        assert times.max() == 1
        assert times.min() == (1 if epoch == 0 else 0)
        # What `at` says of single positions is what the permutation says of all.
        for position in stream[epochs == epoch][:: SAMPLES // 200].tolist():
            assert order.at(position) == (epoch, int(permutation[position - epoch * SAMPLES]))


@pytest.mark.parametrize("world_size", [1, 512, 1024, 8192])
def test_another_number_of_ranks_takes_the_same_global_batches(world_size: int, taken: np.ndarray) -> None:
    for step in (0, 1, STEPS - 1):
        other = positions(step, world_size=world_size, micro_batch_size=GLOBAL_BATCH // world_size)
        assert np.array_equal(other.reshape(-1), taken[step].reshape(-1))


def test_accumulation_splits_a_global_batch_without_moving_its_samples(taken: np.ndarray) -> None:
    """1,024 ranks, 4 micro-steps an update, are 4,096 ranks with one: the same samples in the same update."""
    for step in (0, STEPS - 1):
        small = [positions(4 * step + i, world_size=RANKS // 4, micro_batch_size=MICRO_BATCH) for i in range(4)]
        assert np.array_equal(np.concatenate(small).reshape(-1), taken[step].reshape(-1))


def test_a_global_batch_reads_from_few_shards(order: SampleOrder, taken: np.ndarray) -> None:
    """As many groups of shards as the batch needs, and one more where it begins inside a group."""
    permutation = epoch_order(order.indices, order.shards, seed=5, epoch=0, shards_per_group=8)
    groups = -(-GLOBAL_BATCH // (8 * SAMPLES_PER_SHARD)) + 1
    for step in range(0, 60, 10):
        assert len(np.unique(order.shards[permutation[taken[step].reshape(-1)]])) <= 8 * groups


@pytest.mark.parametrize("epoch", [0, 7])
def test_the_permutation_is_the_one_that_older_checkpoints_continue(epoch: int) -> None:
    shards = np.repeat(np.arange(100), 10)
    found = epoch_order(np.arange(1000), shards, seed=3, epoch=epoch, shards_per_group=8)
    assert found[:12].tolist() == GOLDEN[epoch]


GOLDEN = {
    0: [437, 50, 56, 661, 59, 430, 360, 669, 368, 364, 220, 662],
    7: [294, 737, 460, 463, 684, 461, 78, 109, 108, 308, 682, 596],
}
