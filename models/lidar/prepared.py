"""All neighbour maps of a network's pass made at once, before it: in the loader's workers, beside the training.

A network says as plain data which maps it needs (`MapPlan`). `MakeMaps` makes them for a batch and packs them into two
tensors (`Batch.maps`), which reach the training as the batch's others do; there they are `VoxelGrid`s again, and
`sparse_tensor` takes a grid that is known instead of a new one. A grid is known by its voxels, so no mistake in a plan
or on the way can give a network another voxel's neighbours: what is not there is built as without workers.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from data.sample import Batch, VoxelMaps
from models.lidar.neighbors import KernelMap, Triple, Window, unpack
from models.lidar.sparse import VoxelGrid, sparse_tensor, step_of


@dataclass(frozen=True)
class LevelPlan:
    """Maps on the voxels of one stride.

    Attributes:
        sizes: kernels of the submanifold convolutions.
        down: the strided convolution that makes the next level's voxels; None on the last.
    """

    sizes: tuple[int, ...]
    down: int | Window | None


@dataclass(frozen=True, kw_only=True)
class MapPlan:
    """Maps of one pass of a network.

    Attributes:
        levels: from the finest.
        box: lowest cell and number of cells along x, y, z; voxels outside do not enter. None: all do.
    """

    levels: tuple[LevelPlan, ...]
    box: tuple[Triple, Triple] | None = None

    @classmethod
    def halving(cls, levels: int, sizes: tuple[int, ...]) -> MapPlan:
        """The same submanifold kernels at each level, and cells of twice the edge from each to the next."""
        return cls(levels=tuple(LevelPlan(sizes, 2 if level + 1 < levels else None) for level in range(levels)))


@dataclass(frozen=True)
class _Layout:
    """What of the two tensors is what: per grid the plan, per level the voxels, and pairs by offset of each map."""

    plan: MapPlan
    num_samples: int
    voxels: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class MakeMaps:
    """Puts the maps of all passes of a step into its batch; handed to the loader, whose workers call it.

    Attributes:
        joined: both views go through the network in one pass, as `joined_coords` joins them.
    """

    plan: MapPlan
    joined: bool = False

    def __call__(self, batch: Batch) -> Batch:
        """The batch with maps.

        Raises:
            ValueError: as of `sparse_tensor`.
        """
        second, passes = batch.second, [(batch.voxel_coords, batch.num_samples)]
        if second is not None and self.joined:
            passes = [(joined_coords(batch, second), batch.num_samples + second.num_samples)]
        elif second is not None and second.voxel_coords is not batch.voxel_coords:
            passes.append((second.voxel_coords, second.num_samples))
        packed = [_packed(built(coords, num, self.plan), self.plan) for coords, num in passes]
        keys, rows, layouts = zip(*packed, strict=True)
        return replace(batch, maps=VoxelMaps(keys=torch.cat(keys), rows=torch.cat(rows, dim=1), layout=layouts))


def joined_coords(first: Batch, second: Batch) -> Int[Tensor, "M 4"]:
    """Voxels of both views as those of one batch, the second view's samples counted on from the first's."""
    shift = torch.tensor([first.num_samples, 0, 0, 0], dtype=second.voxel_coords.dtype, device=second.points.device)
    return torch.cat([first.voxel_coords, second.voxel_coords + shift])


def in_box(coords: Int[Tensor, "M 4"], low: Triple, size: Triple) -> tuple[Int[Tensor, "M_in 4"], Tensor]:
    """Voxels counted from the lowest cell of a box, those outside left out; and which of all are inside."""
    cells = coords[:, 1:] - torch.tensor(low, device=coords.device)
    inside = ((cells >= 0) & (cells < torch.tensor(size, device=coords.device))).all(dim=1)
    return torch.cat([coords[:, :1], cells], dim=1)[inside], inside


def built(coords: Int[Tensor, "M 4"], num_samples: int, plan: MapPlan) -> VoxelGrid:
    """The grid of these voxels with all maps of a plan."""
    if plan.box is not None:
        coords, _ = in_box(coords, *plan.box)
    grid = sparse_tensor(coords, torch.empty(len(coords), 0, device=coords.device), num_samples)[0].grid
    for _ in _walk(grid, plan):
        pass
    return grid


def grids_of(maps: VoxelMaps) -> tuple[VoxelGrid, ...]:
    """The grids of all passes, with their maps."""
    keys, rows, grids = maps.keys, maps.rows, []
    for layout in maps.layout:
        num = sum(layout.voxels)
        num_pairs = sum(map(sum, layout.counts))
        grids.append(_unpacked(keys[:num], rows[:, :num_pairs], layout))
        keys, rows = keys[num:], rows[:, num_pairs:]
    return tuple(grids)


def _walk(grid: VoxelGrid, plan: MapPlan) -> Iterator[tuple[VoxelGrid, list[KernelMap]]]:
    """Level by level: its voxels, and all maps on them in the plan's order."""
    for level in plan.levels:
        found, fine = [grid.submanifold_map(size) for size in level.sizes], grid
        if level.down is not None:
            grid, kernel_map = fine.coarser(level.down)
            found.append(kernel_map)
        yield fine, found


def _packed(grid: VoxelGrid, plan: MapPlan) -> tuple[Tensor, Tensor, _Layout]:
    levels = list(_walk(grid, plan))
    found = [kernel_map for _, of_level in levels for kernel_map in of_level]
    rows = torch.stack([torch.cat([m.in_rows for m in found]), torch.cat([m.out_rows for m in found])])
    voxels = tuple(len(level.keys) for level, _ in levels)
    layout = _Layout(plan, grid.num_samples, voxels, tuple(m.counts for m in found))
    return torch.cat([level.keys for level, _ in levels]), rows, layout


def _unpacked(keys: Tensor, rows: Tensor, layout: _Layout) -> VoxelGrid:
    levels = layout.plan.levels
    strides = itertools.accumulate((step_of(level.down) for level in levels[:-1]), operator.mul, initial=1)
    parts, pairs = list(keys.split(layout.voxels)), rows.split([sum(counts) for counts in layout.counts], dim=1)
    maps = list(zip(pairs, layout.counts, strict=True))
    grid: VoxelGrid | None = None
    # From the coarsest: a fine grid refers to the coarser one.
    for level, stride, part in reversed(list(zip(levels, strides, parts, strict=True))):
        coarser, num = {}, len(part)
        if level.down is not None:
            assert grid is not None
            coarser[level.down] = (grid, _kernel_map(*maps.pop(), num, len(grid.keys), None))
        same = {size: _kernel_map(*maps.pop(), num, num, size**3 // 2) for size in reversed(level.sizes)}
        grid = VoxelGrid(
            coords=unpack(part), keys=part, num_samples=layout.num_samples, stride=stride, same=same, coarse=coarser
        )
    assert grid is not None
    return grid


def _kernel_map(rows: Tensor, counts: tuple[int, ...], num_in: int, num_out: int, center: int | None) -> KernelMap:
    return KernelMap(in_rows=rows[0], out_rows=rows[1], counts=counts, num_in=num_in, num_out=num_out, center=center)
