"""Several augmented samples as one `Batch`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from data.sample import Batch
from data.views.view import View
from data.views.voxelize import VoxelConfig, voxelize

T = TypeVar("T")


def collate(views: Sequence[View], voxel: VoxelConfig) -> Batch:
    """Voxelise each view and lay all of them one after another.

    Indices are int64, voxel coordinates int32. Superpixel ids: those of image i begin where the ids of images
    0 ... i-1 end, counting also superpixels that hold no point or were cropped away; clusters of samples likewise.
    What a second view has in common with the first is the same tensor.
    """
    batch = _with_images(_points(views, voxel), views, None)
    if views[0].second is None:
        return batch
    seconds = [_have(view.second) for view in views]
    match_point = match_second = None
    if views[0].matches is not None:
        matches = [_have(view.matches) for view in views]
        match_point = _joined([part.first for part in matches], [len(view.points) for view in views])
        match_second = _joined([part.second for part in matches], [len(view.points) for view in seconds])
    same_points = seconds[0].points is views[0].points
    same_pixels = seconds[0].images is views[0].images
    second = _with_images(batch if same_points else _points(seconds, voxel), seconds, batch if same_pixels else None)
    return dataclasses.replace(batch, second=second, match_point=match_point, match_second=match_second)


def _points(views: Sequence[View], voxel: VoxelConfig) -> Batch:
    grids = [voxelize(view.points, view.intensity, voxel) for view in views]
    num_points = [len(view.points) for view in views]
    coords = np.concatenate([grid[0] for grid in grids])
    sample = _numbers([len(grid[0]) for grid in grids]).astype(np.int32)
    labels = ground = cluster = None
    if all(view.labels is not None for view in views):
        labels = torch.from_numpy(np.concatenate([_have(view.labels) for view in views]).astype(np.int64))
    if all(view.ground is not None for view in views):
        ground = torch.from_numpy(np.concatenate([_have(view.ground) for view in views]))
    if all(view.cluster is not None for view in views):
        starts = np.cumsum([0, *(view.num_clusters for view in views)])
        ids = [_have(view.cluster) for view in views]
        cluster = torch.from_numpy(
            np.concatenate([np.where(c < 0, -1, c + start) for c, start in zip(ids, starts, strict=False)])
        )
    return Batch(
        keys=tuple(view.key for view in views),
        points=torch.from_numpy(np.concatenate([view.points for view in views])),
        point_sample=torch.from_numpy(_numbers(num_points)),
        point_voxel=_joined([grid[2] for grid in grids], [len(grid[0]) for grid in grids]),
        voxel_coords=torch.from_numpy(np.concatenate((sample[:, None], coords), axis=1)),
        voxel_features=torch.from_numpy(np.concatenate([grid[1] for grid in grids])),
        labels=labels,
        T_aug_lidar=_float32([view.T_aug_lidar for view in views]),
        ground=ground,
        cluster=cluster,
        num_clusters=sum(view.num_clusters for view in views),
    )


def _with_images(batch: Batch, views: Sequence[View], like: Batch | None) -> Batch:
    """With pixels and pairs, where there are any; the pixels of `like`, where it is given."""
    if not views[0].num_images:
        return batch
    num_points = [len(view.points) for view in views]
    image_counts = [view.num_images for view in views]
    segment_counts = [count for view in views for count in view.num_segments]
    segment_starts = np.cumsum([0, *segment_counts])
    pair_image = _joined([_have(view.pair_image) for view in views], image_counts)
    pair_segment = None
    if all(view.pair_segment is not None for view in views):
        local = np.concatenate([_have(view.pair_segment) for view in views])
        pair_segment = torch.from_numpy(local + segment_starts[pair_image.numpy()])
    transforms = [moved for view in views for moved in view.pixel_transforms]
    return dataclasses.replace(
        batch,
        images=_images(views) if like is None else like.images,
        image_sample=torch.from_numpy(_numbers(image_counts)),
        pair_point=_joined([_have(view.pair_point) for view in views], num_points),
        pair_image=pair_image,
        pair_uv=torch.from_numpy(np.concatenate([_have(view.pair_uv) for view in views])),
        pair_segment=pair_segment,
        segments=_segments(views, segment_starts) if like is None else like.segments,
        num_segments=int(segment_starts[-1]),
        segments_per_image=torch.tensor(segment_counts, dtype=torch.int64),
        segment_features=_segment_features(views) if like is None else like.segment_features,
        image_K=_float32([K for view in views for K in _have(view.K)]),
        image_T_cam_points=_float32([T for view in views for T in _have(view.T_cam_points)]),
        image_affine=_float32([moved.affine[:2] for moved in transforms]),
    )


def _images(views: Sequence[View]) -> UInt8[Tensor, "I 3 H W"] | None:
    if any(view.images is None for view in views):
        return None
    planes = [cv2.split(image) for view in views for image in view.images or ()]
    return torch.from_numpy(np.stack([plane for image in planes for plane in image]).reshape(_nchw(planes)))


def _segments(views: Sequence[View], starts: Int[np.ndarray, " images_and_1"]) -> Int[Tensor, "I H W"] | None:
    if any(view.segments is None for view in views):
        return None
    maps = [ids for view in views for ids in view.segments or ()]
    return torch.from_numpy(np.stack([ids + start for ids, start in zip(maps, starts[:-1], strict=True)]))


def _segment_features(views: Sequence[View]) -> Float[Tensor, "S D"] | None:
    if any(view.segment_features is None for view in views):
        return None
    return torch.from_numpy(np.concatenate([_have(view.segment_features) for view in views]))


def _nchw(planes: Sequence[Sequence[np.ndarray]]) -> tuple[int, ...]:
    return (len(planes), 3, *planes[0][0].shape)


def _float32(matrices: Sequence[np.ndarray]) -> Float[Tensor, "..."]:
    return torch.from_numpy(np.stack(matrices).astype(np.float32))


def _have(value: T | None) -> T:
    assert value is not None
    return value


def _numbers(counts: Sequence[int]) -> Int[np.ndarray, " n"]:
    """0 repeated counts[0] times, 1 repeated counts[1] times, ..."""
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _joined(parts: Sequence[Int[np.ndarray, "..."]], sizes: Sequence[int]) -> Int[Tensor, " n"]:
    """Indices into separate lists as indices into the lists laid one after another."""
    starts = np.cumsum([0, *sizes])
    offset = [part + start for part, start in zip(parts, starts, strict=False)]
    return torch.from_numpy(np.concatenate(offset).astype(np.int64))
