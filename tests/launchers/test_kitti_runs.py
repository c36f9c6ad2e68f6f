"""From KITTI's official layouts through `prepare`, `pretrain` and `evaluate`, as the shipped configs say it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from engine.distributed import World
from engine.downstream.results import read_results
from launchers.cli import main as tandem
from tests.helpers.layouts.kitti import write_kitti_object, write_kitti_raw
from tests.helpers.layouts.semantickitti import write_semantickitti
from tests.helpers.pretrain_run import CONFIGS, SMALL, pretrain_here
from tests.helpers.toy_run import losses
from tests.helpers.toy_settings import toy_overrides

REAL = Path(__file__).parents[2].parent / "shared" / "data"
DOWNSTREAM = CONFIGS.parent / "downstream"
QUICK = (
    "linear_probe.steps=3",
    "linear_probe.lrs=[0.01]",
    "knn.bank_size=100",
    "finetune.steps=2",
    "finetune.batch_size=1",
    "finetune.lrs=[0.001]",
    "calibration_sweeps=2",
    "voxels_per_sweep=50",
    "tune_sweeps=1",
    "random=false",
    "device=cpu",
)


def toy_pretraining(config: Path) -> list[str]:
    """Overrides for two steps of a shipped run at toy size."""
    small = [override for override in SMALL if not override.startswith("method.")]
    return [*small, *toy_overrides(config), "optim.lr=0.01", "schedule.steps=2", "data.micro_batch_size=2"]


@pytest.mark.slow
def test_segcontrast_on_semantickitti(tmp_path: Path, world: World) -> None:
    write_semantickitti(tmp_path / "raw", ("00", "01", "08"))
    shards, config = str(tmp_path / "shards"), CONFIGS / "segcontrast_semantickitti.yaml"
    prepare = ["prepare", "semantickitti", str(tmp_path / "raw"), shards, "cameras=[none]", "--workers", "1"]
    assert tandem(prepare) == 0
    manifest = load_manifest(shards)
    assert manifest.camera_names == ()
    assert [len(manifest.indices(split)) for split in ("train", "val")] == [6, 3]
    assert "no images: sweeps only" in manifest.notes
    assert SampleReader(manifest).read(0).cameras == ()
    run_dir = tmp_path / "segcontrast"
    summary = pretrain_here(run_dir, shards, *toy_pretraining(config), config=config)
    assert (summary.status, summary.step, summary.skipped) == ("finished", 2, 0)
    assert all(math.isfinite(loss) for loss in losses(run_dir))
    listed = tmp_path / "two.txt"
    listed.write_text("# two scans\n00_000002\n01_000000\n")
    fraction = ["fraction.kind=list", f"fraction.file={listed}"]
    assert tandem(["evaluate", str(run_dir), str(DOWNSTREAM / "semantickitti.yaml"), *QUICK, *fraction]) == 0
    results = {result.protocol: result for result in read_results(run_dir / "results.json")}
    assert set(results) == {"linear_probe", "knn", "finetune"}
    assert results["finetune"].labels == "list two"
    assert {result.dataset for result in results.values()} == {"semantickitti"}
    # Sequence 08 has points of these; others it has none of, which say nothing.
    assert {"road", "building", "car"} <= {k for k, iou in results["knn"].class_iou.items() if iou is not None}


@pytest.mark.slow
def test_slidr_on_kitti_raw_and_object(tmp_path: Path, world: World) -> None:
    """Real frames where they are, else those of the street world in the same layouts."""
    raw, labelled = REAL / "kitti_raw", REAL / "kitti_object"
    if not (raw.is_dir() and labelled.is_dir()):
        raw, labelled = tmp_path / "raw", tmp_path / "object"
        write_kitti_raw(raw, frames=4)
        write_kitti_object(labelled, frames=6)
    shards, objects, config = str(tmp_path / "shards"), str(tmp_path / "objects"), CONFIGS / "slidr_kitti.yaml"
    limited = ["--workers", "1", "superpixels.num_segments=50", "--limit"]
    assert tandem(["prepare", "kitti-raw", str(raw), shards, *limited, "4"]) == 0
    assert tandem(["prepare", "kitti-object", str(labelled), objects, *limited, "6"]) == 0
    manifest = load_manifest(shards)
    assert (manifest.camera_names, len(manifest)) == (("image_02",), 4)
    assert (manifest.num_pairs > 0.05 * manifest.num_points).all()
    run_dir = tmp_path / "slidr"
    summary = pretrain_here(run_dir, shards, *toy_pretraining(config), config=config)
    assert (summary.status, summary.step, summary.skipped) == ("finished", 2, 0)
    assert all(math.isfinite(loss) for loss in losses(run_dir))
    evaluation = [str(DOWNSTREAM / "kitti_object.yaml"), f"data.shards={objects}"]
    assert tandem(["evaluate", str(run_dir), *evaluation, *QUICK]) == 0
    results = {result.protocol: result for result in read_results(run_dir / "results.json")}
    assert set(results) == {"linear_probe", "knn", "finetune"}
    assert results["finetune"].labels == "1 in 100 samples"
    assert results["knn"].class_iou["Pedestrian"] is not None
