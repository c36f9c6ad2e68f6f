"""Verbs whose output has no room, or may not be written: one line that says what, where and what to do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.distributed import World
from launchers.cli import main as tandem
from tests.helpers.pretrain_run import UNCACHED, arguments
from tests.helpers.run_folder import QUICK, STREET_PROTOCOLS, write_toy_run
from tests.helpers.small_disk import SmallDisk, small_disk


def full(disk: SmallDisk) -> None:
    disk.fill()


def read_only(disk: SmallDisk) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk.path)], check=True)


@pytest.fixture(scope="module")
def run(toy_set: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_toy_run(folder, toy_set)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "reason"), [(full, "No space left on device"), (read_only, "Read-only file system")])
def test_verbs_that_cannot_write(
    spoil: Callable[[SmallDisk], None],
    reason: str,
    run: Path,
    toy_set: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        out = disk.path / "out"
        out.mkdir()
        spoil(disk)
        commands = {
            "export": ["export", str(run), str(out / "backbone.safetensors")],
            "export slidr": ["export", str(run), str(out / "model.pt"), "--format", "slidr"],
            "inspect": ["inspect", toy_set, "--out", str(out), "--num", "1"],
            "report": ["report", str(run), "--out", str(out / "report.html")],
            "report folder": ["report", str(run), "--out-dir", str(out)],
            "prepare": ["prepare", "synthetic", "-", str(out / "set"), "num_logs=1", "frames_per_log=1", "--workers=1"],
            "evaluate": ["evaluate", str(run), str(STREET_PROTOCOLS), f"results={out / 'results.json'}", *QUICK],
        }
        if spoil is read_only:  # this one takes seconds: once is enough
            del commands["prepare"]
        for name, command in commands.items():
            assert tandem(command) == 1, name
            errors = capsys.readouterr().err
            assert "Traceback" not in errors, name
            line = errors.strip().splitlines()[-1]
            assert reason in line, (name, errors)
            assert str(out) in line, (name, errors)
            assert ".tmp" not in line, (name, errors)
        left = {path.name for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"}
        assert not left - {"lock"}  # nothing half written


def test_a_run_in_a_read_only_folder_is_told_the_cause(
    toy_set: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        read_only(disk)
        assert tandem(["pretrain", *arguments(disk.path / "run", toy_set, *UNCACHED)]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"CheckpointError: the run's folder {disk.path / 'run'} cannot be written: Read-only file")
    assert "choose another run_dir" in line
