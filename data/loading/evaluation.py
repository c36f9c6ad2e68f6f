"""Batches of given samples in a given order, each sample once: for downstream tasks, caches and pictures.

The endless, shuffled stream of training is `data.loading.loader`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from data.batch_spec import BatchSpec
from data.geometry import transform
from data.loading.collate import collate
from data.loading.loader import DataConfig
from data.loading.skips import Skip, SkipLedger
from data.loading.workers import Loaded, WorkerConfig, run_workers
from data.order import SampleDraws
from data.sample import Batch
from data.storage.prefetch import PrefetchHints
from data.storage.reader import SampleError, SampleReader
from data.views.augment import (
    NO_AUGMENTATION,
    PointAugmentConfig,
    draw_cloud_transform,
    draw_cuboid,
    draw_jitter,
    draw_thinning,
)
from data.views.second_sweep import PartnerFinder
from data.views.view import View, ViewConfig, partners_for, read_view
from data.views.voxelize import VoxelConfig


@dataclass(frozen=True, kw_only=True)
class _ListedBatches:
    """Makes the batch of the n-th stretch of a given list (runs in the workers)."""

    reader: SampleReader
    indices: Int[np.ndarray, " n"]
    batch_size: int
    config: ViewConfig
    spec: BatchSpec | None
    partners: PartnerFinder | None = None
    seed: int = 0
    epoch: int = 0
    announced: PrefetchHints | None = None

    def __call__(self, number: int) -> Loaded:
        start, stop = number * self.batch_size, (number + 1) * self.batch_size
        if self.announced is not None:
            self.announced.before(start, stop)
        chosen = self.indices[start:stop]
        views, used, skips = [], [], []
        for index in map(int, chosen):
            try:
                views.append(self._view(index, SampleDraws(self.seed, self.epoch, index)))
                used.append(index)
            except SampleError as error:
                skips.append(Skip.of(index, error))
        batch = collate(views, self.config.voxel) if views else None
        return Loaded(batch=batch, num_seen=len(chosen), skips=tuple(skips), indices=tuple(used))

    def _view(self, index: int, draws: SampleDraws) -> View:
        if self.spec is not None:
            return read_view(self.reader, index, self.config, self.spec, draws, self.partners, labels=True)
        sample = self.reader.read(index, images=False, superpixels=False)
        rng, augment = draws.first(), self.config.augment.points
        T_aug_lidar = draw_cloud_transform(rng, augment)
        points = draw_jitter(rng, transform(T_aug_lidar, sample.points_lidar).astype(np.float32), augment)
        keep = ~draw_cuboid(rng, points, augment)
        keep |= not keep.any()  # a cuboid that holds every point is not dropped
        keep[keep] = draw_thinning(rng, int(keep.sum()), augment)
        return View(
            key=sample.key,
            recorded=np.flatnonzero(keep),
            points=points[keep],
            intensity=sample.intensity[keep],
            T_aug_lidar=T_aug_lidar,
            labels=None if sample.labels is None else sample.labels[keep],
        )

    def run(self, num_workers: int, max_skip_share: float) -> Iterator[Loaded]:
        root = self.reader.manifest.root
        ledger = SkipLedger(max_share=max_skip_share, num_samples=len(self.indices), root=root)
        numbers = range(-(-len(self.indices) // self.batch_size))
        make = dataclasses.replace(self, announced=PrefetchHints(self.reader, self.indices))
        for loaded in run_workers(make, numbers, WorkerConfig(num_workers=num_workers)):
            ledger.account(loaded.num_seen, loaded.skips)
            if loaded.batch is not None:
                yield loaded


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
    make = _ListedBatches(
        reader=reader,
        indices=indices,
        batch_size=batch_size,
        config=ViewConfig(voxel=voxel, augment=dataclasses.replace(NO_AUGMENTATION, points=points)),
        spec=None,
        seed=seed,
        epoch=epoch,
    )
    for loaded in make.run(num_workers, max_skip_share):
        assert loaded.batch is not None
        yield loaded.batch


def image_batches(
    reader: SampleReader,
    indices: Int[np.ndarray, " n"],
    config: DataConfig,
    *,
    spec: BatchSpec,
    batch_size: int,
    seed: int | None = None,
) -> Iterator[tuple[tuple[int, ...], Batch]]:
    """Samples with labels and what else is wanted, and the indices that each batch holds.

    Of `config`, the voxel grid, the image size, the skip share and the workers are used; with a seed also the
    augmentation and the number of cameras.

    Args:
        reader: of the set.
        indices: samples, in this order.
        config: what to make of them.
        spec: what batches hold; other sweeps as second views come from the same samples.
        batch_size: the last batch may be smaller.
        seed: of augmentations, which are a function of it and the sample; None: no augmentation, all cameras.

    Raises:
        ShardError: too many damaged samples, or a worker died.
    """
    if seed is None:
        config = dataclasses.replace(config, augment=NO_AUGMENTATION, cameras_per_sample=None)
    make = _ListedBatches(
        reader=reader,
        indices=indices,
        batch_size=batch_size,
        config=config,
        spec=spec,
        partners=partners_for(reader, indices, spec),
        seed=seed or 0,
    )
    for loaded in make.run(config.num_workers, config.max_skip_share):
        assert loaded.batch is not None
        yield loaded.indices, loaded.batch


def load_batch(
    reader: SampleReader, indices: Sequence[int], config: ViewConfig, spec: BatchSpec, *, augmented: bool = False
) -> Batch:
    """One batch of the given samples, made in this process.

    Args:
        reader: of the set.
        indices: samples, in this order.
        config: what to make of them.
        spec: what the batch holds.
        augmented: as in training, with random numbers that depend on the sample alone; False: without augmentation
            (a second view is then the first one again) and with all cameras.

    Raises:
        SampleError: one of the samples is damaged.
    """
    if not augmented:
        config = dataclasses.replace(config, augment=NO_AUGMENTATION, cameras_per_sample=None)
    partners = partners_for(reader, reader.manifest.indices(), spec)
    views = [read_view(reader, i, config, spec, SampleDraws(0, 0, i), partners, labels=True) for i in map(int, indices)]
    return collate(views, config.voxel)
