"""ScanNet's layout through `tandem prepare`, and the configs for it on what that makes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from data.storage.manifest import load_manifest
from engine.distributed import World
from launchers.cli import main as tandem
from launchers.training.stages import stages
from launchers.training.train import load_run, train
from tests.helpers.layouts.scannet import write_frames
from tests.helpers.pretrain_run import CONFIGS, SMALL
from tests.helpers.street_logs import street_log
from tests.helpers.toy_run import losses
from tests.helpers.toy_settings import toy_overrides

SCANNET = sorted(CONFIGS.glob("*_scannet.yaml"))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two scans of two streets, half a second a frame, prepared."""
    root = tmp_path_factory.mktemp("scannet")
    for log, scan in enumerate(("scene0000_00", "scene0001_00")):
        frames = street_log(("front",), frames=3, log=log, image_size=(96, 160))
        write_frames(root / "source", scan, frames, (0, 15, 30), labels="label-filt")
    shards = str(root / "shards")
    settings = ["every_frame=15", "every_pixel=1", "max_depth_m=40", "superpixels.num_segments=20"]
    assert tandem(["prepare", "scannet", str(root / "source"), shards, *settings, "--workers", "1"]) == 0
    return shards


@pytest.mark.slow
def test_prepared_frames_are_listed(rooms: str) -> None:
    manifest = load_manifest(rooms)
    assert (len(manifest), manifest.camera_names, len(manifest.class_names)) == (6, ("color",), 20)
    assert manifest.skipped == {}
    assert (manifest.num_pairs > 500).all()


@pytest.mark.slow
@pytest.mark.parametrize("path", SCANNET, ids=lambda path: path.stem)
def test_scannet_configs_take_two_steps_on_prepared_frames(
    path: Path, rooms: str, world: World, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    overrides = [o for o in SMALL if not o.startswith("method.")]
    overrides += [*toy_overrides(path), f"data.shards={rooms}", "optim.lr=0.01", "schedule.steps=2"]
    overrides += ["data.micro_batch_size=2", f"run_dir={run_dir}"]
    summary = [train(stage) for stage in stages(load_run(str(path), overrides))][-1]
    assert (summary.status, summary.step, summary.skipped) == ("finished", 2, 0)
    assert all(math.isfinite(value) for value in losses(run_dir))
