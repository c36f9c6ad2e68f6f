"""Neighbour maps made beforehand: the same results, and nothing is built again where they fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor

from data.loading.workers import Loaded, _Packed
from data.sample import Batch, first_sample
from models.lidar import sparse
from models.lidar.base import Backbone, BackboneConfig
from models.lidar.pillars import PillarsConfig
from models.lidar.prepared import MakeMaps, built, grids_of
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.sparse import known_grids
from models.lidar.spvcnn import SpvcnnConfig
from models.lidar.voxelnet import VoxelNetConfig
from tests.helpers.toy_batches import toy_points

NETWORKS: dict[str, BackboneConfig] = {
    "res16unet": Res16UNetConfig(preset="res16unet_tiny"),
    "spvcnn": SpvcnnConfig(preset="spvcnn_tiny"),
    "voxelnet": VoxelNetConfig(preset="second_tiny", grid_min=(-16, -16, -12), grid_max=(16, 16, 12)),
}
BUILDERS = ("submanifold_map", "strided_map", "bounded_map")


def voxels(counts: tuple[int, ...] = (400, 0, 300), seed: int = 0) -> Tensor:
    """Cells in the networks' box and around it, in no order."""
    g = torch.Generator().manual_seed(seed)
    parts = []
    for sample, count in enumerate(counts):
        cells = torch.unique(torch.randint(-18, 18, (count, 3), generator=g), dim=0)
        parts.append(torch.cat([torch.full((len(cells), 1), sample), cells], 1))
    coords = torch.cat(parts).int()
    return coords[torch.randperm(len(coords), generator=g)]


def batch_of(coords: Tensor, num_samples: int, second: Batch | None = None) -> Batch:
    return Batch(
        keys=tuple(map(str, range(num_samples))),
        points=torch.zeros(1, 3),
        point_sample=torch.zeros(1, dtype=torch.int64),
        point_voxel=torch.zeros(1, dtype=torch.int64),
        voxel_coords=coords,
        voxel_features=torch.ones(len(coords), 1),
        T_aug_lidar=torch.eye(4).expand(num_samples, 4, 4),
        second=second,
    )


@contextmanager
def nothing_is_built() -> Iterator[None]:
    with mock.patch.multiple(sparse, **dict.fromkeys(BUILDERS, mock.Mock(side_effect=AssertionError("built again")))):
        yield


def network(name: str) -> tuple[Backbone, MakeMaps]:
    torch.manual_seed(0)
    net = NETWORKS[name].build().eval()
    plan = net.map_plan()
    assert plan is not None
    return net, MakeMaps(plan)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_the_same_with_maps_made_beforehand_and_builds_none(name: str) -> None:
    net, make = network(name)
    coords = voxels()
    features = torch.rand(len(coords), 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = net(coords, features, 3)
        # As they come from a worker.
        loaded = _Packed(Loaded(batch=make(batch_of(coords, 3)), num_seen=3)).unpack()
        assert loaded.batch is not None
        assert loaded.batch.maps is not None
        with known_grids(grids_of(loaded.batch.maps)), nothing_is_built():
            assert torch.equal(net(coords, features, 3), expected)


def test_maps_of_other_voxels_are_not_used() -> None:
    net, make = network("res16unet")
    coords, other = voxels(), voxels(seed=1)
    features = torch.rand(len(coords), 1, generator=torch.Generator().manual_seed(1))
    maps = make(batch_of(other, 3)).maps
    assert maps is not None
    with torch.no_grad(), known_grids(grids_of(maps)):
        with pytest.raises(AssertionError, match="built again"), nothing_is_built():
            net(coords, features, 3)
        within = net(coords, features, 3)
    with torch.no_grad():
        assert torch.equal(within, net(coords, features, 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_map_comes_back_as_it_was(name: str) -> None:
    _, make = network(name)
    coords = voxels()
    maps = make(batch_of(coords, 3)).maps
    assert maps is not None
    (found,), expected = grids_of(maps), built(coords, 3, make.plan)
    for level in make.plan.levels:
        assert torch.equal(found.keys, expected.keys)
        assert torch.equal(found.coords, expected.coords)
        assert (found.stride, found.num_samples) == (expected.stride, expected.num_samples)
        pairs = [(found.same[size], expected.same[size]) for size in level.sizes]
        if level.down is not None:
            (found, a), (expected, b) = found.coarse[level.down], expected.coarse[level.down]
            pairs.append((a, b))
        for a, b in pairs:
            assert (a.counts, a.num_in, a.num_out, a.center) == (b.counts, b.num_in, b.num_out, b.center)
            assert torch.equal(a.in_rows, b.in_rows)
            assert torch.equal(a.out_rows, b.out_rows)


@pytest.mark.parametrize("counts", [(0, 0), (1,)])
def test_batches_with_next_to_no_voxels(counts: tuple[int, ...]) -> None:
    net, make = network("res16unet")
    coords = voxels(counts)
    maps = make(batch_of(coords, len(counts))).maps
    assert maps is not None
    with torch.no_grad(), known_grids(grids_of(maps)), nothing_is_built():
        assert len(net(coords, torch.ones(len(coords), 1), len(counts))) == len(coords)


def test_both_views_have_maps_apart_or_joined() -> None:
    _, make = network("res16unet")
    first, second = batch_of(voxels(), 3), batch_of(voxels(seed=1), 3)
    batch = batch_of(first.voxel_coords, 3, second)
    of_both = grids_of(make(batch).maps)  # type: ignore[arg-type]
    assert [len(grid.keys) for grid in of_both] == [len(first.voxel_coords), len(second.voxel_coords)]
    (joined,) = grids_of(MakeMaps(make.plan, joined=True)(batch).maps)  # type: ignore[arg-type]
    assert joined.num_samples == 6
    assert joined.voxels_per_sample == of_both[0].voxels_per_sample + of_both[1].voxels_per_sample
    # A second view of the images alone has the first one's cloud.
    assert len(grids_of(make(batch_of(first.voxel_coords, 3, first)).maps)) == 1  # type: ignore[arg-type]


def test_networks_without_neighbour_maps_have_no_plan() -> None:
    assert PillarsConfig().toy().build().map_plan() is None


def test_maps_do_not_outlive_a_cut_of_the_batch() -> None:
    _, make = network("res16unet")
    batch = toy_points((0, 1))
    with_maps = make(batch)
    assert with_maps.maps is not None
    assert {"maps.keys", "maps.rows"} <= with_maps.tensors().keys()
    assert first_sample(with_maps).maps is None
