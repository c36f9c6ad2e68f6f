from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import SampleDraws, SampleOrder, batch_positions, epoch_order

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)  # samples of each shard


def make_order(shard_sizes: list[int], seed: int = 0, shards_per_group: int = 2) -> SampleOrder:
    shards = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    return SampleOrder(np.arange(len(shards)) * 3 + 1, shards, seed, shards_per_group)


def stream(order: SampleOrder, steps: range, *, rank: int, world_size: int, size: int) -> list[tuple[int, int]]:
    return [
        order.at(position)
        for step in steps
        for position in batch_positions(step, rank=rank, world_size=world_size, micro_batch_size=size)
    ]


@given(sizes, st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_each_epoch_is_a_permutation(shard_sizes: list[int], seed: int, epoch: int, group: int) -> None:
    order = make_order(shard_sizes, seed, group)
    taken = [order.at(position) for position in range(epoch * len(order), (epoch + 1) * len(order))]
    assert {number for number, _ in taken} == {epoch}
    assert sorted(sample for _, sample in taken) == order.indices.tolist()


@given(sizes, st.integers(1, 4), st.integers(1, 4), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_ranks_share_the_stream_without_gap_or_overlap(
    shard_sizes: list[int], world_size: int, size: int, steps: int
) -> None:
    order = make_order(shard_sizes)
    ranks = [stream(order, range(steps), rank=r, world_size=world_size, size=size) for r in range(world_size)]
    assert {len(taken) for taken in ranks} == {steps * size}
    together = sorted(pair for taken in ranks for pair in taken)
    assert together == sorted(order.at(position) for position in range(steps * size * world_size))


@given(sizes, st.integers(0, 30), st.sampled_from([(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)]))
@settings(max_examples=50, deadline=None)
def test_another_world_size_sees_the_same_global_batches(
    shard_sizes: list[int], step: int, shape: tuple[int, int]
) -> None:
    world_size, size = shape
    order = make_order(shard_sizes)
    here = range(step, step + 1)
    batch = [s for r in range(world_size) for s in stream(order, here, rank=r, world_size=world_size, size=size)]
    assert batch == stream(order, here, rank=0, world_size=1, size=12)


@given(sizes, st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_resume_equals_no_interruption(shard_sizes: list[int], stop: int) -> None:
    whole = stream(make_order(shard_sizes), range(50), rank=1, world_size=3, size=2)
    resumed = stream(make_order(shard_sizes), range(stop, 50), rank=1, world_size=3, size=2)
    assert whole[stop * 2 :] == resumed


@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_neighbours_in_the_stream_come_from_few_shards(num_shards: int, group: int, epoch: int) -> None:
    per_shard = 20
    shards = np.repeat(np.arange(num_shards), per_shard)
    taken = epoch_order(np.arange(len(shards)), shards, seed=3, epoch=epoch, shards_per_group=group)
    for start in range(0, len(taken), group * per_shard):
        assert len(np.unique(shards[taken[start : start + group * per_shard]])) <= group


def test_epochs_and_seeds_differ() -> None:
    indices, shards = np.arange(60), np.repeat(np.arange(6), 10)
    orders = [
        tuple(epoch_order(indices, shards, seed=seed, epoch=epoch, shards_per_group=2))
        for seed in range(5)
        for epoch in range(5)
    ]
    assert len(set(orders)) == len(orders)


def test_within_a_group_shards_are_mixed_and_groups_change_between_epochs() -> None:
    indices, shards = np.arange(80), np.repeat(np.arange(8), 10)
    first = epoch_order(indices, shards, seed=0, epoch=0, shards_per_group=2)
    assert (np.diff(shards[first[:20]]) != 0).sum() > 3
    partners = {
        tuple(sorted(set(shards[epoch_order(indices, shards, seed=0, epoch=e, shards_per_group=2)[:20]].tolist())))
        for e in range(10)
    }
    assert len(partners) > 3


def test_replacements_are_arithmetic_and_spread() -> None:
    order = make_order([5, 5, 5])
    drawn = [order.replacement(7, attempt) for attempt in range(1, 60)]
    assert drawn == [make_order([5, 5, 5]).replacement(7, attempt) for attempt in range(1, 60)]
    assert set(drawn) == set(order.indices.tolist())


def test_augmentation_numbers_depend_on_every_argument() -> None:
    base = (1, 2, 3, 4)
    drawn = {base: SampleDraws(*base).first().random()}
    for place in range(4):
        other = tuple(value + (number == place) for number, value in enumerate(base))
        drawn[other] = SampleDraws(*other).first().random()
    assert len(set(drawn.values())) == 5
    assert SampleDraws(*base).first().random() == drawn[base]


@pytest.mark.parametrize(
    ("indices", "seed", "group", "message"),
    [([], 0, 1, "empty"), ([1], -1, 1, "seed: got -1"), ([1], 0, 0, "shards_per_group: got 0")],
)
def test_meaningless_orders_are_refused(indices: list[int], seed: int, group: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleOrder(np.array(indices, dtype=np.int64), np.zeros(len(indices), np.int32), seed, group)
