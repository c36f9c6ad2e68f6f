"""Frames whose points are all to be given classes and objects, each once and in order, with what is known of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from data.batch_spec import VoxelConfig
from data.loading.collate import collate
from data.loading.sequential import SequentialBatches
from data.order import SampleDraws
from data.sample import Batch, Sample
from data.storage.reader import SampleReader
from data.views.truth import FrameTruth
from data.views.view import View
from data.views.voxelize import measured_of, voxelize


@dataclass(frozen=True, kw_only=True)
class PointTruth:
    """What is known of the points of one frame.

    Attributes:
        frame: where and when it was recorded.
        num_points: N, of the recorded sweep.
        labels: class of each, as the set numbers them; None where nobody has labelled the frame.
        instances: object of each, 0 for none; None where nobody has told them apart.
        gathered: whether points of earlier sweeps are among them.
    """

    frame: FrameTruth
    num_points: int
    labels: UInt8[np.ndarray, " N"] | None
    instances: Int[np.ndarray, " N"] | None
    gathered: bool = False


@dataclass(frozen=True, kw_only=True)
class SegmentFrames:
    """Some frames.

    Attributes:
        truths: of each frame, in order.
        batch: all their points, in the same order, also those outside the grid, which are in the nearest voxel inside.
    """

    truths: tuple[PointTruth, ...]
    batch: Batch


@dataclass(frozen=True, kw_only=True)
class _Frames(SequentialBatches[tuple[View, PointTruth]]):
    voxel: VoxelConfig

    def read(self, index: int, draws: SampleDraws) -> tuple[View, PointTruth]:
        sample = self.reader.read(index, images=False, superpixels=False)
        points = sample.points_lidar.astype(np.float32)
        view = View(
            key=sample.key,
            recorded=np.arange(len(points)),
            points=points,
            intensity=sample.intensity,
            voxels=voxelize(points, sample.intensity, self.voxel, measured_of(sample, self.voxel)),
            T_aug_lidar=np.eye(4),
        )
        return view, _truth(sample, index)

    def collate(self, parts: Sequence[tuple[View, PointTruth]]) -> Batch:
        return collate([view for view, _ in parts])

    def notes(self, parts: Sequence[tuple[View, PointTruth]]) -> tuple[PointTruth, ...]:
        return tuple(truth for _, truth in parts)


def segment_frames(
    reader: SampleReader,
    indices: Int[np.ndarray, " n"],
    voxel: VoxelConfig,
    *,
    batch_size: int,
    num_workers: int = 0,
    max_skip_share: float = 0.01,
) -> Iterator[SegmentFrames]:
    """The given samples in the given order, each once, as they were recorded.

    Damaged samples are left out and counted; the last batch may be smaller.

    Raises:
        ShardError: too many damaged samples, or a worker died.
    """
    frames = _Frames(reader=reader, indices=indices, batch_size=batch_size, voxel=voxel)
    for loaded in frames.run_loaded(num_workers, max_skip_share):
        if loaded.batch is not None:
            yield SegmentFrames(truths=loaded.notes, batch=loaded.batch)


def point_truth(reader: SampleReader, index: int) -> PointTruth:
    """What is known of one frame's points; its pixels are not decoded.

    Raises:
        SampleError: the sample is damaged.
        ShardError: its storage is away.
    """
    return _truth(reader.read(index, images=False, superpixels=False), index)


def _truth(sample: Sample, index: int) -> PointTruth:
    return PointTruth(
        frame=FrameTruth.of(sample, index),
        num_points=len(sample.points_lidar),
        labels=sample.labels,
        instances=sample.instances,
        gathered=sample.times_s is not None,
    )
