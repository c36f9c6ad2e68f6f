"""The order by shards: what holds for the first version holds for it too, and its cost does not grow with the set."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import Stretch
from data.shard_order import Blocks, ShardOrder, keyed_permutation

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)  # samples of each shard
WEIGHTS = [(0.5,), (2.0,), (1.4,), (0.1,), (3.25,), (1.0, 0.3), (0.7, 2.5)]


def make(shard_sizes: list[int], *weights: float, seed: int = 0, group: int = 2, every: int = 1) -> ShardOrder:
    """Every `every`-th row of shards of these sizes, as often as the weights say, a stretch for each."""
    shards = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    parts, stretches, at = [], [], 0
    for weight in weights or (1.0,):
        rows = np.arange(0, len(shards), every)
        parts.append(Blocks.of_rows(rows, shards[rows]).moved(at, len(parts) * len(shard_sizes)))
        stretches.append(Stretch(num=len(rows), weight=weight))
        at += len(shards)
    return ShardOrder(Blocks.joined(parts), seed, group, stretches)


def epoch_of(order: ShardOrder, epoch: int) -> list[tuple[int, int]]:
    return [order.at(epoch * len(order) + offset) for offset in range(len(order))]


@given(sizes, st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_each_epoch_is_a_permutation(shard_sizes: list[int], seed: int, epoch: int, group: int, every: int) -> None:
    taken = epoch_of(make(shard_sizes, seed=seed, group=group, every=every), epoch)
    assert {number for number, _ in taken} == {epoch}
    assert sorted(sample for _, sample in taken) == list(range(0, sum(shard_sizes), every))


@given(sizes, st.sampled_from(WEIGHTS), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_samples_come_as_often_as_their_weight_says(
    shard_sizes: list[int], weights: tuple[float, ...], seed: int
) -> None:
    """No visit is told twice, and none comes for the n-th time before every other came n - 1 times."""
    order, num = make(shard_sizes, *weights, seed=seed), sum(shard_sizes)
    share = [max(1, round(weight * num)) for weight in weights]
    assert len(order) == sum(share)
    seen: Counter[int] = Counter()
    visits = set()
    for epoch in range(9):
        taken = epoch_of(order, epoch)
        assert [sum(sample // num == part for _, sample in taken) for part in range(len(weights))] == share
        visits |= set(taken)
        seen.update(sample for _, sample in taken)
        assert len(visits) == sum(seen.values())
        for part in range(len(weights)):
            counts = [seen[part * num + place] for place in range(num)]
            assert max(counts) - min(counts) <= 1


@given(sizes, st.sampled_from([(), *WEIGHTS]), st.integers(0, 300), st.integers(0, 60))
@settings(max_examples=15, deadline=None)
def test_any_position_is_that_of_the_undisturbed_stream(
    shard_sizes: list[int], weights: tuple[float, ...], start: int, num: int
) -> None:
    whole, resumed = make(shard_sizes, *weights), make(shard_sizes, *weights)
    stream = [whole.at(position) for position in range(start + num)]
    assert [resumed.at(position) for position in reversed(range(start, start + num))] == stream[start:][::-1]
    assert make(shard_sizes, *weights).window(start, num).tolist() == [sample for _, sample in stream[start:]]
    assert pickle.loads(pickle.dumps(whole)).at(start) == resumed.at(start)


@given(st.lists(st.integers(1, 9), min_size=9, max_size=30), st.integers(1, 6), st.sampled_from([(), *WEIGHTS]))
@settings(max_examples=15, deadline=None)
def test_groups_of_shards_come_one_after_another(
    shard_sizes: list[int], group: int, weights: tuple[float, ...]
) -> None:
    order = make(shard_sizes, *weights, group=group)
    shard_of = np.repeat(np.arange(len(shard_sizes) * max(len(weights), 1)), shard_sizes * max(len(weights), 1))
    shards = shard_of[[sample for _, sample in epoch_of(order, 3)]]
    last = {shard: place for place, shard in enumerate(shards.tolist())}
    first = {shard: shards.tolist().index(shard) for shard in last}
    open_at_once = [sum(first[s] <= place <= last[s] for s in last) for place in range(len(shards))]
    assert max(open_at_once) <= group


def test_epochs_and_seeds_differ_and_shards_are_mixed() -> None:
    orders = {tuple(epoch_of(make([10] * 6, seed=seed), epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    samples = [sample for _, sample in epoch_of(make([10] * 8), 0)]
    assert (np.diff(np.array(samples[:20]) // 10) != 0).sum() > 3
    partners = {frozenset(s // 10 for _, s in epoch_of(make([10] * 8), epoch)[:20]) for epoch in range(10)}
    assert len(partners) > 3


def test_an_epoch_with_half_of_a_set_reads_half_of_its_shards() -> None:
    order = make([10] * 40, 0.5)
    first, second = ({sample for _, sample in epoch_of(order, epoch)} for epoch in (0, 1))
    assert first.isdisjoint(second)
    assert len({sample // 10 for sample in first}) == 20


def test_every_place_is_equally_likely_for_every_sample() -> None:
    """Chi-square of (sample, place) over 600 seeds: 12 x 12 cells with 50 expected, 121 degrees of freedom."""
    counts = np.zeros((12, 12))
    for seed in range(600):
        for place, (_, sample) in enumerate(epoch_of(make([3, 3, 3, 3], seed=seed), seed % 3)):
            counts[sample, place] += 1
    statistic = float(((counts - 50) ** 2 / 50).sum())
    assert 70 < statistic < 190  # beyond the quantiles of 0.01 % and 99.99 %


def test_replacements_are_arithmetic_and_spread() -> None:
    order = make([5, 4, 6], every=2)
    drawn = [order.replacement(7, attempt) for attempt in range(1, 80)]
    assert drawn == [make([5, 4, 6], every=2).replacement(7, attempt) for attempt in range(1, 80)]
    assert set(drawn) == set(range(0, 15, 2))


def test_rows_that_are_no_run_and_rows_that_are() -> None:
    shards = np.array([0, 0, 0, 2, 2, 2, 5])
    whole = Blocks.of_rows(np.arange(7)[::-1], shards[::-1])
    assert (whole.rows, whole.listed) == (None, None)
    assert whole.first.tolist() == [0, 3, 6]
    runs = Blocks.of_runs(np.array([0, 3, 3, 6]), np.array([3, 0, 3, 1]), np.array([0, 1, 2, 5]))
    for name in ("first", "count", "shard"):
        assert getattr(runs, name).tolist() == getattr(whole, name).tolist()
    partly = Blocks.of_rows(np.array([0, 2, 4, 5]), shards[[0, 2, 4, 5]])
    assert partly.listed is not None
    assert partly.listed.tolist() == [True, False]
    both = Blocks.joined([whole, partly.moved(7, 6), partly.moved(14, 12)])
    blocks = np.repeat(np.arange(7), both.count)
    places = np.concatenate([np.arange(count) for count in both.count])
    assert both.at(blocks, places).tolist() == [*range(7), 7, 9, 11, 12, 14, 16, 18, 19]
    assert (both.stretches, len(both)) == ((0, 3, 5, 7), 15)


def test_what_makes_no_order_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        make([])
    with pytest.raises(ValueError, match="seed: got -1"):
        make([1], seed=-1)
    with pytest.raises(ValueError, match="shards_per_group: got 0"):
        make([1], group=0)
    with pytest.raises(ValueError, match=r"stretches hold \[5\] samples, blocks \[4\]"):
        ShardOrder(make([4]).blocks, 0, 1, (Stretch(num=5),))


SHARDS = 2_000_000
RANKS, WORKERS, MICRO_BATCH = 4096, 8, 4


def test_a_billion_samples_on_4096_ranks_of_8_workers() -> None:
    """Every rank's place in one global batch, and one worker's next batch: orders keep nothing that grows with n."""
    count = np.full(SHARDS, 500, dtype=np.int32)
    first = np.cumsum(count, dtype=np.int64) - 500
    order = ShardOrder(Blocks.of_runs(first, count, np.arange(SHARDS, dtype=np.int32)), seed=3)
    assert len(order) == 1_000_000_000
    window = RANKS * MICRO_BATCH
    for step in (0, 8 * WORKERS, 1_000_000_000 // window):  # the last one spans two epochs
        taken = order.window(step * window, window)
        assert len(np.unique(taken)) == window or step
        assert len(np.unique(taken // 500)) <= 8 * (-(-window // 4000) + 2)
        rank, position = 4095, step * window + 4095 * MICRO_BATCH
        assert [order.at(position + k)[1] for k in range(MICRO_BATCH)] == taken[rank * MICRO_BATCH :].tolist()
    kept = sum(column.nbytes for epoch in order._epochs.values() for column in (*epoch.parts, *epoch[1:]))
    assert kept <= 48 * SHARDS
    assert sum(len(samples) for samples, _ in order._groups.values()) <= 4 * 8 * 500


def test_the_order_is_the_one_that_checkpoints_continue() -> None:
    order = make([10] * 100, seed=3, group=8)
    weighted = make([10] * 100, 0.35, seed=3, group=8)
    found = {
        "permutation": keyed_permutation(12, 1, 2, 3).tolist(),
        "epoch 0": order.window(0, 12).tolist(),
        "epoch 7": order.window(7000, 12).tolist(),
        "weight 0.35": weighted.window(700, 12).tolist(),
    }
    assert found == GOLDEN


GOLDEN = {
    "permutation": [1, 8, 2, 4, 6, 5, 0, 9, 7, 10, 3, 11],
    "epoch 0": [308, 794, 995, 111, 796, 161, 396, 997, 119, 992, 797, 304],
    "epoch 7": [622, 323, 814, 424, 813, 815, 134, 325, 426, 305, 131, 810],
    "weight 0.35": [829, 418, 552, 365, 694, 558, 416, 825, 293, 928, 446, 551],
}
