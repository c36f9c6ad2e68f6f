"""The Waymo Open Dataset from its published layouts to results: prepare, `slurm/pretrain_waymo.sh`, evaluate."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.storage.manifest import load_manifest
from launchers.runs.attempts import read_attempts
from launchers.runs.job_record import read_jobs
from tests.helpers.layouts.waymo import CAMERAS, WaymoOptions, write_waymo_v1, write_waymo_v2
from tests.helpers.pretrain_run import REPOSITORY, SMALL
from tests.helpers.sbatch_run import ENV
from tests.helpers.slurm_cluster import SlurmCluster
from tests.helpers.street_logs import street_log
from tests.helpers.toy_run import losses

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

QUICK = (
    "protocols=[linear_probe,knn]",
    "knn.bank_size=100",
    "calibration_sweeps=2",
    "voxels_per_sweep=50",
    "tune_sweeps=1",
    "linear_probe.steps=20",
    "linear_probe.lrs=[0.1]",
)
TOY = (
    *SMALL,
    "method.teacher.name=efficientnet_lite0",
    "method.teacher.weights=random",
    "data.micro_batch_size=1",
    "optim.lr=0.01",
    "schedule.steps=4",
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Five segments, training as TFRecords and validation as Parquet: the formats may be mixed between splits."""
    root = tmp_path_factory.mktemp("raw")
    for log in range(3):
        segment = WaymoOptions(segment=f"100{log}_000_020_000", segmented=(0, 1, 2))
        samples = street_log(CAMERAS, frames=3, log=log, beams=32, azimuths=360)
        if log < 2:
            write_waymo_v1(root / "waymo" / "training", samples, segment)
        else:
            write_waymo_v2(root / "waymo" / "validation", samples, segment)
    yield root
    shutil.rmtree(root)


def by_hand(raw: Path, out: Path, *settings: str) -> None:
    """`tandem prepare waymo` without a cluster."""
    command = [ENV["TANDEM_PYTHON"], "-m", "launchers.prepare", "waymo", str(raw / "waymo"), str(out), *settings]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--workers", "1"], cwd=REPOSITORY, env=env, check=True)


def prepare(cluster: SlurmCluster, raw: Path, out: Path, *settings: str) -> None:
    """`bash slurm/prepare_waymo.sh` and wait for the job that joins."""
    env = ENV | {"TANDEM_RAW": str(raw), "TANDEM_DATA": str(out)}
    options = ["--array=0-1", "--cpus-per-task=1", f"--output={out}-%A_%a.out"]
    words = ["superpixels.num_segments=20", "samples_per_shard=3", *settings, *options]
    script = str(REPOSITORY / "slurm" / "prepare_waymo.sh")
    done = cluster.run("bash", script, *words, env=env, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    join = done.stdout.split("joined by ")[1].split(";")[0]
    told = [path.read_text() for path in out.parent.glob(f"{out.name}-*.out")]
    assert cluster.wait_for(f"{join}_0", timeout_s=300) == "COMPLETED", told


def test_from_published_files_to_results(cluster: SlurmCluster, raw: Path, tmp_path: Path) -> None:
    prepare(cluster, raw, tmp_path / "shards")
    by_hand(raw, tmp_path / "labelled", "labelled_only=true", "lasers=[top]", "superpixels=null")
    manifest = load_manifest(str(tmp_path / "shards" / "waymo"))
    assert len(manifest) == 9
    assert sorted(manifest.splits) == ["train", "train", "val"]
    run_dir = tmp_path / "run"
    follow = [*QUICK, f"data.shards={tmp_path}/labelled"]
    settings = [f"run_dir={run_dir}", *TOY, f"evaluate.overrides={json.dumps(follow)}"]
    env = ENV | {"TANDEM_EVALUATE": "1", "TANDEM_DATA": str(tmp_path / "shards")}
    options = ["--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", f"--output={tmp_path}/run.out"]
    job = cluster.sbatch(*options, "slurm/pretrain_waymo.sh", *settings, env=env, cwd=REPOSITORY)
    state = cluster.wait_for(job, timeout_s=400)
    told = (tmp_path / "run.out").read_text()[-6000:]
    assert state == "COMPLETED", told
    (attempt,) = read_attempts(run_dir)
    assert (attempt.status, attempt.world_size, attempt.nodes, attempt.step) == ("finished", 2, "n[1-2]", 4)
    values = losses(run_dir)
    assert len(values) == 4
    assert all(math.isfinite(value) for value in values)
    jobs = read_jobs(run_dir)
    assert jobs is not None, told
    assert jobs.report is not None
    assert cluster.wait_for(jobs.report, timeout_s=400) == "COMPLETED"
    text = (run_dir / "report.md").read_text()
    assert "Failed or missing" not in text, text
    assert "waymo" in text
    assert "linear" in text.lower()


def test_settings_by_hand(raw: Path, tmp_path: Path) -> None:
    """Settings as docs/datasets/waymo.md has them."""
    settings = ["labels=boxes", "returns=first", "cameras=[front,side_left]", "every_frame=2", "undistort=true"]
    by_hand(raw, tmp_path / "set", *settings)
    manifest = load_manifest(str(tmp_path / "set"))
    assert len(manifest) == 6
    assert manifest.camera_names == ("front", "side_left")
    assert manifest.class_names == ("background", "vehicle", "pedestrian", "sign", "cyclist")
