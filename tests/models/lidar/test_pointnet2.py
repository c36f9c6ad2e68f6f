"""PointNet++: its layers against loops over points, its samplers, structure."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor, nn

from data.batch_spec import VoxelConfig
from models.lidar.ball_pooling import PointSet, Scale
from models.lidar.base import GivesCentres
from models.lidar.pointnet2 import (
    AbstractionLayout,
    FeaturePropagation,
    PointNet2,
    PointNet2Config,
    SetAbstraction,
    sample_centres,
)
from tests.models.lidar.test_sparse import assert_same_gradients
from tests.reference import towers

SCALES = (Scale(0.5, 4, (6, 5)), Scale(1.5, 8, (4,)))


def point_set(counts: tuple[int, ...], channels: int = 2, seed: int = 0) -> tuple[PointSet, Tensor]:
    """Points in a box of 2 m, float64 with gradient, and the sample of each."""
    g = torch.Generator().manual_seed(seed)
    num = sum(counts)
    points = (2 * torch.rand(num, 3, generator=g, dtype=torch.float64)).requires_grad_()
    features = torch.randn(num, channels, generator=g, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor(counts, dtype=torch.int64)
    return PointSet(points, features, sizes), torch.arange(len(counts)).repeat_interleave(sizes)


def settled(module: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with statistics that are not those of a fresh network."""
    g = torch.Generator().manual_seed(5)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.running_mean.copy_(0.3 * torch.randn(m.num_features, generator=g))
            m.running_var.copy_(0.5 + torch.rand(m.num_features, generator=g))
    return module.double().eval()


# ---- layers


@pytest.mark.parametrize(
    ("counts", "offsets"), [((30, 0, 20), True), ((30, 0, 20), False), ((1,), True), ((3, 2), True)]
)
def test_set_abstraction_equals_loops(counts: tuple[int, ...], offsets: bool) -> None:
    torch.manual_seed(0)
    layout = AbstractionLayout(samplers=(("D-FPS", 6),), scales=SCALES, offsets=offsets)
    layer = settled(SetAbstraction(2, layout, bn_momentum=0.1))
    x, sample = point_set(counts)
    out = layer(x)
    assert out.counts.tolist() == [min(6, n) for n in counts]
    chosen, start = [], 0
    for n in counts:
        chosen += [start + i for i in towers.farthest_rows(x.points[start : start + n].detach(), 0, 6)] if n else []
        start += n
    assert torch.equal(out.points, x.points[chosen])
    scales = [(s.radius_m, s.neighbors, network) for s, network in zip(SCALES, layer.networks, strict=True)]
    expected = towers.set_abstraction(x.points, x.features, sample, chosen, scales, offsets=offsets)
    weights = [p for p in layer.parameters() if p.ndim == 2]
    leaves = [x.features, *weights] if sum(counts) == 1 or not offsets else [x.points, x.features, *weights]
    assert_same_gradients(out.features, expected, leaves)


@pytest.mark.parametrize("counts", [((4, 0, 3), (12, 0, 9)), ((1,), (5,)), ((2, 2), (2, 2))])
def test_feature_propagation_equals_loops(counts: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    layer = settled(FeaturePropagation((2 + 3, 6, 4), bn_momentum=0.1))
    (coarse, of_coarse), (fine, of_fine) = point_set(counts[0]), point_set(counts[1], channels=3, seed=1)
    spread = towers.three_nearest(coarse.points, coarse.features, of_coarse, fine.points, of_fine)
    expected = layer.layers(torch.cat([spread, fine.features], 1))
    assert_same_gradients(layer(coarse, fine), expected, [coarse.features, fine.features, *layer.parameters()][:3])


def test_gradients() -> None:
    torch.manual_seed(0)
    layout = AbstractionLayout(samplers=(("D-FPS", 3),), scales=SCALES, out=3)
    down = settled(SetAbstraction(2, layout, bn_momentum=0.1))
    up = settled(FeaturePropagation((3 + 2, 4), bn_momentum=0.1))
    x, _ = point_set((7, 4))
    # Interpolation has no gradient in coordinates: they stay still (gradcheck moves its inputs in place).
    places, finer_places = down(x).points.detach(), x.points.detach().clone()

    def through(points: Tensor, features: Tensor) -> Tensor:
        fine = PointSet(points, features, x.counts)
        coarse = down(fine)
        still = PointSet(places, coarse.features, coarse.counts)
        return up(still, PointSet(finer_places, features, x.counts))

    assert torch.autograd.gradcheck(through, (x.points, x.features))


def test_samplers_choose_in_turn_and_nothing_twice() -> None:
    x, sample = point_set((20, 3, 0, 9))
    chosen, counts = sample_centres(x, (("F-FPS", 4), ("D-FPS", 5)))
    assert counts.tolist() == [9, 3, 0, 9]
    assert len(set(chosen.tolist())) == len(chosen)
    assert sample[chosen].tolist() == sorted(sample[chosen].tolist())
    points, features = x.points[:20].detach(), x.features[:20].detach()
    by_feature = towers.farthest_rows(torch.cat([points, features], 1), 0, 4)
    assert chosen[:4].tolist() == by_feature
    left = [i for i in range(20) if i not in by_feature]
    assert chosen[4:9].tolist() == [left[i] for i in towers.farthest_rows(points[left], 0, 5)]


# ---- networks


def build(preset: str = "pointnet2_tiny") -> PointNet2:
    torch.manual_seed(0)
    return PointNet2Config(preset=preset).build()  # type: ignore[arg-type]


def cloud(counts: tuple[int, ...] = (300, 150), seed: int = 0) -> tuple[Tensor, Tensor, int]:
    """Voxels of 0.25 m with the place of a point in each."""
    g = torch.Generator().manual_seed(seed)
    sample = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    cells = [torch.randperm(20 * 20 * 8, generator=g)[:n] for n in counts]
    cell = torch.cat([*cells, torch.zeros(0, dtype=torch.int64)])
    xyz = torch.stack([cell // 160 - 10, cell // 8 % 20 - 10, cell % 8 - 4], 1)
    metres = 0.25 * (xyz + torch.rand(len(cell), 3, generator=g))
    features = torch.cat([metres, torch.rand(len(cell), 1, generator=g)], 1)
    return torch.cat([sample[:, None], xyz], 1).int(), features, len(counts)


def test_published_layout() -> None:
    """The layers of PointNet2MSG as its configuration lists them: inputs, widths; without biases, with BatchNorms."""
    down = [
        [(4, 16, 16, 32), (4, 32, 32, 64)],
        [(99, 64, 64, 128), (99, 64, 96, 128)],
        [(259, 128, 196, 256), (259, 128, 196, 256)],
        [(515, 256, 256, 512), (515, 256, 384, 512)],
    ]
    up = [(1536, 512, 512), (768, 512, 512), (608, 256, 256), (257, 128, 128)]
    chains = [chain for level in down for chain in level] + up
    expected = sum(a * b + 2 * b for chain in chains for a, b in itertools.pairwise(chain))
    with torch.device("meta"):
        net = build("pointrcnn")
    assert sum(p.numel() for p in net.parameters()) == expected == 3_007_632
    assert net.num_features == 128


def test_simipus_released_layout() -> None:
    """Widths of its configuration, `use_xyz=False`: the first layer sees intensity alone."""
    balls = [
        [(1, 32, 32, 64), (1, 32, 32, 64), (1, 64, 64, 128)],
        [(128, 64, 64, 128), (128, 64, 64, 128), (128, 128, 128, 256)],
        [(256, 128, 128, 256), (256, 128, 128, 256), (256, 256, 256, 512)],
    ]
    chains = [chain for level in balls for chain in level] + [(256, 128), (512, 256), (1024, 1024)]
    with torch.device("meta"):
        net = build("simipu_released")
    numbers = sum(a * b + 2 * b for chain in chains for a, b in itertools.pairwise(chain))
    assert sum(p.numel() for p in net.parameters()) == numbers
    found = [
        tuple(layer.linear.in_features for layer in chain) for level in net.abstraction for chain in level.networks
    ]
    assert found == [chain[:-1] for level in balls for chain in level]
    with pytest.raises(ValueError, match=r"in_channels: got 3, expected at least 4 .*simipu_released looks at"):
        PointNet2Config(preset="simipu_released", in_channels=3)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["simipu", "simipu_released"])
def test_simipu_ends_in_1024_centres_of_1024_channels(preset: str) -> None:
    net = build(preset).eval()
    _, features, _ = cloud((2100,))
    with torch.no_grad():
        levels = net.encode(PointSet(features[:, :3], features[:, 3:], torch.tensor([2100])))
        out = net.decode(levels)
    assert [level.features.shape for level in levels[1:]] == [(2100, 128), (2048, 256), (1024, 1024)]
    assert out.shape == (2100, net.num_features) == (2100, net.num_centre_features)
    assert len(set(map(tuple, levels[-1].points.tolist()))) == 1024


def test_a_shift_of_the_world_changes_nothing() -> None:
    net = build().double().eval()
    coords, features, num = cloud()
    with torch.no_grad():
        here = net(coords, features.double(), num)
        there = net(coords, features.double() + torch.tensor([64.0, -32.0, 8.0, 0.0]), num)
    torch.testing.assert_close(here, there)


def test_points_at_one_place() -> None:
    net = build()
    coords, features, num = cloud((40, 7))
    features = torch.ones_like(features)
    out = net(coords, features, num)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    torch.testing.assert_close(out, out[:1].expand_as(out))


def test_refused_input() -> None:
    coords, features, num = cloud((5,))
    features[2, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        build()(coords, features, num)


Voxels = functools.partial(VoxelConfig, kind="cylindrical", size=(0.1, 1.0, 0.1))


def test_voxels_must_hold_coordinates() -> None:
    PointNet2Config().check_voxels(Voxels(features="xyz_intensity"))
    with pytest.raises(ValueError, match=r"got data.voxel.features='occupancy': set data.voxel.features=xyz_intensity"):
        PointNet2Config().check_voxels(Voxels(features="occupancy"))


def test_coordinates_are_needed() -> None:
    with pytest.raises(ValueError, match="in_channels: got 1"):
        PointNet2Config(in_channels=1)


def test_centres_are_the_coarsest_level() -> None:
    torch.manual_seed(0)
    network = PointNet2Config(preset="pointnet2_tiny").build()
    cells = torch.stack(torch.meshgrid(*[torch.arange(6)] * 3, indexing="ij"), dim=-1).view(-1, 3)
    coords = torch.cat([torch.cat([torch.full((len(cells), 1), n), cells], dim=1) for n in (0, 2)]).int()
    features = torch.cat([0.3 * coords[:, 1:].float(), torch.rand(len(coords), 1)], dim=1)
    points, values, counts = network.eval()(coords, features, 3, centres=True)
    assert counts.tolist() == [64, 0, 64]
    assert values.shape == (128, network.num_centre_features)
    assert isinstance(network, GivesCentres)
    # Each centre is one of the voxels of its sample, and no two are the same.
    rows = (points[:, None] == features[None, :, :3]).all(dim=2)
    assert (rows.sum(dim=1) == 2).all()  # both samples have the same places here
    assert len(torch.unique(points[:64], dim=0)) == 64
