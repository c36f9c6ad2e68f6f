from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launchers.runs import attempts
from launchers.runs.attempts import begin, is_finished, read_attempts
from launchers.runs.files import ATTEMPTS_FILE, is_run


def test_a_run_with_several_attempts(tmp_path: Path) -> None:
    first = begin(tmp_path, 2, job="12_0", nodes="n[1-2]")
    assert read_attempts(tmp_path)[0].status == "running"
    first.end("preempted", step=5, signal="SIGUSR1")
    begin(tmp_path, 2)  # dies: no end
    third = begin(tmp_path, 3)
    third.resumed(5)
    third.end("failed", reason="ShardError: too many\n  damaged samples")
    third.end("finished")  # the first end counts
    one, two, three = read_attempts(tmp_path)
    assert (one.status, one.job, one.nodes, one.step, one.signal) == ("preempted", "12_0", "n[1-2]", 5, "SIGUSR1")
    assert (two.status, two.ended, two.nodes) == ("died", None, two.host)
    assert (three.status, three.world_size, three.resumed) == ("failed", 3, 5)
    assert three.reason == "ShardError: too many damaged samples"


def test_a_finished_run_stays_finished_when_a_later_start_does_nothing(tmp_path: Path) -> None:
    begin(tmp_path, 1).end("finished", step=5)
    refused = begin(tmp_path, 1)
    refused.keep("config.yaml", "seed: 5")
    refused.end("failed", reason="CheckpointError: other settings")
    begin(tmp_path, 1).end("preempted", signal="SIGTERM")
    assert is_finished(tmp_path)
    assert (tmp_path / "attempts" / "0002" / "config.yaml").read_text() == "seed: 5"
    assert not is_run(tmp_path / "attempts" / "0002"), "it has a config.yaml, and is none"
    longer = begin(tmp_path, 1)
    longer.resumed(5, {"schedule.steps": (5, 9)})
    assert not is_finished(tmp_path)
    longer.end("preempted", step=7)
    assert not is_finished(tmp_path)
    assert read_attempts(tmp_path)[-1].changes == {"schedule.steps": (5, 9)}
    begin(tmp_path, 1).end("failed", reason="refused")
    assert not is_finished(tmp_path)


def test_no_attempt_yet(tmp_path: Path) -> None:
    assert read_attempts(tmp_path / "nothing") == []


def test_a_line_cut_short_spoils_no_other(tmp_path: Path) -> None:
    begin(tmp_path, 1)
    path = tmp_path / ATTEMPTS_FILE
    path.write_bytes(path.read_bytes() + b'{"event": "en')
    begin(tmp_path, 1).end("finished", step=3)
    assert [a.status for a in read_attempts(tmp_path)] == ["died", "finished"]


def test_order_of_lines_counts_not_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    begin(tmp_path, 1).end("preempted", step=2)
    monkeypatch.setattr(time, "time", lambda: now - 3600)  # the next node's clock is an hour behind
    begin(tmp_path, 1).end("finished", step=4)
    assert [(a.status, a.step) for a in read_attempts(tmp_path)] == [("preempted", 2), ("finished", 4)]


def test_a_line_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attempts, "_WRITE_DELAYS_S", (0.01,))
    record = begin(tmp_path, 1)
    (tmp_path / ATTEMPTS_FILE).rename(tmp_path / "away")
    (tmp_path / ATTEMPTS_FILE).mkdir()
    record.end("failed", reason="why it failed")
    assert "why it failed" in caplog.text


def test_imports_no_torch(tmp_path: Path) -> None:
    begin(tmp_path, 1).end("finished", step=1)
    code = f"""
import json, sys
from launchers.runs.attempts import read_attempts
from engine.run_lock import holder
print(json.dumps([read_attempts({str(tmp_path)!r})[0].status, holder({str(tmp_path)!r}), "torch" in sys.modules]))
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == ["finished", None, False]
