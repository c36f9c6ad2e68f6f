"""Batches of given samples in a given order, each sample once: for downstream tasks, caches and pictures.

The endless, shuffled stream of training is `data.loading.loader`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int

from data.batch_spec import BatchSpec, VoxelConfig
from data.geometry import transform
from data.loading.collate import collate
from data.loading.loader import DataConfig, check_suits
from data.loading.skips import Skip, SkipLedger
from data.loading.workers import Loaded, WorkerConfig, run_workers
from data.order import SampleDraws
from data.sample import Batch
from data.storage.prefetch import PrefetchHints
from data.storage.reader import SampleError, SampleReader, blamed_on
from data.storage.shard import ShardError
from data.views.augment import (
    NO_AUGMENTATION,
    PointAugmentConfig,
    draw_cloud_transform,
    draw_cuboid,
    draw_jitter,
    draw_thinning,
)
from data.views.second_sweep import PartnerFinder
from data.views.truth import FrameTruth
from data.views.view import View, ViewConfig, partners_for, read_view
from data.views.voxelize import measured_of, voxelize

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
            truths=self.truths(parts),
        )

    def truths(self, parts: Sequence[PartT]) -> tuple[FrameTruth, ...]:
        """What is known of the samples' objects, where this task is about it."""
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
            empty &= loaded.batch is None and not loaded.truths
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


@dataclass(frozen=True, kw_only=True)
class _Views(SequentialBatches[View]):
    """Sweeps with labels and what else `spec` asks for; without one, points and labels only."""

    config: ViewConfig
    spec: BatchSpec | None
    partners: PartnerFinder | None = None

    def collate(self, parts: Sequence[View]) -> Batch:
        return collate(parts)

    def read(self, index: int, draws: SampleDraws) -> View:
        if self.spec is not None:
            return read_view(self.reader, index, self.config, self.spec, draws, self.partners, labels=True)
        # Not `read_view`: every point stays, also outside of the grid, because each one's prediction counts.
        sample = self.reader.read(index, images=False, superpixels=False)
        rng, augment = draws.first(), self.config.augment.points
        T_aug_lidar = draw_cloud_transform(rng, augment)
        points = draw_jitter(rng, transform(T_aug_lidar, sample.points_lidar).astype(np.float32), augment)
        keep = ~draw_cuboid(rng, points, augment)
        keep |= not keep.any()  # a cuboid that holds every point is not dropped
        keep[keep] = draw_thinning(rng, int(keep.sum()), augment)
        points, intensity = points[keep], sample.intensity[keep]
        measured = measured_of(sample, self.config.voxel)
        return View(
            key=sample.key,
            recorded=np.flatnonzero(keep),
            points=points,
            intensity=intensity,
            voxels=voxelize(points, intensity, self.config.voxel, None if measured is None else measured[keep]),
            T_aug_lidar=T_aug_lidar,
            labels=None if sample.labels is None else sample.labels[keep],
        )


def point_batches(
    reader: SampleReader,
    indices: Int[np.ndarray, " n"],
    voxel: VoxelConfig,
    *,
    batch_size: int,
    augment: PointAugmentConfig | None = None,
    seed: int = 0,
    epoch: int = 0,
    num_workers: int = 0,
    max_skip_share: float = 0.01,
) -> Iterator[Batch]:
    """Points and labels of the given samples in the given order, for downstream tasks.

    Every point of a sweep is in the batch, and in a voxel, also outside `voxel.range_min` to `range_max` (unless
    `augment` drops a cuboid or thins the cloud). The last batch may be smaller; damaged samples are left out and
    counted.

    Raises:
        ShardError: too many damaged samples, or a worker died.
    """
    points = PointAugmentConfig(enabled=False) if augment is None else augment
    views = _Views(
        reader=reader,
        indices=indices,
        batch_size=batch_size,
        config=ViewConfig(voxel=voxel, augment=dataclasses.replace(NO_AUGMENTATION, points=points)),
        spec=None,
        seed=seed,
        epoch=epoch,
    )
    return views.batches(num_workers, max_skip_share)


def image_batches(
    reader: SampleReader,
    indices: Int[np.ndarray, " n"],
    config: DataConfig,
    *,
    spec: BatchSpec,
    batch_size: int,
    seed: int | None = None,
    among: Int[np.ndarray, " m"] | None = None,
) -> Iterator[tuple[tuple[int, ...], Batch]]:
    """Samples with labels and what else `spec` asks for, and the indices that each batch holds.

    Other sweeps as second views come from the same samples; the last batch may be smaller. Of `config`, the voxel grid,
    the image size, the skip share and the workers are used; with a seed also the augmentation, as a function of it and
    the sample, and the number of cameras. Without a seed there is no augmentation, and all cameras are used. `among`
    are the samples that these are what is left of: whether too many are unusable is judged by all of them.

    Raises:
        ShardError: too many damaged samples, or a worker died.
    """
    if seed is None:
        config = dataclasses.replace(config, augment=NO_AUGMENTATION, cameras_per_sample=None)
    check_suits(reader.manifest, indices if among is None else among, spec, config.max_skip_share)
    views = _Views(
        reader=reader,
        indices=indices,
        batch_size=batch_size,
        config=config,
        spec=spec,
        partners=partners_for(reader, indices, spec),
        seed=seed or 0,
    )
    yield from views.run(config.num_workers, config.max_skip_share, among=None if among is None else len(among))


def load_batch(
    reader: SampleReader, indices: Sequence[int], config: ViewConfig, spec: BatchSpec, *, augmented: bool = False
) -> Batch:
    """One batch of the given samples in this order, made in this process.

    With `augmented` as in training, with random numbers that depend on the sample alone; else without augmentation (a
    second view is then the first one again) and with all cameras.

    Raises:
        SampleError: one of the samples is damaged.
    """
    if not augmented:
        config = dataclasses.replace(config, augment=NO_AUGMENTATION, cameras_per_sample=None)
    partners = partners_for(reader, reader.manifest.indices(), spec)
    views = [read_view(reader, i, config, spec, SampleDraws(0, 0, i), partners, labels=True) for i in map(int, indices)]
    return collate(views)
