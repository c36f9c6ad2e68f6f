"""Pictures that training shows in TensorBoard: what goes in, and what the features have become.

An objective offers what it can through small protocols; one that has no pixel embeddings still gets the pictures of its
points; whatever else it can show comes as sketches. Only the first sample of the batch is drawn (and run
through the networks), in evaluation mode and without gradient, so that a picture changes neither weights, BatchNorm
statistics nor random states.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from data.batch_spec import BatchSpec
from data.loading.evaluation import load_batch
from data.loading.loader import DataConfig
from data.sample import Batch, first_sample
from data.storage.manifest import load_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.shard import ShardError
from launchers.drawing import scenes
from launchers.drawing.canvas import RgbImage, captioned, cross, fit_width, tiled, turbo, with_scale
from launchers.drawing.sketches import Sketcher, draw

logger = logging.getLogger(__name__)

_COLUMNS = 3
_WIDTH_PX = 640
_SHEET_PX = 1280
"""As wide as the report shows pictures."""


@runtime_checkable
class PointEmbedder(Protocol):
    """An objective that can embed voxels."""

    def point_embeddings(self, batch: Batch) -> Float[Tensor, "M D"]:
        """Embedding of each voxel."""
        ...


@runtime_checkable
class PixelEmbedder(Protocol):
    """An objective that can embed pixels, into the same space as its points."""

    def pixel_embeddings(self, images: UInt8[Tensor, "I 3 H W"]) -> Float[Tensor, "I D H W"]:
        """Embedding of each pixel."""
        ...


@dataclass(frozen=True)
class _Embedded:
    """Embeddings of one sample by the networks."""

    points: Float[np.ndarray, "N D"]
    pixels: Float[np.ndarray, "I H W D"] | None


def training_pictures(
    objective: nn.Module, batch: Batch, step: int, *, augmented: Batch | None = None
) -> dict[str, RgbImage]:
    """Everything that the objective and the batch allow, of the batch's first sample.

    Its abilities are found by `PointEmbedder` and `PixelEmbedder`. Under a teacher cache the batch has no images, and
    there are no pictures over images. `augmented` is the batch as training sees it, for the objective's sketches.

    Returns:
        A subset of "superpixels", "lidar_depth", "similarity_pixels", "similarity_points", "point_features" and
        "pixel_features" (the first three principal components of the points' features; the same map for both), and
        "sketch_<name>" of each of the objective's sketches.
    """
    sample = first_sample(batch)
    pictures = _input_pictures(sample)
    if sample.num_points == 0:
        return pictures
    embedded = _embed(objective, sample)
    if embedded is not None:
        pictures |= _similarity_pictures(sample, embedded, step)
        pictures |= _component_pictures(sample, embedded, step)
    return pictures | _sketches(objective, sample if augmented is None else first_sample(augmented), step)


def pictures_of(batch: Batch, augmented: Batch | None = None) -> Callable[[nn.Module, Batch, int], dict[str, RgbImage]]:
    """A `training_pictures` that always draws the same batches (with images, say), so that steps can be compared."""
    fixed, moved = first_sample(batch), None if augmented is None else first_sample(augmented)

    def draw(objective: nn.Module, _: Batch, step: int) -> dict[str, RgbImage]:
        return training_pictures(objective, fixed, step, augmented=moved)

    return draw


def pictures_of_set(config: DataConfig, spec: BatchSpec) -> Callable[[nn.Module, Batch, int], dict[str, RgbImage]]:
    """`pictures_of` the sample in the middle of a run's split, read with its images also under a teacher cache.

    Where that sample is damaged, the next readable one is taken.

    Raises:
        ShardError: no prepared set, or no sample of the split can be read.
    """
    manifest = load_manifest(config.shards)
    chosen = manifest.indices(config.split)[: config.limit]
    reader = SampleReader(manifest)
    for index in np.roll(chosen, -(len(chosen) // 2)):  # from the middle of the split to its end, then from its start
        try:
            plain = load_batch(reader, [int(index)], config, spec)
            return pictures_of(plain, load_batch(reader, [int(index)], config, spec, augmented=True))
        except SampleError as error:
            logger.warning("no picture of a damaged sample: %s", error)
    raise ShardError(f"{config.shards}: none of the {len(chosen)} samples of split {config.split!r} can be read")


@contextmanager
def _evaluating(module: nn.Module, sample: Batch) -> Iterator[Batch]:
    """Evaluation mode without gradient, and the sample on the module's device; all parts' modes are put back."""
    modes = [(part, part.training) for part in module.modules()]  # each part's own: a frozen tower keeps another mode
    weight = next(module.parameters(), None)
    module.eval()
    try:
        with torch.no_grad():
            yield sample if weight is None else sample.to(weight.device)
    finally:
        for part, training in modes:
            part.training = training


def _embed(objective: nn.Module, sample: Batch) -> _Embedded | None:
    if not isinstance(objective, PointEmbedder):
        return None
    with _evaluating(objective, sample) as moved:
        points = objective.point_embeddings(moved)[moved.point_voxel].float().cpu().numpy()
        pixels = None
        if isinstance(objective, PixelEmbedder) and moved.images is not None:
            pixels = objective.pixel_embeddings(moved.images).float().movedim(1, -1).cpu().numpy()
    return _Embedded(points, pixels)


def point_features(objective: nn.Module, sample: Batch) -> Float[np.ndarray, "N D"] | None:
    """Embedding of each point of a batch; None where the objective cannot embed points."""
    if not isinstance(objective, PointEmbedder):
        return None
    with _evaluating(objective, sample) as moved:
        return _numpy(objective.point_embeddings(moved)[moved.point_voxel].float())


def _sketches(objective: nn.Module, sample: Batch, step: int) -> dict[str, RgbImage]:
    if not isinstance(objective, Sketcher):
        return {}
    with _evaluating(objective, sample) as moved:
        sketches = objective.sketches(moved)
    pictures = {}
    for name, sketch in sketches.items():
        caption = f"step {step}: {sketch.caption}, {sample.keys[0]}"
        pictures[f"sketch_{name}"] = draw(dataclasses.replace(sketch, caption=caption))
    return pictures


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy())


def _cell(view: RgbImage, images: Sequence[RgbImage]) -> RgbImage:
    """A view of one of the images, no wider than its part of a sheet: shrunk later, its texts could not be read."""
    return fit_width(view, _SHEET_PX // min(len(images), _COLUMNS))


def _extent(sample: Batch) -> scenes.Extent:
    return scenes.extent_of(_numpy(sample.points).astype(np.float64))


def _images(sample: Batch) -> list[RgbImage]:
    if sample.images is None:
        return []
    return list(np.ascontiguousarray(_numpy(sample.images).transpose(0, 2, 3, 1)))


def _pairs_of(sample: Batch, image: int) -> tuple[np.ndarray, Float[np.ndarray, "p 2"], Float[np.ndarray, " p"]]:
    """Points, pixels and ranges of the pairs of one image."""
    pairs = sample.need("pairs", by="a picture of pairs")
    pairs = pairs.select(pairs.image == image)
    point = _numpy(pairs.point)
    range_m = np.linalg.norm(_numpy(sample.points)[point].astype(np.float64), axis=1)
    return point, _numpy(pairs.uv).astype(np.float64), range_m


def _input_pictures(sample: Batch) -> dict[str, RgbImage]:
    images, pictures, extent = _images(sample), {}, _extent(sample)
    if images and sample.superpixels is not None and sample.superpixels.of_pixel is not None:
        ids = _numpy(sample.superpixels.of_pixel)
        cells = [_cell(scenes.superpixel_view(image, ids[i], _WIDTH_PX), images) for i, image in enumerate(images)]
        pictures["superpixels"] = captioned(tiled(cells, _COLUMNS), f"superpixels of {sample.keys[0]}")
    if images and sample.pairs is not None:
        cells = []
        for i, image in enumerate(images):
            _, uv, range_m = _pairs_of(sample, i)
            view = scenes.projection_view(image, uv, range_m, target_width=_WIDTH_PX, extent=extent)
            cells.append(captioned(_cell(view, images), f"{len(uv)} pairs"))
        title = f"LiDAR over the images of {sample.keys[0]}, by distance"
        pictures["lidar_depth"] = captioned(scenes.with_depth_scale(tiled(cells, _COLUMNS), extent), title)
    return pictures


# ---- similarities


def query_point(sample: Batch) -> int:
    """A point worth comparing: stands above the ground, 4 to 25 m away, near the middle of the first image.

    In a room the distances are in proportion to its size.

    Height is measured from the lowest points of the sweep. Where no point is like that, the conditions are dropped one
    by one, so there is always an answer; without pairs, the tallest of the near points.

    Raises:
        ValueError: the sample has no points.
    """
    points = _numpy(sample.points).astype(np.float64)
    if len(points) == 0:
        raise ValueError(f"sample {sample.keys[0]} has no points to choose a query from")
    range_m = np.linalg.norm(points, axis=1)
    stands = points[:, 2] > np.percentile(points[:, 2], 5) + 0.7  # not the minimum: stray returns lie below the ground
    size = _extent(sample).range_m / scenes.STREET.range_m
    near = (range_m > 4.0 * size) & (range_m < 25.0 * size)
    if sample.pairs is None or len(sample.pairs.point) == 0:
        return int(np.argmax(np.where(near, points[:, 2], -np.inf)))
    pairs = sample.pairs.select(sample.pairs.image == sample.pairs.image.min())
    candidates, uv = _numpy(pairs.point), _numpy(pairs.uv)
    middle = (uv.min(axis=0) + uv.max(axis=0)) / 2
    distance = np.linalg.norm(uv - middle, axis=1)
    for condition in (stands & near, stands, np.ones(len(points), dtype=bool)):
        if condition[candidates].any():
            break
    return int(candidates[np.argmin(np.where(condition[candidates], distance, np.inf))])


def _similarity_pictures(sample: Batch, embedded: _Embedded, step: int) -> dict[str, RgbImage]:
    query = query_point(sample)
    to_points = scenes.similarity_to(embedded.points[query], embedded.points).astype(np.float64)
    low, high = _ends(to_points)
    points = _numpy(sample.points).astype(np.float64)
    range_m = _extent(sample).range_m
    above = scenes.birds_eye_view(points, turbo(to_points, low, high), range_m=range_m)
    u, v = scenes.birds_eye_uv(points[query : query + 1], range_m=range_m)[0]
    title = f"step {step}: similarity of one point (cross) to all points, {sample.keys[0]}"
    pictures = {"similarity_points": captioned(with_scale(cross(above, (float(u), float(v))), low, high, ""), title)}
    if embedded.pixels is None:
        return pictures
    to_pixels = scenes.similarity_to(embedded.points[query], embedded.pixels).astype(np.float64)
    low, high = _ends(to_pixels.ravel())
    cells = []
    for i, image in enumerate(images := _images(sample)):
        uv = _query_uv(sample, i, query)
        view = scenes.similarity_view(image, to_pixels[i], low, high, query_uv=uv, target_width=_WIDTH_PX)
        cells.append(_cell(view, images))
    title = f"step {step}: similarity of one point (cross) to all pixels, {sample.keys[0]}"
    pictures["similarity_pixels"] = captioned(with_scale(tiled(cells, _COLUMNS), low, high, ""), title)
    return pictures


def _query_uv(sample: Batch, image: int, query: int) -> tuple[float, float] | None:
    if sample.pairs is None:
        return None
    point, uv, _ = _pairs_of(sample, image)
    rows = np.flatnonzero(point == query)
    return (float(uv[rows[0], 0]), float(uv[rows[0], 1])) if len(rows) else None


def _ends(similarity: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Scale of a similarity picture: early in training all similarities lie close together."""
    return float(np.percentile(similarity, 2)), float(similarity.max())


# ---- principal components


def _component_pictures(sample: Batch, embedded: _Embedded, step: int) -> dict[str, RgbImage]:
    fitted = scenes.principal_colours(embedded.points)
    points, extent = _numpy(sample.points).astype(np.float64), _extent(sample)
    title = f"step {step}: first three principal components of the points' features, {sample.keys[0]}"
    colours = fitted.colours(embedded.points)
    sheet = scenes.birds_eye_view(points, colours, range_m=extent.range_m)
    images = _images(sample)
    if images and sample.pairs is not None:
        cells = []
        for i, image in enumerate(images):
            point, uv, range_m = _pairs_of(sample, i)
            cells.append(scenes.projection_view(image, uv, range_m, colours[point], _WIDTH_PX, extent))
        overlay = tiled(cells, columns=1 if len(images) <= 3 else 2)
        # One wide image goes above the square, several small ones beside it.
        sheet = tiled([overlay, sheet], columns=1) if len(images) == 1 else tiled([sheet, overlay], columns=2)
    pictures = {"point_features": captioned(sheet, title)}
    if embedded.pixels is not None:
        cells = [
            tiled([image, fitted.colours(features)], columns=1, gap_px=2)
            for image, features in zip(images, embedded.pixels, strict=True)
        ]
        title = f"step {step}: pixels' features in the colours of the points"
        pictures["pixel_features"] = captioned(tiled(cells, _COLUMNS), title)
    return pictures
