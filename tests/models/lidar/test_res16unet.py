"""Res16UNet: structure, rows, degenerate batches."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from models.lidar.res16unet import Res16UNetConfig
from tests.models.lidar.test_sparse import scene


def cloud(counts: tuple[int, ...] = (120, 80), seed: int = 0) -> tuple[Tensor, Tensor, int]:
    coords, features, num = scene(counts, channels=1, seed=seed)
    return coords, features.float(), num


@pytest.mark.parametrize(
    ("preset", "convolutions", "shortcuts", "parameters"),
    [
        ("res16unet34c", 62, 7, 37_842_976),
        ("res16unet18", 48, 7, 21_691_168),
        ("res16unet_tiny", 33, 8, 1_676_752),
        ("minkunet34", 63, 7, 37_870_688),
        ("minkunet18", 49, 7, 21_718_880),
    ],
)
def test_structure(preset: str, convolutions: int, shortcuts: int, parameters: int) -> None:
    net = Res16UNetConfig(preset=preset).build()  # type: ignore[arg-type]
    weights = [p for p in net.parameters() if p.ndim > 1]
    assert len(weights) == convolutions
    assert sum(isinstance(m, nn.BatchNorm1d) for m in net.modules()) == convolutions
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert sum(p.shape[0] == 1 for p in weights) == shortcuts
    if preset == "minkunet18":  # SegContrast's network has four input channels
        assert round((parameters + 3 * 27 * 32) / 1e6, 2) == 21.72
    if preset == "res16unet34c":
        assert net.num_features == 96
        head = nn.Linear(96, 64)  # completes the published network: 63 kernels, 37.85 M
        assert round((parameters + sum(p.numel() for p in head.parameters())) / 1e6, 2) == 37.85


def test_every_parameter_learns_and_rows_follow_the_input() -> None:
    net = Res16UNetConfig(preset="res16unet_tiny").build()
    coords, features, num = cloud()
    out = net(coords, features, num)
    assert out.shape == (200, net.num_features)
    out.square().mul(torch.rand(200, 1)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    shuffle = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(coords, features, num)[shuffle], net(coords[shuffle], features[shuffle], num))


def test_shift_by_the_total_stride_changes_nothing() -> None:
    net = Res16UNetConfig(preset="res16unet_tiny").build().eval()
    coords, features, num = cloud()
    with torch.no_grad():
        here, there = (net(coords + torch.tensor([0, 16, -32, 48]) * i, features, num) for i in (0, 1))
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("counts", [(1,), (0, 1), (0,), (3, 0)])
def test_batches_with_hardly_any_voxel_train(counts: tuple[int, ...]) -> None:
    net = Res16UNetConfig(preset="res16unet_tiny").build()
    coords, features, num = cloud(counts)
    before = net.encoder[3].norm.running_mean.clone()
    out = net(coords, features, num)
    out.sum().backward()
    assert out.shape == (sum(counts), net.num_features)
    assert out.isfinite().all()
    if sum(counts) < 2:
        assert torch.equal(net.encoder[3].norm.running_mean, before)


def test_norms_can_be_synchronised() -> None:
    net = Res16UNetConfig(preset="res16unet_tiny", bn_momentum=0.02).build()
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm1d)} == {0.02}
    assert all(type(m) is nn.BatchNorm1d for m in net.modules() if isinstance(m, nn.BatchNorm1d))
    keys = set(net.state_dict())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert not any(type(m) is nn.BatchNorm1d for m in synced.modules())
    assert set(synced.state_dict()) == keys


def test_bf16_autocast_stays_close() -> None:
    torch.manual_seed(0)
    net = Res16UNetConfig(preset="res16unet_tiny").build()
    coords, features, num = cloud()
    exact = net(coords, features, num)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(coords, features, num)
    assert (out.float() - exact).norm() < 0.1 * exact.norm()
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in net.parameters())


@pytest.mark.skipif(importlib.util.find_spec("spconv") is None, reason="spconv is not installed")
def test_spconv_gives_the_same_features() -> None:
    coords, features, num = cloud()
    nets = [Res16UNetConfig(preset="res16unet_tiny", backend=b).build().eval() for b in ("torch", "spconv")]
    nets[1].load_state_dict(nets[0].state_dict())
    with torch.no_grad():
        a, b = (net(coords, features, num) for net in nets)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "minkunet"}, "preset is 'minkunet'"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"bn_momentum": 0.0}, "bn_momentum is 0.0"),
        ({"backend": "me"}, "backend is 'me'"),
    ],
)
def test_refused_settings(arguments: dict[str, object], message: str) -> None:
    # beartype (tests only) would refuse some values before the config's own check; from_dict-like callers have none.
    config = Res16UNetConfig()
    for name, value in arguments.items():
        object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=message):
        config.__post_init__()


def test_duplicate_voxels_are_refused() -> None:
    net = Res16UNetConfig(preset="res16unet_tiny").build()
    with pytest.raises(ValueError, match="more than once"):
        net(torch.zeros(2, 4, dtype=torch.int32), torch.ones(2, 1), 1)
