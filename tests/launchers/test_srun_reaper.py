"""An srun that outlives its step is killed; one that does its work is not."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from launchers.cluster.srun_reaper import watch
from launchers.runs import attempts

GRACE_S = 0.6


@pytest.fixture
def shell(tmp_path):
    """A batch script whose srun never returns."""
    srun = tmp_path / "srun"
    srun.write_bytes(Path("/bin/sleep").read_bytes())
    srun.chmod(0o755)
    process = subprocess.Popen(
        ["bash", "-c", f"sleep 9 >/dev/null & {srun} 98; echo code $?"], stdout=subprocess.PIPE, text=True
    )
    while {child.name() for child in psutil.Process(process.pid).children()} != {"sleep", "srun"}:
        time.sleep(0.01)
    yield process
    for child in psutil.Process(process.pid).children() if psutil.pid_exists(process.pid) else []:
        child.kill()
    process.kill()
    process.communicate()


def start(run_dir, shell, results):
    def work():
        results.append(watch([run_dir, run_dir / "first"], shell.pid, "12", grace_s=GRACE_S, poll_s=0.05))

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    return thread


def test_killed_when_the_attempt_is_over_and_srun_is_not(tmp_path, shell):
    attempts.begin(tmp_path, 2, job="12").end("preempted", step=3, signal="SIGTERM")  # an attempt before
    results = []
    thread = start(tmp_path, shell, results)
    record = attempts.begin(tmp_path, 2, job="12")
    time.sleep(2 * GRACE_S)
    assert not results  # it trains
    record.end("preempted", step=6, signal="SIGTERM")
    began = time.monotonic()
    thread.join(10)
    assert results == [1]
    assert time.monotonic() - began > 0.8 * GRACE_S
    assert shell.stdout.readline() == "code 137\n"
    assert [child.name() for child in psutil.Process(shell.pid).children()] in ([], ["sleep"])


def test_a_finished_first_stage_is_not_the_end(tmp_path, shell):
    results = []
    thread = start(tmp_path, shell, results)
    attempts.begin(tmp_path / "first", 2, job="12").end("finished", step=6)
    time.sleep(2 * GRACE_S)
    assert not results  # the second stage is about to begin
    attempts.begin(tmp_path, 2, job="12").end("preempted", step=3, signal="SIGTERM")
    thread.join(10)
    assert results == [1]


def test_ends_with_the_shell_and_leaves_other_jobs_alone(tmp_path, shell):
    results = []
    thread = start(tmp_path, shell, results)
    attempts.begin(tmp_path, 2, job="13").end("failed", reason="another job")
    time.sleep(2 * GRACE_S)
    assert not results
    for child in psutil.Process(shell.pid).children():
        child.kill()
    shell.kill()
    shell.wait()
    thread.join(10)
    assert results == [0]
