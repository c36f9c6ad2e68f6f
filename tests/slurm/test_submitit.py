"""`tandem submit` and `sweep` on a real two-node SLURM, at toy size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launchers.cluster.freeze import PACKAGES, REPOSITORY
from launchers.runs.attempts import read_attempts
from launchers.runs.job_record import Jobs, read_jobs
from tests.helpers.pretrain_run import SMALL, STREET, UNCACHED, arguments, spawn_ranks
from tests.helpers.samples import write_toy_set
from tests.helpers.slurm_cluster import SlurmCluster, wait_until
from tests.helpers.toy_run import finish, losses, metrics

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

QUICK = (
    "protocols=[knn,finetune]",
    "knn.bank_size=100",
    "finetune.steps=1",
    "finetune.lrs=[0.001]",
    "finetune.seeds=[0]",
    "calibration_sweeps=2",
    "voxels_per_sweep=50",
    "tune_sweeps=1",
)
EVALUATED = ("evaluate.configs=[configs/downstream/street.yaml]", f"evaluate.overrides={json.dumps(QUICK)}")
ON_THE_CLUSTER = (
    "cluster.time_min=30",
    "cluster.evaluate.time_min=20",
    "cluster.signal_s=30",
    "cluster.array_parallelism=2",
)
WAIT_S = 300.0


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("toy"), num_logs=4, frames_per_log=4)


def tandem(
    cluster: SlurmCluster, *words: str, cwd: Path = REPOSITORY, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """The command from a checkout, against the test cluster."""
    one_thread = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return cluster.run(sys.executable, "-m", "launchers.cli", *words, cwd=cwd, env=one_thread, check=check)


def jobs_of(run: Path) -> Jobs:
    jobs = read_jobs(run)
    assert jobs is not None
    return jobs


def logs_of(folder: Path) -> str:
    """Ends of all logs, for messages."""
    return "\n".join(f"--- {p.name}\n{p.read_text()[-1500:]}" for p in sorted(folder.glob("*_log.*")))


def wait_until_over(cluster: SlurmCluster, job: str, logs: Path) -> str:
    try:
        return cluster.wait_for(job, timeout_s=WAIT_S)
    except TimeoutError as error:
        raise AssertionError(f"{error}\n{logs_of(logs)}") from error


def states(cluster: SlurmCluster, ids: Sequence[str]) -> set[str]:
    return {cluster.job(job)["JobState"] for job in ids}


def test_sweep_with_evaluations_report_and_a_setting_that_fails(
    cluster: SlurmCluster, toy_set: str, tmp_path: Path
) -> None:
    root = tmp_path / "sweep"
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"base: {STREET}\nroot: {root}\n"
        "points: [[method.temperature=0.07], [method.temperature=0.2], [engine.precision=fp16]]\n"
        "grid: {seed: [0, 1]}\n"
    )
    small = [override for override in SMALL if not override.startswith("engine.precision")]
    words = ["sweep", str(sweep), *ON_THE_CLUSTER, f"data.shards={toy_set}", *small, *UNCACHED]
    words += ["schedule.steps=2", *EVALUATED]
    said = tandem(cluster, *words).stdout
    runs = {folder.name: folder for folder in root.iterdir() if folder.name not in {"code", "logs"}}
    good = [name for name in runs if name.startswith("temperature")]
    bad = [name for name in runs if name.startswith("precision")]
    assert (len(good), len(bad)) == (4, 2), said
    report = {jobs_of(run).report for run in runs.values()}
    assert len(report) == 1
    assert wait_until_over(cluster, report.pop() or "", root / "logs") == "COMPLETED", logs_of(root / "logs")

    for name in good:
        assert [attempt.status for attempt in read_attempts(runs[name])] == ["finished"]
        evaluations = jobs_of(runs[name]).evaluate
        assert len(evaluations) == 2
        assert states(cluster, list(evaluations.values())) == {"COMPLETED"}
        assert all((runs[name] / "evaluation" / element / "results.json").is_file() for element in evaluations)
    for name in bad:
        (attempt,) = read_attempts(runs[name])
        assert (attempt.status, attempt.job) == ("failed", jobs_of(runs[name]).pretrain)
        assert states(cluster, list(jobs_of(runs[name]).evaluate.values())) == {"CANCELLED"}
        assert not (runs[name] / "evaluation").exists()
    baselines = {job for run in runs.values() for job in jobs_of(run).baselines.values()}
    assert len(baselines) == 2  # one for each element, however many runs
    text = (root / "report.md").read_text()
    assert all(name in text for name in bad), text
    assert "fp16 needs a GPU" in text

    status = tandem(cluster, "status", str(root)).stdout
    assert status.count("finished") == 4
    assert "fp16 needs a GPU" in status

    # Again: what has finished is not run again, what failed is.
    said = tandem(cluster, *words).stdout
    assert said.count("finished before") == 4
    assert "temperature" not in "".join(line for line in said.splitlines() if "queued as" in line)
    again = {jobs_of(runs[name]).pretrain for name in bad}
    assert len(again) == 2
    said = tandem(cluster, "cancel", str(root)).stdout
    assert "cancelled" in said
    wait_until(lambda: states(cluster, sorted(filter(None, again))) <= {"CANCELLED", "FAILED"}, 60)


def test_preempted_and_killed_on_two_nodes_goes_on_with_the_code_of_its_submission(
    cluster: SlurmCluster, toy_set: str, tmp_path: Path
) -> None:
    """From a checkout that is broken after submission, in a folder with a name that shells trip over."""
    steps = 24
    length = (f"schedule.steps={steps}", "checkpoint.every_steps=2")
    checkout = tmp_path / "checkout"
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    run = tmp_path / "a $HOME; run#1 (ü)"
    words = ("submit", *arguments(run, toy_set, *UNCACHED, *length), *ON_THE_CLUSTER, "--nodes", "2")
    tandem(cluster, *words, "cluster.sbatch.hold=true", "--no-evaluate", cwd=checkout)
    for package in PACKAGES:
        for path in (checkout / package).rglob("*.py"):
            path.write_text("raise RuntimeError('edited after submission')\n")
    job = jobs_of(run).pretrain or ""
    cluster.run("scontrol", "release", job)
    logs = run / "logs"

    def wait_for_step(step: int) -> None:
        log = run / "metrics.jsonl"
        wait_until(lambda: log.is_file() and len(metrics(run)) >= step, 120, lambda: logs_of(logs), every_s=0.05)

    wait_for_step(3)
    assert "writes a checkpoint and is queued again" in tandem(cluster, "requeue", str(run)).stdout
    wait_until(lambda: len(read_attempts(run)) == 2, 120, lambda: logs_of(logs))
    stopped_at = read_attempts(run)[0].step or 0
    wait_for_step(stopped_at + 3)
    cluster.ranks(job, "submitit.core._submit")[1].kill()
    assert wait_until_over(cluster, job, logs) == "COMPLETED", logs_of(logs)

    first, second, third = read_attempts(run)
    assert (first.status, first.signal, first.world_size, first.job) == ("preempted", "SIGUSR2", 2, job)
    assert 3 <= stopped_at < steps
    assert (second.status, second.resumed) == ("failed", stopped_at)
    assert "rank 1" in (second.reason or "")
    assert (third.status, third.step) == ("finished", steps)

    whole = tmp_path / "whole"
    finish(spawn_ranks([arguments(whole, toy_set, *UNCACHED, *length)], world_size=2))
    assert [line["step"] for line in metrics(run)] == list(range(1, steps + 1))
    assert losses(run) == losses(whole)


def test_what_is_wrong_is_said_before_anything_is_queued(cluster: SlurmCluster, toy_set: str, tmp_path: Path) -> None:
    words = ("submit", *arguments(tmp_path / "run", toy_set), "cluster.partition=nosuch")
    done = tandem(cluster, *words, check=False)
    assert done.returncode == 2
    assert "'nosuch' is no partition here; expected one of main, urgent" in done.stderr
    # Found by SLURM itself: there are no GPUs.
    words = ("submit", *arguments(tmp_path / "run", toy_set, *UNCACHED), *ON_THE_CLUSTER, "--no-check")
    done = tandem(cluster, *words, "cluster.gpus_per_node=1", check=False)
    assert done.returncode == 1
    assert "sbatch refused" in done.stderr
    assert read_jobs(tmp_path / "run") is None
    # What SLURM lets pass and never starts.
    words = ("submit", *arguments(tmp_path / "run", toy_set, *UNCACHED), "--no-check", "--no-evaluate", "--nodes", "3")
    done = tandem(cluster, *words, "cluster.time_min=30")
    assert "cannot start as things are (Partition" in done.stderr
    assert "cancelled 1 job" in tandem(cluster, "cancel", str(tmp_path / "run")).stdout
