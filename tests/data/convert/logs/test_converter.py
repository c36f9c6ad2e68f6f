"""Recordings as sets: pairing by time, several LiDARs, settings, and everything that real recordings have wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from mcap.reader import make_reader

from data.convert.base import Skipped
from data.convert.logs.base import LogSettings
from data.convert.logs.converter import McapConverter, RecordingConverter, RosbagConverter, forget_reader
from data.convert.logs.topics_file import read_topics
from data.convert.logs.window import Held, windows
from data.geometry import rigid, transform, yaw_rotation
from data.preparing.prepare import PrepareConfig, prepare
from data.sample import Sample
from data.storage.shard import ShardError
from launchers.prepare import main
from tests.data.convert.logs.test_video import FRAMES, SIDE, encoded, picture
from tests.helpers.recordings import Entry, changed, in_order, write_mcap, write_ros1, write_ros2

T0 = 1_700_000_000_000_000_000
MS = 1_000_000
FIRST_POSE = T0 - 120 * MS
SPEED_MPS = 10.0
K = np.array([[20.0, 0, 11.5], [0, 20.0, 7.5], [0, 0, 1]])
SIZE = (16, 24)
T_EGO_LIDAR = rigid(yaw_rotation(0.1), np.array([0.5, 0.0, 1.8]))
T_EGO_REAR = rigid(yaw_rotation(2.9), np.array([-2.0, 0.3, 1.5]))
T_EGO_CAMERA = rigid(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), np.array([1.0, 0.0, 1.5]))
RNG = np.random.default_rng(0)
WORLD = RNG.uniform((499_995.0, -20.0, -1.0), (500_060.0, 20.0, 4.0), (300, 3))


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    forget_reader()


def ego_at(time_ns: int) -> np.ndarray:
    seconds = (time_ns - T0) / 1e9
    return rigid(yaw_rotation(0.2 * seconds), np.array([500_000.0 + SPEED_MPS * seconds, 0.3 * seconds, 0.0]))


def cloud(time_ns: int, topic: str, frame: str, T_ego_sensor: np.ndarray, first: int = 0) -> Entry:
    points = transform(np.linalg.inv(ego_at(time_ns) @ T_ego_sensor), WORLD[first:])
    columns = {name: points[:, number] for number, name in enumerate("xyz")}
    columns["intensity"] = np.linspace(0, 200, len(points))
    return Entry.of(topic, "cloud", time_ns, frame, columns)


def image(time_ns: int) -> list[Entry]:
    picture = np.full((*SIZE, 3), (time_ns - T0) // MS % 251, np.uint8)
    png = cv2.imencode(".png", picture)[1].tobytes()
    return [
        Entry.of("/front/image/compressed", "png", time_ns, "front_optical", png),
        Entry.of("/front/camera_info", "info", time_ns, "front_optical", (K, SIZE, "plumb_bob", (0.0,) * 5)),
    ]


def odometry(time_ns: int) -> Entry:
    return Entry.of("/odom", "odometry", time_ns, "odom", ("odom", "base_link", ego_at(time_ns)))


def static(*more: tuple[str, str, np.ndarray]) -> Entry:
    known = [("base_link", "lidar", T_EGO_LIDAR), ("base_link", "front_optical", T_EGO_CAMERA), *more]
    return Entry.of("/tf_static", "transforms", T0 - 100 * MS, "", known)


def drive(sweeps: int = 8) -> list[Entry]:
    """Sweeps every 100 ms, images 20 ms later, odometry every 20 ms."""
    times = range(T0, T0 + sweeps * 100 * MS, 100 * MS)
    entries = [static(), *(cloud(time, "/lidar", "lidar", T_EGO_LIDAR) for time in times)]
    entries += [entry for time in times for entry in image(time + 20 * MS)]
    entries += [odometry(time) for time in range(FIRST_POSE, times[-1] + 200 * MS, 20 * MS)]
    return in_order(entries)


def without(entries: Sequence[Entry], topic: str) -> list[Entry]:
    return [entry for entry in entries if entry.topic != topic]


def of_topic(entries: Sequence[Entry], topic: str) -> list[Entry]:
    return [entry for entry in entries if entry.topic == topic]


def bag(folder: Path, entries: Sequence[Entry], **settings: Any) -> RosbagConverter:
    return RosbagConverter(source=str(write_ros1(folder / "drive.bag", entries)), **settings)


def items_of(converter: RecordingConverter) -> list[Sample | Skipped]:
    return [item for log in converter.logs() for item in converter.frames(log, 0, converter.num_frames(log))]


def samples_of(converter: RecordingConverter) -> list[Sample]:
    items = items_of(converter)
    assert [item for item in items if isinstance(item, Skipped)] == []
    return [item for item in items if isinstance(item, Sample)]


def outcomes(items: Sequence[Sample | Skipped]) -> list[str]:
    return [item.reason if isinstance(item, Skipped) else "ok" for item in items]


def topics_file(path: Path, **topics: Any) -> str:
    path.write_text(yaml.safe_dump(topics))
    return str(path)


# ---- what becomes of a recording
def test_each_sweep_has_the_nearest_image_and_poses_of_both_times(tmp_path: Path) -> None:
    entries = drive()
    # A second camera of 30 Hz whose images are nowhere at a sweep's time.
    extra = [image(T0 - 17 * MS + number * 33 * MS) for number in range(28)]
    entries += [changed(one, topic=one.topic.replace("front", "side")) for several in extra for one in several]
    samples = samples_of(bag(tmp_path, in_order(entries)))
    assert len(samples) == 8
    for number, sample in enumerate(samples):
        stamp = T0 + number * 100 * MS
        assert (sample.key, sample.log, sample.timestamp_us) == (f"drive_{number:06d}", "drive", stamp // 1000)
        front, side = sample.cameras
        assert (front.name, front.timestamp_us) == ("front", stamp // 1000 + 20_000)
        side_times = [T0 - 17 * MS + k * 33 * MS for k in range(28)]
        nearest = min(side_times, key=lambda time: abs(time - stamp))
        assert side.timestamp_us == nearest // 1000
        assert side.image[0, 0, 0] == (nearest - T0) // MS % 251
        origin = ego_at(FIRST_POSE)[:3, 3]
        for time, T in ((stamp, sample.T_world_ego), (nearest, side.T_world_ego)):
            expected = ego_at(time)
            np.testing.assert_allclose(T[:3, 3], expected[:3, 3] - origin, atol=1e-5)  # 20 ms of a curve apart
            np.testing.assert_allclose(T[:3, :3], expected[:3, :3], atol=1e-9)
        np.testing.assert_allclose(np.linalg.inv(front.T_cam_ego), T_EGO_CAMERA, atol=1e-12)
        np.testing.assert_allclose(sample.intensity, np.linspace(0, 200, 300) / 255, atol=1e-6)


def test_parts_of_a_log_are_read_for_themselves(tmp_path: Path) -> None:
    converter = bag(tmp_path, drive(12))
    whole = samples_of(converter)
    for start, stop in ((0, 1), (3, 7), (11, 12), (7, 7)):
        parts = list(converter.frames("drive", start, stop))
        assert [part.key for part in parts] == [sample.key for sample in whole[start:stop]]
        for part, sample in zip(parts, whole[start:stop], strict=True):
            assert isinstance(part, Sample)
            np.testing.assert_array_equal(part.T_world_ego, sample.T_world_ego)
            np.testing.assert_array_equal(part.points_lidar, sample.points_lidar)
            assert part.cameras[0].timestamp_us == sample.cameras[0].timestamp_us


def test_transforms_have_the_pose_where_there_is_no_odometry(tmp_path: Path) -> None:
    """map -> odom -> base_link, of which the first is published seldom and never moves; wheels turn beside it."""
    entries = [changed(one, topic="/tf", kind="transforms", value=[one.value]) for one in of_topic(drive(), "/odom")]
    turning = [
        changed(one, value=[*one.value, ("base_link", "wheel", rigid(yaw_rotation(float(number)), np.zeros(3)))])
        for number, one in enumerate(entries)
    ]
    to_map = rigid(yaw_rotation(1.0), np.array([5.0, 6.0, 7.0]))
    turning.append(Entry.of("/tf_static", "transforms", T0 - 90 * MS, "", [("map", "odom", to_map)]))
    recorded = in_order([*without(drive(), "/odom"), *turning])
    by_odometry = samples_of(bag(tmp_path, drive()))
    (tmp_path / "tf").mkdir()
    for sample, other in zip(samples_of(bag(tmp_path / "tf", recorded)), by_odometry, strict=True):
        np.testing.assert_allclose(sample.T_world_ego, other.T_world_ego, atol=1e-9)
    topics = topics_file(
        tmp_path / "topics.yaml",
        lidars=["/lidar"],
        cameras={"front": "/front/image/compressed"},
        camera_infos={"front": "/front/camera_info"},
        transforms=["/tf", "/tf_static"],
        world_frame="map",
    )
    found = samples_of(RosbagConverter(source=str(tmp_path / "tf" / "drive.bag"), topics=topics))
    for sample, other in zip(found, by_odometry, strict=True):
        relative = [np.linalg.inv(one[0].T_world_ego) @ this.T_world_ego for one, this in
                    ((found, sample), (by_odometry, other))]  # fmt: skip
        np.testing.assert_allclose(relative[0], relative[1], atol=1e-9)
        turned = found[0].T_world_ego[:3, :3] @ by_odometry[0].T_world_ego[:3, :3].T
        np.testing.assert_allclose(turned, yaw_rotation(1.0), atol=1e-9)


@pytest.mark.parametrize("deskew", [False, True])
def test_lidars_are_one_cloud_at_the_first_ones_time(tmp_path: Path, deskew: bool) -> None:
    """The second LiDAR turns 37 ms later at another place of the vehicle: its points lie where the first sees them."""
    entries = []
    for entry in drive():
        entries.append(entry)
        if entry.topic == "/lidar":
            entries.append(cloud(entry.stamp_ns + 37 * MS, "/rear", "rear", T_EGO_REAR, first=100))
    if deskew:
        entries = [
            changed(one, value={**one.value, "time": np.linspace(0, 1e-7, len(one.value["x"]))})
            if one.kind == "cloud"
            else one
            for one in entries
        ]
    entries.append(changed(static(("base_link", "rear", T_EGO_REAR)), written_ns=T0 - 90 * MS))
    topics = topics_file(
        tmp_path / "topics.yaml", lidars=["/lidar", "/rear"], transforms=["/tf_static"], odometry="/odom"
    )
    samples = samples_of(bag(tmp_path, in_order(entries), topics=topics, deskew=deskew))
    assert len(samples) == 8
    for number, sample in enumerate(samples):
        stamp = T0 + number * 100 * MS
        expected = transform(np.linalg.inv(ego_at(stamp) @ T_EGO_LIDAR), WORLD)
        np.testing.assert_allclose(sample.points_lidar, np.concatenate([expected, expected[100:]]), atol=2e-4)
        np.testing.assert_allclose(sample.T_ego_lidar, T_EGO_LIDAR, atol=1e-12)


def test_times_of_points_are_kept_where_asked_for(tmp_path: Path) -> None:
    after_s = np.linspace(-0.05, 0.05, 300)
    entries = [changed(one, value={**one.value, "time": after_s}) if one.kind == "cloud" else one for one in drive()]
    for sample in samples_of(bag(tmp_path, entries, keep_times=True)):
        np.testing.assert_allclose(sample.times_s, -after_s, atol=1e-7)
    assert samples_of(RosbagConverter(source=str(tmp_path / "drive.bag")))[0].times_s is None


def test_distorted_images_are_undistorted(tmp_path: Path) -> None:
    distortion = (-0.3, 0.1, 0.0, 0.0, 0.0)
    picture = RNG.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    png = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    entries = [
        changed(one, value=(K, SIZE, "plumb_bob", distortion))
        if one.kind == "info"
        else changed(one, value=png)
        if one.kind == "png"
        else one
        for one in drive(4)
    ]
    for sample in samples_of(bag(tmp_path, entries)):
        np.testing.assert_array_equal(sample.cameras[0].image, cv2.undistort(picture, K, np.array(distortion)))


@pytest.mark.parametrize("b_frames", [0, 2])
def test_videos_are_decoded_from_the_key_frame_before_each_part(tmp_path: Path, b_frames: int) -> None:
    """Key frames every 400 ms: a part that begins between two needs what was written before it."""
    size = (SIDE, SIDE)
    K_video = np.array([[60.0, 0, 31.5], [0, 60.0, 31.5], [0, 0, 1]])
    entries = [one for one in drive(FRAMES) if one.kind not in ("png", "info")]
    for place, (number, data) in enumerate(encoded("h264", b_frames)):
        shown = T0 + number * 100 * MS + 20 * MS
        sent = Entry.of("/front/video", "h264", shown, "front_optical", data)
        entries.append(changed(sent, written_ns=T0 + place * 100 * MS + 45 * MS))
        entries.append(Entry.of("/front/camera_info", "info", shown, "front_optical", (K_video, size, "", ())))
    converter = bag(tmp_path, in_order(entries), max_pose_gap_ms=50.0, max_delay_ms=320.0)
    whole = samples_of(converter)
    assert len(whole) == FRAMES
    for number, sample in enumerate(whole):
        (view,) = sample.cameras
        assert view.timestamp_us * 1000 == T0 + number * 100 * MS + 20 * MS
        assert np.abs(view.image.astype(float) - picture(number)).mean() < 4
        forget_reader()
        (alone,) = converter.frames("drive", number, number + 1)
        assert isinstance(alone, Sample), alone
        np.testing.assert_array_equal(alone.cameras[0].image, view.image)


# ---- logs and settings
def test_recordings_of_a_folder_are_logs(tmp_path: Path) -> None:
    source = tmp_path / "fleet"
    source.mkdir()
    write_ros1(source / "day 1.bag", drive(3))
    write_ros2(source / "night", drive(2), "mcap")
    converter = RosbagConverter(source=str(source), val_logs=("night",))
    assert converter.logs() == ("day_1", "night")
    assert [converter.split_of(log) for log in converter.logs()] == ["train", "val"]
    assert [converter.num_frames(log) for log in converter.logs()] == [3, 2]
    assert [sample.log for sample in samples_of(converter)] == ["day_1"] * 3 + ["night"] * 2
    with pytest.raises(ShardError, match=r"val_logs names 'dusk', which is not in .*fleet \(day_1, night\)"):
        RosbagConverter(source=str(source), val_logs=("dusk",)).logs()


def test_every_nth_sweep(tmp_path: Path) -> None:
    samples = samples_of(bag(tmp_path, drive(8), every=3))
    assert [sample.key for sample in samples] == ["drive_000000", "drive_000003", "drive_000006"]


def test_an_mcap_of_protobuf_is_a_log(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "drive.mcap", drive(4))
    samples = samples_of(McapConverter(source=str(path)))
    for number, sample in enumerate(samples):
        expected = ego_at(T0 + number * 100 * MS)[:3, 3] - ego_at(FIRST_POSE)[:3, 3]
        np.testing.assert_allclose(sample.T_world_ego[:3, 3], expected, atol=1e-5)
    assert len(samples) == 4


def test_what_the_topics_file_says_is_part_of_the_settings(tmp_path: Path) -> None:
    """A folder that was begun with other topics is not continued, wherever the file lies."""
    topics = {"lidars": ["/lidar"], "transforms": ["/tf_static"], "odometry": "/odom"}
    one = bag(tmp_path, drive(2), topics=topics_file(tmp_path / "one.yaml", **topics))
    two = dataclasses.replace(one, topics=topics_file(tmp_path / "two.yaml", **topics))
    assert one.settings() == two.settings()
    assert one.settings()["topics"]["lidars"] == ("/lidar",)
    other = topics_file(tmp_path / "three.yaml", **{**topics, "odometry": ""})
    assert dataclasses.replace(one, topics=other).settings() != one.settings()
    assert dataclasses.replace(one, drives_forward=False).settings() == one.settings()


def test_a_calibration_file_takes_the_place_of_transforms_and_camera_info(tmp_path: Path) -> None:
    bare = without(without(drive(3), "/tf_static"), "/front/camera_info")
    calibration = {
        "T_ego_lidar": T_EGO_LIDAR.tolist(),
        "intensity_max": 100,
        "cameras": {"front": {"K": K.tolist(), "image_size": SIZE, "T_ego_camera": T_EGO_CAMERA.tolist()}},
    }
    (tmp_path / "calibration.json").write_text(json.dumps(calibration))
    converter = bag(tmp_path, bare, calibration=str(tmp_path / "calibration.json"))
    for sample in samples_of(converter):
        np.testing.assert_allclose(sample.T_ego_lidar, T_EGO_LIDAR)
        np.testing.assert_allclose(np.linalg.inv(sample.cameras[0].T_cam_ego), T_EGO_CAMERA, atol=1e-12)
        np.testing.assert_array_equal(sample.cameras[0].K, K)
    del calibration["cameras"]["front"]
    (tmp_path / "calibration.json").write_text(json.dumps(calibration))
    (first, *_) = items_of(dataclasses.replace(converter))
    assert isinstance(first, Skipped)
    assert first.detail == "the calibration has no camera 'front', it has none"


def test_the_command_prepares_a_bag_and_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_ros2(tmp_path / "drive", drive(6))
    words = ["rosbag", str(path), str(tmp_path / "set"), "--workers", "1", "--no-superpixels", "val_logs=[drive]"]
    assert main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "6 val, in 1 log" in printed
    assert "skipped │ none" in printed


# ---- faults
Change = Callable[[list[Entry]], list[Entry]]


def _later(kind: str, by_ms: int) -> Change:
    return lambda entries: [
        changed(one, stamp_ns=one.stamp_ns + by_ms * MS) if one.kind == kind else one for one in entries
    ]


def _stamps(*stamps_ms: int) -> Change:
    """The sweeps' stamps, in the order in which they are written."""

    def change(entries: list[Entry]) -> list[Entry]:
        rest = [one for one in entries if one.kind != "cloud"]
        sweeps = [one for one in entries if one.kind == "cloud"]
        stamped = [changed(one, stamp_ns=T0 + stamp * MS) for one, stamp in zip(sweeps, stamps_ms, strict=True)]
        return in_order([*rest, *stamped])

    return change


def _gap(entries: list[Entry]) -> list[Entry]:
    """Odometry is silent for 700 ms."""
    return [one for one in entries if one.kind != "odometry" or not 50 <= (one.stamp_ns - T0) / MS <= 750]


FAULTS: dict[str, tuple[Change, list[str], str]] = {
    "transform-missing": (
        lambda entries: without(entries, "/tf_static"),
        ["calibration-missing"] * 12,
        r"no transform has the frame 'base_link'; there are none.*tandem inspect.*calibration=FILE.json",
    ),
    "odometry-gap": (
        _gap,
        ["ok", *["calibration-missing"] * 7, *["ok"] * 4],
        r"no pose of base_link at \d+ ns: its neighbours are 720 ms apart, allowed are 500 ms \(max_pose_gap_ms\)",
    ),
    "camera-without-info": (
        lambda entries: without(entries, "/front/camera_info"),
        ["calibration-missing"] * 12,
        r"camera front \(/front/image/compressed\) has no topic of camera info: name one in the topics file",
    ),
    "two-clocks": (
        _later("png", -3_600_000),
        ["member-missing"] * 12,
        r"nearest image is 3599480\.0 ms from the sweep.* are written 3600\.025 s after their stamps, those of "
        r"/lidar 0\.060 s: two clocks\? stamps=written goes by times of writing",
    ),
    "unsorted": (
        _stamps(0, 100, 300, 200, 400, 500, 600, 700, 800, 900, 1000, 1100),
        ["ok", "ok", "ok", "meta-broken", *["ok"] * 8],
        r"message 3 of /lidar has a stamp before that of the message before it",
    ),
    "duplicate": (
        _stamps(0, 100, 200, 200, 400, 500, 600, 700, 800, 900, 1000, 1100),
        ["ok", "ok", "ok", "meta-broken", *["ok"] * 8],
        r"message 3 of /lidar has the same stamp as the message before it",
    ),
    "images-missing": (
        lambda entries: [one for one in entries if one.kind != "png" or not 200 < (one.stamp_ns - T0) / MS < 600],
        ["ok", "ok", *["member-missing"] * 4, *["ok"] * 6],
        r"compressed: the nearest image is \d+\.0 ms from the sweep, allowed are 60 ms \(max_image_gap_ms\)",
    ),
    "image-of-another-size": (
        lambda entries: [
            changed(one, value=(K * [[2], [2], [1]], (32, 48), "plumb_bob", (0.0,) * 5)) if one.kind == "info" else one
            for one in entries
        ],
        ["image-size"] * 12,
        r"is \(16, 24\) \(height, width\), its calibration is for \(32, 48\)",
    ),
    "image-broken": (
        lambda entries: [
            changed(one, value=one.value[:40]) if one.kind == "png" and one.stamp_ns == T0 + 320 * MS else one
            for one in entries
        ],
        ["ok", "ok", "ok", "image-broken", *["ok"] * 8],
        r"/front/image/compressed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_the_frames_that_have_it(tmp_path: Path, fault: str) -> None:
    change, expected, message = FAULTS[fault]
    items = items_of(bag(tmp_path, change(drive(12))))
    assert outcomes(items) == expected
    skipped = next(item for item in items if isinstance(item, Skipped))
    assert re.search(message, skipped.detail), skipped.detail


def test_two_clocks_are_paired_by_times_of_writing(tmp_path: Path) -> None:
    """Images are written 35 ms earlier than sweeps after their stamps; the offset is a latency, not an hour."""
    samples = samples_of(bag(tmp_path, _later("png", -3_600_000)(drive(12)), stamps="written"))
    for sample in samples:
        assert sample.cameras[0].timestamp_us - sample.timestamp_us == 20_000 + 25_000 - 60_000


def test_sweeps_outside_of_poses_and_images_are_no_frames(tmp_path: Path) -> None:
    """Recordings begin and end with any topic: what can never be paired is a note, not a hundred skipped frames."""
    entries = [
        one
        for one in drive(20)
        if one.kind == "cloud" or one.topic == "/tf_static" or 290 < (one.stamp_ns - T0) / MS < 1500
    ]
    converter = bag(tmp_path, entries)
    assert converter.notes() == (
        "drive: 8 of 20 sweeps are before the first or after the last pose or image, and left out",
    )
    assert [sample.key for sample in samples_of(converter)] == [f"drive_{number:06d}" for number in range(3, 15)]


def test_a_cut_bag_gives_what_comes_before_the_cut(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "drive.mcap", drive(12), chunk_size=20_000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    converter = McapConverter(source=str(path))
    (note, *_) = converter.notes()
    assert "drive.mcap" in note
    samples = samples_of(converter)
    assert 4 <= len(samples) < 10
    assert [sample.key for sample in samples] == [f"drive_{number:06d}" for number in range(len(samples))]


def test_a_damaged_chunk_costs_its_own_sweeps(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "drive.mcap", drive(12), chunk_size=20_000)
    data = bytearray(path.read_bytes())
    with path.open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    second = summary.chunk_indexes[1]
    inside = second.chunk_start_offset + second.chunk_length // 2
    data[inside : inside + 64] = bytes(64)
    path.write_bytes(data)
    converter = McapConverter(source=str(path))
    assert converter.num_frames("drive") == 12  # as the index says
    found = outcomes(items_of(converter))
    assert 6 <= found.count("ok") < 12
    assert set(found) == {"ok", "member-missing"}
    lost = [number for number, outcome in enumerate(found) if outcome != "ok"]
    assert lost == list(range(lost[0], lost[-1] + 1))  # in one place


def test_a_sweep_that_the_index_has_and_nobody_can_read_is_skipped(tmp_path: Path) -> None:
    entries = drive(6)
    path = write_ros2(tmp_path / "drive", entries)
    (database,) = path.glob("*.db3")
    with sqlite3.connect(database) as connection:
        topic = connection.execute("SELECT id FROM topics WHERE name = '/lidar'").fetchone()[0]
        (row, data) = connection.execute(
            "SELECT id, data FROM messages WHERE topic_id = ? ORDER BY timestamp LIMIT 1 OFFSET 2", (topic,)
        ).fetchone()
        connection.execute("UPDATE messages SET data = ? WHERE id = ?", (data[:50], row))
    connection.close()
    items = items_of(RosbagConverter(source=str(path)))
    assert outcomes(items) == ["ok", "ok", "member-missing", "ok", "ok", "ok"]
    assert isinstance(items[2], Skipped)
    assert items[2].detail.startswith("message 2 of /lidar is lost (topic /lidar: 1 messages cannot be read")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "half|2 % |intensity"),
        ({"intensity_max": None}, ""),
    ],
    ids=["wrong-scale", "none"],
)
def test_the_scale_of_intensities_has_to_be_said(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    entries = [
        changed(one, value={**one.value, "intensity": one.value["intensity"] * 300}) if one.kind == "cloud" else one
        for one in drive(3)
    ]
    items = items_of(bag(tmp_path, entries, **settings))
    if message:
        assert outcomes(items) == ["intensity-range"] * 3
        assert isinstance(items[0], Skipped)
        assert "/lidar: 255 becomes 1, but" in items[0].detail
        assert (
            "intensity_max=N is the raw value that becomes 1, null for a sensor that measures none" in items[0].detail
        )
    else:
        assert outcomes(items) == ["ok"] * 3
        assert all(isinstance(item, Sample) and not item.intensity.any() for item in items)


AMBIGUOUS: dict[str, tuple[Callable[[Entry], bool], str, str]] = {
    "lidars": (lambda one: one.topic == "/lidar", "/other", r"has 2 LiDAR topics \(/lidar, /other\), expected one"),
    "odometry": (lambda one: one.topic == "/odom", "/gps", r"has 2 topics of odometry \(/gps, /odom\), expected one"),
    "images": (
        lambda one: one.topic == "/front/image/compressed",
        "/front/image_rect/compressed",
        r"has 2 topics of camera front \(/front/image/compressed, /front/image_rect/compressed\), expected one",
    ),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_topics_that_leave_a_choice_have_to_be_named(tmp_path: Path, kind: str) -> None:
    twice, name, message = AMBIGUOUS[kind]
    entries = drive(2)
    entries += [changed(one, topic=name) for one in entries if twice(one)]
    with pytest.raises(ShardError, match=f"{message}: tandem inspect"):
        bag(tmp_path, in_order(entries)).logs()


def test_topics_that_are_not_there_are_named(tmp_path: Path) -> None:
    topics = topics_file(tmp_path / "topics.yaml", lidars=["/front/image/compressed"], odometry="/odom")
    converter = bag(tmp_path, drive(2), topics=topics)
    with pytest.raises(ShardError, match=r"'/front/image/compressed'"):
        converter.logs()
    with pytest.raises(ShardError, match=r"log drive has no camera 'rear', its cameras are front"):
        dataclasses.replace(converter, topics="", cameras=("rear",)).logs()


TOPICS_FILES: dict[str, tuple[str, str]] = {
    "unknown": ("lidar: [/points]", r"unknown entry 'lidar'; did you mean 'lidars'\?; known: lidars, cameras"),
    "no-lidar": ("cameras: {front: /image}", r"lidars names no topic, expected one or more"),
    "list": ("lidars: {top: /points}", r"lidars is \{'top': '/points'\}, expected a list of topics"),
    "table": ("lidars: [/p]\ncameras: [/image]", r"cameras is \['/image'\], expected names of cameras, each with"),
    "text": ("lidars: [/p]\nodometry: [/odom]", r"odometry is \['/odom'\], expected a name"),
    "info": (
        "lidars: [/p]\ncameras: {front: /i}\ncamera_infos: {frnt: /c}",
        r"camera_infos names the camera 'frnt', which cameras does not; did you mean 'front'\?",
    ),
    "yaml": ("lidars: [", r"cannot be read"),
    "text-only": ("points", r"holds 'points', expected names and topics"),
}


@pytest.mark.parametrize("kind", TOPICS_FILES)
def test_a_mistake_in_the_topics_file_is_named(tmp_path: Path, kind: str) -> None:
    text, message = TOPICS_FILES[kind]
    (tmp_path / "topics.yaml").write_text(text)
    with pytest.raises(ShardError, match=rf"topics.yaml.*{message}"):
        read_topics(tmp_path / "topics.yaml")


def test_a_topics_file_may_leave_out_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "topics.yaml").write_text("lidars: /points\ncameras:\ntransforms:\nodometry:\n")
    assert read_topics(tmp_path / "topics.yaml") == LogSettings(lidars=("/points",))
    with pytest.raises(ShardError, match=r"none.yaml: no such file; tandem inspect RECORDING writes one"):
        read_topics(tmp_path / "none.yaml")


# ---- one pass in flat memory
def test_a_window_draws_no_further_than_it_must() -> None:
    """Of an endless recording: each window needs messages of its reach only, and lets go of what is behind."""
    drawn = 0

    def recording() -> Any:
        nonlocal drawn
        while True:
            yield Held(topic="/lidar", written_ns=drawn * 100, stamp_ns=drawn * 100, content=None)
            yield Held(topic="/image", written_ns=drawn * 100 + 30, stamp_ns=drawn * 100, content=None)
            drawn += 1

    written = np.arange(1000) * 100
    for window in windows(recording(), "/lidar", written, range(0, 1000, 7), {"/lidar": 0, "/image": 250}):
        assert drawn - window.number <= 3
        assert len(window.around["/image"]) <= 5
        stamps = [held.stamp_ns // 100 - window.number for held in window.around["/image"]]
        assert stamps == [offset for offset in (-2, -1, 0, 1, 2) if window.number + offset >= 0]
        assert window.sweep is not None
        assert window.sweep.stamp_ns == window.number * 100
        assert window.number == 0 or (window.before is not None and window.before.stamp_ns == window.number * 100 - 100)


def test_messages_of_one_time_are_told_apart_by_their_place(tmp_path: Path) -> None:
    """A recorder that empties its queue writes several sweeps at once."""
    entries = drive(6)
    burst = [
        changed(one, written_ns=T0 + 460 * MS)
        if one.kind == "cloud" and 200 <= (one.stamp_ns - T0) / MS <= 400
        else one
        for one in entries
    ]
    converter = bag(tmp_path, in_order(burst))
    assert [sample.timestamp_us - T0 // 1000 for sample in samples_of(converter)] == [
        number * 100_000 for number in range(6)
    ]
    (third,) = converter.frames("drive", 3, 4)
    assert isinstance(third, Sample)
    assert third.timestamp_us == T0 // 1000 + 300_000


def test_a_refused_set_goes_on_when_the_source_is_repaired(tmp_path: Path) -> None:
    """The folder was begun with a bag whose images were an hour off; the same recording by times of writing is new."""
    wrong = bag(tmp_path, _later("png", -3_600_000)(drive(12)))
    config = PrepareConfig(superpixels=None)
    with pytest.raises(ShardError, match=r"12 of 12 frames cannot be used.*two clocks\?"):
        prepare(wrong, str(tmp_path / "set"), config)
    forget_reader()
    (tmp_path / "drive.bag").unlink()
    right = bag(tmp_path, drive(12))
    summary = prepare(right, str(tmp_path / "set"), config, retry_skipped=True)
    assert len(summary.manifest) == 12
