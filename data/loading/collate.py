"""Several augmented samples as one `Batch`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

from data.loading.memory import room
from data.sample import Batch, BatchBoxes, Cameras, PointClusters, PointMatches, PointPixelPairs, Superpixels
from data.views.view import View, ViewSuperpixels

T = TypeVar("T")
V = TypeVar("V")


def collate(views: Sequence[View]) -> Batch:
    """Lay views one after another.

    Indices are int64, voxel coordinates int32 as are the superpixels of pixels, which are most of a batch. Superpixel
    ids: those of image i begin where the ids of images 0 ... i-1 end, counting also superpixels that hold no point or
    were cropped away; clusters of samples likewise.
    What a second view has in common with the first is the same tensor.
    """
    batch = _with_images(_points(views), views, None)
    seconds = _each(views, lambda view: view.second)
    if seconds is None:
        return batch
    # The very same arrays, not equal ones: a part that is drawn again never shares them (`making.make_view`).
    same_points = seconds[0].points is views[0].points
    same_pixels = seconds[0].images is views[0].images
    second = _with_images(batch if same_points else _points(seconds), seconds, batch if same_pixels else None)
    matches = _each(views, lambda view: view.matches)
    if matches is None:
        return dataclasses.replace(batch, second=second)
    return dataclasses.replace(
        batch,
        second=second,
        matches=PointMatches(
            first=_joined([part.first for part in matches], [len(view.points) for view in views]),
            second=_joined([part.second for part in matches], [len(view.points) for view in seconds]),
        ),
    )


def _points(views: Sequence[View]) -> Batch:
    coords = [view.voxels.coords for view in views]
    sizes = [len(part) for part in coords]
    sample = _numbers(sizes).astype(np.int32)
    labels = _each(views, lambda view: view.labels)
    instances = _each(views, lambda view: view.instances)
    ground = _each(views, lambda view: view.ground)
    return Batch(
        keys=tuple(view.key for view in views),
        points=_concatenated([view.points for view in views]),
        point_sample=torch.from_numpy(_numbers([len(view.points) for view in views])),
        point_voxel=_joined([view.voxels.of_point for view in views], sizes),
        voxel_coords=torch.from_numpy(np.concatenate((sample[:, None], np.concatenate(coords)), axis=1)),
        voxel_features=_concatenated([view.voxels.features for view in views]),
        T_aug_lidar=_float32([view.T_aug_lidar for view in views]),
        ground=None if ground is None else _concatenated(ground),
        clusters=_clusters(views),
        labels=None if labels is None else _concatenated(labels).long(),
        instances=None if instances is None else _concatenated(instances).long(),
        boxes=_boxes(views),
    )


def _boxes(views: Sequence[View]) -> BatchBoxes | None:
    parts = _each(views, lambda view: view.boxes)
    if parts is None:
        return None
    return BatchBoxes(
        boxes=_concatenated([part.boxes.astype(np.float32) for part in parts]),
        velocities_mps=_concatenated([part.velocities_mps.astype(np.float32) for part in parts]),
        classes=_concatenated([part.classes for part in parts]),
        sample=torch.from_numpy(_numbers([len(part) for part in parts])),
    )


def _clusters(views: Sequence[View]) -> PointClusters | None:
    parts = _each(views, lambda view: view.clusters)
    if parts is None:
        return None
    starts = np.cumsum([0, *(part.num for part in parts)])
    # -1, a point of no cluster, stays -1 in every sample.
    ids = [np.where(part.of_point < 0, -1, part.of_point + start) for part, start in zip(parts, starts, strict=False)]
    return PointClusters(num=int(starts[-1]), of_point=_concatenated(ids))


def _with_images(batch: Batch, views: Sequence[View], like: Batch | None) -> Batch:
    """With pixels and pairs, where there are any; the pixels of `like`, where it is given."""
    cameras = _each(views, lambda view: view.cameras)
    pairs = _each(views, lambda view: view.pairs)
    if cameras is None or pairs is None:
        return batch
    num_images = [len(part.transforms) for part in cameras]
    pair_image = _joined([part.camera for part in pairs], num_images)
    superpixels = _each(views, lambda view: view.superpixels)
    shared = None if like is None else like.superpixels
    return dataclasses.replace(
        batch,
        images=_images(views) if like is None else like.images,
        cameras=Cameras(
            sample=torch.from_numpy(_numbers(num_images)),
            K=_float32([K for part in cameras for K in part.K]),
            T_cam_points=_float32([T_cam_points for part in cameras for T_cam_points in part.T_cam_points]),
            affine=_float32([place.affine[:2] for part in cameras for place in part.transforms]),
            min_depth_m=_concatenated([part.min_depth_m.astype(np.float32) for part in cameras]),
        ),
        pairs=PointPixelPairs(
            point=_joined([part.point for part in pairs], [len(view.points) for view in views]),
            image=pair_image,
            uv=_concatenated([part.uv for part in pairs]),
        ),
        superpixels=None if superpixels is None else _superpixels(superpixels, pair_image, shared),
    )


def _images(views: Sequence[View]) -> UInt8[Tensor, "I 3 H W"] | None:
    images = _each(views, lambda view: view.images)
    if images is None:
        return None
    first = images[0][0]
    batch = room((sum(map(len, images)), 3, *first.shape[:2]), torch.uint8)
    of_sample = (image for sample in images for image in sample)
    for planes, image in zip(batch.numpy(), of_sample, strict=True):
        cv2.split(image, list(planes))  # much faster than transposing whole images
    return batch


def _superpixels(
    parts: Sequence[ViewSuperpixels], pair_image: Int[Tensor, " P"], like: Superpixels | None
) -> Superpixels:
    per_image = [num for part in parts for num in part.num]
    starts = np.cumsum([0, *per_image])
    of_pair = np.concatenate([part.of_pair for part in parts]) + starts[pair_image.numpy()]
    if like is None:
        maps, features = _each(parts, lambda part: part.of_pixel), _each(parts, lambda part: part.features)
        of_pixel = None if maps is None else _numbered([ids for of_sample in maps for ids in of_sample], starts)
        pooled = None if features is None else _concatenated(features)
    else:
        of_pixel, pooled = like.of_pixel, like.features
    return Superpixels(
        num=int(starts[-1]),
        per_image=torch.tensor(per_image, dtype=torch.int64),
        of_pair=torch.from_numpy(of_pair),
        of_pixel=of_pixel,
        features=pooled,
    )


def _numbered(maps: Sequence[Integer[np.ndarray, "H W"]], starts: Int[np.ndarray, " I_and_1"]) -> Int[Tensor, "I H W"]:
    """The superpixel of each pixel, numbered through."""
    batch = room((len(maps), *maps[0].shape), torch.int32)
    for ids, start, numbered in zip(maps, starts.tolist(), batch.numpy(), strict=False):
        np.add(ids, start, out=numbered, dtype=np.int32)
    return batch


def _each(views: Sequence[V], part: Callable[[V], T | None]) -> list[T] | None:
    """A part of each view; None unless all have it."""
    parts = [value for value in map(part, views) if value is not None]
    return parts if len(parts) == len(views) else None


def _concatenated(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _float32(matrices: Sequence[np.ndarray]) -> Float[Tensor, "..."]:
    return torch.from_numpy(np.stack(matrices).astype(np.float32))


def _numbers(counts: Sequence[int]) -> Int[np.ndarray, " n"]:
    """0 repeated counts[0] times, 1 repeated counts[1] times, ..."""
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _joined(parts: Sequence[Int[np.ndarray, "..."]], sizes: Sequence[int]) -> Int[Tensor, " n"]:
    """Indices into separate lists as indices into the lists laid one after another."""
    starts = np.cumsum([0, *sizes])
    offset = [part + start for part, start in zip(parts, starts, strict=False)]
    return torch.from_numpy(np.concatenate(offset).astype(np.int64))
