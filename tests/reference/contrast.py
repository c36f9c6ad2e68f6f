"""Slow, obvious forms of what `models.contrast.losses` and `models.pairing` compute: loops over single numbers."""

import math

import torch
from torch import Tensor


def info_nce_loop(
    anchors: Tensor,
    targets: Tensor,
    temperature: float,
    excluded: Tensor | None = None,
    weights: Tensor | None = None,
    row_weights: Tensor | None = None,
) -> Tensor:
    """One direction, row by row. `weights` multiply the entries of the sums, `row_weights` the rows' losses."""
    losses = []
    for i in range(len(anchors)):
        denominator = torch.zeros((), dtype=anchors.dtype)
        for j in range(len(targets)):
            if excluded is not None and excluded[i, j]:
                continue
            weight = 1.0 if weights is None else weights[i, j]
            denominator = denominator + weight * torch.exp(torch.dot(anchors[i], targets[j]) / temperature)
        losses.append(torch.log(denominator) - torch.dot(anchors[i], targets[i]) / temperature)
    if row_weights is None:
        return torch.stack(losses).mean()
    return sum(w * loss for w, loss in zip(row_weights, losses, strict=True)) / row_weights.sum()


def tolerance_loop(features: Tensor, removed: float, vote_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """ST-SLidR, entry by entry: weights of entries, most similar entries of each row, weights of rows."""
    rows = len(features)
    similarity = torch.zeros(rows, rows, dtype=features.dtype)
    for i in range(rows):
        for j in range(rows):
            cosine = torch.dot(features[i], features[j]) / (features[i].norm() * features[j].norm())
            similarity[i, j] = max(float(cosine), 0.0)
    weights, most_similar = 1 - similarity.clamp(max=1), torch.zeros(rows, rows, dtype=torch.bool)
    weights.fill_diagonal_(1)
    for i in range(rows):
        others = sorted((j for j in range(rows) if j != i), key=lambda j: -similarity[i, j])
        most_similar[i, others[: int(removed * (rows - 1))]] = True
    votes = torch.stack([sum(s for s in row if s >= vote_threshold) for row in similarity])
    return weights, most_similar, 1 - (votes - votes.min()) / (votes.max() - votes.min())


def segment_mean_loop(features: Tensor, index: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """Segment by segment."""
    means, counts = [], []
    for segment in range(num_segments):
        rows = features[index == segment]
        counts.append(float(len(rows)))
        means.append(rows.mean(dim=0) if len(rows) else torch.zeros(features.shape[1], dtype=features.dtype))
    return torch.stack(means), torch.tensor(counts, dtype=features.dtype)


def bilinear_at(feature_map: Tensor, u: float, v: float, stride: float, origin_px: float) -> Tensor:
    """Feature of one pixel of one map (C, h, w)."""
    _, height, width = feature_map.shape
    x = min(max((u - origin_px) / stride, 0.0), width - 1.0)
    y = min(max((v - origin_px) / stride, 0.0), height - 1.0)
    value = torch.zeros(feature_map.shape[0], dtype=feature_map.dtype)
    for j in {math.floor(y), math.ceil(y)}:
        for i in {math.floor(x), math.ceil(x)}:
            value = value + feature_map[:, j, i] * (1 - abs(x - i)) * (1 - abs(y - j))
    return value


def upsample_loop(feature_map: Tensor, size: tuple[int, int], stride: float, origin_px: float) -> Tensor:
    """All pixels of one map."""
    rows = [
        torch.stack([bilinear_at(feature_map, u, v, stride, origin_px) for u in range(size[1])], dim=1)
        for v in range(size[0])
    ]
    return torch.stack(rows, dim=1)
