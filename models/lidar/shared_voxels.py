"""Sparse heads on the features of a 3D network: on the same voxels, with the same neighbour maps.

Letters: M voxels, N points, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from models.lidar.sparse import VoxelGrid, known_grids, sparse_tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedVoxels:
    """Voxels whose neighbour maps several networks share, see `sharing_maps`.

    Attributes:
        grid: the voxels, sorted.
        order: row of the grid of each of the caller's rows; None: the same.
    """

    grid: VoxelGrid
    order: Int64[Tensor, " M"] | None

    def sorted(self, features: Float[Tensor, "M C"]) -> Float[Tensor, "M C"]:
        """Features in the caller's order in the grid's."""
        return features if self.order is None else torch.empty_like(features).index_copy(0, self.order, features)

    def rows(self, features: Float[Tensor, "M C"]) -> Float[Tensor, "M C"]:
        """Features in the grid's order in the caller's."""
        return features if self.order is None else features[self.order]

    def point_rows(self, point_voxel: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Row of the grid of each point, from its row among the caller's."""
        return point_voxel if self.order is None else self.order[point_voxel]


@contextmanager
def sharing_maps(coords: Int[Tensor, "M 4"], num_samples: int) -> Iterator[SharedVoxels]:
    """While inside, networks on these voxels and heads on their features build each neighbour map once.

    Raises:
        ValueError: see `sparse_tensor`.
    """
    x, order = sparse_tensor(coords, torch.empty(len(coords), 0, device=coords.device), num_samples)
    with known_grids((x.grid,)):
        yield SharedVoxels(grid=x.grid, order=order)
