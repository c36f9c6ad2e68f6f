"""Frames to find objects in, each once and in order, with all that is known of their objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from data.batch_spec import BatchSpec
from data.loading.collate import collate
from data.loading.in_use import check_suits
from data.loading.loader import DataConfig
from data.loading.sequential import SequentialBatches
from data.order import SampleDraws
from data.sample import Batch
from data.storage.decode import Images
from data.storage.reader import SampleError, SampleReader
from data.views.augment import NO_AUGMENTATION
from data.views.reading import view_of
from data.views.truth import FrameTruth
from data.views.view import View, ViewConfig

_NOTHING_TO_SEE = ("no-points", "zero-pairs", "no-images")
"""Reasons of sound samples that lack what a network looks at."""


@dataclass(frozen=True, kw_only=True)
class DetectionFrames:
    """Some frames.

    Attributes:
        truths: of each frame, in order.
        batch: those of the frames that have a point in the voxel grid (or, where images are asked for, what
            `BatchSpec.need_pairs` says), in the same order (`Batch.keys` names them); None where none has. In the
            others no network can find anything.
    """

    truths: tuple[FrameTruth, ...]
    batch: Batch | None


@dataclass(frozen=True, kw_only=True)
class _Frames(SequentialBatches[tuple[View | None, FrameTruth]]):
    config: ViewConfig
    spec: BatchSpec

    def read(self, index: int, draws: SampleDraws) -> tuple[View | None, FrameTruth]:
        images: Images = "encoded" if self.spec.images else False
        sample = self.reader.read(index, images=images, superpixels=self.spec.superpixels)
        truth = FrameTruth.of(sample, index)
        try:
            return view_of(sample, self.reader, index, self.config, self.spec, draws), truth
        except SampleError as error:
            if error.reason not in _NOTHING_TO_SEE:
                raise
            return None, truth

    def collate(self, parts: Sequence[tuple[View | None, FrameTruth]]) -> Batch | None:
        views = [view for view, _ in parts if view is not None]
        return collate(views) if views else None

    def notes(self, parts: Sequence[tuple[View | None, FrameTruth]]) -> tuple[FrameTruth, ...]:
        return tuple(truth for _, truth in parts)


def detection_frames(
    reader: SampleReader,
    indices: Int[np.ndarray, " n"],
    config: DataConfig,
    *,
    spec: BatchSpec,
    batch_size: int,
) -> Iterator[DetectionFrames]:
    """The given samples in the given order, each once, without augmentation and without sampled objects.

    Of `config`, the voxel grid, `cut_to_cameras`, `boxes`, the skip share and the workers are used. `Batch.boxes` are
    those that a loss is computed with; what a detector is judged by are the truths. A split that nobody has labelled
    needs `spec.boxes=()`. Damaged samples are left out and counted; the last batch may be smaller.

    Raises:
        ShardError: too many damaged samples, classes that the set has not, or a worker died.
    """
    check_suits(reader.manifest, [reader.manifest.num_pairs[indices]], spec, config.max_skip_share)
    config = dataclasses.replace(config, augment=NO_AUGMENTATION, cameras_per_sample=None)
    frames = _Frames(reader=reader, indices=indices, batch_size=batch_size, config=config, spec=spec)
    for loaded in frames.run_loaded(config.num_workers, config.max_skip_share):
        if loaded.notes:
            yield DetectionFrames(truths=loaded.notes, batch=loaded.batch)


def frame_truth(reader: SampleReader, index: int) -> FrameTruth:
    """What is known of one frame; its pixels are not decoded.

    Raises:
        SampleError: the sample is damaged.
        ShardError: its storage is away.
    """
    return FrameTruth.of(reader.read(index, images=False, superpixels=False), index)
