"""What a segmenter says of the points of a set's frames, and what is known of them, in the terms of the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64

from data.loading.loader import DataConfig
from data.loading.segment_frames import PointTruth, segment_frames
from data.sample import Batch
from data.storage.manifest import Manifest
from data.storage.reader import SampleReader
from data.views.boxes import class_numbers
from engine.segmentation.frames import SegmentedFrame, SegmentNames
from launchers.evaluation.detections import no_points
from models.segmentation.base import Segmenter, SegmenterConfig, Segments


@dataclass(frozen=True, kw_only=True)
class FoundSegments:
    """What a segmenter says of the points of a frame; fields as `engine.segmentation.frames.SegmentedFrame`."""

    found_class: Int64[np.ndarray, " N"]
    found_object: Int64[np.ndarray, " N"]
    object_class: Int64[np.ndarray, " O"]
    object_score: Float64[np.ndarray, " O"]


def nothing_found(num_points: int) -> FoundSegments:
    """Of a frame that no network has looked at."""
    none = np.full(num_points, -1, dtype=np.int64)
    return FoundSegments(
        found_class=none, found_object=none, object_class=np.zeros(0, np.int64), object_score=np.zeros(0)
    )


def segmented(
    segmenter: Segmenter,
    reader: SampleReader,
    indices: Int[np.ndarray, " n"],
    config: DataConfig,
    *,
    batch_size: int,
    device: torch.device,
    go_on: Callable[[], bool] = lambda: True,
    equal_passes: bool = False,
) -> Iterator[tuple[PointTruth, FoundSegments] | None]:
    """What a segmenter in evaluation mode says of some frames; damaged ones are left out, see the loader.

    Every recorded point has the class of its voxel, also outside the grid.

    Args:
        segmenter: on `device`.
        reader: of the set.
        indices: of the frames.
        config: of the segmenter's run: its voxels.
        batch_size: frames at a time.
        device: of the segmenter.
        go_on: asked before every batch, ceil(n / batch_size) times; False ends it.
        equal_passes: make a forward pass for every batch, also in place of one whose frames are all damaged, as ranks
            that share weights must.

    Yields:
        A frame each; at last None where it was ended.

    Raises:
        ShardError: see `data.loading.segment_frames`.
    """
    frames = segment_frames(
        reader,
        indices,
        config.voxel,
        batch_size=batch_size,
        num_workers=config.num_workers,
        max_skip_share=config.max_skip_share,
    )
    for _ in range(-(-len(indices) // batch_size)):
        if not go_on():
            yield None
            return
        part = next(frames, None)
        if part is not None:
            yield from zip(part.truths, _of_frames(segmenter.segment(part.batch.to(device)), part.batch), strict=True)
        elif equal_passes:
            segmenter.segment(no_points(config).to(device))


def _of_frames(segments: Segments, batch: Batch) -> list[FoundSegments]:
    """Of each sample, its objects numbered from 0."""
    classes, objects = segments.point_class.cpu().numpy(), segments.point_object.cpu().numpy()
    object_class, score = segments.object_class.cpu().numpy(), segments.object_score.cpu().double().numpy()
    ends = np.cumsum(np.bincount(batch.point_sample.numpy(), minlength=batch.num_samples))
    found, first = [], 0
    for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        own = objects[start:end]
        last = max(first, int(own.max(initial=-1)) + 1)
        found.append(
            FoundSegments(
                found_class=classes[start:end].astype(np.int64),
                found_object=np.where(own < 0, -1, own - first).astype(np.int64),
                object_class=object_class[first:last].astype(np.int64),
                object_score=score[first:last],
            )
        )
        first = last
    return found


def names_of(config: SegmenterConfig, manifest: Manifest) -> SegmentNames:
    """What a segmenter tells apart, in a set."""
    return SegmentNames(classes=config.classes, things=config.things, dataset=manifest.set_name)


def judged_frame(truth: PointTruth, found: FoundSegments, names: SegmentNames, manifest: Manifest) -> SegmentedFrame:
    """A labelled frame in the terms of the metrics.

    Raises:
        ShardError: the set has no class of a name that the segmenter tells apart.
    """
    assert truth.labels is not None
    numbers = class_numbers(manifest, names.classes, of="points")
    instances = truth.instances
    return SegmentedFrame(
        key=truth.frame.key,
        true_class=numbers[truth.labels],
        true_object=None if instances is None else np.where(instances > 0, instances, -1).astype(np.int64),
        found_class=found.found_class,
        found_object=found.found_object,
        object_class=found.object_class,
        object_score=found.object_score,
    )
