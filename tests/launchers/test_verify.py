"""`tandem prepare --verify` at the command line: exit codes, report, repair; the flag of the same name for a set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.storage.manifest import load_manifest
from launchers.cli import guarded
from launchers.prepare import main
from tests.helpers.damaged_set import write_damaged_set
from tests.helpers.samples import write_toy_set


def test_a_whole_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_toy_set(tmp_path / "set")
    assert main(["--verify", root, "--workers", "1"]) == 0
    assert "is whole: 12 samples in 3 shards" in capsys.readouterr().out
    assert json.loads((tmp_path / "set" / "verify.json").read_text())["problems"] == []


def test_a_broken_set_and_its_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, where = write_damaged_set(tmp_path / "set")
    assert main(["--workers", "1", "--verify", root]) == 1
    shown = capsys.readouterr().out
    assert f"{len(where)} broken of 24 samples" in " ".join(shown.split())
    for reason, (key, _) in where.items():
        assert reason in shown
        assert key in shown
    assert len(load_manifest(root)) == 24
    assert main(["--verify", root, "--repair", "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "dropped 1 samples, image-broken: " + where["image-broken"][0] in shown
    assert "manifest.json.before-repair" in shown
    assert "is whole" in shown
    assert len(load_manifest(root)) == 24 - len(where)
    assert main(["--verify", root, "--workers", "1"]) == 0


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(main, ["--verify", str(tmp_path)]) == 1
    assert "holds no finished shard set" in capsys.readouterr().err
    assert guarded(main, ["--verify", str(tmp_path), "--workers", "0"]) == 2
    assert "--workers: got 0" in capsys.readouterr().err
    assert guarded(main, ["--verify", "s3://bucket/set"]) == 1
    assert "is a URL; verify the folder" in capsys.readouterr().err
    for arguments in (["--verify"], ["--repair", str(tmp_path)], ["--verify", "a", "b"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_for_a_set_the_flag_makes_damaged_shards_again(tmp_path: Path) -> None:
    out = tmp_path / "set"
    command = ["synthetic", "-", str(out), "--limit", "2", "--workers", "1", "--no-superpixels"]
    small = ["cameras.image_size=[32,48]", "lidar.beams=4", "lidar.azimuths=64"]
    assert main([*command, *small]) == 0
    shard = out / "shard-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    assert main([*command, *small]) == 0
    assert shard.read_bytes() != whole
    assert main([*command, *small, "--verify"]) == 0
    assert shard.read_bytes() == whole
