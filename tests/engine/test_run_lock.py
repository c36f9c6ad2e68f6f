from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.errors import RunLockedError
from engine.run_lock import RunLock, holder

HOLD = """
import sys, time
from engine.run_lock import RunLock
with RunLock(sys.argv[1], wait_s=0.0, job="7_1"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_second_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    process = hold(tmp_path, 60)
    try:
        with pytest.raises(RunLockedError, match=rf"job 7_1, process {process.pid} on "), RunLock(tmp_path, wait_s=0.0):
            pass
        assert f"process {process.pid}" in (holder(tmp_path) or "")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["run.lock"]
    finally:
        end(process)
    assert holder(tmp_path) is None  # kill -9 let go of it


def test_a_holder_whose_name_is_damaged_holds_it_all_the_same(tmp_path: Path) -> None:
    with RunLock(tmp_path, wait_s=0.0):
        for text in ("[" * 4096, "[]", ""):
            (tmp_path / "run.lock").write_text(text)
            assert holder(tmp_path) == "another process (it has not written its name yet)"


def test_waits_for_a_holder_that_is_about_to_end(tmp_path: Path) -> None:
    process = hold(tmp_path, 1.0)
    try:
        with RunLock(tmp_path, wait_s=30.0):
            assert f"process {os.getpid()}" in (tmp_path / "run.lock").read_text().replace('"pid": ', "process ")
            with pytest.raises(RunLockedError), RunLock(tmp_path, wait_s=0.0):
                pass
    finally:
        end(process)
    assert holder(tmp_path) is None


def test_a_stop_ends_the_wait(tmp_path: Path) -> None:
    process = hold(tmp_path, 60)
    try:
        began = time.monotonic()
        with pytest.raises(RunLockedError), RunLock(tmp_path, wait_s=60.0, stop=lambda: True):
            pass
        assert time.monotonic() - began < 10
    finally:
        end(process)


def test_age_of_the_lock_does_not_matter(tmp_path: Path) -> None:
    """A holder whose clock is a day ahead or behind holds it; one that is gone does not."""
    process = hold(tmp_path, 60)
    try:
        for shift in (-86400, 86400):
            os.utime(tmp_path / "run.lock", (time.time() + shift,) * 2)
            with pytest.raises(RunLockedError), RunLock(tmp_path, wait_s=0.0):
                pass
    finally:
        end(process)
    os.utime(tmp_path / "run.lock", (time.time() + 86400,) * 2)
    with RunLock(tmp_path, wait_s=0.0):
        pass


def test_no_locks_on_this_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunLock(tmp_path, wait_s=0.0):
        assert "no file locks" in caplog.text
