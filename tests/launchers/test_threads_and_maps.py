"""Who makes the neighbour maps, and on how many threads a run of points alone runs, changes none of its numbers."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from engine.checkpoint import load_weights
from engine.distributed import World
from launchers.runs.settings import setting_of
from launchers.training.train import train
from models.lidar import sparse
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
    without = train(configs[0])
    built = mock.Mock(side_effect=AssertionError("the training built a map"))  # the worker is another process
    with mock.patch.multiple(sparse, submanifold_map=built, strided_map=built, bounded_map=built):
        with_maps = train(configs[1])
    assert without.loss == with_maps.loss
    assert with_maps.checkpoint is not None
    assert without.checkpoint is not None
    others = load_weights(with_maps.checkpoint)
    for key, value in load_weights(without.checkpoint).items():
        assert torch.equal(value, others[key]), key


@pytest.mark.slow
def test_a_run_of_points_alone_has_the_same_weights_at_any_number_of_threads(
    street_set: str, world: World, tmp_path: Path
) -> None:
    weights = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            summary = train(
                street_config("pointcontrast", street_set, f"run_dir={tmp_path / str(threads)}", "schedule.steps=2")
            )
            assert torch.get_num_threads() == threads
            assert summary.checkpoint is not None
            weights.append(load_weights(summary.checkpoint))
    finally:
        torch.set_num_threads(before)
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
