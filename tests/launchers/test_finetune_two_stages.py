"""A two-stage detector where ZeRO splits its weights, killed, and on 2 -> 1 -> 3 processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml

from configs.detection import FinetuneConfig
from engine.distributed import World
from launchers.finetuning.run import train_run
from launchers.runs.attempts import read_attempts
from launchers.training.train import load_any_run
from tests.helpers.finetune_run import spawn_ranks
from tests.helpers.toy_run import finish, losses, metrics, stop_at, weights
from tests.launchers.test_resume import kill_after

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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_and_on_other_numbers_of_processes(
    street_set: str, world: World, one_thread: None, tmp_path: Path
) -> None:
    """SIGKILL on two processes costs nothing, bit for bit; 2 -> 1 -> 3 processes go on.

    Each rank draws RoIs and drop-out for itself, so other numbers of processes have the first stage's losses, of which
    nothing is drawn, as far as the second stage's updates let them; at this rate that is a few thousandths.
    """
    config = tmp_path / "pv_rcnn.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    own = (
        "optim.name=sgd",
        "optim.lr=0.0001",
        "schedule.kind=constant",
        "schedule.steps=4",
        "checkpoint.every_steps=1",
    )
    own += ("checkpoint.keep=9", f"data.shards={street_set}", "data.micro_batch_size=3")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    jobs = [[str(config), *own, f"run_dir={run_dir}"] for run_dir in (whole, cut)]
    ranks = spawn_ranks(jobs, world_size=2)
    kill_after(ranks[0], cut, 2)
    ranks[1].kill()
    ranks[1].communicate()
    assert len(metrics(cut)) < 4
    finish(spawn_ranks(jobs[1:], world_size=2))
    assert read_attempts(cut)[-1].resumed in (1, 2, 3)
    assert losses(cut) == losses(whole)
    expected, got = weights(whole), weights(cut)
    assert all(torch.equal(got[name], expected[name]) for name in expected)

    fewer = stop_at(whole, tmp_path / "fewer", 1)
    train_run(load_any_run(str(config), [*own, f"run_dir={fewer}"], kind=FinetuneConfig))
    more = stop_at(fewer, tmp_path / "more", 2)
    finish(spawn_ranks([[str(config), *own, f"run_dir={more}"]], world_size=3))
    assert [attempt.world_size for attempt in read_attempts(more)] == [2, 1, 3]
    assert [line["step"] for line in metrics(more)] == [1, 2, 3, 4]
    for part in ("class", "box", "direction"):
        parts = [[line[f"train/loss_{part}"] for line in metrics(run)] for run in (more, whole)]
        assert parts[0] == pytest.approx(parts[1], rel=0.02), part
    assert all(math.isfinite(value) for value in losses(more))
