"""Every YAML in configs/ can be used: it loads, prints itself, and a run of it at toy size takes its steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.fidelity import missing_values
from configs.load import ConfigError, load
from configs.schema import EvaluateConfig
from engine.distributed import World
from launchers.cli import main as tandem
from launchers.training.stages import stages
from launchers.training.train import load_run, train
from tests.helpers.pretrain_run import CONFIGS, SMALL, STREET, pretrain_here
from tests.helpers.toy_run import losses, weights
from tests.helpers.toy_settings import toy_overrides

PRETRAIN = sorted(CONFIGS.glob("*.yaml"))
DOWNSTREAM = sorted((CONFIGS.parent / "downstream").glob("*.yaml"))
PAPERS = [path for path in PRETRAIN if not path.stem.endswith("_street") or path == STREET]
"""The street runs of all methods take their steps in test_resume_methods.py."""
ASKING = [path for path in PRETRAIN if missing_values(path)]


def name_of(path: Path) -> str:
    return path.stem


def test_there_are_configs() -> None:
    assert {"slidr_street", "slidr_kitti", "slidr_nuscenes"} <= {path.stem for path in PRETRAIN}
    assert {"street", "kitti_object"} <= {path.stem for path in DOWNSTREAM}


@pytest.mark.slow
@pytest.mark.parametrize("path", PAPERS, ids=name_of)
def test_every_pretrain_config_takes_two_steps(path: Path, street_set: str, world: World, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    overrides = [o for o in SMALL if not o.startswith("method.")]
    overrides += [
        *toy_overrides(path),
        f"data.shards={street_set}",
        "data.split=train",  # some sets have other splits to pre-train on
        "optim.lr=0.01",
        "schedule.steps=2",
        "data.micro_batch_size=2",
    ]
    first, *rest = stages(load_run(str(path), [*overrides, f"run_dir={run_dir}"]))
    summary = [train(stage) for stage in (first, *rest)][-1]
    assert (summary.status, summary.step, summary.skipped) == ("finished", 2, 0)
    values = losses(run_dir)
    assert len(values) == 2
    assert all(math.isfinite(value) for value in values)
    assert values[0] >= 0  # an empty queue of negatives: 0
    assert values[1] > 0
    assert values[0] != values[1]


@pytest.mark.slow
def test_the_papers_networks_take_a_step(toy_set: str, world: World, tmp_path: Path) -> None:
    """Res16UNet34C and the dilated ResNet-50 as configured; all that trains moves, the teacher is not in the way."""
    overrides = ("method.teacher.weights=random", "method.backbone.preset=res16unet34c", "schedule.steps=1")
    summary = pretrain_here(tmp_path, toy_set, *overrides, config=CONFIGS / "slidr_nuscenes.yaml")
    assert math.isfinite(summary.loss)
    torch.manual_seed(0)
    fresh = load_run(
        str(CONFIGS / "slidr_nuscenes.yaml"), ["data.shards=a", "method.teacher.weights=random"]
    ).method.build()
    trained = weights(tmp_path)
    for name, parameter in fresh.named_parameters():
        assert torch.equal(trained[name], parameter) != parameter.requires_grad, name


@pytest.mark.parametrize("path", PRETRAIN, ids=name_of)
def test_show_config_prints_what_loads_back_equal(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*missing_values(path), "optim.lr=0.125", "optim.betas=[0.8,0.9]"]
    assert tandem(["pretrain", str(path), *overrides, "--show-config"]) == 0
    printed = capsys.readouterr().out
    copy = tmp_path / "copy.yaml"
    copy.write_text(printed)
    config = load_run(str(path), overrides)
    assert config.optim.lr == 0.125
    assert load_run(str(copy)) == config
    assert load_run(str(path), [*overrides, "seed=1"]) != config


@pytest.mark.parametrize("path", ASKING, ids=name_of)
def test_what_has_no_default_is_asked_for(path: Path) -> None:
    for left_out in missing_values(path):
        given = [override for override in missing_values(path) if override != left_out]
        with pytest.raises(ConfigError, match=f"{left_out.split('=')[0]}: no value given"):
            load_run(str(path), given)


@pytest.mark.parametrize("path", PRETRAIN, ids=name_of)
def test_a_mistake_is_told_from_the_files_own_sections(path: Path) -> None:
    """Also in files that fill a section which is null by default (`first`, `data.expected_superpixels`)."""
    with pytest.raises(ConfigError, match=r"optim\.lr: got 'fast', expected a number"):
        load_run(str(path), [*missing_values(path), "optim.lr=fast"])


def test_the_street_config_is_complete() -> None:
    assert load_run(str(STREET)).run_dir == "runs/slidr_street"


@pytest.mark.parametrize("path", DOWNSTREAM, ids=name_of)
def test_every_downstream_config_loads(path: Path) -> None:
    config = load(EvaluateConfig, path)
    assert config.random
    assert config.seeds("finetune")
