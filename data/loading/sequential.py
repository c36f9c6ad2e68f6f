"""Each of some samples once, in a given order, read by workers: what evaluation, caches and databases are made with."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Int

from data.loading.skips import Skip, SkipLedger
from data.loading.workers import Loaded, WorkerConfig, run_workers
from data.order import SampleDraws
from data.sample import Batch
from data.storage.prefetch import PrefetchHints
from data.storage.reader import SampleError, SampleReader, blamed_on
from data.storage.shard import ShardError

PartT = TypeVar("PartT")


@dataclass(frozen=True, kw_only=True)
class SequentialBatches(ABC, Generic[PartT]):
    """Makes the n-th batch of a list of samples (runs in the workers). Damaged samples are left out and counted."""

    reader: SampleReader
    indices: Int[np.ndarray, " n"]
    batch_size: int
    seed: int = 0
    epoch: int = 0
    hints: PrefetchHints | None = None

    @abstractmethod
    def read(self, index: int, draws: SampleDraws) -> PartT:
        """What the batch holds of one sample; any exception but a `ShardError` is the sample's fault: it is skipped."""

    @abstractmethod
    def collate(self, parts: Sequence[PartT]) -> Batch | None:
        """The batch of at least one sample; None where they hold nothing to put into it."""

    def __call__(self, number: int) -> Loaded:
        """Batch number `number`."""
        start, stop = number * self.batch_size, (number + 1) * self.batch_size
        if self.hints is not None:
            self.hints.before(start, stop)
        parts: list[PartT] = []
        usable: list[int] = []
        skips: list[Skip] = []
        for index in map(int, self.indices[start:stop]):
            try:
                with blamed_on(self.reader.manifest.key(index), self.reader.shard_of(index)):
                    parts.append(self.read(index, SampleDraws(self.seed, self.epoch, index)))
                usable.append(index)
            except SampleError as error:
                skips.append(Skip.of(index, error))
        batch = self.collate(parts) if parts else None
        return Loaded(
            batch=batch,
            num_seen=len(parts) + len(skips),
            skips=tuple(skips),
            indices=tuple(usable),
            notes=self.notes(parts),
        )

    def notes(self, parts: Sequence[PartT]) -> tuple[Any, ...]:
        """What is told of the usable samples beside the batch; of a task without batches, all that it is about."""
        return ()

    def run(
        self, num_workers: int, max_skip_share: float, *, among: int | None = None
    ) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """All batches in order, each with the samples that it holds. Arguments and errors as of `run_loaded`."""
        for loaded in self.run_loaded(num_workers, max_skip_share, among=among):
            if loaded.batch is not None:
                yield loaded.indices, loaded.batch

    def run_loaded(self, num_workers: int, max_skip_share: float, *, among: int | None = None) -> Iterator[Loaded]:
        """What the workers send, in order; not one has a batch of no sample, unless no sample was usable.

        Args:
            num_workers: processes that read ahead.
            max_skip_share: of the samples, that may be unusable.
            among: number of samples that these are what is left of; None: these are all.

        Raises:
            ShardError: more than that share of the samples cannot be used, or none can, or a worker died.
        """
        root, num_samples = self.reader.manifest.root, len(self.indices) if among is None else among
        empty = len(self.indices) == num_samples
        ledger = SkipLedger(max_share=max_skip_share, num_samples=num_samples, root=root)
        numbers = range(-(-len(self.indices) // self.batch_size))
        make = dataclasses.replace(self, hints=PrefetchHints(self.reader, self.indices))
        for loaded in run_workers(make, numbers, WorkerConfig(num_workers=num_workers)):
            ledger.account(loaded.num_seen, loaded.skips)
            empty &= loaded.batch is None and not loaded.notes
            yield loaded
        # A single unusable sample is tolerated, but not where it is all that there is: who trains on one labelled sweep
        # would go round for ever.
        if empty and ledger.counters:
            raise ledger.error()
        if empty and len(self.indices):
            raise ShardError(f"{root}: none of the {len(self.indices)} samples asked for has an image")

    def batches(self, num_workers: int = 0, max_skip_share: float = 0.01) -> Iterator[Batch]:
        """As `run`, without the samples' indices."""
        return (batch for _, batch in self.run(num_workers, max_skip_share))
