"""The plain layout of docs/custom_data.md: street-world frames written out and read back, and every mistake named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.convert.base import Converter, Skipped
from data.convert.custom.converter import CustomConverter
from data.convert.custom.pose_track import read_pose_track
from data.geometry import project, transform
from data.preparing.prepare import PrepareConfig, prepare
from data.sample import IGNORE_LABEL, Sample
from data.storage.damage import DamagedError
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from tests.helpers.layouts.custom import write_custom
from tests.helpers.street_logs import CLASS_NAMES, street_log

NAMES = ("front", "rear")


@pytest.fixture(scope="module")
def truth() -> list[list[Sample]]:
    return [list(street_log(NAMES, frames=2, log=log)) for log in range(2)]


@pytest.fixture
def source(tmp_path: Path, truth: list[list[Sample]]) -> Path:
    write_custom(tmp_path / "fleet", truth)
    return tmp_path / "fleet"


def items(converter: Converter, log: str) -> list[Sample | Skipped]:
    return list(converter.frames(log, 0, converter.num_frames(log)))


def samples(converter: Converter, log: str) -> list[Sample]:
    found = items(converter, log)
    assert all(isinstance(item, Sample) for item in found), found
    return found


def first_skip(source: Path, **settings: object) -> Skipped:
    converter = CustomConverter(source=str(source), **settings)
    found = items(converter, converter.logs()[0])[0]
    assert isinstance(found, Skipped), found
    return found


def edit_calibration(source: Path, log: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = source / log / "calibration.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_frames_are_those_that_were_written(tmp_path, truth, suffix):
    write_custom(tmp_path, truth, suffix=suffix)
    converter = CustomConverter(source=str(tmp_path), val_logs=(truth[1][0].log,))
    assert converter.logs() == tuple(frames[0].log for frames in truth)
    assert [converter.split_of(log) for log in converter.logs()] == ["train", "val"]
    assert converter.camera_names() == NAMES
    assert converter.class_names == CLASS_NAMES
    assert converter.notes() == ()
    for frames in truth:
        first = frames[0].T_world_ego[:3, 3]
        for want, got in zip(frames, samples(converter, frames[0].log), strict=True):
            assert (got.log, got.timestamp_us) == (want.log, want.timestamp_us)
            np.testing.assert_array_equal(got.points_lidar, want.points_lidar.astype(np.float32))
            np.testing.assert_allclose(got.intensity, want.intensity, atol=1e-6)
            np.testing.assert_array_equal(got.labels, want.labels)
            np.testing.assert_allclose(got.boxes.centers_m, want.boxes.centers_m)
            np.testing.assert_allclose(got.boxes.sizes_m, want.boxes.sizes_m)
            np.testing.assert_array_equal(got.boxes.classes, want.boxes.classes)
            np.testing.assert_array_equal(got.boxes.track_ids, want.boxes.track_ids)
            # The world starts at the first pose, which may be an image's: only differences are the same.
            moved = got.T_world_ego[:3, 3] - samples(converter, frames[0].log)[0].T_world_ego[:3, 3]
            np.testing.assert_allclose(moved, want.T_world_ego[:3, 3] - first, atol=1e-6)
            for got_view, want_view in zip(got.cameras, want.cameras, strict=True):
                assert (got_view.name, got_view.timestamp_us) == (want_view.name, want_view.timestamp_us)
                np.testing.assert_array_equal(got_view.image, want_view.image)
                T = got.T_cam_lidar(got_view)
                uv, depth = project(got_view.K, transform(T, got.points_lidar))
                expected, _ = project(want_view.K, transform(want.T_cam_lidar(want_view), want.points_lidar))
                near = depth > 0.5
                np.testing.assert_allclose(uv[near], expected[near], atol=0.02)


def test_without_labels_there_are_none(tmp_path, truth):
    write_custom(tmp_path, truth[:1], labelled=False)
    converter = CustomConverter(source=str(tmp_path))
    assert converter.class_names == ()
    sample = samples(converter, converter.logs()[0])[0]
    assert sample.labels is None
    assert sample.boxes is None


def test_jpegs_are_stored_unchanged(tmp_path, truth):
    write_custom(tmp_path, truth[:1], image_suffix=".jpg")
    converter = CustomConverter(source=str(tmp_path), cameras=("rear",))
    sample = samples(converter, converter.logs()[0])[0]
    (camera,) = sample.cameras
    assert camera.name == "rear"
    path = tmp_path / sample.log / "cameras" / "rear" / f"{camera.timestamp_us}.jpg"
    assert camera.jpeg == path.read_bytes()


def test_rows_without_a_return_are_left_out_with_their_labels(source, truth):
    log = truth[0][0]
    path = source / log.log / "lidar" / f"{log.timestamp_us}.npy"
    sweep = np.load(path)
    sweep[3, 0], sweep[5, :3], sweep[7, 3] = np.nan, 0, np.inf
    np.save(path, sweep)
    sample = samples(CustomConverter(source=str(source)), log.log)[0]
    kept = np.delete(np.arange(len(sweep)), [3, 5, 7])
    np.testing.assert_array_equal(sample.points_lidar, sweep[kept, :3])
    np.testing.assert_array_equal(sample.labels, log.labels[kept])


def test_intensities_above_the_maximum_are_clipped(source, truth):
    log = truth[0][0].log
    edit_calibration(source, log, lambda content: content.update(intensity_max=100))
    sample = samples(CustomConverter(source=str(source)), log)[0]
    np.testing.assert_allclose(sample.intensity, np.minimum(truth[0][0].intensity * 2.55, 1), atol=1e-5)


def test_distortion_is_taken_out(source, truth):
    """A distorted image of a bright dot: after reading, the dot lies where the pinhole says."""
    frame = truth[0][0]
    camera = frame.cameras[0]
    height, width = camera.image_size
    distortion = np.array([-0.3, 0.1, 0.002, -0.001, 0.0])
    seen = np.array([[0.45, -0.22, 1.0]])
    at, _ = cv2.projectPoints(seen, np.zeros(3), np.zeros(3), camera.K, distortion)
    image = np.zeros((height, width, 3), np.uint8)
    cv2.circle(image, np.round(at[0, 0] * 16).astype(int).tolist(), 3 * 16, (255, 255, 255), -1, cv2.LINE_AA, 4)
    path = source / frame.log / "cameras" / "front" / f"{camera.timestamp_us}.png"
    cv2.imwrite(str(path), image)

    def distort(content):
        content["cameras"]["front"]["distortion"] = distortion.tolist()

    edit_calibration(source, frame.log, distort)
    sample = samples(CustomConverter(source=str(source)), frame.log)[0]
    weight = sample.cameras[0].image[..., 0].astype(float)
    v, u = np.mgrid[0:height, 0:width]
    centre = np.array([(u * weight).sum(), (v * weight).sum()]) / weight.sum()
    want, _ = project(camera.K, seen)
    np.testing.assert_allclose(centre, want[0], atol=0.3)
    assert np.linalg.norm(at[0, 0] - want[0]) > 2, "the distortion is worth the test"


# ---- columns, cameras
def rewrite_sweeps(source: Path, columns: Callable[[np.ndarray], np.ndarray], suffix: str) -> None:
    for path in sorted(source.glob("*/lidar/*.npy")):
        table = columns(np.load(path)).astype("<f4")
        path.unlink()
        if suffix == ".npy":
            np.save(path, table)
        else:
            path.with_suffix(".bin").write_bytes(table.tobytes())


def with_rings(sweep: np.ndarray) -> np.ndarray:
    return np.column_stack([sweep, np.arange(len(sweep)) % 32])


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_other_columns_are_read_where_they_are_stated(source, truth, suffix):
    rewrite_sweeps(source, with_rings, suffix)
    columns = ("x", "y", "z", "intensity", "ring")
    sample = samples(CustomConverter(source=str(source), columns=columns), truth[0][0].log)[0]
    np.testing.assert_array_equal(sample.points_lidar, truth[0][0].points_lidar.astype(np.float32))
    np.testing.assert_allclose(sample.intensity, truth[0][0].intensity, atol=1e-6)
    skip = first_skip(source)
    assert skip.reason == "array-broken"
    assert "(setting columns=[x,y,z,intensity,...])" in skip.detail


@pytest.mark.parametrize(("count", "rows"), [(5, 4000), (3, 4000), (5, 4001), (6, 4002), (8, 4000)])
def test_bin_files_of_other_columns_are_refused_with_their_number(source, truth, count, rows):
    """Sweeps whose neighbours lie close together, as scanners measure them; 4000 rows of 5 are 5000 of 4, too."""

    def as_measured(_: np.ndarray) -> np.ndarray:
        azimuth = np.arange(rows) * 2 * np.pi / 1000
        points = np.stack([20 * np.cos(azimuth), 20 * np.sin(azimuth), -1 + azimuth / 10], axis=1)
        others = [np.full(rows, 30.0), np.arange(rows) % 4, np.full(rows, 7.0), np.zeros(rows), np.ones(rows)]
        return np.column_stack([points, *others])[:, :count]

    rewrite_sweeps(source, as_measured, ".bin")
    skip = first_skip(source)
    assert skip.reason == "array-broken"
    assert f"rows of {count} numbers would fit" in skip.detail, skip.detail


def test_sweeps_without_intensity_say_so(source, truth):
    rewrite_sweeps(source, lambda sweep: sweep[:, :3], ".bin")
    sample = samples(CustomConverter(source=str(source), columns=("x", "y", "z")), truth[0][0].log)[0]
    np.testing.assert_array_equal(sample.points_lidar, truth[0][0].points_lidar.astype(np.float32))
    assert not sample.intensity.any()


def test_usual_columns_are_no_setting_of_a_folder(source):
    assert "columns" not in CustomConverter(source=str(source)).settings()
    assert CustomConverter(source=str(source), columns=("x", "y", "z")).settings()["columns"] == ("x", "y", "z")


def set_front(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["cameras"]["front"].update(fields)


@pytest.mark.parametrize(
    ("fields", "reason", "said"),
    [
        ({"distortion": [0.1, 0.01, 0, 0]}, "meta-broken", 'k1 k2 p1 p2 of "model": "pinhole" or k1 k2 k3 k4 of'),
        ({"model": "kannala", "distortion": [0.1, 0.01, 0, 0]}, "meta-broken", "expected pinhole or fisheye"),
        ({"model": "fisheye"}, "meta-broken", "a fisheye has a distortion of 4 numbers"),
        ({"model": "fisheye", "distortion": [0.1] * 5}, "meta-broken", "expected 4 numbers"),
        ({"model": "pinhole", "distortion": [0.1] * 6}, "meta-broken", "expected 4 or 5 or 8 numbers"),
        ({"image_max": True}, "meta-broken", "image_max is True"),
        ({"K": [[900, 0, 400], [0, 900, 100], [0, 0, 1]]}, "calibration-singular", "K is that of another size"),
        ({"K": [[40, 0, 40], [0, 40, 24.5], [0, 0, 1]]}, "calibration-singular", "K is that of another size"),
    ],
)
def test_cameras_that_may_mean_two_things_are_refused(source, truth, fields, reason, said):
    edit_calibration(source, truth[0][0].log, set_front(**fields))
    skip = first_skip(source)
    assert (skip.reason, said in skip.detail) == (reason, True), skip.detail


@pytest.mark.parametrize("model", ["pinhole", "fisheye"])
def test_each_model_undoes_its_own_distortion(source, truth, model):
    """The image's pixels lie where the model puts the rays of the pinhole camera."""
    frame = truth[0][0]
    camera = frame.cameras[0]
    D = np.array([0.08, -0.01, 0.002, -0.001])
    height, width = camera.image_size
    v, u = np.mgrid[0:height, 0:width].astype(np.float64)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 1, 3) @ np.linalg.inv(camera.K).T
    project_points = cv2.fisheye.projectPoints if model == "fisheye" else cv2.projectPoints
    at, _ = project_points(rays, np.zeros(3), np.zeros(3), camera.K, D)
    # A smooth picture of the distorted camera: its red is its own column.
    red = np.tile(np.linspace(0, 255, width), (height, 1))
    path = source / frame.log / "cameras" / "front" / f"{camera.timestamp_us}.png"
    cv2.imwrite(str(path), np.repeat(red[..., None], 3, axis=2).astype(np.uint8))
    edit_calibration(source, frame.log, set_front(model=model, distortion=D.tolist()))
    image = samples(CustomConverter(source=str(source)), frame.log)[0].cameras[0].image
    columns = at.reshape(height, width, 2)[..., 0]
    inside = (columns > 1) & (columns < width - 2)
    inside &= (at.reshape(height, width, 2)[..., 1] > 1) & (at.reshape(height, width, 2)[..., 1] < height - 2)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(image[inside][:, 0], columns[inside] * 255 / (width - 1), atol=2.5)


def test_images_of_twelve_bits_keep_their_range(source, truth):
    camera = truth[0][0].cameras[0]
    path = source / truth[0][0].log / "cameras" / "front" / f"{camera.timestamp_us}.png"
    twelve = np.round(camera.image.astype(np.float64) * 4095 / 255).astype(np.uint16)
    cv2.imwrite(str(path), twelve[..., ::-1])
    skip = first_skip(source)
    assert (skip.reason, "16 bits a channel, the largest value is" in skip.detail) == ("image-broken", True)
    edit_calibration(source, truth[0][0].log, set_front(image_max=4095))
    found = samples(CustomConverter(source=str(source)), truth[0][0].log)[0].cameras[0].image
    np.testing.assert_array_equal(found, camera.image)


def test_sweeps_only(source, truth):
    converter = CustomConverter(source=str(source), cameras=("none",))
    assert converter.camera_names() == ()
    assert samples(converter, truth[0][0].log)[0].cameras == ()


# ---- times, poses
def write_track(path: Path, rows: list[tuple[float, ...]]) -> Path:
    lines = ["timestamp_us,x,y,z,qw,qx,qy,qz", *(",".join(str(value) for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_poses_between_two_are_interpolated(tmp_path):
    quarter = Rotation.from_euler("z", 90, degrees=True).as_quat()
    # The second quaternion with the opposite sign: the same rotation, the short way round.
    rows = [(1_000_000, 10, 20, 5, 1, 0, 0, 0), (1_100_000, 12, 20, 5, -quarter[3], *(-quarter[:3]))]
    track = read_pose_track(write_track(tmp_path / "poses.csv", rows), 200_000)
    T = track.at(1_025_000)
    np.testing.assert_allclose(T[:3, 3], [0.5, 0, 0], atol=1e-12)
    np.testing.assert_allclose(T[:3, :3], Rotation.from_euler("z", 22.5, degrees=True).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(track.at(1_100_000)[:3, 3], [2, 0, 0])
    for time, text in ((999_999, "poses reach from 1000000"), (1_100_001, "poses reach from")):
        with pytest.raises(DamagedError, match=text):
            track.at(time)
    with pytest.raises(DamagedError, match="100 ms apart, allowed are 50 ms"):
        read_pose_track(tmp_path / "poses.csv", 50_000).at(1_050_000)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "holds no pose"),
        ([(1, 0, 0, 0, 1, 0, 0, 0), (1, 5, 0, 0, 1, 0, 0, 0)], "time 1 has 2 different poses"),
        ([(1, 0, 0, 0, 2, 0, 0, 0)], "has not length 1"),
        ([(1, 0, 0, "nan", 1, 0, 0, 0)], "expected 8 finite numbers"),
        ([(1, 0, 0, 0, 1, 0, 0)], "expected 8 finite numbers"),
        ([(1.5, 0, 0, 0, 1, 0, 0, 0)], "line 2: invalid literal"),
    ],
)
def test_damaged_pose_tables_are_named(tmp_path, rows, text):
    with pytest.raises(DamagedError, match=text):
        read_pose_track(write_track(tmp_path / "poses.csv", rows), 10)


@pytest.mark.parametrize(
    "damaged",
    [
        "1300,nan,0,0,1,0,0,0",
        "1300,30,0,0,1,0",
        "",
        "x\x1cy\x85,0",
        "999999,30,0,0,1,0,0,0",
        "7,30,0,0,1,0,0,0",
        "1300,30,0,0,1,0,0,0\n1300,31,0,0,1,0,0,0",
    ],
)
def test_a_damaged_line_of_poses_counts_as_missing(tmp_path, damaged):
    path = write_track(tmp_path / "poses.csv", [(1000 + 100 * n, 10 * n, 0, 0, 1, 0, 0, 0) for n in range(7)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], damaged, *lines[5:], lines[2]]) + "\n")  # one is there twice, as it is
    track = read_pose_track(path, 10_000)
    for time_us in (1000, 1050, 1150, 1200, 1250, 1350, 1400, 1450, 1600):
        np.testing.assert_allclose(track.at(time_us)[0, 3], (time_us - 1000) / 10, atol=1e-9)
    with pytest.raises(DamagedError, match=r"no ego pose at 1250: its neighbours are 0 ms apart") as caught:
        read_pose_track(path, 150).at(1250)
    assert ("poses.csv" in caught.value.detail) == bool(damaged)


def test_odd_calibrations_are_noted(source, truth):
    def change(content: dict[str, Any]) -> None:
        content["T_ego_lidar"][0][3] = 140.0
        content["cameras"]["front"]["K"][0][2] *= 0.7

    for frames in truth:
        edit_calibration(source, frames[0].log, change)
    converter = CustomConverter(source=str(source))
    logs = ", ".join(converter.logs())
    assert converter.notes() == (
        "the principal point of front is at 35% of the width and 49% of the height (cropped images, or K of another "
        f"size?): {logs}",
        f"T_ego_lidar is 140 m away (is it in metres?): {logs}",
    )
    samples(converter, truth[0][0].log)


def test_points_near_a_camera_make_pairs_where_it_says_so(source, truth):
    log = truth[0][0].log
    assert {camera.min_depth_m for camera in samples(CustomConverter(source=str(source)), log)[0].cameras} == {1.0}
    indoors = CustomConverter(source=str(source), min_depth_m=0.3)
    assert {camera.min_depth_m for camera in samples(indoors, log)[0].cameras} == {0.3}
    with pytest.raises(ValueError, match="min_depth_m: got -1"):
        CustomConverter(source=str(source), min_depth_m=-1.0)


def test_large_track_ids_are_kept_and_larger_ones_counted(source, truth, tmp_path):
    frame = truth[0][0]
    path = source / frame.log / "boxes" / f"{frame.timestamp_us}.json"
    boxes = json.loads(path.read_text())
    path.write_text(json.dumps([{**boxes[0], "track_id": 3_000_000_000}]))
    assert samples(CustomConverter(source=str(source)), frame.log)[0].boxes.track_ids.tolist() == [3_000_000_000]
    manifest = prepare(
        CustomConverter(source=str(source)), str(tmp_path / "set"), PrepareConfig(superpixels=None)
    ).manifest
    assert SampleReader(manifest).read(0).boxes.track_ids.tolist() == [3_000_000_000]
    path.write_text(json.dumps([{**boxes[0], "track_id": 1 << 70}]))
    skip = first_skip(source)
    assert (skip.reason, "expected a whole number, at most 2**53" in skip.detail) == ("meta-broken", True)


def test_what_only_some_boxes_know(source, truth, tmp_path):
    frame = truth[0][0]
    path = source / frame.log / "boxes" / f"{frame.timestamp_us}.json"
    plain = {"center": [5, 1, 0], "size": [4, 2, 1.5], "yaw": 0.3}
    known = {"num_points": 7, "num_radar_points": 0, "difficulty": 2, "occlusion": 1, "truncation": 0.25, "alpha": -1}
    van = {**plain, **known, "class": None, "category": "van", "image_box": [1, 2, 3.5, 4]}
    path.write_text(json.dumps([van, {**plain, "class": "car"}]))
    (source / "categories.txt").write_text("car\nvan\n")
    converter = CustomConverter(source=str(source))
    assert converter.box_categories == ("car", "van")
    manifest = prepare(converter, str(tmp_path / "set"), PrepareConfig(superpixels=None)).manifest
    assert manifest.box_categories == ("car", "van")
    boxes = SampleReader(manifest).read(0).boxes
    assert boxes.classes.tolist() == [IGNORE_LABEL, CLASS_NAMES.index("car")]
    assert boxes.categories.tolist() == [1, -1]
    assert boxes.num_points.tolist() == [7, -1]
    assert boxes.num_radar_points.tolist() == [0, -1]
    assert boxes.difficulties.tolist() == [2, -1]
    assert boxes.occlusions.tolist() == [1, -1]
    np.testing.assert_array_equal(boxes.truncations, [0.25, np.nan])
    np.testing.assert_array_equal(boxes.alphas, [-1, np.nan])
    np.testing.assert_array_equal(boxes.image_boxes_px, [[1, 2, 3.5, 4], [np.nan] * 4])
    assert SampleReader(manifest).read(1).boxes.truncations is None
    (source / "categories.txt").write_text("car\ncar\n")
    with pytest.raises(ShardError, match=r"categories\.txt: expected 1 to 254 different"):
        CustomConverter(source=str(source)).box_categories  # noqa: B018


def test_times_and_elongations_of_points(source, truth):
    frame = truth[0][0]
    path = source / frame.log / "lidar" / f"{frame.timestamp_us}.npy"
    rows = np.load(path)
    ages = np.linspace(0, 0.4, len(rows), dtype=rows.dtype)
    np.save(path, np.column_stack([rows[:, :3], ages, rows[:, 3], ages * 2]))
    columns = ("x", "y", "z", "time_s", "intensity", "elongation")
    (sample,) = CustomConverter(source=str(source), columns=columns).frames(frame.log, 0, 1)
    np.testing.assert_allclose(sample.times_s, ages, atol=1e-7)
    np.testing.assert_allclose(sample.elongations, ages * 2, atol=1e-7)
    np.testing.assert_array_equal(sample.points_lidar, frame.points_lidar)
    with pytest.raises(ValueError, match="columns"):
        CustomConverter(source=str(source), columns=("x", "y", "z", "time_s", "time_s"))


def test_colours_of_points(source, truth):
    frame = truth[0][0]
    path = source / frame.log / "lidar" / f"{frame.timestamp_us}.npy"
    rows = np.load(path)
    colours = np.random.default_rng(0).integers(0, 256, (len(rows), 3)).astype(rows.dtype)
    np.save(path, np.column_stack([rows[:, :3], colours]))
    columns = ("x", "y", "z", "red", "green", "blue")
    (sample,) = CustomConverter(source=str(source), columns=columns).frames(frame.log, 0, 1)
    np.testing.assert_array_equal(sample.colors, colours)
    assert sample.colors.dtype == np.uint8
    np.save(path, np.column_stack([rows[:, :3], colours / 255]))
    (skipped,) = CustomConverter(source=str(source), columns=columns).frames(frame.log, 0, 1)
    assert skipped.reason == "array-broken"
    assert "expected whole numbers from 0 to 255" in skipped.detail


def test_damaged_lines_of_poses_are_noted(source, truth):
    path = source / truth[0][0].log / "poses.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, lines[0], "noon", *lines[1:]]) + "\n")
    converter = CustomConverter(source=str(source))
    (note,) = converter.notes()
    assert note.startswith("poses are damaged in 1 place, the first: ")
    assert "poses.csv, line 3" in note


def test_pose_tables_need_their_header(tmp_path):
    (tmp_path / "poses.csv").write_text("time,x,y,z,qx,qy,qz,qw\n")
    with pytest.raises(DamagedError, match=r"first line 'time,x.*expected 'timestamp_us,x,y,z,qw,qx,qy,qz'"):
        read_pose_track(tmp_path / "poses.csv", 10)


def test_each_sweep_gets_the_nearest_image_of_each_camera(source, truth):
    frame = truth[0][0]
    folder = source / frame.log / "cameras" / "front"
    own = frame.cameras[0].timestamp_us
    early = frame.timestamp_us - abs(own - frame.timestamp_us) - 1000
    shutil.copy(folder / f"{own}.png", folder / f"{early}.png")
    sample = samples(CustomConverter(source=str(source)), frame.log)[0]
    assert sample.cameras[0].timestamp_us == own
    (folder / f"{own}.png").unlink()
    skip = first_skip(source)
    assert (skip.reason, "poses reach from" in skip.detail) == ("calibration-missing", True), "no extrapolation"
    skip = first_skip(source, max_image_gap_ms=5.0)
    assert skip.reason == "member-missing"
    assert "front: the nearest image is 11.0 ms from the sweep, allowed are 5 ms" in skip.detail


def test_without_poses_the_ego_stands_still_and_the_notes_say_so(source, truth):
    log = truth[0][0].log
    (source / log / "poses.csv").unlink()
    converter = CustomConverter(source=str(source))
    np.testing.assert_array_equal(samples(converter, log)[0].cameras[1].T_world_ego, np.eye(4))
    assert converter.notes() == (f"no poses.csv, the ego stands still: {log}",)


def test_times_in_another_unit_are_suspected(tmp_path, truth):
    nanoseconds = [dataclasses.replace(f, timestamp_us=f.timestamp_us * 1000, cameras=()) for f in truth[0]]
    write_custom(tmp_path, [nanoseconds])
    (note,) = CustomConverter(source=str(tmp_path)).notes()
    assert "sweeps are 500000000 microseconds apart; are file names in microseconds?" in note


# ---- mistakes
def test_wrong_folders_say_what_was_looked_for(tmp_path, source):
    with pytest.raises(ShardError, match=r"is no custom folder: looked for <log>/calibration\.json .* no such folder"):
        CustomConverter(source=str(tmp_path / "nowhere")).logs()
    log = CustomConverter(source=str(source)).logs()[0]
    with pytest.raises(ShardError, match=r"this is one log, name the folder above it in .*found boxes/, calib"):
        CustomConverter(source=str(source / log)).logs()
    (source / log / "calibration.json").unlink()
    with pytest.raises(ShardError, match=rf"looked for calibration\.json and lidar/ in .*{log}, found boxes/"):
        CustomConverter(source=str(source)).logs()
    (source / "drive 1").mkdir()
    with pytest.raises(ShardError, match="letters, digits, '-' and '_' only"):
        CustomConverter(source=str(source)).logs()


def test_wrong_names_say_what_was_expected(source, truth):
    log = truth[0][0].log
    with pytest.raises(ShardError, match="val_logs names 'nowhere', which is not in"):
        CustomConverter(source=str(source), val_logs=("nowhere",)).logs()
    with pytest.raises(ShardError, match=r"has the cameras \['front', 'rear'\], expected \['top'\] as asked for"):
        CustomConverter(source=str(source), cameras=("top",)).camera_names()
    shutil.rmtree(source / log / "cameras" / "rear")
    with pytest.raises(ShardError, match=rf"expected \['front'\] as in {log}; choose with cameras="):
        CustomConverter(source=str(source)).camera_names()
    (source / "classes.txt").write_bytes("car\nFußgänger\n".encode("latin-1"))
    with pytest.raises(ShardError, match=r"classes\.txt, line 2: no text in UTF-8 \(byte 0xdf\)"):
        _ = CustomConverter(source=str(source)).class_names
    (source / "classes.txt").unlink()
    with pytest.raises(ShardError, match=r"holds labels, but .*classes\.txt is missing: one class name a line"):
        _ = CustomConverter(source=str(source)).class_names
    (source / log / "lidar" / "000001.pcd").touch()
    with pytest.raises(ShardError, match=r"000001\.pcd: expected <time in microseconds> and one of \.npy, \.bin"):
        CustomConverter(source=str(source)).num_frames(log)
    with pytest.raises(ValueError, match=r"max_image_gap_ms: got 0\.0"):
        CustomConverter(source=str(source), max_image_gap_ms=0.0)


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        (lambda c: c.pop("T_ego_lidar"), "calibration-missing", "'T_ego_lidar' is missing; expected T_ego_lidar, int"),
        (lambda c: c.update(T_lidar_ego=0), "calibration-missing", "'T_lidar_ego' is unknown; expected T_ego_lidar"),
        (lambda c: c.update(T_ego_lidar=[1, 2]), "meta-broken", "T_ego_lidar has shape (2,), expected 4 rows of 4"),
        (lambda c: c["T_ego_lidar"][0].__setitem__(0, 7.0), "calibration-singular", "expected a rotation and a trans"),
        (lambda c: c.update(intensity_max=0), "meta-broken", "intensity_max is 0, expected a number above 0"),
        (lambda c: c.update(cameras=[]), "meta-broken", "cameras is [], expected names with their calibration"),
        (lambda c: c["cameras"].pop("rear"), "calibration-missing", "has no camera 'rear', it has front"),
        (lambda c: c["cameras"]["front"].update(image_size=[96]), "meta-broken", "expected [height, width]"),
        (lambda c: c["cameras"]["front"].update(image_size=[160, 96]), "image-size", "calibration.json says (160, 96)"),
        (lambda c: c["cameras"]["front"].update(K=[[1, 0], [0, 1]]), "meta-broken", "K has shape (2, 2), expected 3"),
        (lambda c: c["cameras"]["front"]["K"][2].__setitem__(2, 2), "calibration-singular", "expected [[fx, 0, cx]"),
        (lambda c: c["cameras"]["front"].update(K="wide"), "meta-broken", "could not convert"),
        (lambda c: c["cameras"]["front"].update(distortion=[1, 2, 3]), "meta-broken", "expected 4 or 5 or 8 numbers"),
    ],
)
def test_mistakes_in_the_calibration_are_named(source, truth, change, reason, text):
    edit_calibration(source, truth[0][0].log, change)
    skip = first_skip(source)
    assert skip.reason == reason
    assert text in skip.detail
    assert skip.key == f"{truth[0][0].log}_{truth[0][0].timestamp_us}"


UNNAMED = {"class": None, "center": [0, 0, 0], "size": [1, 1, 1], "yaw": 0}


@pytest.mark.parametrize(
    ("folder", "content", "reason", "text"),
    [
        ("lidar", np.zeros((5, 3), np.float32), "array-broken", "expected floats, N rows of x y z intensity"),
        ("lidar", np.zeros((5, 4), np.int32), "array-broken", "expected floats"),
        ("lidar", b"", "array-broken", "magic"),
        ("labels", np.zeros(3, np.uint8), "array-broken", "expected whole numbers, one for each of"),
        ("labels", None, "member-missing", "No such file"),
        ("boxes", b"{}", "meta-broken", "holds a dict, expected a list of boxes"),
        ("boxes", b'[{"class": "car"}]', "calibration-missing", "box 0: 'center' is missing; expected class, center"),
        (
            "boxes",
            b'[{"class": "boat", "center": [0,0,0], "size": [1,1,1], "yaw": 0}]',
            "meta-broken",
            "class 'boat' is not in classes.txt",
        ),
        (
            "boxes",
            b'[{"class": "car", "center": [0,0,0], "size": [1,0,1], "yaw": 0}]',
            "meta-broken",
            "expected sizes above 0",
        ),
        *(
            (
                "boxes",
                json.dumps([{"class": None, "center": [0, 0, 0], "size": [1, 1, 1], "yaw": 0, name: value}]),
                *told,
            )
            for name, value, *told in (
                ("category", "boat", "meta-broken", "category 'boat' is not in categories.txt (which is missing)"),
                ("num_points", -2, "meta-broken", "num_points is -2, expected a whole number, -1 to"),
                ("num_radar_points", 1.5, "meta-broken", "num_radar_points is 1.5, expected a whole number"),
                ("occlusion", True, "meta-broken", "occlusion is True, expected a whole number"),
                ("truncation", 1.2, "meta-broken", "truncation is 1.2, expected 0 to 1"),
                ("truncation", [0.5], "meta-broken", "truncation is [0.5], expected 0 to 1"),
                ("alpha", 90, "meta-broken", "alpha is 90, expected -6.28"),
                ("image_box", [5, 0, 1, 2], "meta-broken", "expected left, top, right, bottom"),
                ("image_box", [5, 0, 1], "meta-broken", "expected 4 numbers"),
                ("image_box", [[5], [0], [1], [2]], "meta-broken", "expected 4 numbers"),
                ("velocity", [[1], [2]], "meta-broken", "expected 2 numbers"),
                ("track_id", 0.5, "meta-broken", "expected a whole number, at most 2**53"),
                ("colour", "red", "calibration-missing", "'colour' is unknown"),
            )
        ),
    ],
)
def test_damaged_files_are_named(source, truth, folder, content, reason, text):
    frame = truth[0][0]
    path = source / frame.log / folder / f"{frame.timestamp_us}{'.json' if folder == 'boxes' else '.npy'}"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes | str):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    else:
        np.save(path, content)
    skip = first_skip(source)
    assert skip.reason == reason
    assert text in skip.detail


def test_unknown_labels_truncated_and_pickled_arrays_are_refused(source, truth):
    frame = truth[0][0]
    path = source / frame.log / "labels" / f"{frame.timestamp_us}.npy"
    labels = np.full(len(frame.points_lidar), IGNORE_LABEL, np.int64)
    labels[4] = 200
    np.save(path, labels)
    assert f"class 200, expected 0 to {len(CLASS_NAMES) - 1} or 255" in first_skip(source).detail
    np.save(path, np.array([{}], dtype=object))
    assert "python objects" in first_skip(source).detail
    sweep = source / frame.log / "lidar" / f"{frame.timestamp_us}.npy"
    sweep.write_bytes(sweep.read_bytes()[:-10])
    assert first_skip(source).reason == "array-broken"
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    promise = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 4), }"
    sweep.write_bytes(header + promise.ljust(117) + b"\n")
    assert first_skip(source).reason == "array-broken"
