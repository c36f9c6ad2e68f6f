"""Batches of given samples in a given order, each sample once: for downstream tasks, caches and pictures.

The endless, shuffled stream of training is `data.loading.loader`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from data.batch_spec import BatchSpec, VoxelConfig
from data.geometry import transform
from data.loading.collate import collate
from data.loading.in_use import check_suits
from data.loading.loader import DataConfig
from data.loading.sequential import SequentialBatches
from data.order import SampleDraws
from data.sample import Batch
from data.storage.reader import SampleReader
from data.views.augment import (
    NO_AUGMENTATION,
    PointAugmentConfig,
    draw_cloud_transform,
    draw_cuboid,
    draw_jitter,
    draw_thinning,
)
from data.views.reading import partners_for, read_view
from data.views.second_sweep import PartnerFinder
from data.views.view import View, ViewConfig
from data.views.voxelize import measured_of, voxelize


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
            instances=None if sample.instances is None else sample.instances[keep],
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
    num_pairs = reader.manifest.num_pairs[indices if among is None else among]
    check_suits(reader.manifest, [num_pairs], spec, config.max_skip_share)
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
