"""Converters: on small trees in the official layouts, and on real frames where they are there."""

import contextlib
import dataclasses
import itertools
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.convert.base import Converter, Skipped
from data.convert.box_labels import labels_from_boxes, points_in_box
from data.convert.kitti import common as kitti
from data.convert.kitti.kitti_object import BOX_CATEGORIES, CLASS_NAMES, KittiObjectConverter
from data.convert.kitti.kitti_raw import KittiRawConverter, oxts_pose
from data.convert.raw_files import check_image_fits
from data.convert.sets import SETTINGS
from data.geometry import project, rigid, transform, visible, yaw_rotation
from data.sample import IGNORE_LABEL, Boxes, Sample
from data.storage.damage import DamagedError
from data.storage.encode import count_pairs
from data.storage.shard import ShardError
from tests.helpers.layouts.custom import write_custom
from tests.helpers.layouts.kitti import CAMERA, write_kitti_object, write_kitti_raw
from tests.helpers.street_logs import CLASS_NAMES as STREET_CLASSES
from tests.helpers.street_logs import street_log

REAL = Path(__file__).parents[3].parent / "shared" / "data"
needs_raw = pytest.mark.skipif(not (REAL / "kitti_raw").is_dir(), reason=f"no real KITTI raw frames in {REAL}")
needs_object = pytest.mark.skipif(not (REAL / "kitti_object").is_dir(), reason=f"no real KITTI object frames in {REAL}")

# Camera axes (x right, y down, z forward) from LiDAR axes (x forward, y left, z up).
AXES = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
P2 = np.array([[60.0, 0, 47.5, 30.0], [0, 60, 23.5, 0], [0, 0, 1, 0]])  # 48x96 image, camera 0.5 m left of camera 0


def numbers(*arrays: np.ndarray) -> str:
    return " ".join(f"{value:.12e}" for array in arrays for value in np.asarray(array).ravel())


def write_sweep(path: Path, points: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.concatenate([points, np.full((len(points), 1), 0.25)], axis=1).astype("<f4").tofile(path)


def write_image(path: Path, red: int = 200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((48, 96, 3), np.uint8)
    image[..., 2] = red  # OpenCV writes BGR
    cv2.imwrite(str(path), image)


def some_points(seed: int = 0, count: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).uniform([-20, -10, -2], [30, 10, 2], (count, 3))


# ---- kitti raw
def write_raw(
    root: Path, drives: int = 1, frames: int = 3, cameras: tuple[str, ...] = ("image_02",), timed: bool = True
) -> Path:
    date = root / "2011_09_26"
    date.mkdir(parents=True)
    (date / "calib_velo_to_cam.txt").write_text(f"R: {numbers(AXES)}\nT: {numbers([0, -0.1, -0.2])}\n")
    (date / "calib_imu_to_velo.txt").write_text(f"R: {numbers(np.eye(3))}\nT: {numbers([-0.8, 0.3, -0.8])}\n")
    (date / "calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012 13:57:47\nR_rect_00: {numbers(np.eye(3))}\nP_rect_02: {numbers(P2)}\n"
        f"P_rect_03: {numbers(P2)}\n"
    )
    for drive in range(drives):
        folder = date / f"2011_09_26_drive_{drive:04d}_sync"
        for frame in range(frames):
            write_sweep(folder / "velodyne_points" / "data" / f"{frame:010d}.bin", some_points(frame))
            for camera in cameras:
                write_image(folder / camera / "data" / f"{frame:010d}.png", red=100 + frame)
            oxts = folder / "oxts" / "data" / f"{frame:010d}.txt"
            oxts.parent.mkdir(parents=True, exist_ok=True)
            # 1e-5 degrees of latitude a frame: 1.11 m to the north.
            oxts.write_text(f"{49.0 + frame * 1e-5:.12f} 8.4 112.0 0.0 0.0 {np.pi / 2} " + "0 " * 24)
        if timed:
            lines = [f"2011-09-26 13:02:{25 + frame}.951199337" for frame in range(frames)]
            for sensor in ("velodyne_points", *cameras):
                (folder / sensor / "timestamps.txt").write_text("\n".join(lines) + "\n")
    return root


def frames_of(converter: Converter, log: str | None = None) -> list[Sample | Skipped]:
    logs = converter.logs() if log is None else (log,)
    return [item for name in logs for item in converter.frames(name, 0, converter.num_frames(name))]


def test_raw_reads_the_official_layout(tmp_path):
    converter = KittiRawConverter(source=str(write_raw(tmp_path, drives=2)))
    assert converter.logs() == ("2011_09_26_drive_0000_sync", "2011_09_26_drive_0001_sync")
    assert converter.camera_names() == ("image_02",)
    samples = frames_of(converter, converter.logs()[0])
    assert [sample.key for sample in samples] == [f"2011_09_26_drive_0000_sync_{i:010d}" for i in range(3)]
    assert [sample.timestamp_us for sample in samples] == [1_317_042_145_951_199 + 1_000_000 * i for i in range(3)]
    first = samples[0]
    np.testing.assert_array_equal(first.points_lidar, some_points(0).astype(np.float32))
    assert set(first.intensity.tolist()) == {0.25}
    assert first.cameras[0].image[0, 0].tolist() == [100, 0, 0], "RGB"
    assert converter.notes() == ("no image_03 in every drive: only image_02",)
    # A copy in a worker gives the same.
    copy = frames_of(pickle.loads(pickle.dumps(converter)), converter.logs()[0])
    np.testing.assert_array_equal(copy[2].points_lidar, samples[2].points_lidar)


def test_raw_projection_is_the_one_of_the_papers_formula(tmp_path):
    """Against P_rect R_rect Tr_velo_to_cam x, written out."""
    (sample, *_) = frames_of(KittiRawConverter(source=str(write_raw(tmp_path))))
    camera = sample.cameras[0]
    points = np.array([[10.0, 1.0, 0.5], [5.0, -2.0, -1.0]])
    uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), points))
    T_velo_to_cam = rigid(AXES, np.array([0, -0.1, -0.2]))
    for point, pixel, metres in zip(points, uv, depth, strict=True):
        homogeneous = P2 @ T_velo_to_cam @ [*point, 1.0]
        np.testing.assert_allclose(pixel, homogeneous[:2] / homogeneous[2], atol=1e-9)
        np.testing.assert_allclose(metres, homogeneous[2])


def test_raw_poses_from_oxts(tmp_path):
    samples = frames_of(KittiRawConverter(source=str(write_raw(tmp_path))))
    np.testing.assert_allclose(samples[0].T_world_ego, np.eye(4), atol=1e-9)
    # The ego looks north (yaw 90 degrees) and moves north: along its own x.
    step = samples[1].T_world_ego[:3, 3]
    np.testing.assert_allclose(step, [1.113, 0, 0], atol=2e-3)
    np.testing.assert_allclose(samples[2].T_world_ego[:3, :3], np.eye(3), atol=1e-9)
    np.testing.assert_allclose(samples[0].T_ego_lidar[:3, 3], [0.8, -0.3, 0.8])


def test_oxts_angles_turn_the_right_way():
    pose = oxts_pose(np.array([49.0, 8.4, 0.0, 0.0, 0.0, np.pi / 2]), 0.65)
    np.testing.assert_allclose(pose[:3, 0], [0, 1, 0], atol=1e-12)  # forward is north
    nose_up = oxts_pose(np.array([49.0, 8.4, 0.0, 0.0, -0.1, 0.0]), 0.65)
    assert nose_up[2, 0] > 0
    left_up = oxts_pose(np.array([49.0, 8.4, 0.0, 0.1, 0.0, 0.0]), 0.65)
    assert left_up[2, 1] > 0


def test_raw_without_oxts_and_times_says_so(tmp_path):
    write_raw(tmp_path, timed=False)
    drive = tmp_path / "2011_09_26" / "2011_09_26_drive_0000_sync"
    (drive / "oxts").rename(tmp_path / "elsewhere")
    converter = KittiRawConverter(source=str(tmp_path))
    samples = frames_of(converter)
    assert [sample.timestamp_us for sample in samples] == [0, 100_000, 200_000]
    assert all((sample.T_world_ego == np.eye(4)).all() for sample in samples)
    notes = " ".join(converter.notes())
    assert "no oxts: ego poses are identity" in notes
    assert "10 Hz assumed" in notes


def test_raw_names_damaged_frames(tmp_path):
    drive = write_raw(tmp_path, frames=6) / "2011_09_26" / "2011_09_26_drive_0000_sync"
    sweeps, images = drive / "velodyne_points" / "data", drive / "image_02" / "data"
    (sweeps / "0000000000.bin").unlink()  # as in drive 0009 of the real set
    (images / "0000000001.png").unlink()
    (sweeps / "0000000002.bin").write_bytes(b"123")
    (images / "0000000003.png").write_bytes(b"no image")
    (drive / "oxts" / "data" / "0000000004.txt").unlink()
    items = frames_of(KittiRawConverter(source=str(tmp_path)))
    reasons = [item.reason if isinstance(item, Skipped) else "fine" for item in items]
    assert reasons == [
        "member-missing",
        "member-missing",
        "array-broken",
        "image-broken",
        "calibration-missing",
        "fine",
    ]
    assert items[0].key.endswith("_0000000000")
    (tmp_path / "2011_09_26" / "calib_velo_to_cam.txt").unlink()
    items = frames_of(KittiRawConverter(source=str(tmp_path)))
    assert [item.reason for item in items] == ["calibration-missing"] * 6


def test_raw_stretches_are_parts_of_the_whole(tmp_path):
    converter = KittiRawConverter(source=str(write_raw(tmp_path, frames=5)))
    log = converter.logs()[0]
    parts = itertools.chain(converter.frames(log, 0, 2), converter.frames(log, 2, 5))
    assert [sample.key for sample in parts] == [sample.key for sample in frames_of(converter)]


def test_raw_cameras_and_splits(tmp_path):
    source = str(write_raw(tmp_path, drives=2, cameras=("image_02", "image_03")))
    assert KittiRawConverter(source=source).camera_names() == ("image_02", "image_03")
    only = KittiRawConverter(source=source, cameras=("image_03",), val_logs=("2011_09_26_drive_0001_sync",))
    assert [camera.name for camera in frames_of(only)[0].cameras] == ["image_03"]
    assert [only.split_of(log) for log in only.logs()] == ["train", "val"]
    with pytest.raises(ShardError, match="val_logs names 'nowhere'"):
        KittiRawConverter(source=source, val_logs=("nowhere",)).logs()
    with pytest.raises(ValueError, match=r"cameras: got \('image_00',\)"):
        KittiRawConverter(source=source, cameras=("image_00",))


def test_raw_says_what_it_looked_for(tmp_path):
    with pytest.raises(ShardError, match=r"no KITTI raw folder: looked for <date>/<date>_drive_.*found no such folder"):
        KittiRawConverter(source=str(tmp_path / "nothing")).logs()
    source = write_raw(tmp_path, drives=2)
    drive = source / "2011_09_26" / "2011_09_26_drive_0001_sync"
    with pytest.raises(ShardError, match=r"looked for image_03/data/\*.png or .* found image_02/, oxts/"):
        KittiRawConverter(source=str(source), cameras=("image_03",)).camera_names()
    (drive / "image_02").rename(drive / "image_00")  # grey
    with pytest.raises(ShardError, match=r"a colour camera that every drive has .*, found image_00/, oxts/"):
        KittiRawConverter(source=str(source)).camera_names()


def test_raw_frames_of_the_street_world(tmp_path):
    truth = write_kitti_raw(tmp_path)
    for sample, true in zip(frames_of(KittiRawConverter(source=str(tmp_path))), truth, strict=True):
        np.testing.assert_array_equal(sample.points_lidar, true.points_lidar)
        np.testing.assert_array_equal(sample.intensity, true.intensity)
        np.testing.assert_allclose(sample.T_ego_lidar, true.T_ego_lidar, atol=1e-9)
        moved = np.linalg.inv(truth[0].T_world_ego) @ true.T_world_ego
        np.testing.assert_allclose(sample.T_world_ego, moved, atol=1e-6)
        camera, expected = sample.cameras[0], true.cameras[0]
        np.testing.assert_array_equal(camera.image, expected.image)
        uv, _ = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
        uv_true, depth = project(expected.K, transform(true.T_cam_lidar(expected), true.points_lidar))
        assert (depth > 1).sum() > 100
        np.testing.assert_allclose(uv[depth > 1], uv_true[depth > 1], atol=1e-6)


def test_timestamps(tmp_path):
    path = tmp_path / "timestamps.txt"
    assert kitti.read_timestamps(path) is None
    path.write_text("2011-09-26 13:02:25.5\n1970-01-01 00:00:01.000002999\n")
    assert kitti.read_timestamps(path).lines == (1_317_042_145_500_000, 1_000_002)


def test_images_of_another_size_than_the_calibration_are_refused(tmp_path):
    write_raw(tmp_path)
    date = tmp_path / "2011_09_26"
    (image,) = date.glob("*/image_02/data/0000000001.png")
    cv2.imwrite(str(image), np.zeros((24, 48, 3), np.uint8))
    items = frames_of(KittiRawConverter(source=str(tmp_path)))
    assert [getattr(item, "reason", "fine") for item in items] == ["fine", "image-size", "fine"]
    assert "is 24x48 (height x width), its calibration is for images about 95 wide" in items[1].detail
    path = date / "calib_cam_to_cam.txt"  # the real one states the size
    path.write_text(path.read_text() + "S_rect_02: 9.700000e+01 4.800000e+01\n")
    items = frames_of(KittiRawConverter(source=str(tmp_path)))
    assert {item.reason for item in items} == {"image-size"}
    assert "its calibration is for images of 48x97" in items[0].detail


@pytest.mark.parametrize(
    ("cx", "width", "fits"),
    [
        *((609.56, 1242, True), (607.19, 1241, True), (604.08, 1224, True), (601.89, 1226, True), (896.47, 1920, True)),
        *((362.78, 681, True), (609.56, 1024, False), (609.56, 621, False), (609.56, 1392, False)),
    ],
)
def test_published_sizes_fit_and_usual_other_ones_do_not(cx, width, fits):
    """Of KITTI's rectified images, its raw ones, and the most eccentric cameras of PandaSet and SUN RGB-D."""
    K = np.array([[700.0, 0, cx], [0, 700.0, 180], [0, 0, 1]])
    with contextlib.nullcontext() if fits else pytest.raises(DamagedError, match="its calibration is for images about"):
        check_image_fits(Path("image.png"), K, (375, width))


@pytest.mark.parametrize("columns", [3, 5, 6, 8])
def test_sweeps_of_other_columns_are_refused(tmp_path, columns):
    """Of a spinning scanner; 4000 rows of each fill whole rows of four."""
    azimuth = np.arange(4000) * 2 * np.pi / 1000
    points = np.stack([20 * np.cos(azimuth), 20 * np.sin(azimuth), -1 + azimuth / 10, np.full(4000, 0.3)], axis=1)
    others = np.stack([np.arange(4000) % 4, azimuth / 100, np.zeros(4000), np.ones(4000)], axis=1)
    path = tmp_path / "0.bin"
    np.column_stack([points, others])[:, :columns].astype("<f4").tofile(path)
    with pytest.raises(DamagedError, match=f"rows of {columns} numbers would fit, in those of 4 neighbouring points"):
        kitti.read_sweep(path)
    # Two scanners in turn are smoother by every second row.
    in_turn = np.stack([points, points * [-1, 1, -2, 1]], axis=1).reshape(-1, 4).astype("<f4")
    in_turn.tofile(path)
    np.testing.assert_array_equal(kitti.read_sweep(path), in_turn)


def test_jpegs_stand_for_the_images(tmp_path):
    write_raw(tmp_path)
    jpegs = []
    for path in sorted(tmp_path.glob("*/*/image_02/data/*.png")):
        cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)))
        path.unlink()
        jpegs.append(path.with_suffix(".jpg").read_bytes())
    samples = frames_of(KittiRawConverter(source=str(tmp_path)))
    assert [sample.cameras[0].jpeg for sample in samples] == jpegs


def test_an_empty_line_of_times_is_its_own_frames_loss(tmp_path):
    """As in a drive of the Eigen split: the sweep of the frame is missing, too."""
    converter = KittiRawConverter(source=str(write_raw(tmp_path, frames=5)))
    whole = frames_of(converter)
    (log,) = converter.logs()
    folder = tmp_path / "2011_09_26" / log
    times = folder / "velodyne_points" / "timestamps.txt"
    lines = times.read_bytes().splitlines()
    # The damaged fifth line has a character that ends a line of text, but not one of a file.
    times.write_bytes(b"\n".join([*lines[:2], b"", lines[3], b"2011\x1c-09-26"]) + b"\n\n")
    (folder / "velodyne_points" / "data" / "0000000002.bin").unlink()
    for number in (0, 3):  # also the pose that the world begins at
        (folder / "oxts" / "data" / f"{number:010d}.txt").write_text("49.0 x\n")
    items = frames_of(converter)
    found = [item.reason if isinstance(item, Skipped) else item.timestamp_us for item in items]
    assert found == ["meta-broken", whole[1].timestamp_us, "member-missing", "meta-broken", "meta-broken"]
    assert "line 5" in items[4].detail


@needs_raw
def test_raw_on_real_frames():
    converter = KittiRawConverter(source=str(REAL / "kitti_raw"))
    log = converter.logs()[0]
    assert converter.num_frames(log) == 26
    samples = list(converter.frames(log, 0, 3))
    for sample in samples:
        camera = sample.cameras[0]
        assert camera.image_size == (375, 1242)
        assert sample.points_lidar.shape[0] > 100_000
        assert 0 <= sample.intensity.min() <= sample.intensity.max() <= 1
        # The image spans 81 of 360 degrees.
        assert 0.1 < count_pairs(sample) / sample.points_lidar.shape[0] < 0.22
        uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
        seen = visible(uv, depth, camera.image_size)
        # Near points lie low in the image, far ones near the horizon (row 173).
        assert np.median(uv[seen & (depth < 8), 1]) > 260
        assert abs(np.median(uv[seen & (depth > 50), 1]) - 173) < 40


# ---- kitti object
T_VELO_TO_CAM = rigid(AXES, np.array([0.0, -0.1, -0.2]))


def write_object(root: Path, frames: tuple[int, ...] = (0, 1, 2, 3, 4, 5), label: str = "") -> Path:
    for frame in frames:
        name = f"{frame:06d}"
        write_sweep(root / "training" / "velodyne" / f"{name}.bin", some_points(frame, 4000))
        write_image(root / "training" / "image_2" / f"{name}.png")
        for folder, text in (
            (
                "calib",
                f"P2: {numbers(P2)}\nR0_rect: {numbers(np.eye(3))}\n"
                f"Tr_velo_to_cam: {numbers(T_VELO_TO_CAM[:3])}\nTr_imu_to_velo: {numbers(np.eye(4)[:3])}\n",
            ),
            ("label_2", label),
        ):
            path = root / "training" / folder / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return root


def label_line(
    kind: str, center_lidar: tuple[float, float, float], size: tuple[float, float, float], yaw: float
) -> str:
    """A KITTI label of an upright box given in the LiDAR frame of the toy calibration (no tilt)."""
    length, width, height = size
    bottom = transform(T_VELO_TO_CAM, np.array([center_lidar]) - [0, 0, height / 2])[0]
    rotation_y = -yaw - np.pi / 2
    return f"{kind} 0 0 0 0 0 10 10 {height} {width} {length} {numbers(bottom)} {rotation_y}"


def test_object_boxes_and_labels(tmp_path):
    lines = [
        label_line("Car", (12.0, 1.0, 0.0), (8.0, 4.0, 3.0), 0.3),
        label_line("Pedestrian", (9.0, -3.0, 0.0), (2.0, 2.0, 3.0), 0.0),
        label_line("Van", (20.0, 4.0, 0.0), (6.0, 4.0, 4.0), -1.0),
        "DontCare -1 -1 -10 0 0 30 47 -1 -1 -1 -1000 -1000 -1000 -10",
    ]
    root = write_object(tmp_path, frames=(7,), label="\n".join(lines))
    (sample,) = frames_of(KittiObjectConverter(source=str(root)))
    assert sample.boxes.classes.tolist() == [1, 2, IGNORE_LABEL]
    assert [BOX_CATEGORIES[number] for number in sample.boxes.categories] == ["Car", "Pedestrian", "Van"]
    assert sample.boxes.image_boxes_px.tolist() == [[0, 0, 10, 10]] * 3
    assert sample.cameras[0].ignored_px.tolist() == [[0, 0, 30, 47]]
    np.testing.assert_allclose(sample.boxes.centers_m, [[12, 1, 0], [9, -3, 0], [20, 4, 0]], atol=1e-9)
    np.testing.assert_allclose(sample.boxes.sizes_m[0], [8, 4, 3])
    np.testing.assert_allclose(np.sin(sample.boxes.yaws - [0.3, 0, -1.0]), 0, atol=1e-9)
    np.testing.assert_allclose(np.cos(sample.boxes.yaws - [0.3, 0, -1.0]), 1, atol=1e-9)
    # Slow and obvious: point by point.
    camera = sample.cameras[0]
    for point, label in zip(sample.points_lidar.astype(np.float64), sample.labels, strict=True):
        expected = 0
        u, v, w = P2 @ T_VELO_TO_CAM @ [*point, 1.0]
        u, v = u / w, v / w
        if not (w > 0 and 0 <= u <= 95 and 0 <= v <= 47) or u <= 30:
            expected = IGNORE_LABEL
        for kind, center, size, yaw in (
            (IGNORE_LABEL, (20.0, 4.0, 0.0), (6.0, 4.0, 4.0), -1.0),
            (1, (12.0, 1.0, 0.0), (8.0, 4.0, 3.0), 0.3),
            (2, (9.0, -3.0, 0.0), (2.0, 2.0, 3.0), 0.0),
        ):
            local = yaw_rotation(yaw).T @ (point - center)
            if (np.abs(local) <= np.array(size) / 2).all():
                expected = kind
        assert label == expected
    assert {0, 1, 2, IGNORE_LABEL} == set(sample.labels.tolist())
    assert camera.image[0, 0].tolist() == [200, 0, 0], "RGB"


def test_object_marks_of_the_unknown(tmp_path):
    line = "Tram -1 -1 -10 0 0 10 10 3 2 9 0 2 20 0"
    (sample,) = frames_of(KittiObjectConverter(source=str(write_object(tmp_path, frames=(7,), label=line))))
    assert np.isnan(sample.boxes.truncations).tolist() == np.isnan(sample.boxes.alphas).tolist() == [True]
    assert sample.boxes.occlusions.tolist() == [-1]
    assert sample.cameras[0].ignored_px.shape == (0, 4)
    (bare,) = frames_of(KittiObjectConverter(source=str(write_object(tmp_path, frames=(7,)))))
    assert bare.boxes.image_boxes_px.shape == (0, 4)
    assert bare.boxes.categories.shape == (0,)


def test_object_splits(tmp_path):
    source = str(write_object(tmp_path / "set", frames=tuple(range(12))))
    by_rule = KittiObjectConverter(source=source)
    assert [log for log in by_rule.logs() if by_rule.split_of(log) == "val"] == ["000000", "000005", "000010"]
    assert "every 5th frame is val" in " ".join(by_rule.notes())
    train, val = tmp_path / "train.txt", tmp_path / "val.txt"
    train.write_text("000003\n000001\n")
    val.write_text("000002\n009999\n")
    listed = dataclasses.replace(by_rule, train_list=str(train), val_list=str(val))
    assert {log: listed.split_of(log) for log in listed.logs()} == {
        "000001": "train",
        "000002": "val",
        "000003": "train",
    }
    assert "1 of 4 listed frames are not in the source" in " ".join(listed.notes())
    val.write_text("000003\n")
    with pytest.raises(ShardError, match="000003 is in train_list and in val_list"):
        dataclasses.replace(listed).logs()
    with pytest.raises(ValueError, match="must be given together"):
        KittiObjectConverter(source=source, train_list="a")
    with pytest.raises(ShardError, match="cannot read the split list"):
        dataclasses.replace(by_rule, train_list=str(tmp_path / "absent"), val_list=str(val)).logs()
    with pytest.raises(ShardError, match=r"no KITTI object folder: looked for training/.*, found set/, train.txt"):
        KittiObjectConverter(source=str(tmp_path)).logs()
    with pytest.raises(ShardError, match=r"looked for training/.*, found calib/, image_2/, label_2/, velodyne/"):
        KittiObjectConverter(source=str(tmp_path / "set" / "training")).logs()  # one level too deep


def test_object_frames_of_the_street_world(tmp_path):
    truth = write_kitti_object(tmp_path)
    expected_kind = {"car": 1, "pedestrian": 2, "cyclist": 3}
    for sample, true in zip(frames_of(KittiObjectConverter(source=str(tmp_path))), truth, strict=True):
        np.testing.assert_array_equal(sample.points_lidar, true.points_lidar)
        np.testing.assert_allclose(sample.T_cam_lidar(sample.cameras[0]), true.T_cam_lidar(true.cameras[0]), atol=1e-9)
        np.testing.assert_allclose(sample.boxes.centers_m, true.boxes.centers_m, atol=1e-6)
        np.testing.assert_allclose(sample.boxes.sizes_m, true.boxes.sizes_m)
        np.testing.assert_allclose(np.sin(sample.boxes.yaws - true.boxes.yaws), 0, atol=0.01)
        classes = [expected_kind.get(STREET_CLASSES[label], IGNORE_LABEL) for label in true.boxes.classes]
        assert sample.boxes.classes.tolist() == classes
        # Each point of an object lies in a box of its kind; its label says so, unless two boxes overlap.
        for kind, index in expected_kind.items():
            own = true.labels == STREET_CLASSES.index(kind)
            assert own.sum() > 5, kind
            assert (sample.labels[own] == index).mean() > 0.9, kind


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("label_2", "Spaceship 0 0 0 0 0 1 1 1 1 1 1 1 1 1", "meta-broken"),
        ("label_2", "Car 0 0 0 0 0 1 1", "meta-broken"),
        ("label_2", "Car a b c", "meta-broken"),
        ("label_2", "Car 0 1.5 0 0 0 1 1 1 1 1 1 1 1 1", "meta-broken"),
        ("label_2", "Car 0 nan 0 0 0 1 1 1 1 1 1 1 1 1", "meta-broken"),
        ("calib", "P2: 1 2 3", "calibration-missing"),
        ("calib", f"P2: {numbers(np.zeros((3, 4)))}", "calibration-singular"),
        ("calib", None, "calibration-missing"),
        ("label_2", None, "member-missing"),
        ("velodyne", None, "member-missing"),
        ("velodyne", "short", "array-broken"),
        ("image_2", None, "member-missing"),
        ("image_2", "no image", "image-broken"),
    ],
)
def test_object_names_damaged_frames(tmp_path, file, text, reason):
    root = write_object(tmp_path, frames=(0, 1))
    path = next((root / "training" / file).glob("000001.*"))
    path.unlink() if text is None else path.write_text(text)
    good, bad = frames_of(KittiObjectConverter(source=str(root)))
    assert isinstance(good, Sample)
    assert (bad.reason, bad.key) == (reason, "000001")


@needs_object
def test_object_on_real_frames():
    converter = KittiObjectConverter(source=str(REAL / "kitti_object"))
    samples = frames_of(converter)
    assert [sample.key for sample in samples] == sorted(sample.key for sample in samples)
    assert len(samples) == 11
    points_by_class = np.zeros(256, int)
    for sample in samples:
        points_by_class += np.bincount(sample.labels, minlength=256)
        assert 0.1 < count_pairs(sample) / sample.points_lidar.shape[0] < 0.25
        outside = sample.labels == IGNORE_LABEL
        assert 0.6 < outside.mean() < 0.95, "about three quarters of a turn are not in the image"
    assert (points_by_class[: len(CLASS_NAMES)] > 100).all()


# ---- parts
def test_labels_from_overlapping_boxes():
    boxes = Boxes(
        centers_m=np.array([[0.0, 0, 0], [1.0, 0, 0], [50.0, 0, 0]]),
        sizes_m=np.array([[2.0, 2, 2], [8.0, 8, 8], [2.0, 2, 2]]),
        yaws=np.zeros(3),
        velocities_mps=np.zeros((3, 2)),
        classes=np.array([3, 1, IGNORE_LABEL]),
        track_ids=np.arange(3),
    )
    points = np.array([[0.5, 0, 0], [3.0, 0, 0], [50.0, 0.5, 0], [20.0, 0, 0]])
    labels, instances = labels_from_boxes(points, boxes, background=0)
    assert labels.tolist() == [3, 1, IGNORE_LABEL, 0]
    assert instances.tolist() == [1, 2, 3, 0]


def test_points_in_box_turn_with_it():
    points = np.random.default_rng(0).uniform(-4, 4, (300, 3))
    center, size = np.array([1.0, -0.5, 0.2]), np.array([4.0, 1.5, 2.0])
    straight = points_in_box(points, center, size, 0.0)
    turn = rigid(yaw_rotation(0.7), np.array([2.0, 1.0, 0.0]))
    turned = points_in_box(transform(turn, points), transform(turn, center[None])[0], size, 0.7)
    assert 0 < straight.sum() < 300
    np.testing.assert_array_equal(straight, turned)


def test_calibration_text(tmp_path):
    path = tmp_path / "calib.txt"
    path.write_text("time: noon\nA: 1 2 3\nno colon\nB: 1 x\n")
    values = kitti.read_calibration(path)
    assert set(values) == {"A"}
    assert kitti.entry(values, "A", (3,)).tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_set_has_settings_and_a_converter(name, tmp_path):
    kind = SETTINGS[name]
    required = {"source": str(tmp_path)} if name != "synthetic" else {}
    if name == "custom":  # its classes are in its folder
        write_custom(tmp_path, [street_log((CAMERA,), rate_hz=10.0, azimuths=360)])
    converter = kind(**required)
    assert converter.set_name == name
    assert converter.settings()
    assert isinstance(converter, Converter)


def test_synthetic_stretches_are_parts_of_the_whole():
    pytest.importorskip("data.street.log", reason="the street world is not part of this checkout")
    kind = SETTINGS["synthetic"]
    street = kind(num_logs=5, frames_per_log=2)
    small = dataclasses.replace(street, lidar=dataclasses.replace(street.lidar, beams=8, azimuths=90))
    converter = dataclasses.replace(small, cameras=dataclasses.replace(small.cameras, image_size=(32, 64)))
    assert converter.logs()[3] == "street-000003"
    assert {converter.split_of(log) for log in converter.logs()} == {"train", "val"}
    whole = frames_of(converter, converter.logs()[1])
    (second,) = converter.frames(converter.logs()[1], 1, 2)
    assert [sample.log for sample in whole] == ["street-000001"] * 2
    assert second.key == whole[1].key
    np.testing.assert_array_equal(second.points_lidar, whole[1].points_lidar)
    assert tuple(camera.name for camera in second.cameras) == converter.camera_names()
    assert second.labels.max() < len(converter.class_names) or IGNORE_LABEL in second.labels


# ---- lists of frames and annotated depth
def write_annotated(root: Path, drive: str, frames: tuple[int, ...], part: str = "val") -> np.ndarray:
    folder = root / part / drive / "proj_depth" / "groundtruth" / "image_02"
    folder.mkdir(parents=True)
    stored = np.zeros((48, 96), np.uint16)
    stored[10, 20], stored[40, 90] = 256 * 12, 256 * 79 + 64
    for frame in frames:
        cv2.imwrite(str(folder / f"{frame:010d}.png"), stored)
    return stored


def test_raw_takes_the_frames_of_lists_in_both_forms(tmp_path):
    source = str(write_raw(tmp_path / "raw", drives=3, frames=4))
    train, val = tmp_path / "train.txt", tmp_path / "val.txt"
    drives = [f"2011_09_26_drive_{number:04d}_sync" for number in range(3)]
    train.write_text(
        f"2011_09_26/{drives[0]}/image_02/data/0000000001.png {drives[0]}/proj_depth/x/0000000003.png 721.5377\n"
        f"2011_09_26/{drives[0]}/image_03/data/0000000001.png None 721.5377\n\n"
    )
    val.write_text(f"2011_09_26/{drives[2]} 0000000000 l\n2011_09_26/{drives[2]} 2 r\n2011_09_26/{drives[2]} 77 l\n")
    converter = KittiRawConverter(source=source, train_list=str(train), val_list=str(val))
    assert converter.logs() == (drives[0], drives[2])
    assert [converter.split_of(log) for log in converter.logs()] == ["train", "val"]
    assert [s.key[-2:] for s in frames_of(converter)] == ["01", "00", "02"]
    assert "1 of 4 listed frames are not in the source" in converter.notes()
    with pytest.raises(ShardError, match=f"drive {drives[0]} is in train_list and in val_list"):
        KittiRawConverter(source=source, train_list=str(train), val_list=str(train)).logs()
    val.write_text("2011_09_26/2011_09_26_drive_0009_sync 0000000000 l\n")
    with pytest.raises(ShardError, match="holds none of the 1 drives"):
        KittiRawConverter(source=source, val_list=str(val)).logs()
    for text, message in (("0000000069.png\n", "line 1: '0000000069.png' names no frame"), ("\n", "names no frames")):
        val.write_text(text)
        with pytest.raises(ShardError, match=message):
            KittiRawConverter(source=source, val_list=str(val)).logs()
    with pytest.raises(ShardError, match="cannot read the list"):
        KittiRawConverter(source=source, val_list=str(tmp_path / "absent")).logs()
    with pytest.raises(ValueError, match="exclude each other"):
        KittiRawConverter(source=source, train_list=str(train), val_logs=(drives[0],))


@pytest.mark.parametrize("part", ["", "train", "val"])
def test_raw_keeps_annotated_depth_and_leaves_frames_without_it_out(tmp_path, part):
    source, drive = str(write_raw(tmp_path / "raw", frames=4)), "2011_09_26_drive_0000_sync"
    stored = write_annotated(tmp_path / "depth", drive, (1, 2), part)
    val = tmp_path / "val.txt"
    val.write_text("".join(f"2011_09_26/{drive} {frame} l\n" for frame in (0, 2)))
    converter = KittiRawConverter(source=source, val_list=str(val), depth=str(tmp_path / "depth"))
    (sample,) = frames_of(converter)
    assert sample.key.endswith("2")
    np.testing.assert_allclose(sample.cameras[0].depth_m, stored / 256, rtol=1e-6)
    assert "1 of 2 listed frames are not in the source with annotated depth" in converter.notes()
    everything = KittiRawConverter(source=source, depth=str(tmp_path / "depth"))
    assert [s.key[-1] for s in frames_of(everything)] == ["1", "2"]
    with pytest.raises(ValueError, match="asks for sweeps only"):
        KittiRawConverter(source=source, depth="d", cameras=("none",))
    file = next((tmp_path / "depth").rglob("0000000002.png"))
    cv2.imwrite(str(file), np.ones((4, 4), np.uint16))
    (skipped,) = frames_of(converter)
    assert skipped.reason == "image-size"
