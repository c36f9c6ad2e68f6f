"""Every method continues bit for bit, and learns the same where ZeRO splits its weights.

What a method draws and what it keeps between updates must be in its checkpoints; what it does with its networks must be
possible when their weights are gathered for each call.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from common.run_files import list_checkpoints, step_of
from configs.load import ConfigError
from engine.checkpoint import load_weights
from launchers.training.train import train
from models.methods import METHODS
from tests.helpers.street_run import street_config


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_it_continues_bit_for_bit(name: str, street_set: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)

    def trained(folder: Path) -> dict[str, torch.Tensor]:
        steps = ("schedule.steps=4", "checkpoint.every_steps=2", "checkpoint.keep=5")
        train(street_config(name, street_set, f"run_dir={folder}", *steps))
        return load_weights(max(list_checkpoints(folder), key=step_of))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    wanted = trained(whole)
    shutil.copytree(whole, cut)
    for checkpoint in list_checkpoints(cut):
        if step_of(checkpoint) > 2:
            shutil.rmtree(checkpoint)
    assert [step_of(c) for c in list_checkpoints(cut)] == [2]
    got = trained(cut)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_stage_three_learns_the_same_or_is_refused_by_name(name: str, street_set: str, tmp_path: Path) -> None:
    """On one process the collectives do nothing, but weights come and go and gradients are cut into shares."""
    torch.set_num_threads(1)

    def trained(stage: int) -> dict[str, torch.Tensor]:
        folder = tmp_path / str(stage)
        small = ("schedule.steps=2", f"engine.zero_stage={stage}", "engine.zero3_persistent_numel=0")
        train(street_config(name, street_set, f"run_dir={folder}", *small))
        return load_weights(max(list_checkpoints(folder), key=step_of))

    try:
        split = trained(3)
    except ConfigError as error:
        assert "engine.zero_stage=3 does not work with" in str(error)  # noqa: PT017
        return
    whole = trained(0)
    assert split.keys() == whole.keys()
    # Sums in another order can turn the sign of a gradient near 0, which AdamW makes a whole step of.
    apart = sum(float((split[key].double() - whole[key].double()).square().sum()) for key in whole) ** 0.5
    size = sum(float(value.double().square().sum()) for value in whole.values()) ** 0.5
    assert apart <= 1e-3 * size
