"""Ctrl-C: one line, code 130, within seconds, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

_USUAL = "time.sleep(60)"
_SWALLOWS = """
class Deaf:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
Deaf()
time.sleep(60)
"""
_WAITS = """
try:
    print("ready", flush=True)
    time.sleep(60)
finally:
    time.sleep(60)
"""
_POOL = """
from data.preparing.pool import run_all
run_all(work, [1, 2, 3], 2, lambda done: None, "testing")
"""
_SCRIPT = """
import sys, time
from launchers.cli import guarded
def work(item, on_frame):
    print("ready", flush=True)
    time.sleep(60)
def verb(argv):
    {ready}
{body}
    return 0
if __name__ == "__main__":
    sys.exit(guarded(verb, []))
"""


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(_USUAL, id="usual"),
        pytest.param(_SWALLOWS, id="swallows"),
        pytest.param(_WAITS, id="waits"),
        pytest.param(_POOL, id="pool", marks=pytest.mark.slow),
    ],
)
def test_a_command_ends_with_one_line(body: str, tmp_path: Path) -> None:
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    ready = "pass" if body != _USUAL else 'print("ready", flush=True)'
    (tmp_path / "command.py").write_text(_SCRIPT.format(ready=ready, body=indented))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "command.py")],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert errors == "interrupted\n"
    assert time.monotonic() - began < 10  # 2 and a little on an idle machine
    deadline = time.monotonic() + 10
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(process.pid)  # its workers have gone as well


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
