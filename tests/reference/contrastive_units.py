"""Contrastive units the slow and obvious way: one unit, one point, one pixel at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from data.sample import Batch
from models.methods.contrastive_units import ContrastiveUnitsConfig
from tests.reference.contrast import bilinear_at, info_nce_loop
from tests.reference.points import farthest_loop, neighbors_loop

Unit = list[list[int]]
"""Groups of points: a unit is the mean over groups of the mean over a group's points."""


def units_loop(batch: Batch, config: ContrastiveUnitsConfig) -> list[Unit]:
    """Units with farthest point sampling, sample by sample."""
    usable = set(range(batch.num_points))
    spec = config.batch_spec()
    if spec.ground is not None:
        usable -= set(torch.nonzero(batch.ground).flatten().tolist())
    if config.uses_images:
        usable &= set(batch.pairs.point.tolist())
    if config.uses_views:
        usable &= set(batch.matches.first.tolist())
    points = batch.points.double().numpy()
    groups: list[tuple[int, list[int]]] = []  # sampled point, points around it
    for sample in range(batch.num_samples):
        rows = [p for p in sorted(usable) if batch.point_sample[p] == sample]
        if not rows:
            continue
        pillars: set[tuple[int, int]] = set()
        for place in farthest_loop(points[rows][:, :2], config.num_units, 0):
            if config.context == "knn":
                near = neighbors_loop(points[rows[place]], points[rows])[: config.num_neighbors]
                groups.append((rows[place], [rows[i] for _, i in near]))
            elif config.context == "pillar":
                cell = _cell(points[rows[place]], config.pillar_m)
                if cell not in pillars:
                    pillars.add(cell)
                    groups.append((rows[place], [p for p in rows if _cell(points[p], config.pillar_m) == cell]))
            else:
                groups.append((rows[place], [rows[place]]))
    units: dict[tuple[str, int], Unit] = {}
    for number, (center, group) in enumerate(groups):
        cluster = -1 if spec.clusters is None else int(batch.clusters.of_point[center])
        units.setdefault(("alone", number) if cluster < 0 else ("cluster", cluster), []).append(group)
    return list(units.values())


def _cell(point: np.ndarray, pillar_m: float) -> tuple[int, int]:
    return math.floor(point[0] / pillar_m), math.floor(point[1] / pillar_m)


def unit_mean(units: list[Unit], feature: dict[int, Tensor]) -> Tensor:
    """Mean over groups of means over points."""
    return torch.stack(
        [torch.stack([torch.stack([feature[p] for p in group]).mean(0) for group in unit]).mean(0) for unit in units]
    )


def pixel_features_loop(batch: Batch, maps: Tensor, stride: float, origin_px: float) -> dict[int, Tensor]:
    """Feature of each seen point: mean over its pixels."""
    seen: dict[int, list[Tensor]] = {}
    for point, image, (u, v) in zip(
        batch.pairs.point.tolist(), batch.pairs.image.tolist(), batch.pairs.uv.tolist(), strict=True
    ):
        seen.setdefault(point, []).append(bilinear_at(maps[image], u, v, stride, origin_px))
    return {point: torch.stack(values).mean(0) for point, values in seen.items()}


def excluded_loop(features: Tensor, num_negatives: int) -> Tensor:
    """All but a unit's own entry and those of the least similar others."""
    rows = [row / row.norm() for row in features]
    excluded = torch.ones(len(rows), len(rows), dtype=torch.bool)
    for i in range(len(rows)):
        others = sorted((j for j in range(len(rows)) if j != i), key=lambda j: float(torch.dot(rows[i], rows[j])))
        for j in [i, *others[:num_negatives]]:
            excluded[i, j] = False
    return excluded


def loss_loop(first: Tensor, second: Tensor, temperature: float, excluded: Tensor | None) -> Tensor:
    """Both directions, each with the anchor's own set of negatives."""
    return 0.5 * (
        info_nce_loop(first, second, temperature, excluded) + info_nce_loop(second, first, temperature, excluded)
    )
