"""Momentum copies: the formula, BatchNorm's statistics, and that nothing of the network itself changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.contrast.momentum import MomentumConfig, MomentumCopy, check_whole_weights


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def moved(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator))


def batch(step: int) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(100 + step))


@pytest.mark.parametrize("ramp", ["constant", "cosine"])
def test_weights_follow_the_formula(ramp: str) -> None:
    net, config = network(), MomentumConfig(start=0.9, ramp=ramp)  # type: ignore[arg-type]
    key = MomentumCopy(net, config)
    expected = {name: p.detach().double() for name, p in net.named_parameters()}
    for step in range(1, 6):
        moved(net, step)
        key.follow(net, step / 5)
        m = 0.9 if ramp == "constant" else 1 - 0.1 * (1 + math.cos(math.pi * step / 5)) / 2
        for name, p in net.named_parameters():
            expected[name] = m * expected[name] + (1 - m) * p.detach().double()
    for name, p in key.copy.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not p.requires_grad


def test_the_ramp_ends_at_one() -> None:
    config = MomentumConfig(start=0.99, ramp="cosine")
    assert [round(config.at(p), 6) for p in (0.0, 0.5, 1.0)] == [0.99, 0.995, 1.0]
    assert MomentumConfig().at(0.3) == 0.999


def test_batch_statistics_are_the_copys_own() -> None:
    net = network()
    key = MomentumCopy(net, MomentumConfig(start=0.5)).train()
    out = key(batch(0))
    assert not out.requires_grad
    torch.testing.assert_close(out, network()(batch(0)).detach())  # normalised with the batch's statistics
    assert torch.equal(net[1].running_mean, torch.zeros(5))  # type: ignore[arg-type]
    after_one = key.copy[1].running_mean.clone()  # type: ignore[index]
    assert bool((after_one != 0).any())
    net[1].running_mean.fill_(7.0)  # type: ignore[operator]
    key.follow(net, 0.5)
    assert torch.equal(key.copy[1].running_mean, after_one)  # type: ignore[index]


def test_running_statistics_are_followed_and_used() -> None:
    net = network().train()
    key = MomentumCopy(net, MomentumConfig(start=0.5, norms="running")).train()
    assert not key.copy.training
    net(batch(0))
    key(batch(1))
    assert torch.equal(key.copy[1].running_mean, torch.zeros(5))  # type: ignore[index]
    key.follow(net, 0.5)
    norm: nn.BatchNorm1d = key.copy[1]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, 0.5 * net[1].running_mean)  # type: ignore[operator]
    torch.testing.assert_close(norm.running_var, 0.5 + 0.5 * net[1].running_var)  # type: ignore[operator]
    one, two = key(batch(1)[:1]), key(batch(1))[:1]
    torch.testing.assert_close(one, two)  # a row knows nothing of the others


def test_a_copy_learns_nothing_by_gradient() -> None:
    net = network()
    key = MomentumCopy(net, MomentumConfig())
    (net(batch(0)) * key(batch(1))).sum().backward()
    assert all(p.grad is None for p in key.parameters())
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("start", [-0.1, 1.1])
def test_ranges(start: float) -> None:
    with pytest.raises(ValueError, match="start"):
        MomentumConfig(start=start)


def test_refused_by_name() -> None:
    for stage in (0, 1, 2):
        check_whole_weights("moco", zero_stage=stage, precision="bf16")
    with pytest.raises(ValueError, match=r"engine.zero_stage=3 does not work with moco: .* to 0, 1 or 2"):
        check_whole_weights("moco", zero_stage=3, precision="fp32")
    with pytest.raises(ValueError, match=r"engine.precision=bf16_native does not work with moco: .*precision=bf16"):
        check_whole_weights("moco", zero_stage=1, precision="bf16_native")
    still = torch.full((1,), 1.0, dtype=torch.bfloat16).lerp(torch.full((1,), 1.5, dtype=torch.bfloat16), 0.001)
    assert still == 1.0  # what the message says
