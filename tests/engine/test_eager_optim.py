"""Optimizers without torch's compiler: torch's own arithmetic, and the compiler is not loaded."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from engine.eager_optim import SGD, AdamW

PAIRS = [(AdamW, torch.optim.AdamW, {"weight_decay": 0.1}), (SGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1})]

ONE_UPDATE = """
import sys
import torch
from engine.optim import OptimConfig, build_optimizer
for name in ("adamw", "sgd"):
    layer = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(layer, OptimConfig(name=name), lr=0.1)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize(("plain", "torchs", "numbers"), PAIRS)
def test_updates_and_state_are_torchs(
    plain: type[torch.optim.Optimizer], torchs: type[torch.optim.Optimizer], numbers: dict[str, Any]
) -> None:
    weights = []
    for kind in (plain, torchs):
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3)
        optimizer = kind(layer.parameters(), lr=0.1, **numbers)  # type: ignore[call-arg]
        for _ in range(3):
            layer(torch.randn(4, 5)).square().sum().backward()
            optimizer.step()
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
        weights.append([*layer.parameters(), *(v for s in optimizer.state.values() for v in s.values())])
    assert len(weights[0]) == len(weights[1]) > 2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True))


@pytest.mark.slow
def test_the_compiler_is_not_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", ONE_UPDATE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
