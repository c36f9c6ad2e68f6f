"""A two-stage detector where ZeRO splits its weights: its 3D network gives more than features of voxels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from configs.detection import FinetuneConfig
from engine.distributed import World
from launchers.finetuning.run import train_run
from launchers.training.train import load_any_run
from tests.helpers.toy_run import losses

CONFIG = {
    "data": {
        "voxel": {
            "kind": "cartesian",
            "size": [0.4, 0.4, 0.2],
            "features": "xyz_intensity",
            "reduce": "mean",
            "range_min": [-25.6, -25.6, -2.4],
            "range_max": [25.6, 25.6, 2.4],
        },
        "micro_batch_size": 2,
        "num_workers": 0,
    },
    "model": {
        "name": "pv_rcnn",
        "classes": ["car", "truck", "bus"],
        "preset": "pv_rcnn_tiny",
        "backbone": {
            "name": "voxelnet",
            "preset": "second_tiny",
            "in_channels": 4,
            "grid_min": [-64, -64, -12],
            "grid_max": [64, 64, 12],
            "voxel_size_m": [0.4, 0.4, 0.2],
        },
        "head": {"anchor_set": "street"},
        "num_keypoints": 64,
        "refinement": {
            "train_proposals": {"num_before": 128, "num_after": 32},
            "targets": {"num_rois": 16},
        },
    },
    "engine": {"device": "cpu", "timeout_min": 2},
    "optim": {"name": "adamw", "lr": 1e-3},
    "schedule": {"steps": 3},
    "checkpoint": {"every_steps": 0, "every_min": 0},
    "judge": {"benchmarks": []},
    "monitor": {"log_every": 1, "picture_every": 0, "tensorboard": False, "progress": False},
}


@pytest.mark.slow
def test_stage_three_learns_the_same(street_set: str, world: World, one_thread: None, tmp_path: Path) -> None:
    """The same draws, too: RoIs and drop-out."""
    config = tmp_path / "pv_rcnn.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    for stage in (0, 3):
        settings = (f"run_dir={tmp_path / str(stage)}", f"data.shards={street_set}", f"engine.zero_stage={stage}")
        run = load_any_run(str(config), [*settings, "engine.zero3_persistent_numel=0"], kind=FinetuneConfig)
        assert train_run(run).status == "finished"
    plain = losses(tmp_path / "0")
    assert len(plain) == 3
    assert all(math.isfinite(value) for value in plain)
    assert losses(tmp_path / "3") == pytest.approx(plain, rel=1e-4)
