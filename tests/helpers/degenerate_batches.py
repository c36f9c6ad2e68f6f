"""What can go wrong inside a batch without it being damaged: every method has to give a finite loss and gradient.

    for name, batch in degenerate_batches(toy_batch([0, 1])).items(): ...

Any batch can be the start, from `tests.helpers.toy_batches` or from the loader; of the cases below those that concern
something which the batch has are made. Second views are changed in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from data.sample import Batch, PointMatches, first_sample
from tests.helpers.toy_batches import with_changed


def degenerate_batches(batch: Batch) -> dict[str, Batch]:
    """Case -> batch.

    "one point": one sample with one point (that a pixel shows, if any does). "one point a sample": the same for each
    sample. "no pairs", "one pair", "one superpixel" (all pairs in one), "one cluster", "no cluster", "no ground", "all
    ground" (then without clusters), "no matches", "one match", "identical features" (inputs of all voxels and all
    pixels the same), "identical views" (the second view is the first).
    """
    makers: dict[str, tuple[bool, Callable[[Batch], Batch]]] = {
        "one point": (True, lambda b: one_point_each(first_sample(b))),
        "one point a sample": (batch.num_samples > 1, one_point_each),
        "no pairs": (batch.pairs is not None, lambda b: with_pairs(b, slice(0, 0))),
        "one pair": (batch.pairs is not None, lambda b: with_pairs(b, slice(0, 1))),
        "one superpixel": (batch.superpixels is not None, _one_superpixel),
        "one cluster": (batch.clusters is not None, lambda b: _clusters(b, 0)),
        "no cluster": (batch.clusters is not None, lambda b: _clusters(b, -1)),
        "no ground": (batch.ground is not None, lambda b: _ground(b, False)),
        "all ground": (batch.ground is not None, lambda b: _clusters(_ground(b, True), -1)),
        "no matches": (batch.matches is not None, lambda b: with_matches(b, slice(0, 0))),
        "one match": (batch.matches is not None, lambda b: with_matches(b, slice(0, 1))),
        "identical features": (True, _identical),
        "identical views": (batch.second is not None, _twice),
    }
    return {name: make(batch) for name, (applies, make) in makers.items() if applies}


def one_point_each(batch: Batch) -> Batch:
    """One point of each sample, one that has a pair where there is one, and its partner in the second view."""
    kept = torch.zeros(batch.num_points, dtype=torch.bool)
    for sample in range(batch.num_samples):
        kept[_some_point(batch, sample)] = True
    second = batch.second
    if second is None:
        return selected(batch, kept)
    if torch.equal(second.points, batch.points):  # one cloud under two sets of images
        return selected(batch, kept, kept)
    partner = torch.zeros(second.num_points, dtype=torch.bool)
    if batch.matches is not None:
        partner[batch.matches.second[kept[batch.matches.first]]] = True
    for sample in range(second.num_samples):
        mine = second.point_sample == sample
        if not bool((partner & mine).any()):
            partner[_some_point(second, sample)] = True
    return selected(batch, kept, partner)


def selected(batch: Batch, kept: Tensor, kept_second: Tensor | None = None) -> Batch:
    """The batch with some of its points only; voxels without points, pairs and matches without both go.

    Args:
        batch: any.
        kept: mask of its points.
        kept_second: mask of the points of its second view; None: all.
    """
    voxels = torch.zeros(len(batch.voxel_coords), dtype=torch.bool)
    voxels[batch.point_voxel[kept]] = True
    new_point, new_voxel = kept.cumsum(0) - 1, voxels.cumsum(0) - 1
    changed: dict[str, object] = {
        "points": batch.points[kept],
        "point_sample": batch.point_sample[kept],
        "point_voxel": new_voxel[batch.point_voxel[kept]],
        "voxel_coords": batch.voxel_coords[voxels],
        "voxel_features": batch.voxel_features[voxels],
    }
    for name in ("labels", "ground"):
        value = getattr(batch, name)
        changed[name] = None if value is None else value[kept]
    smaller = dataclasses.replace(batch, **changed)  # type: ignore[arg-type]
    if batch.clusters is not None:
        smaller = with_changed(smaller, clusters={"of_point": batch.clusters.of_point[kept]})
    if batch.pairs is not None:
        renumbered = with_changed(smaller, pairs={"point": new_point[batch.pairs.point]})
        smaller = with_pairs(renumbered, kept[batch.pairs.point], first=True)
    if batch.second is None:
        return smaller
    other = torch.ones(batch.second.num_points, dtype=torch.bool) if kept_second is None else kept_second
    smaller = dataclasses.replace(smaller, second=selected(batch.second, other))
    if batch.matches is None:
        return smaller
    both = kept[batch.matches.first] & other[batch.matches.second]
    new_second = other.cumsum(0) - 1
    matches = PointMatches(first=new_point[batch.matches.first[both]], second=new_second[batch.matches.second[both]])
    return dataclasses.replace(smaller, matches=matches)


def with_pairs(batch: Batch, pairs: Tensor | slice, *, first: bool = False) -> Batch:
    """The batch with some of its pairs only.

    Args:
        batch: any.
        pairs: slice, taken of the second view's pairs too, or (with `first`) a mask.
        first: leave the second view's pairs as they are.
    """
    fewer = dataclasses.replace(batch, pairs=batch.need("pairs", by="a test").select(pairs))
    if batch.superpixels is not None:
        fewer = with_changed(fewer, superpixels={"of_pair": batch.superpixels.of_pair[pairs]})
    if first or batch.second is None or batch.second.pairs is None:
        return fewer
    return dataclasses.replace(fewer, second=with_pairs(batch.second, pairs))


def with_matches(batch: Batch, matches: Tensor | slice) -> Batch:
    """The batch with some of its matches only."""
    every = batch.need("matches", by="a test")
    return dataclasses.replace(batch, matches=PointMatches(first=every.first[matches], second=every.second[matches]))


def _some_point(batch: Batch, sample: int) -> int:
    mine = torch.nonzero(batch.point_sample == sample).flatten()
    if batch.pairs is not None:
        paired = batch.pairs.point[batch.point_sample[batch.pairs.point] == sample]
        mine = paired if len(paired) else mine
    if batch.matches is not None:
        matched = mine[torch.isin(mine, batch.matches.first)]
        mine = matched if len(matched) else mine
    return int(mine[0])


def _both(batch: Batch, change: Callable[[Batch], Batch]) -> Batch:
    changed = change(batch)
    return changed if batch.second is None else dataclasses.replace(changed, second=change(batch.second))


def _one_superpixel(batch: Batch) -> Batch:
    def change(view: Batch) -> Batch:
        if view.superpixels is None or len(view.superpixels.of_pair) == 0:
            return view
        return with_pairs(view, view.superpixels.of_pair == view.superpixels.of_pair[0], first=True)

    return _both(batch, change)


def _clusters(batch: Batch, number: int) -> Batch:
    def change(view: Batch) -> Batch:
        if view.clusters is None:
            return view
        of_point = torch.full_like(view.clusters.of_point, number)
        return with_changed(view, clusters={"of_point": of_point, "num": number + 1})

    return _both(batch, change)


def _ground(batch: Batch, value: bool) -> Batch:
    def change(view: Batch) -> Batch:
        if view.ground is None:
            return view
        return dataclasses.replace(view, ground=torch.full_like(view.ground, value))

    return _both(batch, change)


def _identical(batch: Batch) -> Batch:
    def change(view: Batch) -> Batch:
        if view.superpixels is not None and view.superpixels.features is not None:
            view = with_changed(view, superpixels={"features": torch.ones_like(view.superpixels.features)})
        return dataclasses.replace(
            view,
            voxel_features=torch.full_like(view.voxel_features, 0.5),
            images=None if view.images is None else torch.full_like(view.images, 128),
        )

    return _both(batch, change)


def _twice(batch: Batch) -> Batch:
    alone = dataclasses.replace(batch, second=None, matches=None)
    points = torch.arange(batch.num_points)
    matches = None if batch.matches is None else PointMatches(first=points, second=points)
    return dataclasses.replace(batch, second=alone, matches=matches)
