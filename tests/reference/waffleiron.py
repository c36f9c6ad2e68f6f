"""WaffleIron's parts point by point and cell by cell, in double."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normalised(norm: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    """BatchNorm in training mode over rows, or LayerNorm of each."""
    if isinstance(norm, nn.LayerNorm):
        spread = [(r - r.mean()) / (((r - r.mean()) ** 2).mean() + norm.eps).sqrt() for r in rows]
    else:
        mean = sum(rows) / len(rows)
        var = sum((r - mean) ** 2 for r in rows) / len(rows)
        spread = [(r - mean) / (var + norm.eps).sqrt() for r in rows]
    return [r * norm.weight + norm.bias for r in spread]


def depthwise(grid: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3 x 3 convolution of each channel with its own kernel: [C, H, W] -> the same, zeros outside."""
    channels, height, width = grid.shape
    out = torch.empty_like(grid)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                total = conv.bias[c].clone()
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if 0 <= y + dy < height and 0 <= x + dx < width:
                            total = total + conv.weight[c, 0, dy + 1, dx + 1] * grid[c, y + dy, x + dx]
                out[c, y, x] = total
    return out


def spatial_mix(mix: nn.Module, tokens: Tensor, cells: list[tuple[int, int, int]], shape: tuple[int, int]) -> Tensor:
    """tokens + scale * inflate(conv(relu(conv(flatten(norm(tokens)))))); cells are (sample, row, column)."""
    rows = normalised(mix.norm, list(tokens))
    planes = {}
    for sample in {cell[0] for cell in cells}:
        plane = torch.zeros(tokens.shape[1], *shape, dtype=tokens.dtype)
        for place in {cell[1:] for cell in cells if cell[0] == sample}:
            inside = [row for row, cell in zip(rows, cells, strict=True) if cell == (sample, *place)]
            plane[:, place[0], place[1]] = sum(inside) / len(inside)
        planes[sample] = depthwise(depthwise(plane, mix.conv1).clamp(min=0), mix.conv2)
    found = [planes[sample][:, y, x] for sample, y, x in cells]
    return torch.stack([t + mix.scale * change for t, change in zip(tokens, found, strict=True)])


def channel_mix(mix: nn.Module, tokens: Tensor) -> Tensor:
    """tokens + scale * (W2 relu(W1 norm(tokens) + b1) + b2)."""
    out = []
    for token, row in zip(tokens, normalised(mix.norm, list(tokens)), strict=True):
        hidden = (mix.linear1.weight @ row + mix.linear1.bias).clamp(min=0)
        out.append(token + mix.scale * (mix.linear2.weight @ hidden + mix.linear2.bias))
    return torch.stack(out)


def embedding(embed: nn.Module, inputs: Tensor, places: Tensor, sample: list[int]) -> Tensor:
    """Of each point: its own features, and the maximum over its nearest neighbours' differences from it."""
    x = normalised(embed.input_norm, list(inputs))
    neighbors = []
    for i, place in enumerate(places):
        others = [j for j in range(len(x)) if sample[j] == sample[i] and j != i]
        others.sort(key=lambda j, place=place: float((places[j] - place).norm()))
        neighbors.append(others[: embed.num_neighbors])
    differences = [x[j] - x[i] for i, around in enumerate(neighbors) for j in around]
    hidden = [embed.neighbor_in.weight @ d for d in normalised(embed.difference_norm, differences)]
    values = [embed.neighbor_out.weight @ h.clamp(min=0) for h in normalised(embed.neighbor_norm, hidden)]
    out, start = [], 0
    for row, around in zip(x, neighbors, strict=True):
        largest = torch.stack(values[start : start + len(around)]).max(dim=0).values
        start += len(around)
        own = embed.own.weight @ row + embed.own.bias
        out.append(embed.join.weight @ torch.cat([own, largest]) + embed.join.bias)
    return torch.stack(out)
