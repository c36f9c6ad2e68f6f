"""Every config of a detector's training loads, prints itself and builds its detector; what it judges by is known."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.fidelity import missing_values
from configs.detection import FinetuneConfig
from configs.load import ConfigError
from configs.runs import dump_run, read_run
from configs.schema import PretrainConfig
from data.convert.kitti.semantickitti import CLASS_WORDS
from data.convert.nuscenes.names import CLASSES
from data.street.classes import CLASS_NAMES
from engine.detection.judge import BENCHMARKS
from engine.segmentation.judge import BENCHMARKS as SEGMENT_BENCHMARKS
from models.detection import DETECTORS
from models.detection.mvx_net import MvxNetConfig
from models.detection.vote_net import VoteNetConfig
from models.segmentation.panoptic import PanopticConfig

ROOMS = ("scannet_votenet", "sunrgbd_votenet")

IMAGES = ("nuscenes_fcos3d", "kitti_fcos3d")
"""As MMDetection3D does."""

SIMIPU = ("kitti_mvx_net", "waymo_mvx_net")
"""Trained as SimIPU trains them; all others as OpenPCDet does."""


@functools.cache
def load_config(path: Path) -> FinetuneConfig:
    config = read_run(path, ["run_dir=here", *missing_values(path)])
    assert isinstance(config, FinetuneConfig)
    return config


CONFIGS = sorted(
    path
    for path in (Path(__file__).resolve().parents[2] / "configs" / "finetune").glob("*.yaml")
    if yaml.safe_load(path.read_text())["model"]["name"] in DETECTORS
)


def test_there_are_configs() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {"second_street", "centerpoint_street", "kitti_second", "waymo_centerpoint_pillar"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_whole(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(dump_run(config))
    assert read_run(tmp_path / "again.yaml") == config
    assert set(config.judge.benchmarks) <= set(BENCHMARKS)
    assert config.judge.benchmarks
    with torch.device("meta"):
        config.model.build()
    kinds = dict.fromkeys((*ROOMS, *IMAGES), "steps") | dict.fromkeys(SIMIPU, "cosine")
    assert config.schedule.kind == kinds.get(path.stem, "onecycle")
    assert config.optim.name == ("sgd" if path.stem in IMAGES else "adamw")


def test_published_recipes_are_card_for_card() -> None:
    """Peak rate, epochs, samples a GPU, clipping: as OpenPCDet's and MMDetection3D's configurations state them."""
    values = {
        path.stem: (
            config.optim.lr,
            config.schedule.epochs,
            config.data.micro_batch_size,
            config.engine.clip_norm,
        )
        for path in CONFIGS
        if not path.stem.endswith("_street") and path.stem not in ROOMS and (config := load_config(path))
    }
    expected = {
        "kitti_second": (0.003, 80, 4, 10.0),
        "kitti_pv_rcnn": (0.01, 80, 2, 10.0),
        "kitti_point_rcnn": (0.01, 80, 3, 10.0),
        "waymo_centerpoint_pillar": (0.003, 30, 6, 10.0),
        "waymo_centerpoint_voxel": (0.003, 30, 4, 10.0),
        "nuscenes_centerpoint_pillar": (0.001, 20, 4, 10.0),
        "once_centerpoint": (0.003, 80, 4, 35.0),
        "kitti_mvx_net": (0.003, 80, 4, 35.0),
        "waymo_mvx_net": (0.003, 24, 2, 35.0),
        "nuscenes_fcos3d": (0.002, 72, 2, 35.0),
        "kitti_fcos3d": (0.002, 60, 2, 35.0),
    }
    assert values == expected


def test_mvx_net_on_waymo_suppresses_as_its_source() -> None:
    """OpenPCDet's SECOND there: boxes that overlap by up to .7 stay, unlike KITTI's .01."""
    config = load_config(next(path for path in CONFIGS if path.stem == "waymo_mvx_net"))
    assert isinstance(config.model, MvxNetConfig)
    nms = config.model.nms
    assert (nms.min_score, nms.max_iou, nms.num_before, nms.num_after) == (0.1, 0.7, 4096, 500)
    kitti = load_config(next(path for path in CONFIGS if path.stem == "kitti_mvx_net")).model
    assert isinstance(kitti, MvxNetConfig)
    assert (kitti.nms.max_iou, kitti.nms.num_before, kitti.nms.num_after) == (0.01, 100, 50)


def test_published_recipes_of_rooms_are_card_for_card() -> None:
    """VoteNet's, as contrastive scene contexts trains it: points, voxels, rates, turns, headings, sizes."""
    configs = {name: load_config(next(path for path in CONFIGS if path.stem == name)) for name in ROOMS}
    for name, points, samples, degrees, flips, scale, headings, classes in (
        ("scannet_votenet", 40_000, 4, 5, "xy", (1.0, 1.0), 1, 18),
        ("sunrgbd_votenet", 20_000, 8, 30, "y", (0.85, 1.15), 12, 10),
    ):
        config = configs[name]
        assert (config.data.max_points, config.data.micro_batch_size) == (points, samples)
        assert config.data.voxel.size == (0.025,) * 3
        augment = config.data.augment.points
        assert math.degrees(augment.max_rotation_rad) == pytest.approx(degrees, abs=1e-4)
        assert (augment.flip_axes, augment.scale_range, augment.drop_max_side) == (flips, scale, 0)
        assert (config.optim.lr, config.optim.weight_decay, config.schedule.epochs) == (1e-3, 0, 180)
        drops = [at * 180 for at in config.schedule.drop_at]
        assert drops == pytest.approx([80, 120, 160], abs=1e-3)
        assert isinstance(config.model, VoteNetConfig)
        assert (config.model.num_headings, len(config.model.classes)) == (headings, classes)


def test_a_file_of_the_other_kind_is_told_apart(tmp_path: Path) -> None:
    second = next(path for path in CONFIGS if path.stem == "second_street")
    with pytest.raises(ConfigError, match=r"is the config of a detector's training .* it goes to tandem finetune"):
        read_run(second, kind=PretrainConfig)
    pretrain = second.parents[1] / "pretrain" / "slidr_street.yaml"
    with pytest.raises(ConfigError, match=r"is the config of a pre-training run .* it goes to tandem pretrain"):
        read_run(pretrain, kind=FinetuneConfig)
    assert isinstance(read_run("second_street", ["run_dir=here"]), FinetuneConfig), "by its name"
    assert isinstance(read_run("slidr_street", ["run_dir=here"]), PretrainConfig)
    with pytest.raises(ConfigError, match="init: got None, expected text"):
        read_run(second, ["run_dir=here", "init="])
    with pytest.raises(ConfigError, match=r"model.backbone.in_channels: got 4, expected 1"):
        read_run(second, ["run_dir=here", "data.voxel.features=intensity"])


SEGMENTERS_CONFIGS = sorted(
    path for path in (Path(__file__).resolve().parents[2] / "configs" / "finetune").glob("panoptic_*.yaml")
)
WORDS = {"semantickitti": tuple(CLASS_WORDS), "nuscenes": tuple(CLASSES), "street": CLASS_NAMES}


@pytest.mark.parametrize("path", SEGMENTERS_CONFIGS, ids=lambda path: path.stem)
def test_configs_of_panoptic_segmentation_are_whole(path: Path, tmp_path: Path) -> None:
    """They print themselves, build, and tell apart what the set and its benchmark do."""
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(dump_run(config))
    assert read_run(tmp_path / "again.yaml") == config
    assert isinstance(config.model, PanopticConfig)
    assert config.model.classes == WORDS[path.stem.removeprefix("panoptic_")]
    assert set(config.judge.benchmarks) <= set(SEGMENT_BENCHMARKS)
    with torch.device("meta"):
        config.model.build()


def test_recipes_of_panoptic_segmentation_are_card_for_card() -> None:
    for name, points, reach, things in (("semantickitti", 80_000, 48.0, 8), ("nuscenes", 50_000, 50.0, 10)):
        config = load_config(next(path for path in SEGMENTERS_CONFIGS if path.stem == f"panoptic_{name}"))
        assert (config.data.max_points, config.data.voxel.size) == (points, (0.05,) * 3)
        assert config.data.voxel.range_max is not None
        assert config.data.voxel.range_max[:2] == (reach, reach)
        assert (config.optim.lr, config.optim.weight_decay, config.schedule.epochs) == (0.02, 0, 50)
        assert config.data.micro_batch_size * 4 * config.engine.accumulation_steps == 8 * 4
        assert isinstance(config.model, PanopticConfig)
        assert config.model.things == config.model.classes[:things]
        weights = (config.model.cross_entropy_weight, config.model.lovasz_weight, config.model.offset_weight)
        assert (*weights, config.model.bandwidth_m) == (2, 6, 1, 1.2)
