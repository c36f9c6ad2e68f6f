"""Runs of two stages: who comes first, what the second takes over, and how they are queued."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common.files import file_sha256
from common.run_files import checkpoint_folder, list_checkpoints
from configs.dump import dump
from configs.load import ConfigError
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from data.loading.loader import samples_fingerprint
from engine.checkpoint import find_checkpoint, load_weights, read_state
from engine.distributed import World
from engine.errors import CheckpointError
from launchers import inspect, pretrain
from launchers.cluster.plan_submission import Point, with_first_stages
from launchers.runs import attempts
from launchers.runs.attempts import is_finished
from launchers.runs.settings import setting_of
from launchers.training.stages import (
    check_first_stage,
    first_folder,
    first_weights,
    method_to_build,
    method_without_weights,
    stages,
)
from launchers.training.train import load_run
from models.methods.pixel_to_point import PixelToPointConfig
from tests.helpers.pretrain_run import CONFIGS, SMALL
from tests.helpers.toy_settings import toy_overrides

TWO = CONFIGS / "pixel_to_point_street.yaml"


def two_stages(run_dir: Path, *overrides: str) -> PretrainConfig:
    return load_run(str(TWO), [f"run_dir={run_dir}", *overrides])


def _finish(config: PretrainConfig) -> None:
    """As if it had been trained: its record, and what a checkpoint says of it."""
    folder = Path(config.run_dir)
    attempts.begin(folder, 1).end("finished", step=2)
    checkpoint = checkpoint_folder(folder, 2)
    checkpoint.mkdir(parents=True)
    files = {"state.json": {"step": 2}, "config.json": resolved(config), "weights.safetensors": config.seed}
    for name, content in files.items():
        (checkpoint / name).write_text(json.dumps(content))
    sums = {
        name: {"bytes": (checkpoint / name).stat().st_size, "sha256": file_sha256(checkpoint / name)} for name in files
    }
    (checkpoint / "files.json").write_text(json.dumps(sums))


def resolved(config: PretrainConfig) -> Any:
    return yaml.safe_load(dump(config, choices=PRETRAIN_CHOICES))


def test_the_first_stage_comes_first_and_is_not_trained_again(tmp_path: Path) -> None:
    config = two_stages(tmp_path / "run", "seed=7", "data.shards=elsewhere")
    first, second = stages(config)
    assert second == config
    assert Path(first.run_dir) == tmp_path / "run-first" == first_folder(config)
    assert (type(first.method).__name__, first.seed, first.data.shards) == (
        "PixelContrastConfig",
        7,
        "elsewhere",
    )
    assert not is_finished(first.run_dir)
    _finish(first)
    assert is_finished(first.run_dir)
    assert stages(config) == [config]
    for name, now in (("seed", "8"), ("optim.lr", "0.0625"), ("schedule.steps", "300"), ("data.limit", "3")):
        given = f"{name}={now}" if name == "seed" else f"first.overrides=[{name}={now}]"
        with pytest.raises(
            ConfigError, match=rf"(?s)first: .*run-first .*{name}: \S+ in the run, {now} now.*first.run_dir"
        ):
            stages(two_stages(tmp_path / "run", "seed=7", "data.shards=elsewhere", given))
    shutil.rmtree(tmp_path / "run-first" / "checkpoints")
    assert stages(config) == [first, config], "what has no checkpoint is trained, whatever its record says"
    _finish(config)
    assert stages(config) == [config], "a run's own checkpoint holds the first stage's network too"


def test_a_finished_first_stage_of_another_set_is_not_taken(toy_set: str, tmp_path: Path) -> None:
    config = two_stages(tmp_path / "run", f"data.shards={toy_set}")
    (first, _) = stages(config)
    _finish(first)
    state = list_checkpoints(tmp_path / "run-first")[0] / "state.json"
    samples = samples_fingerprint(first.data)
    shutil.copytree(toy_set, tmp_path / "moved")
    moved = two_stages(tmp_path / "run", f"data.shards={tmp_path / 'moved'}")
    state.write_text(json.dumps({"step": 2, "source": {"samples": samples}}))
    assert stages(moved) == [moved]
    state.write_text(json.dumps({"step": 2, "source": {"samples": "of another set"}}))
    with pytest.raises(ConfigError, match=r"first: .*data.shards: the run was trained on .*moved holds other samples"):
        stages(moved)
    with pytest.raises(ConfigError, match=r"first: .*data.shards: .*, which now holds other samples"):
        stages(config)  # made again in the same folder
    shutil.rmtree(tmp_path / "run-first")
    _finish(stages(moved)[0])
    state.write_text(json.dumps({"step": 2, "source": {"samples": samples}}))
    shutil.rmtree(tmp_path / "moved")
    assert stages(moved) == [moved], "of a set that has been removed nothing is compared"


def test_a_second_stage_knows_the_weights_of_its_first(tmp_path: Path) -> None:
    config = two_stages(tmp_path / "run")
    assert first_weights(config) is None
    (first, _) = stages(config)
    _finish(first)
    weights = first_weights(config)
    state = {"fingerprint": {"first": weights}}
    assert check_first_stage(config, state, weights) == weights
    assert check_first_stage(config, {"fingerprint": {}}, weights) is None  # of an older version
    shutil.rmtree(tmp_path / "run-first")
    assert check_first_stage(config, state, first_weights(config)) == weights, "gone: those in the checkpoint go on"
    _finish(dataclasses.replace(first, seed=5))
    with pytest.raises(CheckpointError, match=r"that stage was trained again \(sha256 of its weights \w{12} then"):
        check_first_stage(config, state, first_weights(config))
    (list_checkpoints(tmp_path / "run-first")[0] / "weights.safetensors").write_text("cut")
    assert first_weights(config) is None


def test_overrides_are_stronger_than_what_the_run_hands_on(tmp_path: Path) -> None:
    overrides = [
        "data.shards=here",
        "seed=3",
        f"run_dir={tmp_path / 'run'}",
        "first.overrides=[seed=5, method.image_backbone.weights=random]",
    ]
    first = stages(load_run(str(CONFIGS / "pixel_to_point_7scenes.yaml"), overrides))[0]
    assert (first.data.shards, first.seed) == ("here", 5)


def test_the_network_takes_the_place_of_its_name(tmp_path: Path) -> None:
    config = two_stages(tmp_path / "run")
    assert isinstance(config.method, PixelToPointConfig)
    built, tried = method_to_build(config), method_without_weights(config)
    assert isinstance(built, PixelToPointConfig)
    assert isinstance(tried, PixelToPointConfig)
    assert built.pixel_network.weights == f"tandem:{tmp_path / 'run-first'}"
    assert tried.pixel_network.weights == "random"
    untouched = dataclasses.replace(built.pixel_network, weights="tandem:first")
    assert dataclasses.replace(built, pixel_network=untouched) == config.method
    # Repetitions in other folders have the same setting.
    assert setting_of(config) == setting_of(two_stages(tmp_path / "other", "seed=1"))
    assert setting_of(config) != setting_of(two_stages(tmp_path / "other", "first.overrides=[schedule.steps=9]"))


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no section `first`"):
        two_stages(tmp_path, "first=null")
    with pytest.raises(ConfigError, match="would be trained for nothing"):
        two_stages(tmp_path, "method.pixel_network.weights=random")
    with pytest.raises(ConfigError, match=r"first: nothing\.yaml: no such config file"):
        stages(two_stages(tmp_path, "first.config=nothing.yaml"))
    with pytest.raises(ConfigError, match="has a first stage itself"):
        stages(two_stages(tmp_path, f"first.config={TWO}"))


def test_points_that_share_a_first_stage_queue_it_once(tmp_path: Path) -> None:
    shared = f"first.run_dir={tmp_path / 'shared'}"
    runs = [Point(config=two_stages(tmp_path / name, shared, "seed=0")) for name in ("a", "b")]
    plain = Point(config=load_run(str(CONFIGS / "slidr_street.yaml"), [f"run_dir={tmp_path / 'c'}"]))
    first, *own = with_first_stages([*runs, plain])
    assert first.run_dir == tmp_path / "shared"
    assert [point.after for point in own] == [first.run_dir, first.run_dir, None]
    assert with_first_stages([plain]) == (plain,)
    # Asked for again with the first stage among the points (requeueing), it is not there twice.
    assert [p.run_dir for p in with_first_stages([first, *runs])] == [first.run_dir, *(r.run_dir for r in runs)]
    other = Point(config=two_stages(tmp_path / "d", shared, "seed=1"))
    with pytest.raises(ConfigError, match="requested with different settings"):
        with_first_stages([*runs, other])
    _finish(runs[0].config)
    assert with_first_stages(runs[:1]) == (runs[0],), "its first stage has been removed, and it needs it no more"


@pytest.mark.slow
def test_one_command_trains_both(
    toy_set: str,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("engine.distributed.shutdown", lambda: None)  # the tests' process group stays
    run_dir = tmp_path / "run"
    command = [str(TWO), f"run_dir={run_dir}", f"data.shards={toy_set}", "schedule.steps=2"]
    command += [o for o in SMALL if not o.startswith("method.")] + [*toy_overrides(TWO)]
    assert pretrain.main(command) == 0
    taught = load_weights(find_checkpoint(tmp_path / "run-first", world), prefix="image_backbone.")
    frozen = load_weights(find_checkpoint(run_dir, world), prefix="pixel_network.encoder.")
    assert taught
    assert all(torch.equal(taught[name], value) for name, value in frozen.items())
    first_files = list_checkpoints(tmp_path / "run-first")[-1].stat().st_mtime_ns
    assert pretrain.main(command) == 0
    assert list_checkpoints(tmp_path / "run-first")[-1].stat().st_mtime_ns == first_files
    assert len(attempts.read_attempts(tmp_path / "run-first")) == 1
    assert read_state(list_checkpoints(run_dir)[0])["fingerprint"]["first"] == first_weights(
        load_run(str(TWO), command[1:])
    )
    assert inspect.main([str(run_dir), "--num", "1", "--out", str(tmp_path / "look")]) == 0
    assert list((tmp_path / "look").glob("*sketch*.png")), "its networks are built again, the first stage's too"
    shutil.rmtree(tmp_path / "run-first")
    capsys.readouterr()
    assert pretrain.main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert pretrain.main([*command, "schedule.steps=3"]) == 0
    assert read_state(list_checkpoints(run_dir)[0])["step"] == 3
    kept = load_weights(run_dir, prefix="pixel_network.encoder.")
    assert all(torch.equal(frozen[name], value) for name, value in kept.items())
    assert inspect.main([str(run_dir), "--num", "1", "--out", str(tmp_path / "again")]) == 0
    assert not (tmp_path / "run-first").exists()
