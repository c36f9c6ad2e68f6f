"""Every 3D network through the whole system: pre-training that continues exactly, evaluation, export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from configs.load import load
from configs.schema import EvaluateConfig
from engine.distributed import World
from launchers import export
from launchers.evaluation import measure
from models.lidar.backbones import BACKBONES
from models.weights import read_backbone_metadata
from tests.helpers.pretrain_run import UNCACHED, pretrain_here
from tests.helpers.toy_run import losses, weights

RANGE = ("data.voxel.range_min=[-64,-64,-4]", "data.voxel.range_max=[64,64,8]")
XYZ = ("data.voxel.features=xyz_intensity", "method.backbone.in_channels=4")
SMALL = {
    "res16unet": (),
    "spvcnn": ("method.backbone.preset=spvcnn_tiny",),
    "voxelnet": (
        "method.backbone.preset=second_tiny",
        "method.backbone.grid_min=[-128,-128,-8]",
        "method.backbone.grid_max=[128,128,16]",
        *RANGE,
    ),
    "pillars": (
        *XYZ,
        "method.backbone.preset=pillars_tiny",
        "method.backbone.pillar_size_m=1.0",
        "method.backbone.range_min_m=[-64,-64,-4]",
        "method.backbone.range_max_m=[64,64,8]",
        *RANGE,
    ),
    "pointnet2": (*XYZ, "method.backbone.preset=pointnet2_tiny"),
    "waffleiron": (
        *XYZ,
        "method.backbone.preset=waffleiron_tiny",
        "method.backbone.cell_m=2.0",
        "method.backbone.drop_path=0.2",
        *RANGE,
    ),
}
PROTOCOLS = (
    "protocols=[linear_probe,knn,finetune]",
    "linear_probe.steps=5",
    "linear_probe.lrs=[0.01]",
    "knn.bank_size=100",
    "finetune.steps=1",
    "finetune.lrs=[0.001]",
    "finetune.seeds=[0]",
    "fraction={kind: random, count: 1}",
    "calibration_sweeps=2",
    "voxels_per_sweep=50",
    "tune_sweeps=1",
    "random=false",
    "device=cpu",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_from_first_step_to_exported_file(
    name: str, toy_set: str, world: World, one_thread: None, tmp_path: Path
) -> None:
    whole, cut, out = tmp_path / "whole", tmp_path / "cut", tmp_path / "backbone.safetensors"
    options = (*UNCACHED, f"method.backbone.name={name}", *SMALL[name])
    options = (*options, "optim.lr=0.01", "schedule.steps=4", "checkpoint.every_steps=2")
    assert pretrain_here(whole, toy_set, *options).skipped == 0

    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step_00000004")
    pretrain_here(cut, toy_set, *options)
    assert len(losses(whole)) == 4
    assert losses(cut) == losses(whole)
    expected, got = weights(whole), weights(cut)
    assert all(torch.equal(got[key], expected[key]) for key in expected)

    config = load(EvaluateConfig, None, [*PROTOCOLS])
    results = measure.evaluate_runs([whole], config)
    assert [r.protocol for r in results] == ["linear_probe", "knn", "finetune"]
    assert export.main([str(whole), str(out)]) == 0
    described = json.loads(read_backbone_metadata(out)["backbone"])
    kind = BACKBONES[described.pop("name", "res16unet")]
    assert kind is BACKBONES[name]
    described = {key: tuple(v) if isinstance(v, list) else v for key, v in described.items()}
    kind(**described).build()
