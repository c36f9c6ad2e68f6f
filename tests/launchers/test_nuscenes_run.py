"""From nuScenes' official layout through `prepare`, `pretrain` and `evaluate`, as the shipped configs say it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from data.storage.manifest import load_manifest
from engine.distributed import World
from engine.downstream.results import read_results
from launchers.cli import main as tandem
from tests.helpers.layouts.nuscenes import NuscenesLayout, write_nuscenes
from tests.helpers.pretrain_run import CONFIGS, SMALL, pretrain_here
from tests.helpers.toy_run import losses
from tests.helpers.toy_settings import toy_overrides

DOWNSTREAM = CONFIGS.parent / "downstream" / "nuscenes.yaml"
QUICK = (
    "linear_probe.steps=3",
    "linear_probe.lrs=[0.01]",
    "knn.bank_size=100",
    "calibration_sweeps=2",
    "voxels_per_sweep=50",
    "random=false",
    "device=cpu",
)


@pytest.mark.slow
def test_slidr_on_nuscenes(tmp_path: Path, world: World) -> None:
    # Of SLidR's 600 scenes, of its 100, and of the official val.
    scenes = ("scene-0061", "scene-1094", "scene-0103")
    layout = NuscenesLayout(scenes=scenes, frames=3, image_size=(64, 112), without_image=())
    write_nuscenes(tmp_path / "raw", layout, version="v1.0-trainval")
    shards, config = str(tmp_path / "shards"), CONFIGS / "slidr_nuscenes.yaml"
    settings = ["split_scheme=slidr", "labels=required", "superpixels.num_segments=40", "--workers", "2"]
    settings += ["samples_per_shard=2"]
    assert tandem(["prepare", "nuscenes", str(tmp_path / "raw"), shards, *settings]) == 0
    manifest = load_manifest(shards)
    assert manifest.logs == layout.scenes
    assert manifest.splits == ("train", "minival", "val")
    assert [len(manifest.indices(split)) for split in ("train", "minival", "val", "train+minival")] == [2, 2, 2, 4]
    assert len(manifest.camera_names) == 6
    assert manifest.skipped == {}
    assert (manifest.num_pairs > 0.3 * manifest.num_points).all(), "six cameras look all around"
    run_dir = tmp_path / "slidr"
    small = [override for override in SMALL if not override.startswith("method.")]
    toy = [*small, *toy_overrides(config), "optim.lr=0.01", "schedule.steps=2", "data.micro_batch_size=1"]
    summary = pretrain_here(run_dir, shards, *toy, config=config)
    assert (summary.status, summary.step, summary.skipped) == ("finished", 2, 0)
    assert all(math.isfinite(loss) and loss > 0 for loss in losses(run_dir))
    assert (
        tandem(["evaluate", str(run_dir), str(DOWNSTREAM), *QUICK, "fraction.every=1", "protocols=[linear_probe,knn]"])
        == 0
    )
    results = {result.protocol: result for result in read_results(run_dir / "results.json")}
    assert set(results) == {"linear_probe", "knn"}
    assert {result.dataset for result in results.values()} == {"nuscenes"}
    named = {name for name, iou in results["knn"].class_iou.items() if iou is not None}
    assert {"driveable_surface", "manmade", "car"} <= named
