"""Several augmented samples as one `Batch`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Int

from data.sample import Batch
from data.view import View
from data.voxelize import VoxelConfig, voxelize


def collate(views: Sequence[View], voxel: VoxelConfig) -> Batch:
    """Voxelise each view and lay all of them one after another.

    Indices are int64, voxel coordinates int32. Superpixel ids: those of image i begin where the ids of images
    0 ... i-1 end, counting also superpixels that hold no point or were cropped away.
    """
    grids = [voxelize(view.points, view.intensity, voxel) for view in views]
    num_points = [len(view.points) for view in views]
    point_voxel = _with_offsets([grid[2] for grid in grids], [len(grid[0]) for grid in grids])
    coords = np.concatenate([grid[0] for grid in grids])
    sample = _numbers([len(grid[0]) for grid in grids]).astype(np.int32)
    labels = None
    if all(view.labels is not None for view in views):
        labels = torch.from_numpy(np.concatenate([_have(view.labels) for view in views]).astype(np.int64))
    point_part = Batch(
        keys=tuple(view.key for view in views),
        points=torch.from_numpy(np.concatenate([view.points for view in views])),
        point_sample=torch.from_numpy(_numbers(num_points)),
        point_voxel=torch.from_numpy(point_voxel),
        voxel_coords=torch.from_numpy(np.concatenate((sample[:, None], coords), axis=1)),
        voxel_features=torch.from_numpy(np.concatenate([grid[1] for grid in grids])),
        labels=labels,
    )
    return _with_images(point_part, views) if views[0].num_images else point_part


def _with_images(batch: Batch, views: Sequence[View]) -> Batch:
    num_points = [len(view.points) for view in views]
    image_counts = [view.num_images for view in views]
    segment_counts = [count for view in views for count in view.num_segments]
    segment_starts = np.cumsum([0, *segment_counts])
    pair_image = _with_offsets([_have(view.pair_image) for view in views], image_counts)
    images = segments = pair_segment = features = None
    if all(view.pair_segment is not None for view in views):
        local = np.concatenate([_have(view.pair_segment) for view in views])
        pair_segment = torch.from_numpy(local + segment_starts[pair_image])
    if all(view.images is not None for view in views):
        planes = [cv2.split(image) for view in views for image in view.images or ()]
        images = torch.from_numpy(np.stack([plane for image in planes for plane in image]).reshape(_nchw(planes)))
    if all(view.segments is not None for view in views):
        maps = [ids for view in views for ids in view.segments or ()]
        segments = torch.from_numpy(
            np.stack([ids + start for ids, start in zip(maps, segment_starts[:-1], strict=True)])
        )
    if all(view.segment_features is not None for view in views):
        features = torch.from_numpy(np.concatenate([_have(view.segment_features) for view in views]))
    return dataclasses.replace(
        batch,
        images=images,
        image_sample=torch.from_numpy(_numbers(image_counts)),
        pair_point=torch.from_numpy(_with_offsets([_have(view.pair_point) for view in views], num_points)),
        pair_image=torch.from_numpy(pair_image),
        pair_uv=torch.from_numpy(np.concatenate([_have(view.pair_uv) for view in views])),
        pair_segment=pair_segment,
        segments=segments,
        num_segments=int(segment_starts[-1]),
        segments_per_image=torch.tensor(segment_counts, dtype=torch.int64),
        segment_features=features,
    )


def _nchw(planes: Sequence[Sequence[np.ndarray]]) -> tuple[int, ...]:
    return (len(planes), 3, *planes[0][0].shape)


def _have(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


def _numbers(counts: Sequence[int]) -> Int[np.ndarray, " n"]:
    """0 repeated counts[0] times, 1 repeated counts[1] times, ..."""
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _with_offsets(parts: Sequence[Int[np.ndarray, "..."]], sizes: Sequence[int]) -> Int[np.ndarray, " n"]:
    """Indices into separate lists as indices into the lists laid one after another."""
    starts = np.cumsum([0, *sizes])
    return np.concatenate([part + start for part, start in zip(parts, starts, strict=False)]).astype(np.int64)
