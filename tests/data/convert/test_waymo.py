"""Waymo Open Dataset: both published formats from the street world, against each other, and the real frame."""

from __future__ import annotations

import dataclasses
import pickle
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from data.convert.base import Converter, Skipped
from data.convert.box_labels import points_in_box
from data.convert.raw_files import read_range
from data.convert.sets import SETTINGS
from data.convert.waymo import tfrecord as waymo_tfrecord
from data.convert.waymo.converter import WaymoConverter, camera_view, pinhole
from data.convert.waymo.frame import CAMERAS as CAMERA_NUMBERS
from data.convert.waymo.frame import LASERS as LASER_NUMBERS
from data.convert.waymo.frame import CameraCalibration, RawCamera, WaymoParts
from data.convert.waymo.labels import (
    BOX_CATEGORIES,
    BOX_NAMES,
    SEGMENTATION_NAMES,
    lidar_boxes,
    scale_intensity,
    track_number,
)
from data.convert.waymo.proto import _floats
from data.convert.waymo.range_image import laser_points
from data.geometry import project, rigid, transform
from data.preparing.prepare import PrepareConfig, prepare
from data.sample import IGNORE_LABEL, Sample
from data.storage.damage import DamagedError
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from tests.helpers.layouts.waymo import (
    CAMERAS,
    LASERS,
    WaymoOptions,
    WaymoTruth,
    _bytes,
    _int,
    crc32c,
    record,
    write_waymo_v1,
    write_waymo_v2,
)
from tests.helpers.street_logs import street_log

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "waymo"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real Waymo frame in {REAL}")
SEGMENT = WaymoOptions().segment


@dataclass(frozen=True)
class Written:
    """One segment in both formats, and what it holds."""

    v1: Path
    v2: Path
    record: Path
    samples: tuple[Sample, ...]
    truths: list[WaymoTruth]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("waymo")
    samples = street_log(CAMERAS, frames=3)
    record, truths = write_waymo_v1(root / "v1" / "training", samples)
    write_waymo_v2(root / "v2" / "training", samples)
    return Written(root / "v1", root / "v2", record, samples, truths)


def read(source: Path, **settings: object) -> list[Sample]:
    items = read_all(source, **settings)
    samples = [item for item in items if isinstance(item, Sample)]
    assert len(samples) == len(items), items
    return samples


def read_all(source: Path, **settings: object) -> list[Sample | Skipped]:
    converter = WaymoConverter(source=str(source), **settings)  # type: ignore[arg-type]
    return [item for log in converter.logs() for item in converter.frames(log, 0, converter.num_frames(log))]


@pytest.fixture(scope="module", params=["v1", "v2"])
def both(request: pytest.FixtureRequest, written: Written) -> Path:
    path: Path = getattr(written, request.param)
    return path


# ---- geometry
def test_points_are_those_of_the_cells_to_double_precision(both: Path, written: Written) -> None:
    for sample, truth in zip(read(both), written.truths, strict=True):
        points = transform(sample.T_ego_lidar, sample.points_lidar)
        assert points.shape == (len(truth.points_vehicle), 3)
        # 4e4 m times the precision of a double, and a few operations.
        np.testing.assert_allclose(points, truth.points_vehicle, rtol=0, atol=1e-10)


def test_cells_lie_where_the_street_is(written: Written) -> None:
    """The generator's own angles are right: cells stand for street points in about their direction, at their range."""
    for sample, street, truth in zip(read(written.v1), written.samples, written.truths, strict=True):
        top_first = (np.array(truth.laser) == 0) & (np.array(truth.returned) == 0)
        recorded = transform(street.T_ego_lidar, street.points_lidar)[truth.street_index][top_first]
        points = transform(sample.T_ego_lidar, sample.points_lidar)[top_first]
        off = np.linalg.norm(points - recorded, axis=1) / np.linalg.norm(recorded, axis=1)
        assert np.median(off) < np.radians(1.0)  # cells are 2 by 1.8 degrees


def test_without_the_cells_poses_points_would_be_smeared(written: Written) -> None:
    """The generated vehicle moves 1.2 m in a turn: the pose of each cell matters."""
    wanted = WaymoParts(lasers=("top",), num_returns=1, cameras=(), segmentation=False)
    (frame,) = WaymoConverter(source=str(written.v1))._segments[SEGMENT][1].frames((0,), wanted)
    assert not isinstance(frame, Exception)
    top = frame.lasers["top"]
    right = laser_points(top, frame.T_world_vehicle, "right").points_vehicle
    wrong = laser_points(dataclasses.replace(top, pose=None), frame.T_world_vehicle, "wrong").points_vehicle
    off = np.linalg.norm(right - wrong, axis=1)
    assert 0.6 < off.max() < 1.3
    assert off.min() < 0.05


def test_both_formats_give_the_same_bits(written: Written) -> None:
    for first, second in zip(read(written.v1), read(written.v2), strict=True):
        assert (first.key, first.log, first.timestamp_us) == (second.key, second.log, second.timestamp_us)
        for name in ("points_lidar", "intensity", "labels", "instances", "T_ego_lidar", "T_world_ego"):
            one, other = getattr(first, name), getattr(second, name)
            assert (one is None and other is None) or np.array_equal(one, other), name
        assert first.boxes is not None
        assert second.boxes is not None
        for name, value in vars(first.boxes).items():
            assert value is None or np.array_equal(value, getattr(second.boxes, name), equal_nan=True), name
        for one, other in zip(first.cameras, second.cameras, strict=True):
            assert one.jpeg == other.jpeg
            assert one.timestamp_us == other.timestamp_us
            for name in ("K", "T_cam_ego", "T_world_ego", "image"):
                assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_lasers_and_returns_are_chosen(both: Path, written: Written) -> None:
    truth = written.truths[0]
    laser, returned = np.array(truth.laser), np.array(truth.returned)
    everything = np.array(truth.points_vehicle)
    for lasers, returns, kept in (
        (("top",), "both", laser == 0),
        (("top",), "first", (laser == 0) & (returned == 0)),
        (LASERS, "first", returned == 0),
        (("rear", "front"), "both", None),
    ):
        sample = read(both, lasers=lasers, returns=returns, cameras=())[0]
        order = kept if kept is not None else np.concatenate([np.flatnonzero(laser == k) for k in (4, 1)])
        points = transform(sample.T_ego_lidar, sample.points_lidar)
        np.testing.assert_allclose(points, everything[order], rtol=0, atol=1e-10)
        assert sample.T_ego_lidar[:3, 3] == pytest.approx((1.43, 0.0, 2.184))


def test_frames_of_the_lidar_and_the_vehicle(both: Path, written: Written) -> None:
    sample, truth = read(both)[0], written.truths[0]
    np.testing.assert_array_equal(sample.T_ego_lidar[:3, :3], np.eye(3))
    np.testing.assert_array_equal(sample.T_world_ego, truth.T_world_vehicle)
    assert sample.timestamp_us == truth.timestamp_us
    assert sample.key == f"{SEGMENT}_{truth.timestamp_us}"
    roads = sample.points_lidar[np.array(truth.class_number) == 18]
    assert np.median(roads[:, 2]) == pytest.approx(-2.184, abs=0.15)


# ---- cameras
def test_projections_are_those_of_the_street(both: Path, written: Written) -> None:
    for sample, street, truth in zip(read(both), written.samples, written.truths, strict=True):
        world = transform(street.T_world_ego, np.array(truth.points_vehicle))
        for camera, recorded in zip(sample.cameras, street.cameras, strict=True):
            assert camera.name == recorded.name
            assert camera.timestamp_us - sample.timestamp_us == recorded.timestamp_us - street.timestamp_us
            T_cam_world = recorded.T_cam_ego @ np.linalg.inv(recorded.T_world_ego)
            expected, depth = project(recorded.K, transform(T_cam_world, world))
            uv, _ = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
            ahead = depth > 1
            assert ahead.any()
            assert np.abs(uv - expected)[ahead].max() < 1e-3


def test_jpegs_are_stored_as_they_are(both: Path, written: Written) -> None:
    sample = read(both)[0]
    for camera, recorded in zip(sample.cameras, written.samples[0].cameras, strict=True):
        assert camera.jpeg is not None
        assert camera.image is not None
        assert recorded.image is not None
        decoded = np.asarray(cv2.imdecode(np.frombuffer(camera.jpeg, np.uint8), cv2.IMREAD_COLOR))[..., ::-1]
        assert np.array_equal(camera.image, decoded)
        assert np.abs(camera.image.astype(int) - recorded.image).mean() < 12


def test_undistorted_images_fit_the_pinhole_model(tmp_path: Path) -> None:
    """A picture of dots where the lens puts them: after undistorting they lie where the pinhole model says."""
    calibration = CameraCalibration(
        intrinsics=np.array([300.0, 300.0, 160.5, 100.5, 0.04, -0.33, 0.001, -0.0016, 0.0]),
        T_vehicle_cam=np.eye(4),
        image_size=(200, 320),
    )
    K = pinhole(calibration)
    assert K[0, 2] == 160.0  # the centre of pixel 160 is 160.5 from the corner
    rays = np.array([[x, y, 1.0] for x in (-0.4, 0.4) for y in (-0.25, 0.25)])
    bent = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), K, calibration.intrinsics[4:])[0][:, 0]
    straight, _ = project(K, rays)
    assert np.abs(bent - straight).max() > 1.0
    image = np.zeros((200, 320, 3), np.uint8)
    for u, v in bent:
        cv2.circle(image, (round(u * 16), round(v * 16)), 3 * 16, (255, 255, 255), -1, cv2.LINE_AA, 4)
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    raw = RawCamera(jpeg=jpeg, T_world_vehicle=np.eye(4), time_s=1.0)
    view = camera_view("front", raw, calibration, "test", undistort=True)
    assert view.jpeg is None
    assert view.image is not None
    for u, v in straight:
        patch = view.image[round(v) - 8 : round(v) + 9, round(u) - 8 : round(u) + 9, 0].astype(float)
        rows, columns = np.mgrid[round(v) - 8 : round(v) + 9, round(u) - 8 : round(u) + 9]
        center = ((columns * patch).sum() / patch.sum(), (rows * patch).sum() / patch.sum())
        assert np.hypot(center[0] - u, center[1] - v) < 0.15


def test_cameras_are_chosen_and_may_be_none(both: Path) -> None:
    assert [camera.name for camera in read(both, cameras=("side_right", "front"))[0].cameras] == ["side_right", "front"]
    assert read(both, cameras=())[0].cameras == ()


# ---- labels
def test_segmentation_becomes_22_classes(both: Path, written: Written) -> None:
    assert len(SEGMENTATION_NAMES) == 22
    for number, (sample, truth) in enumerate(zip(read(both), written.truths, strict=True)):
        if number == 1:  # not labelled by the set
            assert sample.labels is None
            continue
        classes = np.array(truth.class_number)
        assert sample.labels is not None
        assert sample.instances is not None
        np.testing.assert_array_equal(sample.labels, np.where(classes == 0, IGNORE_LABEL, classes - 1))
        assert (sample.labels[np.array(truth.laser) > 0] == IGNORE_LABEL).all()
        given = np.array(truth.instance)
        assert len(np.unique(given)) > 3
        np.testing.assert_array_equal(sample.instances == 0, given == 0)
        pairs = {(int(a), int(b)) for a, b in zip(given, sample.instances, strict=True)}
        assert len(pairs) == len(np.unique(given)) == len(np.unique(sample.instances))
        assert sample.instances.max() == len(pairs) - 1


def test_names_of_classes_are_those_of_the_numbers() -> None:
    # Numbers as segmentation.proto has them.
    for number, name in {1: "car", 6: "bicyclist", 7: "pedestrian", 14: "building", 18: "road", 22: "sidewalk"}.items():
        assert SEGMENTATION_NAMES[number - 1] == name


def test_boxes_and_labels_from_them(both: Path, written: Written) -> None:
    for sample, street, truth in zip(read(both, labels="boxes"), written.samples, written.truths, strict=True):
        boxes, recorded = sample.boxes, street.boxes
        assert boxes is not None
        assert recorded is not None
        assert sample.labels is not None
        names = [
            "vehicle" if kind in (10, 11, 12) else {13: "pedestrian", 14: "cyclist"}[kind] for kind in recorded.classes
        ]
        assert [BOX_NAMES[index] for index in boxes.classes] == names
        assert [BOX_CATEGORIES[index] for index in boxes.categories] == names
        # The first return has elongation 0, the second 0.3, where they were written.
        np.testing.assert_allclose(sample.elongations, np.array(truth.returned) * 0.3, atol=1e-6)
        np.testing.assert_allclose(boxes.sizes_m, recorded.sizes_m)
        centers = transform(np.linalg.inv(sample.T_ego_lidar) @ street.T_ego_lidar, recorded.centers_m)
        np.testing.assert_allclose(boxes.centers_m, centers, atol=1e-9)
        inside = [
            int(points_in_box(sample.points_lidar, center, size, float(yaw)).sum())
            for center, size, yaw in zip(boxes.centers_m, boxes.sizes_m, boxes.yaws, strict=True)
        ]
        assert boxes.num_points is not None
        assert inside == boxes.num_points.tolist()
        assert sum(inside) > 100
        assert boxes.difficulties is not None
        assert set(boxes.difficulties.tolist()) == {2, -1}
        assert boxes.track_ids.tolist() == [track_number(name) for name in truth.box_ids]
        assert len(set(boxes.track_ids.tolist())) == len(boxes.track_ids)
        speed = np.linalg.norm(np.nan_to_num(recorded.velocities_mps), axis=1)
        np.testing.assert_allclose(np.linalg.norm(boxes.velocities_mps, axis=1), speed, atol=0.1)
        along = np.stack([np.cos(boxes.yaws), np.sin(boxes.yaws)], axis=1)
        fast = speed > 2
        assert fast.any()
        assert ((boxes.velocities_mps * along).sum(axis=1)[fast] > 0.95 * speed[fast]).all()
        zone = np.array(truth.no_label_zone)
        assert zone.any()
        assert (sample.labels[zone] == IGNORE_LABEL).all()
        assert set(np.unique(sample.labels[~zone])) <= {0, 1, 2, 4}
        first = int(np.argmax(inside))
        own = points_in_box(sample.points_lidar, boxes.centers_m[first], boxes.sizes_m[first], float(boxes.yaws[first]))
        assert (sample.labels[own & ~zone] == boxes.classes[first]).mean() > 0.9


def test_boxes_beside_segmentation_have_the_classes_that_both_know(both: Path) -> None:
    boxes = read(both)[0].boxes
    assert boxes is not None
    assert set(boxes.classes.tolist()) <= {SEGMENTATION_NAMES.index("pedestrian"), IGNORE_LABEL}


def test_testing_has_no_labels(tmp_path: Path, written: Written) -> None:
    (tmp_path / "testing").symlink_to(written.v1 / "training")
    sample = read(tmp_path, labels="boxes")[0]
    assert sample.labels is None
    assert sample.boxes is None


def test_intensity(both: Path, written: Written) -> None:
    sample, truth = read(both)[0], written.truths[0]
    np.testing.assert_allclose(sample.intensity, np.tanh(truth.intensity), atol=1e-6)
    assert max(truth.intensity) > 10  # reflectors
    assert sample.intensity.max() <= 1
    assert scale_intensity(np.array([-1.0, 0.0, 20000.0]), "frame").tolist() == [0, 0, 1]


# ---- frames, splits, what is read
def test_frames_are_sought(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(both)
    reads: list[tuple[int, int]] = []

    def counted(path: Path, offset: int, size: int) -> bytes:
        reads.append((offset, size))
        return read_range(path, offset, size)

    monkeypatch.setattr("data.convert.waymo.tfrecord.read_range", counted)
    converter = WaymoConverter(source=str(both))
    assert converter.num_frames(SEGMENT) == 3
    (last,) = converter.frames(SEGMENT, 2, 3)
    assert isinstance(last, Sample)
    assert last.key == whole[2].key
    assert np.array_equal(last.points_lidar, whole[2].points_lidar)
    if both.name == "v1":
        assert len(reads) == 1
        assert reads[0][1] < sum(path.stat().st_size for path in both.glob("*/*.tfrecord")) / 2
    assert list(converter.frames(SEGMENT, 3, 9)) == []


def test_a_frame_costs_its_own_row_groups(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(written.v2 / "training", tmp_path, dirs_exist_ok=True)
    for component in ("lidar", "camera_image"):
        path = tmp_path / component / f"{SEGMENT}.parquet"
        pq.write_table(pq.read_table(path), path, row_group_size=5)
    groups: dict[str, list[int]] = {}
    inner = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *, row_groups: list[int], columns: list[str], **rest: int) -> Iterator[object]:
        groups.setdefault(columns[-1].partition("]")[0], []).append(row_groups[0])
        return iter(inner(self, row_groups=row_groups, columns=columns, **rest))

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    converter = WaymoConverter(source=str(tmp_path))
    samples = list(converter.frames(SEGMENT, 1, 3))
    assert all(isinstance(sample, Sample) for sample in samples)
    # Started at the second frame's rows, once.
    assert groups["[LiDARComponent"] == [1]
    assert groups["[CameraImageComponent"] == [1]


def test_rows_in_any_order_are_found(tmp_path: Path, written: Written) -> None:
    shutil.copytree(written.v2 / "training", tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*/*.parquet"):
        table = pq.read_table(path)
        order = np.random.default_rng(0).permutation(table.num_rows)
        pq.write_table(table.take(order), path, row_group_size=4)
    for mixed, plain in zip(read(tmp_path), read(written.v2), strict=True):
        assert np.array_equal(mixed.points_lidar, plain.points_lidar)
        assert [camera.jpeg for camera in mixed.cameras] == [camera.jpeg for camera in plain.cameras]


@pytest.mark.parametrize(
    ("settings", "kept"), [({"every_frame": 2}, [0, 2]), ({"labelled_only": True}, [0, 2]), ({}, [0, 1, 2])]
)
def test_frames_are_chosen(both: Path, written: Written, settings: dict[str, object], kept: list[int]) -> None:
    samples = read(both, cameras=(), **settings)
    assert [sample.timestamp_us for sample in samples] == [written.truths[k].timestamp_us for k in kept]


def test_splits_are_the_folders(tmp_path: Path, written: Written) -> None:
    for folder, name in (("validation", "2_b"), ("training", "9_a"), ("training", "1_c"), ("testing", "3_d")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"segment-{name}_with_camera_labels.tfrecord").symlink_to(written.record)
    converter = WaymoConverter(source=str(tmp_path))
    assert converter.logs() == ("1_c", "9_a", "2_b", "3_d")
    assert [converter.split_of(log) for log in converter.logs()] == ["train", "train", "val", "test"]
    flat = WaymoConverter(source=str(tmp_path / "validation"))
    assert flat.split_of("2_b") == "train"
    assert any("all segments are train" in note for note in flat.notes())


def test_it_is_a_converter(written: Written) -> None:
    converter = WaymoConverter(source=str(written.v1))
    assert SETTINGS["waymo"] is WaymoConverter
    assert isinstance(converter, Converter)
    assert converter.num_frames(SEGMENT) == 3
    again = pickle.loads(pickle.dumps(converter))
    assert again.num_frames(SEGMENT) == 3
    assert again.settings()["returns"] == "both"


def test_prepared_and_read_back(both: Path, tmp_path: Path) -> None:
    converter = WaymoConverter(source=str(both))
    summary = prepare(converter, str(tmp_path), PrepareConfig(superpixels=None, samples_per_shard=2))
    reader = SampleReader(summary.manifest)
    for index, sample in enumerate(read(both)):
        stored = reader.read(index)
        np.testing.assert_allclose(stored.points_lidar, sample.points_lidar, atol=1e-5)
        assert (stored.labels is None) == (sample.labels is None)
        assert np.array_equal(np.asarray(stored.cameras[0].image), np.asarray(sample.cameras[0].image))
    assert summary.manifest.class_names == SEGMENTATION_NAMES


# ---- settings
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lasers": ("roof",)}, "lasers: got ('roof',), expected some of top, front"),
        ({"lasers": ()}, "lasers: got (), expected some of top"),
        ({"cameras": ("front", "front")}, "cameras: got ('front', 'front'), expected no entry twice"),
        ({"every_frame": 0}, "every_frame: got 0"),
        ({"labelled_only": True, "labels": "boxes"}, "needs labels=segmentation"),
    ],
)
def test_refused_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        WaymoConverter(source="x", **settings)  # type: ignore[arg-type]


# ---- wrong sources
def test_wrong_folders_are_told(tmp_path: Path, written: Written) -> None:
    def refused(source: Path, **settings: object) -> str:
        with pytest.raises(ShardError) as error:
            WaymoConverter(source=str(source), **settings).logs()  # type: ignore[arg-type]
        return str(error.value)

    told = refused(tmp_path / "nothing")
    assert "no Waymo folder: looked for *.tfrecord or v2 folders (vehicle_pose/, camera_image/" in told
    assert "no such folder" in told
    (tmp_path / "wrong" / "samples").mkdir(parents=True)
    assert "found samples/" in refused(tmp_path / "wrong")
    told = refused(written.v1, format="parquet")
    assert "looked for v2 folders" in told
    assert "found training/" in told
    both = tmp_path / "both"
    both.mkdir()
    (both / "lidar").symlink_to(written.v2 / "training" / "lidar")
    assert "without files: vehicle_pose, camera_image, camera_calibration, lidar_calibration" in refused(both)
    (both / "a.tfrecord").write_bytes(b"")
    assert "choose with format=tfrecord or format=parquet" in refused(both)
    assert WaymoConverter(source=str(both), format="tfrecord").logs() == ("a",)
    (both / "segment-a.tfrecord").write_bytes(b"")
    assert "a is there twice" in refused(both, format="tfrecord")


# ---- damaged files
def skips(source: Path, **settings: object) -> list[tuple[int, str, str]]:
    items = read_all(source, **settings)
    return [(k, item.reason, item.detail) for k, item in enumerate(items) if isinstance(item, Skipped)]


def damaged(written: Written, tmp_path: Path, data: bytes) -> Path:
    (tmp_path / written.record.name).write_bytes(data)
    return tmp_path


def sizes(data: bytes) -> list[int]:
    """Offsets of the records."""
    found, position = [0], 0
    while position < len(data):
        position += 16 + int.from_bytes(data[position : position + 8], "little")
        found.append(position)
    return found


def test_a_truncated_file_loses_its_last_frame_only(written: Written, tmp_path: Path) -> None:
    data = written.record.read_bytes()
    for end in (len(data) - 2, sizes(data)[2] + 500, sizes(data)[2] + 5):
        (skip,) = skips(damaged(written, tmp_path, data[:end]))
        assert skip[:2] in {(2, "member-missing"), (2, "checksum")}
        assert written.record.name in skip[2]
        ((_, reason, _),) = skips(tmp_path, labelled_only=True)
        assert reason == skip[1]
    assert skips(damaged(written, tmp_path, b"")) == skips(tmp_path, labelled_only=True) == []


def test_bits_that_flipped_are_noticed(written: Written, tmp_path: Path) -> None:
    data = bytearray(written.record.read_bytes())
    data[sizes(bytes(data))[1] + 3000] ^= 4
    ((number, reason, detail),) = skips(damaged(written, tmp_path, bytes(data)))
    assert (number, reason) == (1, "checksum")
    assert "another CRC" in detail
    data = bytearray(written.record.read_bytes())
    data[sizes(bytes(data))[1] + 1] ^= 4  # in the length
    ((number, reason, detail),) = skips(damaged(written, tmp_path, bytes(data)))
    assert (number, reason) == (1, "checksum")
    assert "nothing behind it can be found" in detail


def test_records_of_another_kind(written: Written, tmp_path: Path) -> None:
    for content in (b"\xff\xff\xff\xff no message", b"\x12\x03abc", b""):
        ((_, reason, _),) = skips(damaged(written, tmp_path, record(content)))
        assert reason in {"meta-broken", "calibration-missing"}
    assert WaymoConverter(source=str(tmp_path), labelled_only=True).num_frames(SEGMENT) == 0


def test_zip_bombs_and_wrong_shapes_are_refused(written: Written, tmp_path: Path) -> None:
    def refused(packed: bytes, words: str) -> None:
        with pytest.raises(DamagedError, match=words) as error:
            _floats(packed, 4, "frame 1")
        assert error.value.reason in {"array-broken", "meta-broken"}

    refused(zlib.compress(bytes(1 << 28), 1), "larger than")
    refused(b"no stream", "no zlib stream")
    refused(zlib.compress(bytes(1000))[:-8], "is cut")
    whole = _bytes(1, bytes(4 * 8))
    for dims in ((2, 2, 4), (1 << 30, 1 << 30, 4), (-1, -2, 4), (8,), (4, 2, 1), ()):
        refused(zlib.compress(whole + _bytes(2, b"".join(_int(1, side) for side in dims))), "expected 4 a cell")
    good = _floats(zlib.compress(whole + _bytes(2, b"".join(_int(1, side) for side in (1, 2, 4)))), 4, "frame 1")
    assert good.shape == (1, 2, 4)


def test_missing_images_and_cameras(tmp_path: Path) -> None:
    samples = street_log(CAMERAS, frames=3)[:1]
    options = WaymoOptions(without_images=("side_left",))
    write_waymo_v1(tmp_path / "v1", samples, options)
    write_waymo_v2(tmp_path / "v2", samples, options)
    for version in ("v1", "v2"):
        ((_, reason, detail),) = skips(tmp_path / version)
        assert reason == "member-missing"
        assert "image 'side_left': only front, front_left, front_right, side_right" in detail
        assert skips(tmp_path / version, cameras=("front", "side_right")) == []


def test_frames_without_range_images(tmp_path: Path) -> None:
    samples = street_log(CAMERAS, frames=3)[:1]
    write_waymo_v1(tmp_path / "v1", samples, WaymoOptions(without_ranges=True))
    write_waymo_v2(tmp_path / "v2", samples, WaymoOptions(without_ranges=True))
    for version in ("v1", "v2"):
        ((_, reason, detail),) = skips(tmp_path / version)
        assert reason == "empty-sweep"
        assert "no range image of top, front" in detail


@pytest.mark.parametrize("component", ["lidar", "camera_image", "vehicle_pose", "camera_calibration", "lidar_pose"])
def test_damaged_tables(tmp_path: Path, written: Written, component: str) -> None:
    shutil.copytree(written.v2 / "training", tmp_path, dirs_exist_ok=True)
    path = tmp_path / component / f"{SEGMENT}.parquet"
    data = path.read_bytes()
    frames = 1 if component == "vehicle_pose" else 3
    path.write_bytes(data[: len(data) // 2])
    assert [(k, reason) for k, reason, _ in skips(tmp_path)] == [(k, "array-broken") for k in range(frames)]
    path.unlink()
    (path.parent / "another.parquet").write_bytes(data)
    found = [skip for skip in skips(tmp_path) if SEGMENT in skip[2]]
    assert [reason for _, reason, _ in found] == ["member-missing"] * frames
    assert all(str(path) in detail for _, _, detail in found)


def test_damaged_labels_are_not_taken_for_none(tmp_path: Path, written: Written) -> None:
    shutil.copytree(written.v2 / "training", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "lidar_segmentation" / f"{SEGMENT}.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    assert [reason for _, reason, _ in skips(tmp_path, labelled_only=True)] == ["array-broken"] * 3


def test_a_table_without_a_column(tmp_path: Path, written: Written) -> None:
    shutil.copytree(written.v2 / "training", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "camera_image" / f"{SEGMENT}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["[CameraImageComponent].pose_timestamp"]), path)
    assert {(reason, "pose_timestamp" in detail) for _, reason, detail in skips(tmp_path)} == {("meta-broken", True)}


def test_missing_label_tables_mean_no_labels(tmp_path: Path, written: Written) -> None:
    shutil.copytree(written.v2 / "training", tmp_path, dirs_exist_ok=True)
    for component in ("lidar_box", "lidar_segmentation"):
        (tmp_path / component / f"{SEGMENT}.parquet").unlink()
    assert [(sample.labels, sample.boxes) for sample in read(tmp_path, labels="boxes")] == [(None, None)] * 3
    assert WaymoConverter(source=str(tmp_path), labelled_only=True).num_frames(SEGMENT) == 0


def test_the_generators_crc_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogue
    assert (
        waymo_tfrecord.masked_crc(b"123456789") == (((0xE3069283 >> 15) | (0xE3069283 << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    )


# ---- real frame
@needs_real
def test_the_real_frame() -> None:
    """Its range images are stripped: boxes, images and calibration are read, the frame is skipped for the reason."""
    converter = WaymoConverter(source=str(REAL))
    (log,) = converter.logs()
    assert converter.num_frames(log) == 1
    (skip,) = converter.frames(log, 0, 1)
    assert isinstance(skip, Skipped)
    assert skip.reason == "empty-sweep"
    wanted = WaymoParts(lasers=tuple(LASER_NUMBERS), num_returns=2, cameras=tuple(CAMERA_NUMBERS), segmentation=True)
    (frame,) = converter._segments[log][1].frames((0,), wanted)
    assert not isinstance(frame, Exception)
    assert frame.timestamp_us == 1553735853462203
    assert frame.boxes is not None
    assert np.bincount(frame.boxes.types).tolist() == [0, 37, 12, 25, 1]
    assert len(frame.top.inclinations) == 64
    T_ego_lidar = rigid(np.eye(3), frame.top.T_vehicle_laser[:3, 3])
    assert T_ego_lidar[:3, 3] == pytest.approx((1.43, 0, 2.184), abs=1e-6)
    boxes = lidar_boxes(frame, T_ego_lidar, BOX_NAMES)
    assert boxes is not None
    speed = np.linalg.norm(boxes.velocities_mps, axis=1)
    fast = speed > 2
    assert fast.sum() == 3
    # Velocities are stated in the world frame: turned into ours they point along the headings.
    heading = np.stack([np.cos(boxes.yaws), np.sin(boxes.yaws)], axis=1)
    assert ((boxes.velocities_mps * heading).sum(axis=1)[fast] > 0.999 * speed[fast]).all()
    times = []
    for name, camera in frame.cameras.items():
        view = camera_view(name, camera, frame.camera_calibrations[name], "real", undistort=False)
        assert view.image_size == ((886, 1920) if name.startswith("side") else (1280, 1920))
        times.append((view.timestamp_us - frame.timestamp_us) / 1000)
        forward = view.T_cam_ego[2, :3]  # the camera's axis in the vehicle frame
        yaw = np.degrees(np.arctan2(forward[1], forward[0]))
        expected = {"front": 0, "front_left": 45, "front_right": -45, "side_left": 90, "side_right": -90}[name]
        assert yaw == pytest.approx(expected, abs=2)
    # The turn goes clockwise from behind, over the left: each camera as the laser passes its direction.
    assert np.argsort(times).tolist() == [3, 1, 0, 2, 4]
