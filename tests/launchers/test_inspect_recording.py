"""`tandem inspect` on recordings: what it prints, writes and refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data.convert.logs.topics_file import read_topics
from data.storage.shard import ShardError
from launchers.inspect import main
from tests.helpers.log_files import FORMATS, ROS1, write_ros1
from tests.helpers.vehicle_log import POINTS, vehicle_entries


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ros1(tmp_path_factory.mktemp("bags") / "drive.bag", vehicle_entries(ROS1))


def test_topics_are_printed(bag: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bag)]) == 0
    said = capsys.readouterr().out
    assert "recording drive" in said
    assert "/lidar/points" in said
    assert "add --settings FILE.yaml" in said


def test_settings_are_written_once(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "topics.yaml"
    assert main([str(bag), "--settings", str(file)]) == 0
    assert f"`tandem prepare rosbag {bag} OUT topics={file}`" in capsys.readouterr().out
    assert read_topics(file).lidars == (POINTS,)
    with pytest.raises(ShardError, match="is there already"):
        main([str(bag), "--settings", str(file)])


def test_a_folder_gets_the_page_and_the_settings(bag: Path, tmp_path: Path) -> None:
    assert main([str(bag), "--out", str(tmp_path / "look")]) == 0
    assert "/lidar/points" in (tmp_path / "look" / "inspect.html").read_text()
    file = tmp_path / "look" / "topics.yaml"
    file.write_text(file.read_text().replace("base_link", "vehicle"))
    assert main([str(bag), "--out", str(tmp_path / "look")]) == 0
    assert read_topics(file).ego_frame == "vehicle"  # what a person wrote stays


def test_of_several_the_first_is_shown(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("monday", "tuesday"):
        shutil.copy(bag, tmp_path / f"{name}.bag")
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"recordings in {tmp_path}, of which monday is shown" in said
    assert "tuesday  1 file" in said


def test_damage_is_listed_and_the_verb_fails(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.bag"
    cut.write_bytes(bag.read_bytes()[:-2000])
    assert main([str(cut)]) == 1
    assert "could not be read" in capsys.readouterr().out


def test_options_of_sets_are_refused(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(bag), "--check"])
    assert f"are for sets and runs; {bag} is a recording" in capsys.readouterr().err
    (tmp_path / "set").mkdir()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "set"), "--settings", "x.yaml"])
    assert "--settings is for recordings" in capsys.readouterr().err


def test_a_recording_without_a_lidar_gets_no_settings(tmp_path: Path) -> None:
    path = FORMATS["json"](tmp_path)
    with pytest.raises(ShardError, match=r"has no topic of a LiDAR, so .*topics\.yaml is not written"):
        main([str(path), "--settings", str(tmp_path / "topics.yaml")])
