from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from engine.downstream.depth import DepthConfig
from engine.downstream.fit import train_updates
from tests.helpers.toy_dense import toy_images


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_onecycle_is_torchs_with_its_own_defaults(optimizer: str) -> None:
    """torch counts its last rate into the run and turns an update earlier, so it is given a run that ends alike."""
    steps, turn = 40, 12
    config = DepthConfig(steps=steps, schedule="onecycle", lrs=(0.5,), optimizer=optimizer)  # type: ignore[arg-type]
    network = nn.Linear(1, 1)
    ours = config.build([{"params": network.parameters(), "lr": 0.5}])
    other = nn.Parameter(torch.zeros(1))
    theirs = torch.optim.AdamW([other], lr=0.5) if optimizer == "adamw" else torch.optim.SGD([other], 0.5, momentum=0.9)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        theirs, max_lr=0.5, total_steps=steps + 1, pct_start=(turn + 1) / (steps + 1), final_div_factor=100.0
    )
    seen = []

    def momentum(group: dict[str, object]) -> object:
        return group["betas"][0] if "betas" in group else group["momentum"]  # type: ignore[index]

    def watch(*_: object) -> None:
        (mine,), (torch_group,) = ours.param_groups, theirs.param_groups
        assert mine["lr"] == pytest.approx(torch_group["lr"])
        assert momentum(mine) == pytest.approx(momentum(torch_group))
        seen.append(mine["lr"])
        theirs.step()
        torchs.step()

    ours.register_step_pre_hook(watch)
    train_updates(
        network,
        ours,
        itertools.repeat(toy_images([0], truth=None)),
        lambda batch: network(torch.ones(1, 1)).square().sum(),
        config,
        num_samples=1,
        what="toy",
        device="cpu",
        on_step=lambda count: None,
    )
    assert len(seen) == steps
    assert math.isclose(max(seen), 0.5)
    assert math.isclose(seen[0], 0.5 / 25)
    assert momentum(ours.param_groups[0]) == 0.9, "left as it was configured"
