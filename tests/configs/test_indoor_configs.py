"""Presets of semantic and instance segmentation: whole, with the published recipe, and with a network to start from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.fidelity import missing_values
from configs.detection import FinetuneConfig
from configs.runs import dump_run, read_run
from configs.schema import PretrainConfig
from data.convert import s3dis
from data.convert.scannet import classes as scannet
from data.street.classes import CLASS_NAMES, THINGS
from engine.segmentation.judge import BENCHMARKS
from launchers.finetuning.init import check_fits
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.segmentation.instance import InstanceConfig
from models.segmentation.semantic import SemanticConfig

FOLDER = Path(__file__).resolve().parents[2] / "configs"
NAMES = [f"{which}_{what}" for which in ("scannet", "s3dis") for what in ("semantic", "instance")]
STREET = ["semantic_street", "instance_street"]


def finetuning(name: str, *overrides: str) -> FinetuneConfig:
    path = FOLDER / "finetune" / f"{name}.yaml"
    config = read_run(path, ["run_dir=here", *missing_values(path), *overrides])
    assert isinstance(config, FinetuneConfig)
    return config


@pytest.mark.parametrize("name", NAMES + STREET)
def test_every_config_is_whole(name: str, tmp_path: Path) -> None:
    config = finetuning(name)
    (tmp_path / "again.yaml").write_text(dump_run(config))
    assert read_run(tmp_path / "again.yaml") == config
    assert set(config.judge.benchmarks) <= set(BENCHMARKS)
    assert type(config.model) is (InstanceConfig if "instance" in name else SemanticConfig)
    expected = CLASS_NAMES if name in STREET else scannet.CLASS_NAMES if "scannet" in name else s3dis.CLASS_NAMES
    assert config.model.classes == tuple(expected)
    with torch.device("meta"):
        config.model.build()


def test_things_are_the_benchmarks() -> None:
    assert set(scannet.CLASS_NAMES) - set(finetuning("scannet_instance").model.things) == {"wall", "floor"}
    assert finetuning("s3dis_instance").model.things == s3dis.CLASS_NAMES
    assert finetuning("instance_street").model.things == tuple(label.name.lower() for label in THINGS)


@pytest.mark.parametrize("name", NAMES)
def test_published_recipes_are_card_for_card(name: str) -> None:
    config = finetuning(name)
    rate, steps = {
        "scannet_semantic": (0.8, 20_000),
        "scannet_instance": (0.1, 20_000),
        "s3dis_semantic": (0.1, 60_000),
        "s3dis_instance": (0.1, 15_000),
    }[name]
    assert (config.optim.name, config.optim.lr, config.optim.momentum, config.optim.dampening) == (
        "sgd",
        rate,
        0.9,
        0.1,
    )
    assert (config.optim.weight_decay, config.schedule.kind, config.schedule.steps) == (1e-4, "poly", steps)
    assert config.data.micro_batch_size * 8 == 48
    side = 0.02 if "scannet" in name else 0.05
    assert config.data.voxel.size == (side, side, side)
    assert config.data.voxel.features == "rgb"
    augment = config.data.augment.points
    translation, jitter = (0.1, 0.05) if "scannet" in name else (0.05, 0.005)
    assert (augment.colour.translation, augment.colour.jitter) == (translation, jitter)
    assert (augment.colour.hue, augment.colour.saturation) == (0.5, 0.2)
    assert (augment.scale_range, augment.flip, augment.max_rotation_rad) == ((0.9, 1.1), True, math.pi)
    assert augment.tilt_rad == pytest.approx(math.pi / 64, abs=1e-6)
    assert augment.elastic_m
    assert isinstance(config.model, SemanticConfig)
    assert config.model.backbone == Res16UNetConfig(preset="res16unet34c", in_channels=3, bn_momentum=0.02)
    if isinstance(config.model, InstanceConfig):
        assert (config.model.radius_m, config.model.min_voxels) == (0.03, 101)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["pixel_to_point_scannet", "pixel_to_point_7scenes", "pointcontrast_scannet"])
def test_what_is_pretrained_can_be_started_from(name: str, source: str) -> None:
    run = read_run(FOLDER / "pretrain" / f"{source}.yaml", ["run_dir=there", "data.shards=some"])
    assert isinstance(run, PretrainConfig)
    network = run.method.tower("backbone")
    assert isinstance(network, BackboneConfig)
    config = finetuning(name, "init=there")
    assert isinstance(config.model, SemanticConfig)
    assert network.in_channels == config.model.backbone.in_channels == run.data.voxel.num_features == 3
    with torch.device("meta"):
        assert {k: v.shape for k, v in network.build().state_dict().items()} == {
            k: v.shape for k, v in config.model.backbone.build().state_dict().items()
        }


@pytest.mark.parametrize("name", STREET)
def test_street_networks_start_from_the_street_worlds_methods(name: str) -> None:
    for source in ("pixel_to_point_street", "slidr_street", "ppkt_street"):
        run = read_run(FOLDER / "pretrain" / f"{source}.yaml", ["run_dir=there"])
        check_fits(run.method, run.data.voxel, finetuning(name, "init=there"))
