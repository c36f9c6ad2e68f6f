"""What holds for all 3D networks of the registry: one that is added there is tested here without a line more."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.lidar import pointnet2
from models.lidar.backbones import BACKBONES
from models.lidar.base import Backbone
from tests.models.lidar.test_sparse import needs_compiler, needs_spconv

SETTINGS: dict[str, dict[str, object]] = {
    "pillars": {"pillar_size_m": 0.25, "range_min_m": (-2.0, -4.0, -1.0), "range_max_m": (6.0, 4.0, 1.5)},
    "waffleiron": {"cell_m": 0.5, "range_min_m": (-4.0, -4.0, -2.0), "range_max_m": (4.0, 4.0, 2.0)},
    "voxelnet": {"grid_min": (-16, -16, -10), "grid_max": (16, 16, 14)},
}
"""Small maps about the cloud, for speed; a network that is not named is built with its own defaults."""

OTHER_PRESETS = [("pillars", "centerpoint"), ("pointnet2", "simipu_released"), ("voxelnet", "voxelbackbone8x")]
"""Of another structure than the tiny ones."""

SUMS_IN_ANOTHER_ORDER = {"pillars"}
"""These take means over points, in the order of the input: features of shuffled rows agree but for rounding."""

every_backbone = pytest.mark.parametrize("name", BACKBONES)


def tiny_preset(name: str) -> str:
    """Every family has one preset for the CPU, `*_tiny`."""
    presets = get_args(get_type_hints(BACKBONES[name])["preset"])
    return next(preset for preset in presets if preset.endswith("_tiny"))


def build(name: str, **settings: object) -> Backbone:
    torch.manual_seed(0)
    defaults = {"preset": tiny_preset(name), "in_channels": 4, **SETTINGS.get(name, {})}
    return BACKBONES[name](**(defaults | settings)).build()  # type: ignore[arg-type]


def cloud(counts: tuple[int, ...] = (150, 90)) -> tuple[Tensor, Tensor, int]:
    """Voxels of 0.25 m about the origin, in shuffled order, with a point's place and intensity in each."""
    g = torch.Generator().manual_seed(0)
    sizes = torch.tensor(counts, dtype=torch.int64)
    cell = torch.cat(
        [torch.zeros(0, dtype=torch.int64), *(torch.randperm(20 * 20 * 8, generator=g)[:n] for n in sizes)]
    )
    xyz = torch.stack([cell // 160 - 10, cell // 8 % 20 - 10, cell % 8 - 4], 1)
    coords = torch.cat([torch.arange(len(counts)).repeat_interleave(sizes)[:, None], xyz], 1).int()
    metres = 0.25 * (xyz + torch.rand(len(cell), 3, generator=g))
    features = torch.cat([metres, torch.rand(len(cell), 1, generator=g)], 1)
    shuffle = torch.randperm(len(cell), generator=g)
    return coords[shuffle], features[shuffle], len(counts)


@every_backbone
def test_every_parameter_learns_and_rows_follow_the_input(name: str) -> None:
    net = build(name)
    coords, features, num = cloud()
    out = net(coords, features, num)
    assert out.shape == (240, net.num_features)
    out.mul(torch.randn(240, 1)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    shuffle = torch.randperm(240, generator=torch.Generator().manual_seed(1))
    net.eval()
    with torch.no_grad():
        here, there = net(coords, features, num)[shuffle], net(coords[shuffle], features[shuffle], num)
    if name in SUMS_IN_ANOTHER_ORDER:
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(here, there)


@every_backbone
def test_samples_do_not_see_each_other(name: str) -> None:
    net = build(name).eval()
    coords, features, num = cloud()
    mine = coords[:, 0] == 1
    with torch.no_grad():
        alone = net(coords[mine] - torch.tensor([1, 0, 0, 0]), features[mine], 1)
        torch.testing.assert_close(net(coords, features, num)[mine], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("counts", [(1,), (0, 1), (0,), (3, 0), ()])
@pytest.mark.parametrize(("name", "preset"), [*((name, tiny_preset(name)) for name in BACKBONES), *OTHER_PRESETS])
def test_batches_with_hardly_any_voxel_train(counts: tuple[int, ...], name: str, preset: str) -> None:
    net = build(name, preset=preset)
    out = net(*cloud(counts))
    out.sum().backward()
    assert out.shape == (sum(counts), net.num_features)
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@every_backbone
def test_bf16_autocast_stays_close(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # In feature space rounding changes which centres are chosen (features then differ by a quarter): here in metres.
    monkeypatch.setattr(pointnet2, "joint_space", lambda points, features: points)
    net = build(name, **({"dropout": 0.0} if name == "spvcnn" else {}))
    coords, features, num = cloud()
    exact = net(coords, features, num)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(coords, features, num)
    assert (out.float() - exact).norm() < 0.1 * exact.norm()
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in net.parameters())


@every_backbone
def test_norms_can_be_synchronised(name: str) -> None:
    net = build(name, bn_momentum=0.02)
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    assert {m.momentum for m in norms} == {0.02}
    assert all(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in norms)
    keys = set(net.state_dict())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert {type(m) for m in synced.modules() if isinstance(m, _BatchNorm)} == {nn.SyncBatchNorm}
    assert set(synced.state_dict()) == keys


@pytest.mark.parametrize(
    "other", [pytest.param("spconv", marks=needs_spconv), pytest.param("native", marks=needs_compiler)]
)
@pytest.mark.parametrize("name", [n for n, kind in BACKBONES.items() if "backend" in get_type_hints(kind)])
def test_back_ends_give_the_same_features(name: str, other: str) -> None:
    nets = [build(name, backend=backend).eval() for backend in ("torch", other)]
    nets[1].load_state_dict(nets[0].state_dict())
    with torch.no_grad():
        a, b = (net(*cloud()) for net in nets)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in BACKBONES if n != "pillars"])  # which takes points, not voxels
def test_duplicate_voxels_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="more than once"):
        build(name)(torch.zeros(2, 4, dtype=torch.int32), torch.ones(2, 4), 1)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("preset", "none_such", "preset: got 'none_such'"),
        ("in_channels", 0, "in_channels: got 0"),
        ("bn_momentum", 0.0, "bn_momentum: got 0.0"),
        ("bn_momentum", 2.0, "bn_momentum: got 2.0"),
    ],
)
@every_backbone
def test_refused_settings(name: str, setting: str, value: object, message: str) -> None:
    # beartype (tests only) would refuse some values before the config's own check; from_dict-like callers have none.
    config = BACKBONES[name]()
    object.__setattr__(config, setting, value)
    with pytest.raises(ValueError, match=message):
        config.__post_init__()
