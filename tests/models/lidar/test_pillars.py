"""Pillars: the encoder against loops over pillars, structure, places."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from data.batch_spec import VoxelConfig
from models.lidar.base import GivesBirdEyeView
from models.lidar.pillars import PillarEncoder, Pillars, PillarsConfig
from tests.models.lidar.test_sparse import assert_same_gradients
from tests.reference import towers

LOW, HIGH, SIZE = (-4.0, -8.0, -2.0), (12.0, 8.0, 3.0), 0.5


def build(**settings: object) -> Pillars:
    torch.manual_seed(0)
    defaults: dict[str, object] = {
        "preset": "pillars_tiny",
        "pillar_size_m": SIZE,
        "range_min_m": LOW,
        "range_max_m": HIGH,
    }
    return PillarsConfig(**(defaults | settings)).build()  # type: ignore[arg-type]


def cloud(counts: tuple[int, ...] = (150, 90), seed: int = 0) -> tuple[Tensor, Tensor, int]:
    """Points in clumps, so that pillars hold several; about a tenth outside the range. Samples and features."""
    g = torch.Generator().manual_seed(seed)
    num = sum(counts)
    clumps = torch.rand(max(num // 3, 1), 3, generator=g) * torch.tensor([17.0, 17.0, 5.5]) + torch.tensor(LOW)
    xyz = clumps[torch.randint(0, len(clumps), (num,), generator=g)] + 0.2 * torch.randn(num, 3, generator=g)
    sample = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
    return sample, torch.cat([xyz, torch.rand(num, 1, generator=g)], 1), len(counts)


def coords_of(sample: Tensor) -> Tensor:
    """Voxel coordinates; only the sample counts."""
    return torch.cat([sample[:, None], torch.arange(len(sample))[:, None].expand(-1, 3)], 1).int()


@pytest.mark.parametrize("widths", [(8,), (8, 6), (8, 6, 4)])
def test_map_of_pillars_equals_loops(widths: tuple[int, ...]) -> None:
    net = build().double()
    net.pillar_encoder = PillarEncoder(9, widths, bn_momentum=0.01).double()
    g = torch.Generator().manual_seed(1)
    for layer in net.pillar_encoder.layers:
        layer.norm.running_mean.copy_(torch.randn(layer.norm.num_features, generator=g))
    net.bev_backbone = nn.Identity()
    net.eval()
    sample, points, num = cloud((60, 0, 40))
    points = points.double().requires_grad_()
    bev = net.bird_eye_view(coords_of(sample), points, num)
    assert bev.shape == (3, widths[-1], 32, 32)
    layers = list(net.pillar_encoder.layers)
    found = towers.pillar_vectors(points, sample, layers, low=LOW, high=HIGH, size=SIZE)
    assert 20 < len(found) < 100
    rows = torch.stack(list(found.values()))
    b, x, y = torch.tensor(list(found)).unbind(1)
    weights = [layer.linear.weight for layer in layers]
    assert_same_gradients(bev[b, :, y, x], rows, [points, *weights])
    empty = torch.ones(3, 32, 32, dtype=torch.bool)
    empty[b, y, x] = False
    assert not bev.movedim(1, -1)[empty].any()


def test_gradients_of_the_encoder() -> None:
    encoder = PillarEncoder(5, (6, 4), bn_momentum=0.01).double()
    points = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pillar = torch.tensor([0, 1, 1, 2, 2, 2, 0, 3, 3, 1, 2, 0])
    assert torch.autograd.gradcheck(lambda p: encoder(p, pillar, 4), (points,))


def test_published_size() -> None:
    """4.83 M: with 27,720 for the anchor head of three KITTI classes, the figure of PointPillars' ports."""
    with torch.device("meta"):
        net = PillarsConfig().build()
    count = sum(p.numel() for p in net.parameters())
    assert count == 4_806_400 + 9 * 64 + 2 * 64
    assert round((count + 27_720) / 1e6, 2) == 4.83
    assert net.num_features == 384
    assert PillarsConfig().num_pillars == (432, 496)


def test_map_strides() -> None:
    for preset, cells in (("pointpillars", 16), ("centerpoint", 8), ("centerpoint_waymo", 32), ("pillars_tiny", 16)):
        net = build(preset=preset).eval()
        sample, points, num = cloud()
        with torch.no_grad():
            assert net.bird_eye_view(coords_of(sample), points, num).shape == (2, net.num_features, cells, cells)
        assert isinstance(net, GivesBirdEyeView)
        assert (net.bird_eye_grid.size, net.bird_eye_grid.low_m) == ((cells, cells), LOW[:2])
        assert net.bird_eye_grid.high_m == HIGH[:2]


def test_points_read_the_map_at_their_place() -> None:
    net = build()
    ramp = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="xy"))[None]
    net._map = lambda *_: ramp  # type: ignore[method-assign]
    # The map's cell (i, j) lies on the centre of pillar (2 i, 2 j).
    points = torch.tensor(
        [[-3.75, -7.75, 0, 0], [-3.75 + 2 * SIZE * 3, -7.75 + 2 * SIZE * 5.5, 0, 0], [99.0, -99, 0, 0]]
    )
    out = net(torch.zeros(3, 4, dtype=torch.int32), points, 1)
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0], [3.0, 5.5], [15.0, 0.0]]))


def test_points_outside_do_not_enter_and_copies_change_no_maximum() -> None:
    net = build().eval()
    sample, points, num = cloud((80,))
    far = torch.tensor([[500.0, 0, 0, 1e6], [0, 0, 100.0, 1e6]])
    with torch.no_grad():
        alone = net.bird_eye_view(coords_of(sample), points, num)
        more = net.bird_eye_view(coords_of(torch.cat([sample, sample[:2]])), torch.cat([points, far]), num)
        doubled = net.bird_eye_view(coords_of(sample.repeat(2)), points.repeat(2, 1), num)
        out = net(coords_of(sample[:2]), far, num)
    assert torch.equal(alone, more)
    torch.testing.assert_close(alone, doubled, rtol=1e-4, atol=1e-5)
    assert out.isfinite().all()


Voxels = functools.partial(
    VoxelConfig,
    features="xyz_intensity",
    kind="cartesian",
    size=(0.08, 0.08, 0.1),
    range_min=(0.0, -39.68, -3.0),
    range_max=(69.12, 39.68, 1.0),
)


def test_voxels_must_hold_coordinates_inside_the_range() -> None:
    config = PillarsConfig()
    config.check_voxels(Voxels())
    config.check_voxels(Voxels(range_min=(1.0, -10.0, -2.0)))
    for voxels, message in (
        (Voxels(features="intensity"), r"'intensity': set data.voxel.features=xyz_intensity"),
        (Voxels(kind="cylindrical"), "got data.voxel.kind='cylindrical'"),
        (
            Voxels(range_min=None, range_max=None),
            r"range_max=None: set data.voxel.kind=cartesian, .*=\[0.0, -39.68, -3.0\]",
        ),
        (Voxels(range_max=(69.12, 39.68, 2.0)), "would train on the features of its rim"),
        (Voxels(range_min=(0.0, -40.0, -3.0)), "would train on the features of its rim"),
    ):
        with pytest.raises(ValueError, match=message):
            config.check_voxels(voxels)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("in_channels", 2, "in_channels: got 2, expected at least 3"),
        ("pillar_size_m", 0.0, "pillar_size_m: got 0.0"),
        ("pillar_size_m", 0.15, "holds 460.8 pillars of 0.15 m along x, expected a multiple of 8"),
        (
            "range_max_m",
            (69.12, 40.0, 1.0),
            "along y, expected a multiple of 8: change the range to a multiple of 1.28",
        ),
        ("range_max_m", (69.12, 39.68, -3.0), "expected below range_max_m"),
    ],
)
def test_refused_settings(name: str, value: object, message: str) -> None:
    config = PillarsConfig()
    object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=message):
        config.__post_init__()
