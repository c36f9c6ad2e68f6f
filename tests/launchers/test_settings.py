"""The identity of a run's setting outlives settings that later versions add."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from configs.dump import dump
from configs.older import ADDED_LATER
from configs.runs import dump_run, read_run
from configs.schema import PRETRAIN_CHOICES
from engine.checkpoint import check_same
from launchers.runs.changes import begun_with, changes, saved_config
from launchers.runs.settings import fingerprint_of, setting_of, setting_of_tree, voxel_identity
from launchers.training.train import load_run
from tests.helpers.pretrain_run import CONFIGS

OF_BEFORE = json.loads((Path(__file__).parents[1] / "golden" / "runs_of_before.json").read_text())
"""Resolved configs with their identities, as commit c7604f0 wrote them: runs of then have them in their folders."""


@pytest.mark.parametrize("name", sorted(OF_BEFORE))
def test_runs_of_before_remain_repetitions_and_go_on(name: str, tmp_path: Path) -> None:
    before = OF_BEFORE[name]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(before["config"]))
    now = read_run(file)
    assert setting_of(now) == setting_of_tree(before["config"]) == before["setting"]
    check_same(before["fingerprint"], fingerprint_of(yaml.safe_load(dump_run(now))), Path("run"))
    assert changes(saved_config(before["config"], Path("run")), now) == []


@pytest.mark.parametrize("method", sorted(ADDED_LATER))
def test_a_setting_added_later_makes_no_new_setting_unless_it_is_used(method: str) -> None:
    """A run of before is read with what was done then, whatever the default is now, and remains its own repetition."""
    added = ADDED_LATER[method]
    file = str(CONFIGS / f"{method}_street.yaml")
    as_before = load_run(file, [f"method.{name}={json.dumps(value)}" for name, value in added.items()])
    before = yaml.safe_load(dump(as_before, choices=PRETRAIN_CHOICES))
    assert {name: before["method"].pop(name) for name in added} == added
    assert setting_of_tree(before) == setting_of(as_before)
    assert changes(saved_config(before, Path("run")), as_before) == []
    method = {
        name: None if name == "chunk_rows" else value for name, value in before["method"].items()
    }  # as it was then
    fingerprint = {"method": method, "voxel": voxel_identity(before["data"]["voxel"])}  # of its checkpoints
    check_same(fingerprint, fingerprint_of(yaml.safe_load(dump(as_before, choices=PRETRAIN_CHOICES))), Path("run"))
    now = load_run(file)
    changed = {name for name, value in added.items() if getattr(now.method, name) != value}
    assert {c.name for c in changes(saved_config(before, Path("run")), now)} == {f"method.{name}" for name in changed}
    counts = changed - {"chunk_rows"}  # its default and that of before give the same numbers to rounding
    assert (setting_of(now) == setting_of(as_before)) == (not counts)
    assert setting_of(load_run(file, ["optim.lr=0.5"])) != setting_of(now)


@pytest.mark.parametrize("name", ["slidr_street", "simipu_street", "ppkt_street"])
def test_a_run_from_before_chunks_goes_on_and_is_a_repetition(name: str) -> None:
    """The whole matrix at once was the default; checkpoints hold the method that they were written with."""
    file = str(CONFIGS / f"{name}.yaml")
    now, before = load_run(file), load_run(file, ["method.chunk_rows=null"])
    assert now.method.chunk_rows == 512
    assert setting_of(now) == setting_of(before)
    assert [(change.name, change.kind) for change in changes(before, now)] == [("method.chunk_rows", "recorded")]
    trees = [
        yaml.safe_load(dump(config, choices=PRETRAIN_CHOICES))
        for config in (now, before, load_run(file, ["method.chunk_rows=64"]))
    ]
    check_same(fingerprint_of(trees[1]), fingerprint_of(trees[0]), Path("run"))
    check_same(fingerprint_of(trees[1]), fingerprint_of(trees[2]), Path("run"))


def test_a_setting_added_later_counts_where_it_is_used() -> None:
    simipu = str(CONFIGS / "simipu_street.yaml")
    assert setting_of(load_run(simipu, ["method.chunk_rows=64"])) != setting_of(load_run(simipu))
    for used in (
        "data.voxel.intensity_offset=1",
        "data.class_balanced=true",
        "data.boxes.min_points=1",
        "data.max_points=9",
    ):
        assert setting_of(load_run(simipu, [used])) != setting_of(load_run(simipu))
    assert setting_of(load_run(simipu, ["data.objects_folder=elsewhere"])) == setting_of(load_run(simipu))


def test_an_input_without_an_offset_is_that_of_before() -> None:
    config = load_run(str(CONFIGS / "simipu_street.yaml"))
    before = yaml.safe_load(dump(config, choices=PRETRAIN_CHOICES))
    assert before["data"]["voxel"].pop("intensity_offset") == 0
    assert setting_of_tree(before) == setting_of(config)
    assert changes(saved_config(before, Path("run")), config) == []


def test_the_order_of_samples_is_part_of_the_setting() -> None:
    """Runs of before have the first version; one that leaves it open is a repetition of those that took the newest."""
    file = str(CONFIGS / "slidr_street.yaml")
    left_open, first, second = (load_run(file, override) for override in ([], ["data.order=1"], ["data.order=2"]))
    assert setting_of(left_open) == setting_of(second) != setting_of(first)
    before = yaml.safe_load(dump(first, choices=PRETRAIN_CHOICES))
    del before["data"]["order"]
    assert setting_of_tree(before) == setting_of(first)
    was = saved_config(before, Path("run"))
    assert (was.data.order, begun_with(left_open, was).data.order, begun_with(left_open, None).data.order) == (1, 1, 2)
    assert changes(was, left_open) == []
    assert [str(change) for change in changes(was, second)] == ["data.order: 1 -> 2"]
    assert changes(left_open, second) == []


def test_a_precision_that_is_left_open_is_that_of_the_run_before() -> None:
    """Also of runs of before, whose preset said bf16 where it now leaves it open."""
    left_open = load_run(str(CONFIGS / "slidr_street.yaml"))
    assert left_open.engine.precision == "auto"
    for precision in ("fp32", "bf16"):
        was = load_run(str(CONFIGS / "slidr_street.yaml"), [f"engine.precision={precision}"])
        assert changes(was, left_open) == []
        assert begun_with(left_open, was, "fp32").engine.precision == precision
        assert begun_with(left_open, None, precision).engine.precision == precision
        other = load_run(str(CONFIGS / "slidr_street.yaml"), ["engine.precision=fp16"])
        assert [str(change) for change in changes(was, other)] == [f"engine.precision: {precision} -> fp16"]
