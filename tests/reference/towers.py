"""Parts of 3D networks by loops over every voxel and every cell."""

from __future__ import annotations

import torch
from torch import Tensor


def devoxelize(coarse: Tensor, features: Tensor, fine: Tensor, factor: int, half: float = 0.5) -> Tensor:
    """Hat functions of all coarse cells at the centre of each fine voxel, over their sum; `half` 0: at low corners."""
    rows = []
    for voxel in fine:
        total, weight = torch.zeros_like(features[0]), 0.0
        for cell, value in zip(coarse, features, strict=True):
            if cell[0] != voxel[0]:
                continue
            hat = 1.0
            for axis in (1, 2, 3):
                distance = abs((int(voxel[axis]) + half) - (int(cell[axis]) + half) * factor) / factor
                hat *= max(0.0, 1.0 - distance)
            total, weight = total + hat * value, weight + hat
        rows.append(total / weight)
    return torch.stack(rows)


def voxel_means(coarse: Tensor, features: Tensor, fine: Tensor, factor: int) -> Tensor:
    """Mean over the fine voxels inside each coarse one."""
    rows = []
    for cell in coarse.tolist():
        inside = [i for i, v in enumerate(fine.tolist()) if [v[0], *(c // factor for c in v[1:])] == cell]
        rows.append(features[inside].mean(0))
    return torch.stack(rows)


def pillar_vectors(
    points: Tensor, sample: Tensor, layers: list, *, low: tuple, high: tuple, size: float
) -> dict[tuple[int, int, int], Tensor]:
    """Vector of each (sample, x, y) pillar: its points decorated, run through the layers, channel-wise maximum.

    `layers` are functions of rows; between two of them each point gets its pillar's maxima appended.
    """
    pillars: dict[tuple[int, int, int], list[Tensor]] = {}
    for b, point in zip(sample.tolist(), points, strict=True):
        place = point[:3].tolist()
        if all(low[i] <= place[i] < high[i] for i in range(3)):
            cell = (b, int((place[0] - low[0]) // size), int((place[1] - low[1]) // size))
            pillars.setdefault(cell, []).append(point)
    out = {}
    for cell, members in pillars.items():
        mean = torch.stack(members).mean(0)
        centre = torch.tensor([low[i] + (cell[1 + i] + 0.5) * size for i in (0, 1)], dtype=points.dtype)
        rows = torch.stack([torch.cat([p, p[:3] - mean[:3], p[:2] - centre]) for p in members])
        for number, layer in enumerate(layers):
            rows = layer(rows)
            largest = rows.max(0).values
            if number < len(layers) - 1:
                rows = torch.cat([rows, largest.expand(len(rows), -1)], 1)
        out[cell] = largest
    return out


def set_abstraction(
    points: Tensor, features: Tensor, sample: Tensor, centres: list[int], scales: list[tuple], *, offsets: bool = True
) -> Tensor:
    """Multi-scale grouping: for each centre and each (radius, k, network), maxima over the ball's first k points.

    The network sees a point's offset to the centre and its features; without `offsets` its features alone.
    """
    rows = []
    for q in centres:
        parts = []
        for radius, k, network in scales:
            ball = [
                n
                for n in range(len(points))
                if sample[n] == sample[q] and float((points[n] - points[q]).detach().norm()) < radius
            ][:k]
            seen = [torch.cat([points[n] - points[q], features[n]]) if offsets else features[n] for n in ball]
            values = [network(row[None])[0] for row in seen]
            parts.append(torch.stack(values).max(0).values)
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def three_nearest(points: Tensor, features: Tensor, sample: Tensor, queries: Tensor, query_sample: Tensor) -> Tensor:
    """Mean over the three nearest points, weighted by inverse squared distance."""
    rows = []
    for query, b in zip(queries, query_sample.tolist(), strict=True):
        own = [n for n in range(len(points)) if int(sample[n]) == b]
        far = {n: float((points[n] - query).detach().norm()) for n in own}
        nearest = sorted(own, key=lambda n: far[n])[:3]
        weight = [1 / (far[n] ** 2 + 1e-8) for n in nearest]
        rows.append(sum(w * features[n] for w, n in zip(weight, nearest, strict=True)) / sum(weight))
    return torch.stack(rows)


def farthest_rows(rows: Tensor, start: int, num: int) -> list[int]:
    """Greedy: always the row whose nearest chosen row is farthest."""
    chosen = [start]
    while len(chosen) < min(num, len(rows)):
        nearest = torch.stack([(rows - rows[c]).norm(dim=1) for c in chosen]).min(0).values
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen
