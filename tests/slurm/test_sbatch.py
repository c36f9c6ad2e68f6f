"""The scripts of slurm/ on a real two-node SLURM: to the end with evaluation; what they say when something lacks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from data.storage.manifest import load_manifest
from launchers.runs.job_record import read_jobs
from tests.helpers.pretrain_run import REPOSITORY
from tests.helpers.samples import write_toy_set
from tests.helpers.sbatch_run import ENV, SCRIPT, SbatchRun
from tests.helpers.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

QUICK = (
    "protocols=[knn]",
    "knn.bank_size=100",
    "calibration_sweeps=2",
    "voxels_per_sweep=50",
    "tune_sweeps=1",
)


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("toy"), num_logs=4, frames_per_log=4)


def script(
    cluster: SlurmCluster, name: str, *argv: str, env: dict[str, str] | None = None, cwd: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    """`bash slurm/<name>` as on a login node."""
    return cluster.run("bash", str(REPOSITORY / "slurm" / name), *argv, env=ENV | (env or {}), cwd=cwd, check=False)


def queued(cluster: SlurmCluster) -> list[str]:
    """Jobs that wait or run."""
    states = "PENDING,RUNNING"
    return cluster.run("squeue", "--noheader", f"--states={states}", "--format=%i %j").stdout.splitlines()


def test_across_both_nodes_to_the_end_with_evaluation(cluster: SlurmCluster, toy_set: str, tmp_path: Path) -> None:
    follow = ["evaluate.configs=[configs/downstream/street.yaml]", f"evaluate.overrides={json.dumps(QUICK)}"]
    run = SbatchRun(cluster=cluster, run_dir=tmp_path / "run", shards=toy_set, overrides=("schedule.steps=3", *follow))
    run.finish(run.queue(evaluate=True))
    (attempt,) = run.attempts()
    assert (attempt.status, attempt.world_size, attempt.nodes, attempt.step) == ("finished", 2, "n[1-2]", 3)
    jobs = read_jobs(run.run_dir)
    assert jobs is not None, run.told()
    assert jobs.report is not None
    assert cluster.wait_for(jobs.report, timeout_s=200) == "COMPLETED"
    assert {cluster.job(job)["JobState"] for job in (*jobs.evaluate.values(), *jobs.baselines.values())} == {
        "COMPLETED"
    }
    text = (run.run_dir / "report.md").read_text()
    assert "knn" in text.lower()
    assert "Failed or missing" not in text, text


def test_called_on_a_login_node_it_checks_and_queues_itself(
    cluster: SlurmCluster, toy_set: str, tmp_path: Path
) -> None:
    run = SbatchRun(cluster=cluster, run_dir=tmp_path / "run", shards=toy_set, overrides=("schedule.steps=2",))
    options = ["--nodes=1", "--hold", "--time=10", f"--output={run.output}"]
    done = script(cluster, "pretrain_synthetic.sh", *run.settings(), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[2].rstrip(";")
    assert f"run folder: {run.run_dir}" in done.stdout
    assert "cannot start" not in done.stderr
    fields = cluster.job(job)
    assert (fields["JobState"], fields["NumNodes"], fields["TimeLimit"]) == ("PENDING", "1-1", "00:10:00")
    assert (fields["Requeue"], fields["WorkDir"]) == ("1", str(REPOSITORY))
    cluster.run("scancel", job)


@pytest.mark.parametrize(
    ("name", "argv", "env", "words"),
    [
        ("pretrain_waymo.sh", ["method.teacher.weights=random"], {}, ["no-such-folder/waymo holds no finished shard"]),
        ("pretrain_kitti.sh", [], {}, ["method.teacher.weights: no value given"]),
        ("pretrain_nuscenes.sh", ["optim.lr=fast"], {}, ["optim.lr: got 'fast'"]),
        ("pretrain_kitti.sh", ["--nodes", "2"], {}, ["'2': expected section.field=value", "--name=value"]),
        ("pretrain_kitti.sh", [], {"TANDEM_PYTHON": "/none/python"}, ["no Python at '/none/python'", "env.sh"]),
        ("prepare_kitti.sh", [], {}, ["no raw data in /no-raw/kitti_raw", "TANDEM_RAW"]),
        ("prepare_synthetic.sh", ["--partition=nosuch"], {}, ["nosuch", "SBATCH_PARTITION", "Nothing was queued"]),
        ("prepare_synthetic.sh", ["--ntasks=99"], {}, ["SLURM refuses", "Nothing was queued"]),
    ],
)
def test_what_is_missing_is_said_before_anything_is_queued(
    cluster: SlurmCluster, name: str, argv: list[str], env: dict[str, str], words: list[str]
) -> None:
    before = queued(cluster)
    folders = {"TANDEM_DATA": "/no-such-folder", "TANDEM_RAW": "/no-raw"}
    done = script(cluster, name, *argv, env=folders | env)
    assert done.returncode in {1, 2}
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert queued(cluster) == before


def test_the_same_in_a_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SbatchRun(cluster=cluster, run_dir=tmp_path / "run", shards=str(tmp_path / "none"), overrides=())
    assert cluster.wait_for(run.queue("--nodes=1")) == "FAILED"
    assert "holds no finished shard set" in run.told()
    assert not run.run_dir.exists()
    job = cluster.sbatch(f"--output={run.output}", SCRIPT, "--nodes=2", env=ENV, cwd=REPOSITORY)
    assert cluster.wait_for(job) == "FAILED"
    assert "--nodes=2: give options of sbatch before the script's name" in run.told()


def test_a_limit_of_the_partition_is_told(cluster: SlurmCluster, tmp_path: Path) -> None:
    done = script(cluster, "prepare_synthetic.sh", "--time=99:00:00", f"--output={tmp_path}/out")
    assert "cannot start: its partition is down, or allows less time or fewer nodes (Partition" in done.stderr
    array = done.stdout.split()[3].rstrip(",")
    join = done.stdout.split("joined by ")[1].split(";")[0]
    cluster.run("scancel", array, join)


def test_prepared_by_an_array_and_joined(cluster: SlurmCluster, tmp_path: Path) -> None:
    settings = ["num_logs=4", "frames_per_log=2", "samples_per_shard=2", "superpixels.num_segments=20"]
    options = ["--array=0-2", "--cpus-per-task=1", f"--output={tmp_path}/%A_%a.out"]
    done = script(cluster, "prepare_synthetic.sh", *settings, *options, env={"TANDEM_DATA": str(tmp_path / "shards")})
    assert done.returncode == 0, done.stderr
    array = done.stdout.split()[3].rstrip(",")
    join = done.stdout.split("joined by ")[1].split(";")[0]
    told = {path.name: path.read_text() for path in tmp_path.glob("*.out")}
    assert cluster.wait_for(f"{join}_0", timeout_s=200) == "COMPLETED", told
    assert {cluster.job(f"{array}_{element}")["JobState"] for element in range(3)} == {"COMPLETED"}
    plain = tmp_path / "plain"
    command = ["synthetic", "-", str(plain), "--workers", "1", *settings]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([ENV["TANDEM_PYTHON"], "-m", "launchers.prepare", *command], cwd=REPOSITORY, env=env, check=True)
    made = load_manifest(str(tmp_path / "shards" / "synthetic"))
    assert [shard.sha256 for shard in made.shards] == [shard.sha256 for shard in load_manifest(str(plain)).shards]
    assert (plain / "manifest.json").read_bytes() == (tmp_path / "shards/synthetic/manifest.json").read_bytes()
