"""`tandem pretrain` from outside: signals at any moment, two jobs in one folder, lost peers, clocks, what is noted."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from engine.distributed import World
from engine.errors import CheckpointError, DivergenceError, RunLockedError
from engine.run_lock import RunLock
from launchers.runs.attempts import read_attempts
from tests.helpers.pretrain_run import UNCACHED, arguments, pretrain_here
from tests.helpers.toy_run import losses, metrics
from tests.helpers.warm import Child, rank_variables

STEPS = 6
SHORT = (*UNCACHED, f"schedule.steps={STEPS}", "checkpoint.every_steps=2")


@pytest.fixture(scope="module")
def undisturbed(toy_set: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("undisturbed")
    pretrain_here(run_dir, toy_set, *SHORT)
    torch.set_num_threads(before)
    return losses(run_dir)


# ---- what is noted


def test_attempts_are_noted(toy_set: str, world: World, one_thread: None, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(CheckpointError):
        pretrain_here(tmp_path, toy_set, *SHORT)
    (tmp_path / "config.yaml").rmdir()
    pretrain_here(tmp_path, toy_set, *SHORT, "schedule.steps=1")
    failed, finished = read_attempts(tmp_path)
    assert (failed.status, finished.status) == ("failed", "finished")
    assert failed.reason is not None
    assert failed.reason.startswith("CheckpointError: the run's folder")
    assert (finished.step, finished.pid, finished.world_size) == (1, os.getpid(), 1)


@pytest.mark.slow
def test_a_diverging_run_ends_with_its_own_error(
    toy_set: str, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when it is started again: updates are skipped and counted, and what watches them gives no error first."""
    options = (*UNCACHED, "schedule.steps=20", "optim.lr=1e30", "engine.max_nonfinite_in_a_row=4")
    for _ in range(2):
        caplog.clear()
        with pytest.raises(DivergenceError, match="in 4 updates in a row"):
            pretrain_here(tmp_path, toy_set, *options)
        assert caplog.text.count("update skipped") == 4
    assert read_attempts(tmp_path)[-1].reason.startswith("DivergenceError: ")  # type: ignore[union-attr]


# ---- two jobs in one folder


def test_a_second_job_in_the_folder_is_refused_and_touches_nothing(
    toy_set: str, world: World, one_thread: None, tmp_path: Path
) -> None:
    with RunLock(tmp_path, wait_s=0.0, job="12_3"):
        with pytest.raises(RunLockedError, match=rf"trained by job 12_3, process {os.getpid()}"):
            pretrain_here(tmp_path, toy_set, *SHORT, "checkpoint.lock_wait_s=0")
        assert [p.name for p in tmp_path.iterdir()] == ["run.lock"]
    pretrain_here(tmp_path, toy_set, *SHORT, "schedule.steps=1", "checkpoint.lock_wait_s=0")


@pytest.mark.slow
def test_two_jobs_started_at_once(toy_set: str, tmp_path: Path, undisturbed: list[float]) -> None:
    jobs = [Child("launchers.pretrain", *arguments(tmp_path, toy_set, *SHORT, "checkpoint.lock_wait_s=0"))]
    jobs.append(Child("launchers.pretrain", *arguments(tmp_path, toy_set, *SHORT, "checkpoint.lock_wait_s=0")))
    outputs = [job.communicate(timeout=200)[0] for job in jobs]
    codes = [job.returncode for job in jobs]
    if codes == [0, 0]:
        pytest.skip("the first had finished before the second asked for the lock")
    assert sorted(codes) == [0, 1], outputs
    assert "RunLockedError" in outputs[codes.index(1)]
    assert losses(tmp_path) == undisturbed
    assert [a.status for a in read_attempts(tmp_path)] == ["finished"]


# ---- signals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "after_s"), [(signal.SIGTERM, 0.3), (signal.SIGUSR2, 1.5), (signal.SIGUSR1, 3.0), (signal.SIGINT, None)]
)
def test_a_signal_to_the_group_at_any_moment(
    number: signal.Signals,
    after_s: float | None,
    toy_set: str,
    one_thread: None,
    tmp_path: Path,
    undisturbed: list[float],
) -> None:
    """While python starts, torch is imported, workers start, or (None) after an update: code 75; goes on."""
    command = arguments(tmp_path, toy_set, *SHORT, "data.num_workers=2")
    process = Child("launchers.pretrain", *command, new_group=True)
    if after_s is None:
        log = tmp_path / "metrics.jsonl"
        while process.poll() is None and not (log.is_file() and log.read_text()):
            time.sleep(0.02)
    else:
        time.sleep(after_s)
    os.killpg(process.pid, number)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 75, output
    assert "Traceback" not in output
    (attempt,) = read_attempts(tmp_path) or [None]
    assert attempt is not None
    assert (attempt.status, attempt.signal) == ("preempted", number.name)
    pretrain_here(tmp_path, toy_set, *SHORT, "data.num_workers=2")
    assert losses(tmp_path) == undisturbed


# ---- clocks


@pytest.mark.slow
def test_skewed_clocks_between_attempts(
    toy_set: str,
    world: World,
    one_thread: None,
    tmp_path: Path,
    undisturbed: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second node's clock is an hour behind, and an old checkpoint seems the newest: the right one is taken."""
    part = arguments(tmp_path, toy_set, *SHORT, "monitor.tensorboard=true")
    process = Child("launchers.pretrain", *part)
    while not (tmp_path / "checkpoints" / "step_00000004").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    old = tmp_path / "checkpoints" / "step_00000002"
    now = time.time
    if old.exists():
        os.utime(old, (now() + 7200, now() + 7200))
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    pretrain_here(tmp_path, toy_set, *SHORT, "monitor.tensorboard=true")
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, STEPS + 1))
    assert losses(tmp_path) == undisturbed
    assert read_attempts(tmp_path)[-1].resumed in (4, 6)


# ---- lost peers, with all that a real run has


@pytest.mark.slow
def test_a_killed_rank_is_noted_and_the_run_goes_on(toy_set: str, tmp_path: Path) -> None:
    def start(run_dir: Path) -> list[Child]:
        command = arguments(
            run_dir, toy_set, *SHORT, "schedule.steps=6", "data.num_workers=1", "data.micro_batch_size=2",
            "engine.heartbeat_s=5",
        )  # fmt: skip
        return [Child("launchers.pretrain", *command, env=rank) for rank in rank_variables(2)]

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for process in start(whole):
        output = process.communicate(timeout=200)[0]
        assert process.returncode == 0, output
    first, second = start(cut)
    while not (cut / "metrics.jsonl").exists() or len(metrics(cut)) < 3:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    second.kill()
    began = time.monotonic()
    output = first.communicate(timeout=60)[0]
    assert time.monotonic() - began < 5 + 15
    assert first.returncode == 70, output
    assert f"PeerLostError: lost rank 1 (process {second.pid} on " in output
    second.communicate()
    (attempt,) = read_attempts(cut)
    assert attempt.status == "failed"
    assert attempt.reason is not None
    assert attempt.reason.startswith("PeerLostError: lost rank 1")
    for process in start(cut):
        output = process.communicate(timeout=200)[0]
        assert process.returncode == 0, output
    assert losses(cut) == losses(whole)
    assert [a.status for a in read_attempts(cut)] == ["failed", "finished"]
