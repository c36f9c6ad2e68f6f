"""The identity of a run's setting outlives settings that later versions add."""

from __future__ import annotations

import yaml

from configs.load import dump
from configs.schema import PRETRAIN_CHOICES
from launchers.runs.settings import setting_of, setting_of_tree
from launchers.training.train import load_run
from tests.helpers.pretrain_run import CONFIGS


def test_a_setting_added_later_makes_no_new_setting_unless_it_is_used() -> None:
    config = load_run(str(CONFIGS / "simipu_street.yaml"))
    before = yaml.safe_load(dump(config, choices=PRETRAIN_CHOICES))
    assert before["method"].pop("chunk_rows") is None
    assert setting_of_tree(before) == setting_of(config)
    assert setting_of(load_run(str(CONFIGS / "simipu_street.yaml"), ["method.chunk_rows=64"])) != setting_of(config)
    assert setting_of(load_run(str(CONFIGS / "simipu_street.yaml"), ["optim.lr=0.5"])) != setting_of(config)
