"""Res16UNet: structure, shifts, statistics."""

from __future__ import annotations

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
        ("spunet34", 59, 4, 39_135_904),
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


def test_shift_by_the_total_stride_changes_nothing() -> None:
    net = Res16UNetConfig(preset="res16unet_tiny").build().eval()
    coords, features, num = cloud()
    with torch.no_grad():
        here, there = (net(coords + torch.tensor([0, 16, -32, 48]) * i, features, num) for i in (0, 1))
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("counts", [(1,), (0, 1), (0,)])
def test_fewer_than_two_voxels_have_no_statistics(counts: tuple[int, ...]) -> None:
    net = Res16UNetConfig(preset="res16unet_tiny").build()
    before = net.encoder[3].norm.running_mean.clone()
    net(*cloud(counts))
    assert torch.equal(net.encoder[3].norm.running_mean, before)


def test_refused_back_end() -> None:
    # beartype (tests only) would refuse the value before the config's own check; from_dict-like callers have none.
    config = Res16UNetConfig()
    object.__setattr__(config, "backend", "me")
    with pytest.raises(ValueError, match="backend: got 'me'"):
        config.__post_init__()
