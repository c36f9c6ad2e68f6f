"""Runs of slurm/pretrain_synthetic.sh that are stopped and killed on a real SLURM; each goes on with equal losses."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from launchers.cluster.after_step import read_entries
from tests.helpers.pretrain_run import spawn_ranks
from tests.helpers.samples import write_toy_set
from tests.helpers.sbatch_run import TOY, SbatchRun, slowed
from tests.helpers.slurm_cluster import SlurmCluster, alive, wait_until
from tests.helpers.toy_run import finish, losses, metrics

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

STEPS = 24
OVERRIDES = (
    f"schedule.steps={STEPS}",
    "data.micro_batch_size=3",
    "checkpoint.every_steps=2",
    "method.gather_negatives=true",  # the loss depends on the global batch only
)
CUT_AT = 5
"""Updates that a run has logged when it is disturbed."""


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("toy"), num_logs=5, frames_per_log=6)


@pytest.fixture(scope="module")
def undisturbed(toy_set: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of two processes that nobody disturbs, without SLURM."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    config = "configs/pretrain/slidr_street.yaml"
    finish(spawn_ranks([[config, f"run_dir={run}", f"data.shards={toy_set}", *TOY, *OVERRIDES]], world_size=2))
    return losses(run)


@pytest.fixture
def run(cluster: SlurmCluster, toy_set: str, tmp_path: Path) -> SbatchRun:
    return SbatchRun(cluster=cluster, run_dir=tmp_path / "run", shards=toy_set, overrides=OVERRIDES)


def assert_goes_on(run: SbatchRun, undisturbed: list[float], *, lost: int) -> None:
    """All updates are there once, with the losses of an undisturbed run; at most `lost` were made again."""
    assert [line["step"] for line in metrics(run.run_dir)] == list(range(1, STEPS + 1)), run.told()
    assert run.losses() == undisturbed
    last = run.attempts()[-1]
    assert last.status == "finished", run.told()
    assert last.resumed is not None
    assert last.resumed >= CUT_AT - lost, run.told()


def test_preempted_by_a_more_urgent_job(run: SbatchRun, undisturbed: list[float]) -> None:
    job = run.queue()
    run.wait_for_step(CUT_AT)
    urgent = run.cluster.sbatch("-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    run.cluster.wait_for(urgent)
    run.finish(job)
    assert_goes_on(run, undisturbed, lost=0)
    first = run.attempts()[0]
    assert (first.status, first.signal) == ("preempted", "SIGTERM")
    assert [entry.code for entry in read_entries(run.run_dir, job)] == [75]


def test_the_end_of_the_time(run: SbatchRun, undisturbed: list[float]) -> None:
    job = run.queue("--time=30", "--signal=USR1@60")
    run.wait_for_step(CUT_AT)
    with slowed(run.cluster.ranks(job).values()):
        minutes = int(time.time() - run.attempts()[0].began) // 60 + 2
        run.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        wait_until(lambda: run.attempts()[0].ended is not None, 150, run.told)
    run.cluster.wait_for(job, ("PENDING",), 60)
    run.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    run.finish(job)
    assert_goes_on(run, undisturbed, lost=0)
    assert run.attempts()[0].signal == "SIGUSR1"
    assert len(run.attempts()) == 2


def test_one_rank_is_killed(run: SbatchRun, undisturbed: list[float]) -> None:
    job = run.queue()
    run.wait_for_step(CUT_AT)
    ranks = run.cluster.ranks(job)
    assert set(ranks) == {0, 1}
    os.kill(ranks[1].pid, signal.SIGKILL)
    wait_until(lambda: run.cluster.job(job).get("Restarts") == "1", 60, run.told)  # no silent hang
    run.finish(job)
    assert_goes_on(run, undisturbed, lost=2)
    assert "task 1: Killed" in run.output.read_text()
    assert (run.attempts()[0].status, "lost rank 1" in (run.attempts()[0].reason or "")) == ("failed", True)


def test_slurmstepd_of_a_node_is_killed(run: SbatchRun, undisturbed: list[float]) -> None:
    job = run.queue()
    run.wait_for_step(CUT_AT)
    orphan = run.cluster.ranks(job)[1]
    run.cluster.kill_stepd(job, node="n2", step="0")
    wait_until(lambda: not alive(orphan), 60, run.told)
    run.finish(job)
    assert (run.attempts()[0].status, run.attempts()[0].signal) == ("preempted", "SIGTERM")
    assert "srun has not for" in run.output.read_text()
    assert_goes_on(run, undisturbed, lost=2)


def test_a_node_freezes_and_comes_back(run: SbatchRun, undisturbed: list[float]) -> None:
    """Its slurmd is dead and its processes stand still: SLURM calls it down and queues the job again."""
    job = run.queue()
    run.wait_for_step(CUT_AT)
    frozen = run.cluster.tasks("n2", job)
    run.cluster.kill_slurmd("n2")
    for process in frozen:
        process.suspend()
    try:
        run.cluster.wait_for(job, ("PENDING",), 90)
        # Back again, the old process finds itself alone and must not disturb the new ones.
        for process in frozen:
            process.resume()
    finally:
        run.cluster.start_slurmd("n2")
    run.finish(job)
    assert_goes_on(run, undisturbed, lost=2)
    wait_until(lambda: not any(alive(process) for process in frozen), 60, lambda: f"left over: {frozen}")
    run.cluster.wait_for_nodes()


def test_a_node_dies_and_the_run_goes_on_elsewhere(run: SbatchRun, undisturbed: list[float]) -> None:
    run.cluster.run("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test")
    job = run.queue("--nodes=1", "--ntasks=2", "--ntasks-per-node=2")
    run.wait_for_step(CUT_AT)
    run.cluster.run("scontrol", "update", "NodeName=n1", "State=RESUME")
    run.cluster.kill_node("n2")
    try:
        run.finish(job)
    finally:
        run.cluster.start_slurmd("n2")
    assert_goes_on(run, undisturbed, lost=2)
    assert [attempt.status for attempt in run.attempts()] == ["died", "finished"]
    assert [attempt.nodes for attempt in run.attempts()] == ["n2", "n1"]
    run.cluster.wait_for_nodes()


def test_from_two_processes_to_one_to_three(run: SbatchRun, undisturbed: list[float]) -> None:
    shapes = [("--nodes=2",), ("--nodes=1",), ("--nodes=2", "--ntasks=3", "--ntasks-per-node=3")]
    for number, (shape, step) in enumerate(zip(shapes, (CUT_AT, 2 * CUT_AT, STEPS), strict=True)):
        job = run.queue(*shape)
        run.wait_for_step(step)
        if number < len(shapes) - 1:
            # Cancelled: writes a checkpoint, and is not queued again.
            run.cluster.run("scancel", job)
            assert run.cluster.wait_for(job) == "CANCELLED"
    run.finish(job)
    # On two cores three processes may keep a slurmd from answering in time: SLURM then queues the last job once more.
    attempts = run.attempts()
    assert list(dict.fromkeys(attempt.world_size for attempt in attempts)) == [2, 1, 3], run.told()
    assert [attempt.status for attempt in (*attempts[:2], attempts[-1])] == ["preempted", "preempted", "finished"]
    assert [line["step"] for line in metrics(run.run_dir)] == list(range(1, STEPS + 1))
    # Sums in another order: within rounding at first, and rounding grows with each update.
    changed = run.attempts()[0].step or 0
    assert run.losses()[: changed + 3] == pytest.approx(undisturbed[: changed + 3], rel=1e-5)
    assert run.losses() == pytest.approx(undisturbed, rel=1e-3)
