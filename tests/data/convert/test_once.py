"""ONCE: street frames in the published layout, read back and compared with what was written."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.convert.base import Converter, Skipped
from data.convert.box_labels import points_in_box
from data.convert.once import CLASS_NAMES, OnceConverter
from data.geometry import project, transform
from data.sample import Sample
from data.storage.shard import ShardError
from tests.helpers.first_batch import first_batch
from tests.helpers.layouts.once import CAMERAS, NAMES, frame_id, write_once
from tests.helpers.street_logs import CLASS_NAMES as STREET_CLASSES
from tests.helpers.street_logs import street_log

TRAIN, VAL, RAW, MORE = "000076", "000027", "000001", "000002"


def frames_of(converter: Converter, log: str) -> list[Sample | Skipped]:
    return list(converter.frames(log, 0, converter.num_frames(log)))


@pytest.fixture(scope="module")
def truth() -> tuple[Sample, ...]:
    return street_log(CAMERAS)


@pytest.fixture(scope="module")
def source(tmp_path_factory, truth) -> Path:
    """A labelled and an unlabelled sequence of the same street."""
    lists = {"raw_small": [RAW, "000999"], "raw_medium": [RAW, MORE]}
    sequences = {TRAIN: truth, RAW: truth[:2], MORE: truth[:1], VAL: truth[:1]}
    return write_once(tmp_path_factory.mktemp("once"), sequences, labelled=(TRAIN, VAL), lists=lists)


@pytest.fixture
def small(tmp_path, source) -> Path:
    """One sequence to damage."""
    shutil.copytree(source / "data" / TRAIN, tmp_path / "data" / TRAIN)
    return tmp_path


def test_points_intensity_and_times(source, truth):
    converter = OnceConverter(source=str(source))
    found = frames_of(converter, TRAIN)
    assert [sample.key for sample in found] == [f"{TRAIN}_{frame_id(frame)}" for frame in truth]
    for sample, frame in zip(found, truth, strict=True):
        np.testing.assert_allclose(sample.points_lidar, frame.points_lidar, atol=1e-5)
        np.testing.assert_allclose(sample.intensity, frame.intensity, atol=1e-6)
        assert sample.timestamp_us == frame.timestamp_us // 1000 * 1000
        assert [camera.name for camera in sample.cameras] == list(CAMERAS)
    (last,) = converter.frames(TRAIN, 2, 3)
    np.testing.assert_array_equal(last.points_lidar, found[2].points_lidar)
    (copy,) = pickle.loads(pickle.dumps(converter)).frames(TRAIN, 2, 3)
    np.testing.assert_array_equal(copy.cameras[0].image, last.cameras[0].image)


def test_poses_start_at_the_first_sweep(source, truth):
    start = np.linalg.inv(truth[0].T_world_ego @ truth[0].T_ego_lidar)
    for sample, frame in zip(frames_of(OnceConverter(source=str(source)), TRAIN), truth, strict=True):
        np.testing.assert_allclose(sample.T_world_ego, start @ frame.T_world_ego @ frame.T_ego_lidar, atol=1e-9)
    moved = sample.T_world_ego[:3, 3]
    assert moved[0] > 1, "the street's ego drives forward"


def test_points_meet_their_pixels(source, truth):
    """Through the published calibration, against the street's own mounts."""
    (sample, *_) = frames_of(OnceConverter(source=str(source)), TRAIN)
    for camera, view in zip(sample.cameras, truth[0].cameras, strict=True):
        T_cam_lidar = view.T_cam_ego @ truth[0].T_ego_lidar
        expected, depth = project(view.K, transform(T_cam_lidar, truth[0].points_lidar))
        uv, _ = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
        np.testing.assert_allclose(uv[depth > 1], expected[depth > 1], atol=0.01)


def dots(view, places: np.ndarray) -> np.ndarray:
    """A black image with soft white dots."""
    v, u = np.mgrid[0 : view.image_size[0], 0 : view.image_size[1]]
    light = sum(np.exp(-((u - x) ** 2 + (v - y) ** 2) / 8) for x, y in places)
    return np.repeat((255 * np.clip(light, 0, 1)).astype(np.uint8)[..., None], 3, axis=2)


def test_images_are_undistorted(tmp_path, truth):
    """Dots drawn at pinhole pixels, seen through the lens, are at those pixels again."""
    places = np.array([[20.0, 15.0], [80.0, 48.0], [140.0, 20.0], [135.0, 80.0], [30.0, 75.0]])
    views = tuple(dataclasses.replace(view, image=dots(view, places)) for view in truth[0].cameras)
    write_once(tmp_path, {TRAIN: [dataclasses.replace(truth[0], cameras=views)]}, labelled=(TRAIN,))

    def farthest(undistort: bool) -> float:
        (sample,) = frames_of(OnceConverter(source=str(tmp_path), undistort=undistort), TRAIN)
        grey = cv2.cvtColor(sample.cameras[0].image, cv2.COLOR_RGB2GRAY).astype(float)
        grey[grey < 24] = 0
        count, parts = cv2.connectedComponents((grey > 0).astype(np.uint8))
        v, u = np.mgrid[0 : grey.shape[0], 0 : grey.shape[1]]
        inside = [grey * (parts == part) for part in range(1, count)]
        found = np.array([[(u * dot).sum() / dot.sum(), (v * dot).sum() / dot.sum()] for dot in inside])
        assert len(found) == len(places)
        return max(float(np.linalg.norm(found - place, axis=1).min()) for place in places)

    assert farthest(undistort=True) < 0.1
    assert farthest(undistort=False) > 2


def test_images_as_published_keep_their_bytes(source):
    converter = OnceConverter(source=str(source), undistort=False, cameras=("cam03",))
    (sample, *_) = frames_of(converter, TRAIN)
    (camera,) = sample.cameras
    name = sample.key.split("_")[1]
    assert camera.jpeg == (source / "data" / TRAIN / "cam03" / f"{name}.jpg").read_bytes()
    assert "distorted" in converter.notes()[0]


def test_boxes_and_labels(source, truth):
    things = [STREET_CLASSES.index(name) for name in NAMES]
    for sample, frame in zip(frames_of(OnceConverter(source=str(source)), TRAIN), truth, strict=True):
        boxes, expected = sample.boxes, frame.boxes
        np.testing.assert_allclose(boxes.centers_m, expected.centers_m, atol=1e-6)
        np.testing.assert_allclose(boxes.sizes_m, expected.sizes_m, atol=1e-9)
        np.testing.assert_allclose(np.cos(boxes.yaws - expected.yaws), 1, atol=1e-12)
        assert [CLASS_NAMES[label] for label in boxes.classes] == [
            NAMES[STREET_CLASSES[label]] for label in expected.classes
        ]
        for box in range(len(boxes.yaws)):
            args = (boxes.centers_m[box], boxes.sizes_m[box], float(boxes.yaws[box]))
            theirs = (expected.centers_m[box], expected.sizes_m[box], float(expected.yaws[box]))
            counts = points_in_box(sample.points_lidar, *args).sum(), points_in_box(frame.points_lidar, *theirs).sum()
            assert abs(int(counts[0]) - int(counts[1])) <= 1
        # Objects' points lie in their boxes, the ground under them aside.
        on_things = np.isin(frame.labels, things)
        named = np.array([CLASS_NAMES.index(NAMES.get(STREET_CLASSES[label], "background")) for label in frame.labels])
        assert (sample.labels == named)[on_things].mean() > 0.9
        assert (sample.labels == named)[~on_things].mean() > 0.97


def test_splits(source):
    converter = OnceConverter(source=str(source))
    assert {log: converter.split_of(log) for log in converter.logs()} == {RAW: "raw", VAL: "val", TRAIN: "train"}
    assert any("listed sequences are not in the source" in note for note in converter.notes())
    medium = OnceConverter(source=str(source), raw="medium")
    assert medium.logs() == (RAW, MORE, VAL, TRAIN), "with those of the small list"
    assert OnceConverter(source=str(source), raw="all").logs() == (RAW, MORE, VAL, TRAIN)
    assert OnceConverter(source=str(source), raw="none").logs() == (VAL, TRAIN)
    (sample, _) = frames_of(converter, RAW)
    assert (sample.boxes, sample.labels, sample.instances) == (None, None, None)


def test_lidar_only(source):
    (sample, *_) = frames_of(OnceConverter(source=str(source), cameras=()), TRAIN)
    assert sample.cameras == ()


def test_intensity_scale(tmp_path, truth):
    write_once(tmp_path, {TRAIN: truth[:1]}, labelled=(TRAIN,), intensity_max=255.0)
    (sample,) = frames_of(OnceConverter(source=str(tmp_path), raw="none", intensity_max=255.0), TRAIN)
    np.testing.assert_allclose(sample.intensity, truth[0].intensity, atol=1e-6)
    (skipped,) = frames_of(OnceConverter(source=str(tmp_path), raw="none"), TRAIN)
    assert (skipped.reason, "set intensity_max" in skipped.detail) == ("intensity-range", True)


def change_json(root: Path, change) -> None:
    path = root / "data" / TRAIN / f"{TRAIN}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_frames_without_pose(small):
    change_json(small, lambda content: content["frames"][1].update(pose=[0.0] * 7))
    change_json(small, lambda content: content["frames"][2].pop("pose"))
    settings = {"source": str(small), "raw": "none"}
    first, second, third = frames_of(OnceConverter(**settings), TRAIN)
    assert isinstance(first, Sample)
    assert (second.reason, third.reason) == ("calibration-missing", "calibration-missing")
    kept = OnceConverter(**settings, without_pose="identity")
    np.testing.assert_array_equal(frames_of(kept, TRAIN)[1].T_world_ego, np.eye(4))
    assert "frames without pose have the identity" in kept.notes()


def test_damaged_frames_are_named(small, truth):
    names = [frame_id(frame) for frame in truth]
    folder = small / "data" / TRAIN
    (folder / "lidar_roof" / f"{names[0]}.bin").write_bytes(b"12345")
    (folder / "cam05" / f"{names[1]}.jpg").unlink()
    cut = folder / "cam09" / f"{names[2]}.jpg"
    cut.write_bytes(cut.read_bytes()[:500])
    items = frames_of(OnceConverter(source=str(small), raw="none"), TRAIN)
    assert [item.reason for item in items] == ["array-broken", "member-missing", "image-broken"]
    assert [item.key for item in items] == [f"{TRAIN}_{name}" for name in names]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content["frames"][0]["annos"].update(names=["Spaceship"]), "meta-broken"),
        (lambda content: content["frames"][0]["annos"].pop("boxes_3d"), "meta-broken"),
        (lambda content: content["calib"].pop("cam07"), "calibration-missing"),
        (
            lambda content: content["calib"]["cam01"].update(cam_to_velo=np.zeros((4, 4)).tolist()),
            "calibration-singular",
        ),
        (lambda content: content["calib"]["cam01"].update(distortion=[0.1] * 7), "calibration-singular"),
        (lambda content: content["frames"][0].update(pose=["x"] * 7), "calibration-missing"),
        (lambda content: content["frames"][0].update(pose=[1.0] * 7), "calibration-singular"),
    ],
)
def test_damaged_annotations_are_named(small, change, reason):
    change_json(small, change)
    converter = OnceConverter(source=str(small), raw="none")
    assert frames_of(converter, TRAIN)[0].reason == reason
    assert converter.notes()


def test_other_axes_are_noticed(small):
    """The calibration says where the front camera looks: a set with other LiDAR axes is not taken silently."""
    assert not any("forward" in note for note in OnceConverter(source=str(small), raw="none").notes())
    turn = np.diag([-1.0, -1, 1, 1])

    def turned(content):
        entry = content["calib"]["cam01"]
        entry["cam_to_velo"] = (turn @ np.array(entry["cam_to_velo"])).tolist()

    change_json(small, turned)
    assert any(
        "cam01 of 000076 does not look forward" in note for note in OnceConverter(source=str(small), raw="none").notes()
    )


def test_one_damaged_entry_is_one_frames_loss(small):
    def damage(content):
        first, second, *others = content["frames"]
        content["frames"] = [{**first, "frame_id": "noon"}, second, {**others[0], "pose": None}, *others, second]

    whole = frames_of(OnceConverter(source=str(small), raw="none", cameras=()), TRAIN)
    change_json(small, damage)
    converter = OnceConverter(source=str(small), raw="none", cameras=())
    items = frames_of(converter, TRAIN)
    assert len(items) == converter.num_frames(TRAIN) == len(whole)
    details = [item.detail for item in items if isinstance(item, Skipped)]
    assert len(details) == 2, "an entry that is there twice is whole"
    assert "frame 0: frame_id 'noon' is no time" in details[0]
    assert "twice, with other content" in details[1]
    assert items[0].key == whole[1].key


@pytest.mark.parametrize("content", ["{", '{"frames": [], "calib": {}}'])
def test_a_sequence_without_frames_is_counted_by_its_sweeps(small, content):
    whole = frames_of(OnceConverter(source=str(small), raw="none", cameras=()), TRAIN)
    (small / "data" / TRAIN / f"{TRAIN}.json").write_text(content)
    items = frames_of(OnceConverter(source=str(small), raw="none"), TRAIN)
    assert [(item.reason, item.key) for item in items] == [("meta-broken", sample.key) for sample in whole]
    for sweep in (small / "data" / TRAIN / "lidar_roof").iterdir():
        sweep.unlink()
    assert [item.key for item in frames_of(OnceConverter(source=str(small), raw="none"), TRAIN)] == [f"{TRAIN}_none"]


def test_wrong_sources_say_what_was_found(small, tmp_path):
    with pytest.raises(ShardError, match=r"no ONCE folder: looked for data/<sequence>/lidar_roof in .*no such folder"):
        OnceConverter(source=str(tmp_path / "nowhere")).logs()
    with pytest.raises(ShardError, match=r"raw_small.txt for raw=small .*no such folder"):
        OnceConverter(source=str(small)).logs()
    (small / "data" / TRAIN / "cam06").rename(small / "cam06")
    with pytest.raises(ShardError, match=r"looked for images of cam06 in .*000076, found 000076.json, cam01/"):
        OnceConverter(source=str(small), raw="none").logs()
    assert OnceConverter(source=str(small), raw="none", cameras=("cam01",)).logs() == (TRAIN,)
    (small / "data" / TRAIN / f"{TRAIN}.json").unlink()
    with pytest.raises(ShardError, match=r"looked for 000076.json \(poses and calibration\)"):
        OnceConverter(source=str(small), raw="none", cameras=()).logs()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cameras": ("cam02",)}, r"cameras: got \('cam02',\)"),
        ({"intensity_max": 0.0}, "intensity_max: got 0.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        OnceConverter(source="", **settings)


def test_prepared_set_feeds_the_loader(source, tmp_path):
    converter = OnceConverter(source=str(source), cameras=("cam01", "cam03"))
    manifest, batch = first_batch(converter, tmp_path, "raw")
    assert set(manifest.splits) == {"train", "val", "raw"}
    assert manifest.camera_names == ("cam01", "cam03")
    assert batch.num_samples == 2
    assert batch.pairs.point.numel() > 100
