"""`make setup` says what it does, and what to do where it cannot: with a Python and a pip that only pretend."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "setup"

PYTHON = """#!/bin/sh
case "$*" in
  *'print("%d.%d"'*) echo "{version}" ;;
  *'sys.exit(sys.version_info'*) exit {too_old} ;;
  *'import venv'*) exit {no_venv} ;;
  '-m venv '*) [ ! -L "$3" ] || exit 1
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$(dirname "$0")/pip" "$3/bin/pip" ;;
esac
"""


def set_up(folder: Path, *, pip: str = "exit 0", **python: object) -> subprocess.CompletedProcess[str]:
    """Run the script with a pretended Python, in an empty folder."""
    said = {"version": "3.12", "too_old": 0, "no_venv": 0} | python
    for name, text in (("python", PYTHON.format(**said)), ("pip", f"#!/bin/sh\n{pip}\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    command = ["bash", str(SCRIPT), str(folder / "python"), str(folder / "venv"), "constraints.txt", "dev"]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


def test_it_says_what_it_installs(tmp_path: Path) -> None:
    done = set_up(tmp_path, pip=f'echo "$*" >> {tmp_path}/calls')
    assert done.returncode == 0, done.stderr
    assert [line[:5] for line in done.stdout.splitlines() if line.startswith("[")] == [
        "[1/4]",
        "[2/4]",
        "[3/4]",
        "[4/4]",
    ]
    assert "done in" in done.stdout
    calls = (tmp_path / "calls").read_text()
    assert "-e .[dev]" in calls
    assert calls.count("-c constraints.txt") == 3


def test_a_link_to_a_larger_disk_is_the_remedy_for_a_full_one(tmp_path: Path) -> None:
    big, df = tmp_path / "big", tmp_path / "df"
    df.write_text(
        f"#!/bin/sh\necho header\ncase $2 in {big}) free=9000000 ;; *) free=1000000 ;; esac; echo x 0 0 $free\n"
    )
    df.chmod(0o755)
    done = set_up(tmp_path)
    assert done.returncode == 1
    remedy = f"mkdir /big/venv && ln -s /big/venv {tmp_path / 'venv'}"
    assert remedy in done.stderr
    subprocess.run(remedy.replace("/big/venv", str(big)), shell=True, check=True)
    done = set_up(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (big / "bin" / "pip").exists()


@pytest.mark.parametrize(
    ("python", "says"),
    [
        ({"version": "3.9", "too_old": 1}, "is Python 3.9, and 3.10 is the oldest"),
        ({"no_venv": 1}, "apt install python3.12-venv"),
    ],
)
def test_a_python_that_cannot(tmp_path: Path, python: dict[str, object], says: str) -> None:
    done = set_up(tmp_path, **python)
    assert done.returncode == 1
    assert says in done.stderr
    assert "make setup PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_no_python(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), "python-that-is-not", str(tmp_path / "venv"), "c", "dev"], capture_output=True, text=True
    )
    assert (done.returncode, "there is no python-that-is-not" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("last_words", "says"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("Failed to establish a new connection: [Errno -3] Temporary failure in name resolution", "HTTPS_PROXY"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no version for Python 3.12"),
        ("error: [Errno 2] No such file or directory: 'g++'", "apt install g++"),
        ("fatal error: Python.h: No such file or directory", "apt install python3.12-dev"),
        ("something nobody has seen", "pip failed, see above"),
    ],
)
def test_what_pip_could_not_do_is_said_in_words(tmp_path: Path, last_words: str, says: str) -> None:
    done = set_up(tmp_path, pip=f'echo "{last_words}" >&2; exit 1')
    assert done.returncode == 1
    assert last_words in done.stderr
    assert says in done.stderr.partition("set-up stopped: ")[2]
    assert "done in" not in done.stdout
