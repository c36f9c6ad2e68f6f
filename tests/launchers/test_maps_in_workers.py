"""Neighbour maps by the loader's workers in a whole run: the numbers of a run without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint import load_weights
from engine.distributed import World
from launchers.runs.settings import setting_of
from launchers.training.train import train
from tests.helpers.street_run import street_config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slidr", "pointcontrast"])  # one cloud; two views in one pass
def test_a_run_has_the_same_weights_and_the_same_identity(
    name: str, street_set: str, world: World, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    options = ("schedule.steps=2", "data.num_workers=1")
    configs = [
        street_config(name, street_set, f"run_dir={tmp_path / flag}", f"data.maps_in_workers={flag}", *options)
        for flag in ("false", "true")
    ]
    assert setting_of(configs[0]) == setting_of(configs[1])
    without, with_maps = (train(config) for config in configs)
    assert without.loss == with_maps.loss
    assert with_maps.checkpoint is not None
    assert without.checkpoint is not None
    others = load_weights(with_maps.checkpoint)
    for key, value in load_weights(without.checkpoint).items():
        assert torch.equal(value, others[key]), key
