"""KITTI-360, generated in the official layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.convert.base import Skipped
from data.convert.kitti.kitti_360 import Kitti360Converter
from data.geometry import project, transform
from data.sample import Sample
from data.storage.shard import ShardError
from tests.helpers.layouts.kitti_360 import CAMERAS, DRIVE, start_us, write_kitti_360

OTHER, HELD_OUT = "2013_05_28_drive_0002_sync", "2013_05_28_drive_0008_sync"


def items_of(converter: Kitti360Converter, log: str = DRIVE) -> list[Sample | Skipped]:
    return list(converter.frames(log, 0, converter.num_frames(log)))


def samples_of(converter: Kitti360Converter, log: str = DRIVE) -> list[Sample]:
    items = items_of(converter, log)
    assert all(isinstance(item, Sample) for item in items), items
    return [item for item in items if isinstance(item, Sample)]


def test_points_poses_and_times(tmp_path: Path) -> None:
    truth = write_kitti_360(tmp_path)[DRIVE]
    converter = Kitti360Converter(source=str(tmp_path))
    assert converter.camera_names() == CAMERAS
    found = samples_of(converter)
    assert [sample.key for sample in found] == [f"{DRIVE}_{frame:010d}" for frame in (0, 2, 3)]
    assert f"{DRIVE}: 1 of 4 frames are not in poses.txt and left out" in converter.notes()
    assert "not unwound" in converter.notes()[0]
    for sample in found:
        frame = int(sample.key[-10:])
        true = truth[frame]
        np.testing.assert_array_equal(sample.points_lidar, true.points_lidar)
        np.testing.assert_array_equal(sample.intensity, true.intensity)
        np.testing.assert_allclose(sample.T_world_ego, true.T_world_ego, atol=1e-8)
        np.testing.assert_allclose(sample.T_ego_lidar, true.T_ego_lidar, atol=1e-9)
        assert sample.timestamp_us == start_us() + true.timestamp_us - truth[0].timestamp_us
        assert [camera.timestamp_us - sample.timestamp_us for camera in sample.cameras] == [1000, 2000]


def test_points_project_where_the_rig_puts_them(tmp_path: Path) -> None:
    truth = write_kitti_360(tmp_path, unposed=())[DRIVE]
    for sample, true in zip(samples_of(Kitti360Converter(source=str(tmp_path))), truth, strict=True):
        for camera, expected in zip(sample.cameras, true.cameras, strict=True):
            np.testing.assert_array_equal(camera.image, expected.image)
            uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
            uv_true, depth_true = project(expected.K, transform(true.T_cam_lidar(expected), true.points_lidar))
            front = depth_true > 1
            assert front.sum() > 100
            np.testing.assert_allclose(uv[front], uv_true[front], atol=1e-5)
            np.testing.assert_allclose(depth, depth_true, atol=1e-7)


def test_drives_splits_and_cameras(tmp_path: Path) -> None:
    write_kitti_360(tmp_path, (DRIVE, OTHER, HELD_OUT))
    converter = Kitti360Converter(source=str(tmp_path), val_logs=(OTHER,))
    assert [converter.split_of(log) for log in converter.logs()] == ["train", "val", "test"]
    images = tmp_path / "data_2d_raw" / OTHER / "image_01"
    images.rename(tmp_path / "elsewhere")
    assert Kitti360Converter(source=str(tmp_path)).camera_names() == ("image_00",)
    with pytest.raises(ShardError, match=rf"looked for image_01/data_rect in .*{OTHER}, found image_00/"):
        Kitti360Converter(source=str(tmp_path), cameras=("image_01",)).camera_names()
    none = Kitti360Converter(source=str(tmp_path), cameras=("none",))
    assert samples_of(none)[0].cameras == ()
    assert "no images: sweeps only" in none.notes()
    with pytest.raises(ValueError, match=r"cameras: got \('image_02',\), expected some of image_00, image_01"):
        Kitti360Converter(source=str(tmp_path), cameras=("image_02",))


def test_what_is_absent_is_said(tmp_path: Path) -> None:
    write_kitti_360(tmp_path)
    (tmp_path / "data_poses" / DRIVE / "poses.txt").unlink()
    (tmp_path / "data_3d_raw" / DRIVE / "velodyne_points" / "timestamps.txt").unlink()
    converter = Kitti360Converter(source=str(tmp_path))
    found = samples_of(converter)
    assert [sample.timestamp_us for sample in found] == [0, 100_000, 200_000, 300_000]
    assert all((np.abs(sample.T_world_ego) == np.eye(4)).all() for sample in found)
    assert f"{DRIVE}: no poses.txt, ego poses are identity" in converter.notes()
    assert f"{DRIVE}: no timestamps.txt, 10 Hz assumed" in converter.notes()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (f"data_3d_raw/{DRIVE}/velodyne_points/data/0000000002.bin", None, "member-missing"),
        (f"data_3d_raw/{DRIVE}/velodyne_points/data/0000000002.bin", b"12345", "array-broken"),
        (f"data_2d_raw/{DRIVE}/image_01/data_rect/0000000002.png", None, "member-missing"),
        (f"data_2d_raw/{DRIVE}/image_00/data_rect/0000000002.png", b"\x89PNG", "image-broken"),
    ],
)
def test_damaged_frames_are_named(tmp_path: Path, file: str, content: bytes | None, reason: str) -> None:
    write_kitti_360(tmp_path)
    path = tmp_path / file
    path.unlink() if content is None else path.write_bytes(content)
    good, bad, _ = items_of(Kitti360Converter(source=str(tmp_path)))
    assert isinstance(good, Sample)
    assert isinstance(bad, Skipped)
    assert (bad.reason, bad.key) == (reason, f"{DRIVE}_0000000002")


@pytest.mark.parametrize(
    ("name", "text", "reason", "detail"),
    [
        ("perspective.txt", None, "calibration-missing", "perspective.txt"),
        ("perspective.txt", "P_rect_00: 1 2 3", "calibration-missing", "P_rect_00: 3 numbers"),
        ("calib_cam_to_pose.txt", "image_01: 1 2 3", "calibration-missing", "image_00: absent"),
        ("calib_cam_to_velo.txt", None, "calibration-missing", "calib_cam_to_velo.txt"),
        ("calib_cam_to_velo.txt", "1 2 3", "meta-broken", "3 numbers, expected 12"),
        ("calib_cam_to_velo.txt", "0 " * 12, "calibration-singular", "calib_cam_to_velo"),
        ("calib_cam_to_velo.txt", "", "calibration-missing", "0 lines, expected 1"),
    ],
)
def test_damaged_calibration_names_every_frame(
    tmp_path: Path, name: str, text: str | None, reason: str, detail: str
) -> None:
    write_kitti_360(tmp_path)
    path = tmp_path / "calibration" / name
    path.unlink() if text is None else path.write_text(text)
    items = items_of(Kitti360Converter(source=str(tmp_path)))
    assert [item.reason for item in items if isinstance(item, Skipped)] == [reason] * 3
    assert isinstance(items[0], Skipped)
    assert detail in items[0].detail


def test_too_few_times_and_damaged_poses(tmp_path: Path) -> None:
    write_kitti_360(tmp_path)
    times = tmp_path / "data_2d_raw" / DRIVE / "image_00" / "timestamps.txt"
    times.write_text("\n".join(times.read_text().splitlines()[:3]) + "\n")
    converter = Kitti360Converter(source=str(tmp_path))
    assert [item.reason for item in items_of(converter) if isinstance(item, Skipped)] == ["meta-broken"]
    for text in ("0 1 0 0\n", "nan " + "0 " * 12 + "\n"):
        (tmp_path / "data_poses" / DRIVE / "poses.txt").write_text(text)
        with pytest.raises(ShardError, match=r"poses.txt with a frame's number and 12 numbers a line"):
            converter.num_frames(DRIVE)


def test_a_damaged_line_of_the_poses_is_its_own_frames_loss(tmp_path: Path) -> None:
    write_kitti_360(tmp_path)
    converter = Kitti360Converter(source=str(tmp_path))
    whole = items_of(converter)
    assert all(isinstance(item, Sample) for item in whole)
    path = tmp_path / "data_poses" / DRIVE / "poses.txt"
    lines = path.read_text().splitlines()
    numbers = [int(line.split()[0]) for line in lines]
    other = " ".join([lines[2].split()[0], *lines[0].split()[1:]])
    path.write_text("\n".join([lines[0], f"{numbers[1]} 1 0 x", "", lines[2], other, lines[0], *lines[3:]]) + "\n")
    items = items_of(converter)
    details = {item.key: item.detail for item in items if isinstance(item, Skipped)}
    assert len(details) == 2, "the damaged one and the one with two poses; one that is there twice is whole"
    assert "line 2" in details[f"{DRIVE}_{numbers[1]:010d}"]
    assert "two different poses" in details[f"{DRIVE}_{numbers[2]:010d}"]
    for item, before in zip(items, whole, strict=True):
        if isinstance(item, Sample) and isinstance(before, Sample):
            np.testing.assert_array_equal(item.T_world_ego, before.T_world_ego)


def test_a_wrong_source_says_what_is_there(tmp_path: Path) -> None:
    def refused(**settings: tuple[str, ...]) -> str:
        with pytest.raises(ShardError) as caught:
            Kitti360Converter(source=str(tmp_path), **settings).logs()
        return str(caught.value)

    assert "is no KITTI-360 folder: looked for data_3d_raw/<drive>_sync/velodyne_points" in refused()
    assert "found an empty folder" in refused()
    write_kitti_360(tmp_path)
    (tmp_path / "calibration").rename(tmp_path / "calib")
    assert f"looked for calibration/ in {tmp_path}, found calib/, data_2d_raw/" in refused()
    assert "looked for nowhere, which val_logs names, in" in refused(val_logs=("nowhere",))
