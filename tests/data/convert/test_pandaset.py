"""PandaSet: street frames in the published layout, read back and compared with what was written."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.convert.base import Converter, Skipped
from data.convert.box_labels import points_in_box
from data.convert.pandaset.classes import CLASS_NAMES, CLASSES, LABEL_OF_NAME, LABEL_OF_NUMBER, OPENPCDET_SPLITS
from data.convert.pandaset.converter import PandasetConverter
from data.convert.pandaset.pandas_pickle import read_table
from data.geometry import project, transform, visible
from data.sample import IGNORE_LABEL, Sample
from data.storage.shard import ShardError
from tests.helpers.first_batch import first_batch
from tests.helpers.layouts.pandaset import (
    CAMERAS,
    NAMES,
    NUMBERS,
    UNLABELLED_EVERY,
    cuboid_table,
    semseg_table,
    sensor_of_points,
    sweep_table,
    write_pandaset,
    write_table,
)
from tests.helpers.street_logs import CLASS_NAMES as STREET_CLASSES
from tests.helpers.street_logs import street_log

LOG, SOUTH, BARE = "001", "069", "045"
CLASS_OF = {"car": "car", "truck": "truck", "bus": "bus", "pedestrian": "pedestrian", "cyclist": "bicycle"}


def frames_of(converter: Converter, log: str = LOG) -> list[Sample | Skipped]:
    return list(converter.frames(log, 0, converter.num_frames(log)))


@pytest.fixture(scope="module")
def truth() -> tuple[Sample, ...]:
    return street_log(CAMERAS, rate_hz=10.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory, truth) -> Path:
    sequences = {LOG: truth, SOUTH: truth[:2], BARE: truth[:2]}
    root = tmp_path_factory.mktemp("pandaset")
    return write_pandaset(root, sequences, latitudes={SOUTH: 37.4}, semseg=(LOG, SOUTH))


@pytest.fixture
def small(tmp_path, source) -> Path:
    """One sequence to damage."""
    shutil.copytree(source / LOG, tmp_path / LOG)
    return tmp_path


def ego_points(sample: Sample) -> np.ndarray:
    return transform(sample.T_ego_lidar, sample.points_lidar)


def test_points_intensity_and_times(source, truth):
    converter = PandasetConverter(source=str(source), sensor="both")
    found = frames_of(converter)
    assert [sample.key for sample in found] == [f"{LOG}_{number:02d}" for number in range(len(truth))]
    for sample, frame in zip(found, truth, strict=True):
        np.testing.assert_allclose(ego_points(sample), ego_points(frame), atol=1e-4)
        np.testing.assert_allclose(sample.points_lidar[:, 2], ego_points(frame)[:, 2] - 1.6, atol=1e-4)
        np.testing.assert_allclose(sample.intensity, frame.intensity, atol=0.5 / 255 + 1e-6)
        assert sample.timestamp_us == frame.timestamp_us
        np.testing.assert_allclose(sample.T_world_ego, frame.T_world_ego, atol=1e-9)
    (last,) = pickle.loads(pickle.dumps(converter)).frames(LOG, 2, 3)
    np.testing.assert_array_equal(last.points_lidar, found[2].points_lidar)
    on_ground = PandasetConverter(source=str(source), sensor="both", lidar_height_m=0.0, cameras=())
    np.testing.assert_allclose(frames_of(on_ground)[0].points_lidar, ego_points(truth[0]), atol=1e-4)


def test_each_scanner_has_its_points_labels_and_boxes(source, truth):
    frame, which = truth[0], sensor_of_points(truth[0])
    numbers = semseg_table(frame)["class"]
    for number, sensor in enumerate(("pandar64", "pandargt")):
        sample = frames_of(PandasetConverter(source=str(source), sensor=sensor, cameras=()))[0]
        np.testing.assert_allclose(ego_points(sample), ego_points(frame)[which == number], atol=1e-4)
        np.testing.assert_array_equal(sample.labels, np.array(LABEL_OF_NUMBER)[numbers[which == number]])
        # Of the object that both scanners see, each has one box.
        assert len(sample.boxes.yaws) == len(frame.boxes.yaws)
    both = frames_of(PandasetConverter(source=str(source), sensor="both", cameras=()))[0]
    assert len(both.boxes.yaws) == len(frame.boxes.yaws) + 1


def test_cameras_have_their_own_times_and_poses(source, truth):
    for sample, frame in zip(frames_of(PandasetConverter(source=str(source))), truth, strict=True):
        for camera, view in zip(sample.cameras, frame.cameras, strict=True):
            assert (camera.name, camera.timestamp_us) == (view.name, view.timestamp_us)
            folder = source / LOG / "camera" / camera.name
            assert camera.jpeg == (folder / f"{sample.key[-2:]}.jpg").read_bytes()
            # What is published is exact, how it is shared between vehicle and mount is interpolated.
            T_world_cam = camera.T_world_ego @ np.linalg.inv(camera.T_cam_ego)
            expected = view.T_world_ego @ np.linalg.inv(view.T_cam_ego)
            np.testing.assert_allclose(T_world_cam, expected, atol=1e-9)
            np.testing.assert_allclose(camera.T_world_ego, view.T_world_ego, atol=0.01)
            np.testing.assert_allclose(camera.T_cam_ego, view.T_cam_ego, atol=0.01)
    moved = np.linalg.norm(truth[1].T_world_ego[:3, 3] - truth[0].T_world_ego[:3, 3])
    assert moved > 0.3, "the vehicle drives"


def test_points_meet_their_pixels(source, truth):
    for sample, frame in zip(frames_of(PandasetConverter(source=str(source), sensor="both")), truth, strict=True):
        for camera, view in zip(sample.cameras, frame.cameras, strict=True):
            expected, depth = project(view.K, transform(frame.T_cam_lidar(view), frame.points_lidar))
            uv, _ = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
            seen = visible(expected, depth, view.image_size)
            assert seen.sum() > 20
            np.testing.assert_allclose(uv[seen], expected[seen], atol=0.01)


def test_boxes(source, truth):
    seen = {}
    for sample, frame in zip(frames_of(PandasetConverter(source=str(source), cameras=())), truth, strict=True):
        boxes, expected = sample.boxes, frame.boxes
        T_lidar_theirs = np.linalg.inv(sample.T_ego_lidar) @ frame.T_ego_lidar
        np.testing.assert_allclose(boxes.centers_m, transform(T_lidar_theirs, expected.centers_m), atol=1e-6)
        np.testing.assert_allclose(boxes.sizes_m, expected.sizes_m)
        headings = (
            np.stack([np.cos(expected.yaws), np.sin(expected.yaws), 0 * expected.yaws]).T @ T_lidar_theirs[:3, :3].T
        )
        np.testing.assert_allclose(np.cos(boxes.yaws - np.arctan2(headings[:, 1], headings[:, 0])), 1, atol=1e-4)
        names = [CLASS_OF[STREET_CLASSES[label]] for label in expected.classes]
        assert [CLASS_NAMES[label] for label in boxes.classes] == names
        kinds = [PandasetConverter.box_categories[number] for number in boxes.categories]
        assert [LABEL_OF_NAME[kind] for kind in kinds] == boxes.classes.tolist()
        for box, track in enumerate(expected.track_ids):
            assert seen.setdefault(int(track), int(boxes.track_ids[box])) == boxes.track_ids[box]
    assert len(set(seen.values())) == len(seen)


def test_points_lie_in_the_boxes_of_their_class(source, truth):
    sample = frames_of(PandasetConverter(source=str(source), sensor="both", cameras=()))[0]
    boxes, frame = sample.boxes, truth[0]
    on_cars = sample.labels == CLASS_NAMES.index("car")
    inside = np.zeros(len(on_cars), bool)
    for box in np.flatnonzero(boxes.classes == CLASS_NAMES.index("car")):
        inside |= points_in_box(
            sample.points_lidar, boxes.centers_m[box], boxes.sizes_m[box] + 0.05, float(boxes.yaws[box])
        )
    assert on_cars.sum() > 50
    assert inside[on_cars].mean() > 0.95
    assert (sample.instances[on_cars] > 0).mean() > 0.9
    assert len(frame.boxes.yaws) > 5


def test_point_labels(source, truth):
    sample = frames_of(PandasetConverter(source=str(source), sensor="both", cameras=()))[0]
    kinds = {number: kind for number, kind in CLASSES.values()}
    for index in range(0, len(truth[0].labels), 7):
        number = NUMBERS[STREET_CLASSES[truth[0].labels[index]]]
        if index % UNLABELLED_EVERY in (0, 1):
            assert sample.labels[index] == IGNORE_LABEL
        else:
            assert CLASS_NAMES[sample.labels[index]] == kinds[number]
    assert {"road", "car", "manmade", "vegetation"} <= {
        CLASS_NAMES[label] for label in sample.labels if label != IGNORE_LABEL
    }


def test_class_map_is_whole():
    assert [number for number, _ in CLASSES.values()] == list(range(1, 43))
    assert len(LABEL_OF_NUMBER) == 43
    assert {kind for _, kind in CLASSES.values()} == {None, *CLASS_NAMES}
    assert len(CLASS_NAMES) == 17
    names = [name for members in OPENPCDET_SPLITS.values() for name in members]
    assert (len(names), len(set(names))) == (103, 103)
    assert set(NAMES.values()) <= set(CLASSES)


def test_splits(source):
    converter = PandasetConverter(source=str(source))
    assert {log: converter.split_of(log) for log in converter.logs()} == {
        LOG: "train",
        BARE: "unlabelled",
        SOUTH: "val",
    }
    assert "1 of 3 sequences have no point labels" in converter.notes()
    sample = frames_of(converter, BARE)[0]
    assert sample.labels is None
    assert sample.boxes is not None
    listed = PandasetConverter(source=str(source), split="openpcdet")
    assert {log: listed.split_of(log) for log in listed.logs()} == {LOG: "test", BARE: "val", SOUTH: "train"}


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_damaged_frames_are_named(small, truth):
    folder = small / LOG
    sweep = folder / "lidar" / "00.pkl.gz"
    sweep.write_bytes(sweep.read_bytes()[:-30])
    image = folder / "camera" / "left_camera" / "01.jpg"
    image.write_bytes(image.read_bytes()[:300])
    (folder / "annotations" / "cuboids" / "02.pkl.gz").unlink()
    items = frames_of(PandasetConverter(source=str(small)))
    assert [item.reason for item in items] == ["array-broken", "image-broken", "member-missing"]
    assert [item.key for item in items] == [f"{LOG}_{number:02d}" for number in range(3)]
    assert "cuboids" in items[2].detail


@pytest.mark.parametrize(
    ("file", "change", "reason", "text"),
    [
        ("lidar/00.pkl.gz", lambda t: t.pop("z"), "array-broken", "has no column z; it has x, y, i"),
        ("lidar/00.pkl.gz", lambda t: t.update(i=["bright"] * len(t["x"])), "array-broken", "expected numbers"),
        ("annotations/semseg/00.pkl.gz", lambda t: t.update({"class": t["class"][:-3]}), "array-broken", "labels for"),
        (
            "annotations/semseg/00.pkl.gz",
            lambda t: t["class"].__setitem__(0, 43),
            "meta-broken",
            "classes from 0 to 43",
        ),
        ("annotations/cuboids/00.pkl.gz", lambda t: t.pop("uuid"), "array-broken", "no column uuid"),
    ],
)
def test_damaged_tables_are_named(small, truth, file, change, reason, text):
    table = {"lidar": sweep_table, "semseg": semseg_table, "cuboids": cuboid_table}[file.split("/")[-2]](truth[0])
    change(table)
    write_table(small / LOG / file, table)
    item = frames_of(PandasetConverter(source=str(small), cameras=()))[0]
    assert item.reason == reason
    assert text in item.detail


def test_unknown_box_labels_are_ignored(small, truth):
    table = cuboid_table(truth[0])
    table["label"] = ["Spaceship", "Emergency Vehicle", *table["label"][2:]]
    write_table(small / LOG / "annotations" / "cuboids" / "00.pkl.gz", table)
    sample = frames_of(PandasetConverter(source=str(small), sensor="both", cameras=()))[0]
    assert sample.boxes.classes[:2].tolist() == [IGNORE_LABEL, IGNORE_LABEL]


@pytest.mark.parametrize(
    ("file", "change", "text"),
    [
        ("lidar/poses.json", lambda c: c[0]["heading"].update(w=5.0), "number 0"),
        ("lidar/poses.json", lambda c: c.pop(), "2 poses, 3 times"),
        ("lidar/timestamps.json", lambda c: c.__setitem__(0, "noon"), "noon"),
        ("camera/back_camera/poses.json", lambda c: c[1].pop("position"), "position"),
        ("camera/back_camera/intrinsics.json", lambda c: c.pop("fx"), "fx"),
        (
            "camera/back_camera/timestamps.json",
            lambda c: c.__setitem__(slice(None), [0.0, 0.1, 0.2]),
            "no vehicle pose",
        ),
    ],
)
def test_damaged_calibration_is_named(small, file, change, text):
    change_json(small / LOG / file, change)
    items = frames_of(PandasetConverter(source=str(small)))
    skips = [item for item in items if isinstance(item, Skipped)]
    assert skips
    assert all(item.reason in ("calibration-missing", "calibration-singular") for item in skips)
    assert text in skips[0].detail
    assert PandasetConverter(source=str(small)).notes()


def test_one_damaged_pose_is_the_loss_of_its_own_frames(small):
    """Frame 2 is what needs it neither for its sweep nor for its images."""
    whole = frames_of(PandasetConverter(source=str(small)))
    change_json(small / LOG / "camera" / "back_camera" / "poses.json", lambda content: content[0].pop("position"))
    items = frames_of(PandasetConverter(source=str(small)))
    assert [isinstance(item, Skipped) for item in items] == [True, False, False]
    np.testing.assert_array_equal(items[2].T_world_ego, whole[2].T_world_ego)
    change_json(small / LOG / "lidar" / "poses.json", lambda content: content[0]["heading"].update(w=5.0))
    items = frames_of(PandasetConverter(source=str(small)))
    assert [isinstance(item, Skipped) for item in items][0::2] == [True, False]
    np.testing.assert_array_equal(items[2].cameras[0].T_world_ego, whole[2].cameras[0].T_world_ego)


def test_poses_and_times_of_fewer_frames(small):
    for name in ("poses.json", "timestamps.json"):
        change_json(small / LOG / "camera" / "back_camera" / name, lambda content: content.pop())
    items = frames_of(PandasetConverter(source=str(small)))
    assert [getattr(item, "reason", "fine") for item in items] == ["fine", "fine", "calibration-missing"]
    assert "none for number 2" in items[2].detail


def test_other_axes_are_noticed(small):
    assert not any("forward" in note for note in PandasetConverter(source=str(small)).notes())

    def turn(content):
        for entry in content:
            x, y, z, w = (entry["heading"][axis] for axis in "xyzw")
            entry["heading"] = {"w": -z, "x": -y, "y": x, "z": w}  # half a turn about the world's z

    change_json(small / LOG / "camera" / "front_camera" / "poses.json", turn)
    assert any("does not look forward" in note for note in PandasetConverter(source=str(small)).notes())


def test_wrong_sources_say_what_was_found(small, tmp_path):
    with pytest.raises(ShardError, match=r"no PandaSet folder: looked for <sequence>/lidar, such as 001/lidar"):
        PandasetConverter(source=str(small / LOG)).logs()
    with pytest.raises(ShardError, match="no such folder"):
        PandasetConverter(source=str(tmp_path / "nowhere")).logs()
    (small / LOG / "camera" / "left_camera").rename(small / LOG / "camera" / "leftward")
    with pytest.raises(ShardError, match=r"looked for images of left_camera in .*camera, found back_camera/"):
        PandasetConverter(source=str(small)).logs()
    (small / LOG / "meta" / "gps.json").write_text("[]")
    with pytest.raises(ShardError, match="has no latitude"):
        PandasetConverter(source=str(small), cameras=()).logs()
    (small / LOG / "meta" / "gps.json").unlink()
    with pytest.raises(ShardError, match=r"looked for gps.json, for split=scalr in .*meta, found timestamps.json"):
        PandasetConverter(source=str(small), cameras=()).logs()
    assert PandasetConverter(source=str(small), cameras=(), split="openpcdet").logs() == (LOG,)
    with pytest.raises(ValueError, match=r"cameras: got \('front',\)"):
        PandasetConverter(source="", cameras=("front",))


def test_prepared_set_feeds_the_loader(source, tmp_path):
    converter = PandasetConverter(source=str(source), cameras=CAMERAS[:2])
    manifest, batch = first_batch(converter, tmp_path, "train")
    assert set(manifest.splits) == {"train", "val", "unlabelled"}
    assert batch.num_samples == 2
    assert batch.pairs.point.numel() > 50
    assert set(manifest.skipped) == set()


def test_generated_tables_hold_what_they_should(source, truth):
    """The generator's own check: world coordinates, as published."""
    table = read_table(source / LOG / "lidar" / "00.pkl.gz")
    frame = truth[0]
    expected = transform(frame.T_world_ego @ frame.T_ego_lidar, frame.points_lidar)
    np.testing.assert_allclose(np.stack([table[axis] for axis in "xyz"], axis=1), expected, atol=1e-9)
