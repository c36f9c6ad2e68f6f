"""The section `teacher`: each family has its own settings, and what older versions wrote is still understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.dump import dump
from configs.load import ConfigError, load
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from engine.checkpoint import check_same
from engine.errors import CheckpointError
from launchers.runs.settings import setting_of, setting_of_tree
from models.image.efficientnet import EfficientNetTeacherConfig
from models.image.resnet import ResNetTeacherConfig
from models.image.resnet_levels import ResNetLevelsTeacherConfig
from models.image.teacher import TeacherConfig
from models.image.vit import VitTeacherConfig

ONCE: dict[str, Any] = {
    "name": "resnet50",
    "weights": "random",
    "dilated": True,
    "levels": [4, 8, 16],
    "normalise_levels": True,
    "upscale": 1,
    "min_match": 0.9,
    "random_seed": 0,
    "cache": False,
}
"""A resolved section of a version in which all teachers shared one dataclass."""


def run(*overrides: str, path: Path | None = None) -> PretrainConfig:
    return load(PretrainConfig, path, ["run_dir=run", "data.shards=s", *overrides], choices=PRETRAIN_CHOICES)


def teacher(*overrides: str, path: Path | None = None) -> TeacherConfig:
    return run(*overrides, path=path).method.teachers()["teacher"]


def test_the_name_chooses_the_family_and_the_method_the_rest() -> None:
    assert teacher() == ResNetTeacherConfig()
    assert teacher("method.teacher.name=vit_base_8") == VitTeacherConfig(name="vit_base_8")
    assert teacher("method.name=ppkt", "method.teacher.name=resnet18") == ResNetTeacherConfig(
        name="resnet18", dilated=False
    )
    distill = ("method.name=distill", "method.teacher.name=resnet50_levels", "method.teacher.levels=[8]")
    assert teacher(*distill) == ResNetLevelsTeacherConfig(levels=(8,), normalise_levels=False)


@pytest.mark.parametrize(
    ("name", "setting", "help_text"),
    [
        ("efficientnet_lite0", "dilated=false", "a setting of resnet10_tiny, resnet18, resnet50 only"),
        ("resnet50", "levels=[8]", "a setting of efficientnet_lite0, resnet18_levels, resnet50_levels only"),
        ("vit_small_14", "dilated=true", "a setting of resnet10_tiny, resnet18, resnet50 only"),
        ("resnet18_unet", "normalise_levels=true", "a setting of efficientnet_lite0, resnet18_levels"),
        ("resnet18", "levls=[8]", "unknown name (got [8]; valid here: cache, dilated"),
    ],
)
def test_a_setting_without_effect_is_refused(name: str, setting: str, help_text: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.teacher\.") as error:
        run(f"method.teacher.name={name}", f"method.teacher.{setting}")
    assert help_text in str(error.value)


def test_it_is_written_and_read_again(tmp_path: Path) -> None:
    for name in ("efficientnet_lite0", "resnet18_levels", "vit_base_16", "resnet10_tiny"):
        config = run(f"method.teacher.name={name}")
        (tmp_path / "config.yaml").write_text(dump(config, choices=PRETRAIN_CHOICES))
        assert run(path=tmp_path / "config.yaml") == config


OLD = [
    ("slidr", {}, ResNetTeacherConfig()),
    ("slidr", {"name": "efficientnet_lite0", "dilated": False}, EfficientNetTeacherConfig()),
    ("ppkt", {"name": "efficientnet_lite0", "dilated": False, "levels": [8]}, EfficientNetTeacherConfig(levels=(8,))),
    (
        "distill",
        {"name": "vit_large_14", "normalise_levels": False},
        VitTeacherConfig(name="vit_large_14", normalise_levels=False),
    ),
    ("contrastive_units", {"name": "resnet18_levels"}, ResNetLevelsTeacherConfig(name="resnet18_levels")),
]


def old_tree(method: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The resolved config that an older version wrote."""
    tree: dict[str, Any] = yaml.safe_load(dump(run(f"method.name={method}"), choices=PRETRAIN_CHOICES))
    tree["method"]["teacher"] = ONCE | changes
    return tree


@pytest.mark.parametrize(("method", "changes", "expected"), OLD)
def test_a_run_of_an_older_version_is_read_and_continued(
    method: str, changes: dict[str, Any], expected: TeacherConfig, tmp_path: Path
) -> None:
    """Its files hold all settings, also those that had no effect, with the method's or a person's value."""
    tree = old_tree(method, changes)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    config = run(path=path)
    assert config.method.teachers()["teacher"] == expected

    now = yaml.safe_load(dump(config, choices=PRETRAIN_CHOICES))
    check_same({"method": tree["method"]}, {"method": now["method"]}, path)
    tree["method"]["teacher"]["upscale"] = 2
    with pytest.raises(CheckpointError, match=r"method\.teacher\.upscale: 2 in the checkpoint, 1 now"):
        check_same({"method": tree["method"]}, {"method": now["method"]}, path)


@pytest.mark.parametrize(("method", "name", "dilated"), [("slidr", "vit_base_8", True), ("ppkt", "vit_base_8", False)])
def test_repetitions_before_and_after_have_one_setting(method: str, name: str, dilated: bool) -> None:
    tree = old_tree(method, {"name": name, "dilated": dilated})
    assert setting_of(run(f"method.name={method}", f"method.teacher.name={name}")) == setting_of_tree(tree)
    assert setting_of(run(f"method.name={method}")) != setting_of_tree(tree)
