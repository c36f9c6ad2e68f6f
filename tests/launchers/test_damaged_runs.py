"""One damaged file of one run: the run's row says so, the other runs are shown as ever."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from common.file_lock import FileLock
from common.printable import printable
from configs.load import ConfigError
from engine.errors import CheckpointError
from launchers.cli import main as tandem
from launchers.reporting import hparams
from launchers.runs.files import find_runs, read_config
from launchers.runs.job_record import read_jobs
from launchers.runs.run_status import RunStatus
from launchers.runs.terminal import terminal
from launchers.status import gather
from tests.helpers.damaged_runs import DAMAGED, STEP, WHOLE, write_runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_runs(tmp_path / "runs")
    return tmp_path / "runs"


def rows(root: Path) -> dict[str, RunStatus]:
    return {Path(one.run).name: one for one in gather([root])[0]}


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a list among metrics": (
        "metrics.jsonl",
        lambda path: path.write_text('{"step": 1}\n{"step": 2}\n[]\n{"step": 4}\n'),
        "expected JSON objects of numbers with a step",
    ),
    "half a results file": ("results.json", lambda path: path.write_text('{"a":'), "not readable as JSON"),
    "a config that is a list": ("config.yaml", lambda path: path.write_text("- 1\n"), "expected a mapping"),
    "a number for a text": (
        "attempts.jsonl",
        lambda path: path.write_text('{"event": "begin", "host": 3}\n'),
        "host: expected a text, got 3",
    ),
    "a text for a number": (
        f"checkpoints/step_{STEP:08d}/state.json",
        lambda path: path.write_text('{"step": "12"}'),
        "step: expected a whole number from 0, got '12'",
    ),
    "a giant number": (
        f"checkpoints/step_{STEP:08d}/state.json",
        lambda path: path.write_text(json.dumps({"step": 10**400})),
        "got a giant number",
    ),
    "an unknown job": ("jobs.json", lambda path: path.write_text('{"pretrain": 3}'), "pretrain: expected a text"),
    "no UTF-8": (
        "config.yaml",
        lambda path: path.write_bytes(b"a: 1\nb: Stra\xdfe\n"),
        "line 2: no text in UTF-8 (byte 0xdf)",
    ),
    "a folder": ("config.yaml", folder_in_place, "expected a file, got a folder"),
    "a dangling link": (
        "jobs.json",
        lambda path: (path.unlink(), path.symlink_to("gone")),
        "a link to gone, which is not there",
    ),
    "a pipe": ("jobs.json", lambda path: (path.unlink(), os.mkfifo(path)), "something that is no file"),
    "aliases": ("config.yaml", lambda path: path.write_text("a: &a [1]\nb: *a\n"), "has an alias"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_told_of_in_its_runs_row(runs: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = rows(runs)[WHOLE]
    name, damage, told = FAULTS[fault]
    damage(runs / DAMAGED / name)
    found = rows(runs)
    assert (found[WHOLE].state, found[WHOLE].why) == (before.state, before.why)
    if name != "results.json":  # status does not read it
        assert any(told in line for line in found[DAMAGED].why), found[DAMAGED].why
    assert tandem(["report", str(runs)]) == 0
    assert told in capsys.readouterr().out.replace("\n", " ")


def test_verbs_about_the_damaged_run_refuse_it_by_name(runs: Path) -> None:
    run = runs / DAMAGED
    (run / "config.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: expected a mapping"):
        read_config(run, strict=True)
    (run / "jobs.json").write_text("3")
    with pytest.raises(CheckpointError, match=r"expected a mapping .* remove the file to forget the run's jobs"):
        read_jobs(run)


@pytest.mark.parametrize("name", ["config.yaml", "attempts.jsonl", "jobs.json", "results.json"])
def test_a_file_that_this_user_may_not_read(
    runs: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rights do not bind root, so the refusal is made."""
    original = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path == runs / DAMAGED / name:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert rows(runs).keys() == {DAMAGED, WHOLE}
    assert tandem(["report", str(runs)]) == 0
    assert f"{DAMAGED}/{name}: cannot be read: Permission denied" in capsys.readouterr().out


AS_NOBODY = """
import os, sys
import launchers.report, launchers.status
from launchers.cli import main
os.setgid(65534)
os.setuid(65534)
sys.exit(main(["status", sys.argv[1]]) or main(["report", sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_files_and_folders_that_this_user_may_not_read() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        os.chmod(place, 0o755)
        root = Path(place) / "runs"
        write_runs(root)
        (root / "secret").mkdir()
        for name in (f"{DAMAGED}/attempts.jsonl", f"{DAMAGED}/checkpoints", f"{DAMAGED}/evaluation", "secret"):
            (root / name).chmod(0)
        command = [sys.executable, "-c", AS_NOBODY, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.replace("\n", "")
    for told in (f"{DAMAGED}/attempts.jsonl", "secret/jobs.json"):
        assert shown.count(f"{told}: cannot be read: Permission denied") == 2  # status and report
    assert "DivergenceError" in shown


def test_links_to_runs_are_listed_once_and_circles_end(runs: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "scratch" / "run"
    elsewhere.parent.mkdir()
    (runs / DAMAGED).rename(elsewhere)
    (runs / "linked").symlink_to(elsewhere)
    (runs / "again").symlink_to(runs / WHOLE)
    (runs / "circle").symlink_to(runs)
    (runs / "itself").symlink_to("itself")
    (runs / "gone").symlink_to("nowhere")
    assert [run.name for run in find_runs(runs)] == [WHOLE, "linked"]
    assert tandem(["report", str(runs)]) == 0


def test_no_escape_sequence_reaches_the_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    evil = "\x1b]0;owned\x07\x1b[31mred"
    (runs / DAMAGED / "evaluation" / "other" / "error.txt").write_text(evil)
    text = (runs / DAMAGED / "results.json").read_text()
    (runs / DAMAGED / "results.json").write_text(text.replace('"slidr"', json.dumps(evil)))
    for arguments in (["status", str(runs)], ["report", str(runs)], ["report", str(runs), "--markdown"]):
        assert tandem(arguments) == 0
    tandem(["inspect", str(runs / f"no{evil}")])
    shown = "".join(capsys.readouterr())
    assert "?]0;owned" in shown
    assert "\x1b" not in shown


def test_the_console_styles_and_does_not_obey() -> None:
    made = terminal()
    made.file = io.StringIO()
    assert isinstance(made, Console)
    made.print("a\x1b[31mb\tc", markup=False)
    assert made.file.getvalue() == "a?[31mb  c\n"
    assert printable("π\x9b\u202e\ud800\n") == "π???\n"
    assert printable("12\xa0m\u3000\t\x9b") == "12\xa0m\u3000   ?"  # spaces are harmless


def test_what_results_say_is_checked(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs / DAMAGED / "results.json"
    tree = json.loads(path.read_text())
    for name, value in (("lr", ["a"]), ("seeds", [None, 1, 2]), ("class_iou", {"car": "x"}), ("date", 3)):
        path.write_text(json.dumps({**tree, "results": [{**tree["results"][0], name: value}]}))
        assert tandem(["report", str(runs)]) == 0
        assert f"result 0: {name}" in capsys.readouterr().out.replace("\n", " ")


def test_two_reports_at_once_leave_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one puts its table there between this one's removal of the old table and its rename."""
    run = hparams.HparamRun(name="a", config={"seed": 0})
    removed = hparams.shutil.rmtree

    def other_comes_first(path: Path, **options: bool) -> None:
        removed(path, **options)
        if path.name == hparams.HPARAMS_FOLDER:
            (path / "other").mkdir(parents=True)

    hparams.write_hparams(tmp_path, [run])
    monkeypatch.setattr(hparams.shutil, "rmtree", other_comes_first)
    hparams.write_hparams(tmp_path, [run])
    assert [path.name for path in tmp_path.iterdir()] == [hparams.HPARAMS_FOLDER]


def test_a_lock_is_one_processs(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock", job="7"), FileLock(tmp_path / "lock")
    assert first.take()
    first.note("half")
    assert not second.take()
    assert second.holder.startswith(f"job 7, process {os.getpid()} on ")
    assert second.holder.endswith("): half")
    first.release()
    assert second.take()
    second.release()
