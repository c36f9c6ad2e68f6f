"""The order of samples by arithmetic on shards: what a process keeps grows with the shards, not with the samples.

As in `data.order` the stream is endless, an epoch holds each sample once (or as often as its weight says), shards are
shuffled and samples mixed within groups of `shards_per_group` shards. But only the shards' order is made for an epoch
as a whole. Of the samples, those of one group are put in order when a position in it is asked for: the same cost in a
set of ten thousand samples and of a billion.

A pass through a stretch whose weight is not 1 is cut along shards as well: its shards are shuffled, and epochs take one
piece after the other. So an epoch with half of a set reads half of its shards.

Permutations sort the raw words of Philox, a counter-based generator whose output numpy promises never to change (as it
does not of `Generator.permutation`). Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from common.ranges import at_least
from data.order import Order, Stretch, replacement_draw
from data.shared_memory import SharesTables

# Distinguishes the uses of one seed; those of `data.order` end at 8.
_SHARD_STREAM, _GROUP_STREAM, _PASS_STREAM, _PART_STREAM = range(9, 13)
_EPOCHS_KEPT = 2
_GROUPS_KEPT = 4
"""Those of a batch that spans two groups at the border of two epochs."""


def keyed_permutation(num: int, *key: int) -> Int[np.ndarray, " {num}"]:
    """The permutation of `num` numbers that belongs to a key, uniform over all of them."""
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(num)
    return np.argsort(words, kind="stable")


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks(SharesTables):
    """The samples in use: a block are those of one shard, and of one stretch.

    Attributes:
        first: of each block, its first row of the manifest, or the place of its first row in `rows`.
        count: samples of each block.
        shard: of each block, the number of its shard.
        rows: rows of the manifest, for blocks that are no unbroken run of them.
        listed: blocks whose rows stand in `rows`; None: none do.
        stretches: number of the first block of each stretch, and of all blocks.
    """

    first: Int[np.ndarray, " b"]
    count: Int[np.ndarray, " b"]
    shard: Int[np.ndarray, " b"]
    rows: Int[np.ndarray, " n"] | None = None
    listed: Bool[np.ndarray, " b"] | None = None
    stretches: tuple[int, ...]

    @staticmethod
    def of_runs(first: Int[np.ndarray, " b"], count: Int[np.ndarray, " b"], shard: Int[np.ndarray, " b"]) -> Blocks:
        """One stretch of unbroken runs of rows, a run a shard; those without samples are left out."""
        some = count > 0
        return Blocks(first=first[some], count=count[some], shard=shard[some], stretches=(0, int(some.sum())))

    @staticmethod
    def of_rows(rows: Int[np.ndarray, " n"], shards: Int[np.ndarray, " n"]) -> Blocks:
        """One stretch of single rows, in any order, with the shard of each; rows ascend from shard to shard."""
        order = np.argsort(rows, kind="stable")
        rows, shards = rows[order], shards[order]
        starts = np.flatnonzero(np.diff(shards, prepend=shards[:1] - 1))
        count = np.diff(starts, append=len(rows))
        unbroken = rows[starts + count - 1] - rows[starts] + 1 == count
        first, shard, stretches = np.where(unbroken, rows[starts], starts), shards[starts], (0, len(starts))
        if unbroken.all():
            return Blocks(first=first, count=count, shard=shard, stretches=stretches)
        return Blocks(first=first, count=count, shard=shard, rows=rows, listed=~unbroken, stretches=stretches)

    @staticmethod
    def joined(parts: Sequence[Blocks]) -> Blocks:
        """The stretches of all parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        first, rows, at, bounds = [], [], 0, [0]
        for part in parts:
            listed = part.listed if part.listed is not None else np.zeros(len(part.first), dtype=bool)
            first.append(np.where(listed, part.first + at, part.first))
            if part.rows is not None:
                rows.append(part.rows)
                at += len(part.rows)
            bounds += [bounds[-1] + bound for bound in part.stretches[1:]]
        listed_of = [np.zeros(len(p.first), dtype=bool) if p.listed is None else p.listed for p in parts]
        return Blocks(
            first=np.concatenate(first),
            count=np.concatenate([part.count for part in parts]),
            shard=np.concatenate([part.shard for part in parts]),
            rows=np.concatenate(rows) if rows else None,
            listed=np.concatenate(listed_of) if rows else None,
            stretches=tuple(bounds),
        )

    def moved(self, rows: int, shards: int) -> Blocks:
        """The same samples where so many rows and shards of other sets come before them."""
        listed = np.zeros(len(self.first), dtype=bool) if self.listed is None else self.listed
        return Blocks(
            first=np.where(listed, self.first, self.first + rows),
            count=self.count,
            shard=self.shard + shards,
            rows=None if self.rows is None else self.rows + rows,
            listed=self.listed,
            stretches=self.stretches,
        )

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.count.sum())

    def at(self, blocks: Int[np.ndarray, " k"], places: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
        """Rows of the manifest, each by its block and its place in there."""
        rows = self.first[blocks] + places
        if self.rows is not None and self.listed is not None:
            listed = self.listed[blocks]
            rows[listed] = self.rows[rows[listed]]
        return np.asarray(rows, dtype=np.int64)


class _Visited(NamedTuple):
    """Parts of blocks that an epoch has: `taken` samples of `block` from place `start` of pass `nth` on."""

    block: Int[np.ndarray, " s"]
    start: Int[np.ndarray, " s"]
    taken: Int[np.ndarray, " s"]
    nth: Int[np.ndarray, " s"]


class _Epoch(NamedTuple):
    """The order of an epoch's shards.

    Attributes:
        parts: in the order of their shards.
        groups: number of the first part of each group, and of all parts.
        starts: position in the epoch of each group's first sample, and of its end.
    """

    parts: _Visited
    groups: Int[np.ndarray, " groups_and_one"]
    starts: Int[np.ndarray, " groups_and_one"]


@dataclass
class ShardOrder(SharesTables, Order):
    """The endless stream of samples, a group of shards at a time.

    Attributes:
        blocks: samples in use.
        shards_per_group: shards that are mixed with each other.
        stretches: how often the samples of each stretch of `blocks` come; () for all once an epoch.
    """

    blocks: Blocks
    seed: int
    shards_per_group: int = 8
    stretches: Sequence[Stretch] = ()
    _epochs: dict[int, _Epoch] = field(default_factory=dict, init=False, repr=False)
    _groups: dict[tuple[int, int], tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if len(self.blocks) == 0:
            raise ValueError("blocks is empty: an endless stream needs at least one sample")
        at_least(self, seed=0, shards_per_group=1)
        bounds = self.blocks.stretches
        nums = [int(self.blocks.count[start:stop].sum()) for start, stop in pairwise(bounds)]
        self.stretches = tuple(self.stretches) or tuple(Stretch(num=num) for num in nums)
        if [stretch.num for stretch in self.stretches] != nums:
            raise ValueError(f"stretches hold {[s.num for s in self.stretches]} samples, blocks {nums}")
        # Small numbers for the shards in use, and where each block begins among all samples.
        used, number = np.unique(self.blocks.shard, return_inverse=True)
        self._num_shards, self._number = len(used), number.astype(np.int32).reshape(-1)
        self._starts = np.concatenate([[0], np.cumsum(self.blocks.count, dtype=np.int64)])

    def __len__(self) -> int:
        """Samples in an epoch."""
        return sum(stretch.per_epoch for stretch in self.stretches)

    @property
    def num_shards(self) -> int:
        """See `data.order.Order`."""
        return self._num_shards

    def __getstate__(self) -> dict[str, object]:
        """Workers get the arguments, not the orders."""
        return {**super().__getstate__(), "_epochs": {}, "_groups": {}}

    def at(self, position: int) -> tuple[int, int]:
        """See `data.order.Order.at`."""
        epoch, offset = divmod(position, len(self))
        group = self._group_at(epoch, offset)
        samples, passes = self._group(epoch, group)
        place = offset - int(self._epoch(epoch).starts[group])
        return int(passes[place]), int(samples[place])

    def window(self, position: int, num: int) -> Int[np.ndarray, " k"]:
        """See `data.order.Order.window`."""
        found: list[Int[np.ndarray, " m"]] = []
        while num > 0:
            epoch, offset = divmod(position, len(self))
            group = self._group_at(epoch, offset)
            place = offset - int(self._epoch(epoch).starts[group])
            found.append(self._group(epoch, group)[0][place : place + num])
            num -= len(found[-1])
            position += len(found[-1])
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def replacement(self, position: int, attempt: int) -> int:
        """See `data.order.Order.replacement`."""
        drawn = replacement_draw(self.seed, position, attempt, len(self.blocks))
        block = np.searchsorted(self._starts, [drawn], side="right") - 1
        return int(self.blocks.at(block, drawn - self._starts[block])[0])

    # ---- an epoch
    def _group_at(self, epoch: int, offset: int) -> int:
        return int(np.searchsorted(self._epoch(epoch).starts, offset, side="right")) - 1

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) >= _EPOCHS_KEPT:
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = self._make_epoch(epoch)
        return self._epochs[epoch]

    def _make_epoch(self, epoch: int) -> _Epoch:
        """Shuffle the shards that the epoch visits, and cut them into groups."""
        visits = [self._visited(number, stretch, epoch) for number, stretch in enumerate(self.stretches)]
        parts = visits[0] if len(visits) == 1 else _Visited(*map(np.concatenate, zip(*visits, strict=True)))
        shard = self._number[parts.block]
        is_visited = np.zeros(self._num_shards, dtype=bool)
        is_visited[shard] = True
        shuffled = keyed_permutation(self._num_shards, _SHARD_STREAM, self.seed, epoch)
        shuffled = shuffled[is_visited[shuffled]]
        rank = np.zeros(self._num_shards, dtype=np.int32)
        rank[shuffled] = np.arange(len(shuffled), dtype=np.int32)
        if len(shuffled) == len(shard):  # one part a shard: no need to sort
            order = np.empty(len(shard), dtype=np.int32)
            order[rank[shard]] = np.arange(len(shard), dtype=np.int32)
        else:
            order = np.argsort(rank[shard], kind="stable").astype(np.int32)
        parts = _Visited(*(column[order] for column in parts))
        group = rank[shard[order]] // self.shards_per_group
        groups = np.append(np.flatnonzero(np.diff(group, prepend=-1)), len(group))
        starts = np.concatenate([[0], np.cumsum(np.add.reduceat(parts.taken, groups[:-1]), dtype=np.int64)])
        return _Epoch(parts, groups, starts)

    def _visited(self, number: int, stretch: Stretch, epoch: int) -> _Visited:
        """What an epoch has of a stretch: a piece of the endless row of passes, each with its shards in another order.

        No sample comes for the n-th time before every other came n - 1 times, and a visit is told by pass and sample.
        """
        begin, end = self.blocks.stretches[number : number + 2]
        blocks, count = np.arange(begin, end, dtype=np.int32), self.blocks.count[begin:end].astype(np.int64)
        if stretch.per_epoch == stretch.num:
            zeros = np.zeros(len(blocks), dtype=np.int32)
            return _Visited(blocks, zeros, count, zeros + np.int32(epoch))
        first, stop = epoch * stretch.per_epoch, (epoch + 1) * stretch.per_epoch
        found = []
        for nth in range(first // stretch.num, -(-stop // stretch.num)):
            order = keyed_permutation(len(blocks), _PASS_STREAM, self.seed, number, nth)
            ends = nth * stretch.num + np.cumsum(count[order])
            begins = ends - count[order]
            start = np.maximum(first, begins) - begins
            taken = np.minimum(stop, ends) - np.maximum(first, begins)
            some = taken > 0
            nths = np.full(int(some.sum()), nth, dtype=np.int32)
            found.append(_Visited(blocks[order[some]], start[some], taken[some], nths))
        return _Visited(*map(np.concatenate, zip(*found, strict=True)))

    # ---- a group of shards
    def _group(self, epoch: int, group: int) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """Samples of a group in their order, and the pass of each."""
        key = (epoch, group)
        if key not in self._groups:
            while len(self._groups) >= _GROUPS_KEPT:
                self._groups.pop(next(iter(self._groups)))
            self._groups[key] = self._make_group(epoch, group)
        return self._groups[key]

    def _make_group(self, epoch: int, group: int) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        made = self._epoch(epoch)
        parts = _Visited(*(column[made.groups[group] : made.groups[group + 1]] for column in made.parts))
        blocks, nths = np.repeat(parts.block, parts.taken), np.repeat(parts.nth, parts.taken)
        ends = np.cumsum(parts.taken)
        places = np.arange(ends[-1]) - np.repeat(ends - parts.taken, parts.taken)
        # Of a block that two epochs share, each has other samples.
        for part in np.flatnonzero(parts.taken < self.blocks.count[parts.block]):
            block, start, taken, nth = (int(column[part]) for column in parts)
            of_pass = keyed_permutation(int(self.blocks.count[block]), _PART_STREAM, self.seed, block, nth)
            places[ends[part] - taken : ends[part]] = of_pass[start : start + taken]
        order = keyed_permutation(len(blocks), _GROUP_STREAM, self.seed, epoch, group)
        return self.blocks.at(blocks, places)[order], nths[order].astype(np.int64)
