"""What the settings of all data sets have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.convert.argoverse2 import Argoverse2Converter
from data.convert.base import Converter, Skipped
from data.convert.kitti.kitti_object import KittiObjectConverter
from data.convert.kitti.kitti_raw import KittiRawConverter
from data.convert.sets import SETTINGS
from data.convert.seven_scenes import SevenScenesConverter
from data.convert.sunrgbd import SunRgbdConverter
from data.sample import Sample
from data.storage.shard import ShardError
from tests.data.convert.test_kitti import write_object, write_raw
from tests.data.convert.test_rgbd import write_scene, write_sun

RECORDED = sorted(set(SETTINGS) - {"synthetic"})


def items_of(converter: Converter) -> list[Sample | Skipped]:
    return [item for log in converter.logs() for item in converter.frames(log, 0, converter.num_frames(log))]


@pytest.mark.parametrize("name", RECORDED)
def test_every_set_takes_no_camera_by_the_same_word(tmp_path: Path, name: str) -> None:
    if name == "kitti-raw":
        write_raw(tmp_path)
    converter = SETTINGS[name](source=str(tmp_path), cameras=("none",))
    assert converter.camera_names() == ()
    with (
        pytest.raises(ValueError, match="or none alone") if name not in ("custom", "pcd") else pytest.raises(ShardError)
    ):
        SETTINGS[name](source=str(tmp_path), cameras=("none", "front")).camera_names()


@pytest.mark.parametrize("name", RECORDED)
def test_later_settings_are_not_named_at_their_defaults(tmp_path: Path, name: str) -> None:
    """Folders that were begun before there were such settings continue."""
    kind = SETTINGS[name]
    named = kind(source=str(tmp_path)).settings()
    assert not set(kind._later) & set(named)
    for setting in kind._later:
        own = {"columns": ("x", "y", "z"), "min_depth_m": 0.3, "num_sweeps": 10, "depth": "annotated", "meshes": True}
        if setting in ("train_list", "val_list"):
            own[setting] = str(tmp_path / "list.txt")
            (tmp_path / "list.txt").write_text("2011_09_26/2011_09_26_drive_0002_sync 69 l\n")
        value = own.get(setting, ("none",))
        assert kind(source=str(tmp_path), **{setting: value}).settings()[setting] == value


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        (KittiRawConverter, write_raw),
        (KittiObjectConverter, write_object),
        (SevenScenesConverter, write_scene),
        (SunRgbdConverter, write_sun),
    ],
)
def test_sweeps_only_are_the_sweeps_of_the_whole_set(tmp_path: Path, kind: type[Converter], write) -> None:
    write(tmp_path)
    settings = {"focal_px": 60.0} if kind is SevenScenesConverter else {}
    whole, only = (items_of(kind(source=str(tmp_path), **settings, **more)) for more in ({}, {"cameras": ("none",)}))
    assert whole
    for full, bare in zip(whole, only, strict=True):
        assert isinstance(full, Sample), full
        assert isinstance(bare, Sample), bare
        assert (len(full.cameras), bare.cameras) == (1, ())
        np.testing.assert_array_equal(full.points_lidar, bare.points_lidar)
        np.testing.assert_array_equal(full.intensity, bare.intensity)
        if full.labels is not None:
            np.testing.assert_array_equal(full.labels, bare.labels)


def test_logs_of_one_name_are_refused(tmp_path: Path) -> None:
    """One of the two would be lost without a word."""
    for split in ("train", "val"):
        (tmp_path / "av2" / split / "log-a" / "sensors" / "lidar").mkdir(parents=True)
    with pytest.raises(ShardError, match=r"log log-a is there twice, as .*train/log-a and as .*val/log-a; keep one"):
        Argoverse2Converter(source=str(tmp_path / "av2"), cameras=()).logs()
    for date in ("2011_09_26", "copy"):
        (tmp_path / "raw" / date / "2011_09_26_drive_0001_sync").mkdir(parents=True)
    with pytest.raises(ShardError, match="log 2011_09_26_drive_0001_sync is there twice"):
        KittiRawConverter(source=str(tmp_path / "raw")).logs()


def test_objects_without_labels_are_sweeps_to_train_on(tmp_path: Path) -> None:
    write_object(tmp_path)
    whole = items_of(KittiObjectConverter(source=str(tmp_path)))
    for path in sorted((tmp_path / "training" / "label_2").iterdir()):
        path.unlink()
    assert {item.reason for item in items_of(KittiObjectConverter(source=str(tmp_path)))} == {"member-missing"}
    (tmp_path / "training" / "label_2").rmdir()
    converter = KittiObjectConverter(source=str(tmp_path))
    assert "no label_2: sweeps without labels and boxes" in converter.notes()
    for full, bare in zip(whole, items_of(converter), strict=True):
        assert (bare.labels, bare.instances, bare.boxes) == (None, None, None)
        np.testing.assert_array_equal(bare.points_lidar, full.points_lidar)
