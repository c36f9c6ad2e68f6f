"""Which sample comes when: pure index arithmetic on (seed, epoch, step, rank, world size).

The training stream is endless. Position p of the stream belongs to epoch e = p // n and holds sample
`epoch_order(e)[p % n]`; micro-step s of rank r takes the positions

    s * (micro_batch_size * world_size) + r * micro_batch_size + (0 ... micro_batch_size - 1).

So every sample comes exactly once an epoch (in a mixture of sets: as often as its set's weight says, see `Stretch`),
all ranks take equal counts for ever, nothing is dropped at the end of an epoch (a batch may span two), and the state of
the stream is the number s. The global batch of a step depends on `micro_batch_size * world_size` only, not on how the
two share it.

Locality: shards are shuffled, then samples within groups of shards, so a group of `shards_per_group` files is all
that is being read at a time (a page cache or a spinning disk needs that; object stores even more).

There are two versions of the order (`data.order`). `SampleOrder` is the first one: it makes the permutation of an epoch
as a whole, and runs that began with it go on with it. New runs take `data.shard_order.ShardOrder`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from common.ranges import at_least, at_most, positive
from data.shared_memory import SharesTables

# Distinguishes the uses of one seed, so that no two of them draw the same numbers.
_ORDER_STREAM, _AUGMENT_STREAM, _REPLACEMENT_STREAM, _SECOND_STREAM, _PARTNER_STREAM, _GROUND_STREAM = range(1, 7)
_PASS_STREAM, _OBJECT_STREAM = 7, 8


def _rng(*entropy: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


@dataclass(frozen=True)
class SampleDraws:
    """The random numbers of one sample in one epoch: a generator for each use, so that no use shifts another.

    They depend on the fields alone, so that augmentations neither repeat between workers nor depend on how many workers
    there are. Each call begins its sequence again.

    Attributes:
        sample: index of the sample in the manifest.
        attempt: 0, or the number of the replacement draw (see `SampleOrder.replacement`).
    """

    seed: int = 0
    epoch: int = 0
    sample: int = 0
    attempt: int = 0

    def first(self) -> np.random.Generator:
        """Augmentation of the first view."""
        return _rng(_AUGMENT_STREAM, self.seed, self.epoch, self.sample, self.attempt)

    def second(self) -> np.random.Generator:
        """Augmentation of the second view."""
        return _rng(_SECOND_STREAM, self.seed, self.epoch, self.sample, self.attempt)

    def partner(self) -> np.random.Generator:
        """Choice of the other sweep."""
        return _rng(_PARTNER_STREAM, self.seed, self.epoch, self.sample, self.attempt)

    def ground(self) -> np.random.Generator:
        """Search for the ground: the same in each epoch, so that a recorded sweep always has the same ground."""
        return _rng(_GROUND_STREAM, self.seed, self.sample)


def object_permutation(seed: int, kind: int, number: int, num: int) -> Int[np.ndarray, " {num}"]:
    """The `number`-th permutation of the `num` objects of a class (`kind`), see `data.views.object_sampling`."""
    return _rng(_OBJECT_STREAM, seed, kind, number).permutation(num)


def epoch_order(
    indices: Int[np.ndarray, " n"],
    shards: Int[np.ndarray, " n"],
    *,
    seed: int,
    epoch: int,
    shards_per_group: int,
) -> Int[np.ndarray, " n"]:
    """Permutation of `indices` for one epoch: shards shuffled, then samples within groups of shards.

    `shards_per_group` shards are mixed with each other; as many as there are give a full shuffle.
    """
    rng = _rng(_ORDER_STREAM, seed, epoch)
    used, shard_rank = np.unique(shards, return_inverse=True)
    group = rng.permutation(len(used))[shard_rank] // shards_per_group
    within = rng.permutation(len(indices))
    return np.asarray(indices[np.lexsort((within, group))], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Neighbouring samples of `SampleOrder.indices` that come equally often: one data set of several.

    Attributes:
        num: how many samples.
        weight: how often each comes in an epoch, on average. With 0.5 an epoch has one half of them and the next
            epoch the other; with 2 each comes twice, augmented differently.
    """

    num: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "weight")
        at_most(self, weight=1000)

    @property
    def per_epoch(self) -> int:
        """Its share of an epoch, in samples."""
        return max(1, round(self.weight * self.num))

    def draw(self, seed: int, number: int, epoch: int) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """Which samples of the stretch an epoch has, and in which pass through the stretch each of them is.

        The passes are endless: each is a permutation of all samples, so that none comes for the n-th time before
        every other came n - 1 times. A sample comes once in a pass, so the pass tells its visits apart. `number` is
        that of the stretch.
        """
        if self.per_epoch == self.num:
            return np.arange(self.num), np.full(self.num, epoch)
        first, stop = epoch * self.per_epoch, (epoch + 1) * self.per_epoch
        passes = range(first // self.num, -(-stop // self.num))
        samples = np.concatenate([_rng(_PASS_STREAM, seed, number, p).permutation(self.num) for p in passes])
        in_epoch = slice(first - passes.start * self.num, stop - passes.start * self.num)
        return samples[in_epoch], np.repeat(np.asarray(passes), self.num)[in_epoch]


class Order(ABC):
    """The endless stream of samples.

    Attributes:
        seed: of all draws.
        shards_per_group: shards that are mixed with each other.
    """

    seed: int
    shards_per_group: int

    @abstractmethod
    def __len__(self) -> int:
        """Samples in an epoch."""

    @property
    @abstractmethod
    def num_shards(self) -> int:
        """Shards that hold samples in use."""

    @abstractmethod
    def at(self, position: int) -> tuple[int, int]:
        """(pass, sample index) at a position of the stream; the pass is the epoch where the weight is 1."""

    @abstractmethod
    def window(self, position: int, num: int) -> Int[np.ndarray, " k"]:
        """The samples at `num` positions from `position` on."""

    @abstractmethod
    def replacement(self, position: int, attempt: int) -> int:
        """Sample to use at a position whose own sample is damaged.

        A uniform draw that depends on (seed, position, attempt) alone; `attempt` counts from 1. Not the next
        sample of the stream: that one is likely to be in the same batch already.
        """


def replacement_draw(seed: int, position: int, attempt: int, num: int) -> int:
    """Which of `num` samples replaces a damaged one, see `Order.replacement`."""
    return int(_rng(_REPLACEMENT_STREAM, seed, position, attempt).integers(num))


@dataclass
class SampleOrder(SharesTables, Order):
    """The endless stream of samples, each epoch's permutation made as a whole.

    Attributes:
        indices: samples in use (manifest indices).
        shards: shard of each of them.
        shards_per_group: see `epoch_order`.
        stretches: how often which of `indices` come, in their order; () for all once an epoch.
    """

    indices: Int[np.ndarray, " n"]
    shards: Int[np.ndarray, " n"]
    seed: int
    shards_per_group: int = 8
    stretches: Sequence[Stretch] = ()
    # The orders of the two epochs that a batch can touch, with the passes; made from the arguments at any time.
    _epochs: dict[int, tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if len(self.indices) == 0:
            raise ValueError("indices is empty: an endless stream needs at least one sample")
        if len(self.indices) != len(self.shards):
            raise ValueError(f"indices has {len(self.indices)} entries, shards has {len(self.shards)}")
        at_least(self, seed=0, shards_per_group=1)
        self.stretches = tuple(self.stretches) or (Stretch(num=len(self.indices)),)
        covered = sum(stretch.num for stretch in self.stretches)
        if covered != len(self.indices):
            raise ValueError(f"stretches hold {covered} samples, indices {len(self.indices)}")

    def __len__(self) -> int:
        """Samples in an epoch."""
        return sum(stretch.per_epoch for stretch in self.stretches)

    def __getstate__(self) -> dict[str, object]:
        """Workers get the arguments, not the permutations."""
        return {**super().__getstate__(), "_epochs": {}}

    @property
    def num_shards(self) -> int:
        """See `Order`."""
        return len(np.unique(self.shards))

    def at(self, position: int) -> tuple[int, int]:
        """See `Order.at`."""
        epoch, offset = divmod(position, len(self))
        samples, passes = self._order(epoch)
        return int(passes[offset]), int(samples[offset])

    def window(self, position: int, num: int) -> Int[np.ndarray, " k"]:
        """See `Order.window`; no more than two epochs have."""
        epoch, offset = divmod(position, len(self))
        first = self._order(epoch)[0][offset : offset + num]
        if len(first) == num:
            return first
        return np.concatenate([first, self._order(epoch + 1)[0][: num - len(first)]])

    def replacement(self, position: int, attempt: int) -> int:
        """See `Order.replacement`."""
        return int(self.indices[replacement_draw(self.seed, position, attempt, len(self.indices))])

    def _order(self, epoch: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Samples of an epoch in their order, and the pass of each."""
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = self._make(epoch)
        return self._epochs[epoch]

    def _make(self, epoch: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        places, passes, start = [], [], 0
        for number, stretch in enumerate(self.stretches):
            drawn, nth = stretch.draw(self.seed, number, epoch)
            places.append(start + drawn)
            passes.append(nth)
            start += stretch.num
        place = np.concatenate(places)
        order = epoch_order(
            np.arange(len(place)),
            self.shards[place],
            seed=self.seed,
            epoch=epoch,
            shards_per_group=self.shards_per_group,
        )
        return self.indices[place[order]].astype(np.int64), np.concatenate(passes)[order]


def batch_positions(micro_step: int, *, rank: int, world_size: int, micro_batch_size: int) -> range:
    """Positions of the stream that one rank takes at one micro-step."""
    start = micro_step * micro_batch_size * world_size + rank * micro_batch_size
    return range(start, start + micro_batch_size)
