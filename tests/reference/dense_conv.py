"""Sparse convolutions by way of dense grids: slow, obvious, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _box(coords: Tensor) -> tuple[Tensor, list[int]]:
    """Low corner (even, one cell of margin at least) and even size of a grid around all voxels."""
    low = (coords[:, 1:].amin(0).long() - 2) // 2 * 2
    high = coords[:, 1:].amax(0).long() + 4
    size = (high - low + 1) // 2 * 2
    return low, size.tolist()


def _dense(coords: Tensor, values: Tensor, low: Tensor, size: list[int], num_samples: int) -> Tensor:
    grid = values.new_zeros(num_samples, *size, values.shape[1])
    c = coords.long()
    x, y, z = (c[:, 1:] - low).unbind(1)
    grid = grid.index_put((c[:, 0], x, y, z), values)
    return grid.permute(0, 4, 1, 2, 3)


def _read(grid: Tensor, coords: Tensor, low: Tensor) -> Tensor:
    c = coords.long()
    x, y, z = (c[:, 1:] - low).unbind(1)
    return grid.permute(0, 2, 3, 4, 1)[c[:, 0], x, y, z]


def dense_weight(weight: Tensor, size: int) -> Tensor:
    """[K, C_in, C_out] with x fastest -> conv3d's [C_out, C_in, x, y, z]."""
    return weight.view(size, size, size, *weight.shape[1:]).permute(4, 3, 2, 1, 0)


def submanifold(coords: Tensor, features: Tensor, weight: Tensor, size: int, num_samples: int) -> Tensor:
    """Dense convolution with padding, read at the input voxels."""
    low, shape = _box(coords)
    grid = _dense(coords, features, low, shape, num_samples)
    return _read(F.conv3d(grid, dense_weight(weight, size), padding=size // 2), coords, low)


def strided(coords: Tensor, features: Tensor, weight: Tensor, size: int, num_samples: int) -> tuple[Tensor, Tensor]:
    """Dense convolution of stride 2; output voxels (sorted) are the cells that see at least one input voxel."""
    low, shape = _box(coords)
    padding = 0 if size == 2 else 1
    grid = _dense(coords, features, low, shape, num_samples)
    out = F.conv3d(grid, dense_weight(weight, size), stride=2, padding=padding)
    occupied = _dense(coords, torch.ones_like(features[:, :1]), low, shape, num_samples)
    seen = F.conv3d(occupied, occupied.new_ones(1, 1, size, size, size), stride=2, padding=padding)[:, 0]
    cells = (seen > 0).nonzero()
    out_coords = cells.clone()
    out_coords[:, 1:] += low // 2
    return out_coords, _read(out, out_coords, low // 2)


def transposed(coarse: Tensor, features: Tensor, weight: Tensor, size: int, fine: Tensor, num_samples: int) -> Tensor:
    """Dense transposed convolution of stride 2, read at the fine voxels."""
    low, shape = _box(fine)
    grid = _dense(coarse, features, low // 2, [s // 2 for s in shape], num_samples)
    kernel = dense_weight(weight, size).transpose(0, 1)
    padding = 0 if size == 2 else 1
    out = F.conv_transpose3d(grid, kernel, stride=2, padding=padding, output_padding=padding)
    return _read(out, fine, low)


def bounded(
    coords: Tensor,
    features: Tensor,
    weight: Tensor,
    num_samples: int,
    *,
    size: tuple[int, int, int],
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """Dense convolution of a box with corner 0; output voxels (sorted) are the cells that see an input voxel."""
    low, shape = torch.zeros(3, dtype=torch.long), list(size)
    x, y, z = kernel
    dense = weight.view(z, y, x, *weight.shape[1:]).permute(4, 3, 2, 1, 0)
    out = F.conv3d(_dense(coords, features, low, shape, num_samples), dense, stride=stride, padding=padding)
    occupied = _dense(coords, torch.ones_like(features[:, :1]), low, shape, num_samples)
    seen = F.conv3d(occupied, occupied.new_ones(1, 1, *kernel), stride=stride, padding=padding)[:, 0]
    cells = (seen > 0).nonzero()
    return cells, _read(out, cells, low)
