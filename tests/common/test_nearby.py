"""Suggestions of folders: in the one given, around it, beside it; bounded, and silent where nothing can be read."""

from __future__ import annotations

from pathlib import Path

from common.nearby import nearby


def is_set(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def test_folders_of_the_kind_are_found(tmp_path: Path) -> None:
    for name in ("sets/kitti/shards", "sets/street", "sets/none", "sets/.hidden", "sets/a/b/too_deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "images").mkdir()
        if name != "sets/none":
            (tmp_path / name / "manifest.json").touch()
    sets = tmp_path / "sets"
    assert nearby(sets, is_set) == f"; did you mean {sets}/street or {sets}/kitti/shards?"
    assert nearby(sets / "kitti", is_set) == f"; did you mean {sets}/kitti/shards?"
    assert nearby(sets / "street" / "images", is_set) == f"; did you mean {sets}/street?"
    assert nearby(sets / "stret", is_set) == f"; did you mean {sets}/street?"
    assert nearby(sets / "none", is_set) == nearby(tmp_path / "no" / "such" / "path", is_set) == ""


def test_many_are_cut_and_a_large_folder_costs_nothing(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"set{number}").mkdir()
        (tmp_path / f"set{number}" / "manifest.json").touch()
    assert nearby(tmp_path, is_set).endswith("set2, ...?")
    looked_at = []
    for number in range(2100):
        (tmp_path / f"file{number}").touch()
    assert nearby(tmp_path, lambda folder: bool(looked_at.append(folder))) == ""
    assert len(looked_at) < 20


def test_what_cannot_be_read_gives_no_hint(tmp_path: Path) -> None:
    def refuse(folder: Path) -> bool:
        raise PermissionError(folder)

    assert nearby(tmp_path, refuse) == ""
