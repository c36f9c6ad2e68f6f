"""Which settings may change when a run goes on, and what is said of those that did."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.dump import dump
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from data.batch_spec import VoxelConfig
from data.loading.loader import DataConfig
from data.storage.mixture import SetConfig
from engine.errors import CheckpointError
from engine.optim import OptimConfig
from engine.tower_optim import TowerOptimConfig
from launchers.runs.changes import KINDS, changes, flat_config, kind_of, saved_config
from launchers.training.continuing import Continued, warn_of
from launchers.training.train import load_run
from models.lidar.backbones import BACKBONES
from tests.helpers.pretrain_run import CONFIGS, STREET


def street(*overrides: str) -> PretrainConfig:
    return load_run(str(STREET), ["run_dir=here", *overrides])


def resolved(config: PretrainConfig) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(dump(config, choices=PRETRAIN_CHOICES))
    return tree


def every_setting() -> dict[str, object]:
    """Dotted name -> value of the settings of all methods and 3D networks."""
    optim = OptimConfig(towers={"backbone": TowerOptimConfig()})
    names: dict[str, object] = {}
    for path in sorted(CONFIGS.glob("*_street.yaml")):
        config = load_run(str(path), ["run_dir=here"])
        sets = dataclasses.replace(config.data, more=(SetConfig(shards="more"),))
        names |= flat_config(dataclasses.replace(config, data=sets, optim=optim))
    for kind in BACKBONES.values():
        names |= {f"method.backbone.{field.name}": None for field in dataclasses.fields(kind)}
    return names | {"init": None, "judge": None}  # of detectors' runs


def test_every_setting_has_a_kind_and_every_entry_of_the_table_a_setting() -> None:
    names = every_setting()
    assert {name.split(".")[1] for name in names if name.startswith("method.")} > {"name", "backbone", "teacher"}
    sections = {field.name for field in dataclasses.fields(PretrainConfig)}
    assert {name.split(".")[0] for name in names} >= sections - {"first"}
    unused = [
        pattern
        for pattern in KINDS
        if pattern != "first" and not any(_fits(name.split("."), pattern.split(".")) for name in names)
    ]
    assert not unused, "no setting has such a name"
    assert {name for name in names if name.startswith("method.") and kind_of(name) != "refused"} == {
        "method.chunk_rows",
        "method.backbone.backend",  # the same network, computed by other code
    }


def _fits(name: list[str], pattern: list[str]) -> bool:
    return len(name) >= len(pattern) and all(p in ("*", n) for n, p in zip(name, pattern, strict=False))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("free", "run_dir data.shards data.more.1.shards data.cache.folder data.num_workers data.retry_min"),
        ("free", "checkpoint.every_steps monitor.log_every engine.timeout_min evaluate.configs first.run_dir"),
        ("recorded", "optim.lr optim.towers.backbone.weight_decay schedule.steps schedule.warmup_steps"),
        ("recorded", "optim.towers.backbone.encoder.lr"),
        ("recorded", "engine.zero_stage method.backbone.backend engine.accumulation_steps data.micro_batch_size"),
        ("refused", "seed engine.precision engine.clip_norm engine.sync_bn optim.name optim.towers.backbone.name"),
        ("refused", "data.image_size data.augment.points.rotate data.split data.limit data.weight data.more"),
        ("refused", "optim.towers.backbone.encoder.name optim.towers.backbone.layer_decay"),
        ("refused", "optim.decay_norms_and_biases method.temperature"),
        ("refused", "data.voxel.size engine.a_setting_of_tomorrow tomorrow"),
    ],
)
def test_kinds(kind: str, names: str) -> None:
    assert {name: kind_of(name) for name in names.split()} == dict.fromkeys(names.split(), kind)


def test_what_differs_is_named_with_both_values() -> None:
    was = street()
    now = street(
        "run_dir=there", "data.num_workers=3", "optim.lr=0.125", "data.image_size=[64,96]", "data.shards=moved"
    )
    assert [(c.name, c.before, c.now, c.kind) for c in changes(was, now)] == [
        ("data.image_size", list(was.data.image_size), [64, 96], "refused"),
        ("optim.lr", was.optim.lr, 0.125, "recorded"),
    ]
    other = load_run(str(CONFIGS / "ppkt_street.yaml"), ["run_dir=here"])
    assert changes(was, other)[0].name == "method.name", "the method comes before what follows from it"


def test_runs_of_older_versions_are_compared_too(tmp_path: Path) -> None:
    """What did not exist then counts as its default; what exists no more and had no effect does not count."""
    config = street("engine.clip_norm=0.5")
    tree = resolved(config)
    del tree["first"], tree["data"]["expected_superpixels"], tree["data"]["more"]
    tree["data"]["superpixels"] = True
    tree["method"]["teacher"] |= {"dilated": True, "levels": [4, 8, 16], "normalise_levels": True}
    assert changes(saved_config(tree, tmp_path), config) == []
    del tree["engine"]["clip_norm"]
    assert [str(c) for c in changes(saved_config(tree, tmp_path), config)] == ["engine.clip_norm: 0.0 -> 0.5"]
    tree["engine"]["clip_norm"] = "much"
    with pytest.raises(CheckpointError, match=r"cannot be read by this version \(engine.clip_norm: got 'much'"):
        saved_config(tree, tmp_path)


def test_sets_of_a_mixture_may_move_and_not_change() -> None:
    def mixture(weight: float, place: str) -> PretrainConfig:
        more = (SetConfig(shards=place, weight=weight),)
        return PretrainConfig(run_dir="a", data=DataConfig(shards="s", more=more, voxel=VoxelConfig(kind="cartesian")))

    assert changes(mixture(1.0, "here"), mixture(1.0, "there")) == []
    assert [c.name for c in changes(mixture(1.0, "here"), mixture(2.0, "there"))] == ["data.more.0.weight"]


def test_other_software_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    before, now = street(), street("optim.lr=0.125")
    found = changes(before, now)
    software = [dataclasses.replace(found[0], name="software.torch", before="2.11.0", now="2.13.0")]
    with caplog.at_level(logging.WARNING):
        warn_of(Continued(state={}, resolved={}, config=before, changes=(*found, *software)))
    settings, versions = [record.getMessage() for record in caplog.records]
    assert settings.endswith(f"from here: optim.lr: {before.optim.lr} -> 0.125")
    assert "torch: 2.11.0 -> 2.13.0; its numbers may differ by rounding" in versions
