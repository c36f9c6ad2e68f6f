"""The 3D network as a choice: by name in a config, through a dump, and inside a method."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from configs.dump import dump
from configs.load import ConfigError, load
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from models.lidar.backbones import BACKBONES
from models.lidar.base import Backbone, BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods.slidr import SlidrConfig
from tests.helpers.image_networks import teacher_config
from tests.helpers.toy_batches import toy_batch

XYZ = ("data.voxel.features=xyz_intensity", "method.backbone.in_channels=4")
BOUNDED = (
    "data.voxel.kind=cartesian",
    "data.voxel.size=[0.1,0.1,0.2]",
    "data.voxel.range_min=[-51.2,-51.2,-5.0]",
    "data.voxel.range_max=[51.2,51.2,3.0]",
)
NEEDS = {
    "voxelnet": BOUNDED,
    "waffleiron": BOUNDED,
    "pillars": (BOUNDED[0], "data.voxel.range_min=[0,-39.68,-3]", "data.voxel.range_max=[69.12,39.68,1]"),
}
TINY = {
    "res16unet": {"preset": "res16unet_tiny"},
    "spvcnn": {"preset": "spvcnn_tiny"},
    "voxelnet": {"preset": "second_tiny", "grid_min": (-16, -16, -8), "grid_max": (16, 16, 16)},
    "pillars": {"preset": "pillars_tiny", "range_min_m": (-8.0, -8.0, -8.0), "range_max_m": (8.0, 8.0, 8.0)}
    | {"pillar_size_m": 0.5},
    "pointnet2": {"preset": "pointnet2_tiny"},
    "waffleiron": {"preset": "waffleiron_tiny", "range_min_m": (-8.0, -8.0, -8.0), "range_max_m": (8.0, 8.0, 8.0)},
}


def load_with(*overrides: str, path: Path | None = None) -> PretrainConfig:
    required = () if path else ("run_dir=r", "data.shards=s", "method.name=slidr")
    return load(PretrainConfig, path, [*required, *overrides], choices=PRETRAIN_CHOICES)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_each_can_be_chosen_and_survives_a_dump(name: str, tmp_path: Path) -> None:
    config = load_with(f"method.backbone.name={name}", *XYZ, *NEEDS.get(name, ()))
    assert isinstance(config.method, SlidrConfig)
    assert config.method.backbone == BACKBONES[name](in_channels=4)
    file = tmp_path / "config.yaml"
    file.write_text(dump(config, choices=PRETRAIN_CHOICES))
    assert load_with(path=file) == config


def test_runs_from_before_there_was_a_choice_stay_as_they_are(tmp_path: Path) -> None:
    """Their config.yaml has no name in `method.backbone`; nor has the fingerprint that a checkpoint is compared by."""
    config = load_with("method.backbone.preset=res16unet_tiny")
    tree = yaml.safe_load(dump(config, choices=PRETRAIN_CHOICES))
    assert tree["method"]["backbone"] == {
        "preset": "res16unet_tiny",
        "in_channels": 1,
        "bn_momentum": 0.05,
        "backend": "auto",
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert load_with(path=file).method.backbone == Res16UNetConfig(preset="res16unet_tiny")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["method.backbone.name=pilars"], ["method.backbone.name", "'pilars'", "did you mean 'pillars'"]),
        (
            ["method.backbone.name=pillars", "method.backbone.preset=second"],
            ["method.backbone.preset", "'centerpoint'"],
        ),
        (
            ["method.backbone.name=pillars", "method.backbone.backend=torch"],
            ["method.backbone.backend", "unknown name"],
        ),
        (["method.backbone.name=spvcnn", "method.backbone.in_channels=4"], ["in_channels: got 4, expected 1"]),
        (
            ["method.backbone.name=pillars", "method.backbone.in_channels=1"],
            ["method.backbone.in_channels: got 1, expected at least 3"],
        ),
        (["method.backbone.name=pillars", *XYZ], ["method.backbone: points outside the pillars' range"]),
        (["method.backbone.name=waffleiron", *XYZ], ["method.backbone: points outside the grids' range"]),
        (["method.backbone.name=voxelnet"], ["method.backbone: ", "set data.voxel.kind=cartesian"]),
        (
            ["method.backbone.name=voxelnet", *BOUNDED, "data.voxel.range_max=[51.2,51.2,5.0]"],
            ["method.backbone: ", "set method.backbone.grid_max=[512, 512, 25]"],
        ),
        (
            ["method.backbone.name=voxelnet", "method.backbone.grid_max=[512,512,25]"],
            ["method.backbone: ", "50 cells along z"],
        ),
    ],
)
def test_a_mistake_names_place_and_remedy(overrides: list[str], fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_with(*overrides)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_each_learns_inside_a_method(name: str) -> None:
    torch.manual_seed(0)
    settings = {"in_channels": 4, **TINY[name]}
    backbone = BACKBONES[name](**settings)
    teacher = teacher_config(name="efficientnet_lite0", weights="random")
    model = SlidrConfig(backbone=backbone, teacher=teacher, embedding_dim=8).build()
    assert isinstance(model.backbone, Backbone)
    terms = model(toy_batch([0, 1], in_channels=4))
    terms.total.backward()
    assert terms.total.isfinite()
    gradients = [p.grad for p in model.backbone.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0


def test_every_family_is_frozen_and_keyword_only() -> None:
    for kind in BACKBONES.values():
        assert issubclass(kind, BackboneConfig)
        with pytest.raises(dataclasses.FrozenInstanceError):
            kind(in_channels=4).in_channels = 5  # type: ignore[misc]
        with pytest.raises(TypeError):
            kind(4)  # type: ignore[misc]
