"""Recordings of every kind hold the same messages; which files belong together, and what is said of others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.convert.logs.base import Message
from data.convert.logs.files import ChunkedFile
from data.convert.logs.open import find_recordings, open_recording
from data.convert.logs.recording import FilesRecording
from data.storage.shard import ShardError
from tests.helpers.log_files import (
    FORMATS,
    IMAGE,
    NUM_IMAGES,
    NUM_POSES,
    POSE,
    ROS1,
    ROS2,
    START_NS,
    STEP_NS,
    image_bytes,
    plan,
    pose,
    ros_entries,
    write_json,
    write_ros1,
    write_ros2,
)

TYPES = {
    "ros": {POSE: "geometry_msgs/msg/PoseStamped", IMAGE: "sensor_msgs/msg/CompressedImage"},
    "foxglove": {POSE: "foxglove.PoseInFrame", IMAGE: "foxglove.CompressedImage"},
}
ENCODINGS = {"ros1": "ros1", "ros2": "cdr", "protobuf": "protobuf", "json": "json"}


@pytest.fixture(scope="module", params=list(FORMATS))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, FORMATS[request.param](tmp_path_factory.mktemp(request.param))


def number_of(message: Message) -> int:
    """Which message of its topic it is, by its content."""
    if message.topic == POSE:
        return int(message.content.pose.position.x)
    data = bytes(message.content.data)
    return next(n for n in range(NUM_IMAGES) if data == image_bytes(n))


def found(messages: list[Message]) -> list[tuple[str, int, int]]:
    return [(message.topic, message.written_ns, number_of(message)) for message in messages]


def by_time(entries: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    return sorted(entries, key=lambda entry: entry[1])


def test_topics_are_counted(written: tuple[str, Path]) -> None:
    name, path = written
    with open_recording(path) as recording:
        assert list(recording.topics) == [IMAGE, POSE]
        pose, image = recording.topics[POSE], recording.topics[IMAGE]
        assert (pose.kind, image.kind) == ("odometry", "camera")
        assert {POSE: pose.type, IMAGE: image.type} == TYPES["ros" if name.startswith("ros") else "foxglove"]
        assert pose.encoding == ENCODINGS[name.partition("-")[0]]
        assert (pose.count, pose.first_ns, pose.last_ns) == (
            NUM_POSES,
            START_NS,
            START_NS + (NUM_POSES - 1) * STEP_NS,
        )
        assert (image.count, image.first_ns) == (NUM_IMAGES, START_NS + 7)
        assert recording.problems == []


def test_messages_come_by_time_with_their_content(written: tuple[str, Path]) -> None:
    with open_recording(written[1]) as recording:
        assert found(list(recording.messages([IMAGE, POSE]))) == by_time(plan())
        assert found(list(recording.messages([IMAGE]))) == [one for one in by_time(plan()) if one[0] == IMAGE]
        assert recording.times(POSE).tolist() == [START_NS + n * STEP_NS for n in range(NUM_POSES)]
        assert recording.problems == []


def test_a_range_of_time_holds_its_start_and_not_its_end(written: tuple[str, Path]) -> None:
    start, stop = START_NS + 20 * STEP_NS, START_NS + 25 * STEP_NS
    expected = [one for one in by_time(plan()) if start <= one[1] < stop]
    assert len(expected) == 6
    with open_recording(written[1]) as recording:
        assert found(list(recording.messages([POSE, IMAGE], start, stop))) == expected
        assert found(list(recording.messages([POSE], stop_ns=START_NS + 1))) == [(POSE, START_NS, 0)]
        assert list(recording.messages([POSE], start_ns=START_NS + 10**12)) == []


@pytest.mark.parametrize("name", ["ros1-lz4", "protobuf", "json-no-chunks"])
def test_a_range_of_time_reads_its_chunks_only(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.convert.logs.mcap_file._BARE_BYTES", 8000)
    with open_recording(FORMATS[name](tmp_path)) as recording:
        (file,) = recording._files
        assert isinstance(file, ChunkedFile)
        loaded: list[int] = []
        load = file.load
        monkeypatch.setattr(file, "load", lambda piece, *rest: loaded.append(piece.offset) or load(piece, *rest))
        start = START_NS + 50 * STEP_NS
        assert len(list(recording.messages([POSE], start, start + STEP_NS))) == 1
        assert 1 <= len(loaded) <= 2 < len(file.pieces)
        sets = {id(piece.channels) for piece in file.pieces}  # equal ones are one: files have millions
        assert len(sets) == len({piece.channels for piece in file.pieces})
        first = next(recording.messages([POSE]))  # lazily: not more than it takes
        assert first.written_ns == START_NS
        assert len(loaded) <= 2 + 2


# ---- files and folders


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_a_folder_needs_no_metadata(storage: str, tmp_path: Path) -> None:
    folder = write_ros2(tmp_path / "drive", ros_entries(ROS2), storage)
    (folder / "metadata.yaml").unlink()
    with open_recording(folder) as recording:
        assert recording.topics[POSE].count == NUM_POSES
        assert recording.problems == []
    (file,) = find_recordings(folder)["drive"]
    with open_recording(file) as recording:
        assert recording.topics[IMAGE].count == NUM_IMAGES


def split(folder: Path, num: int) -> list[Path]:
    """A bag in so many parts; each part's times go a little into the next one's."""
    entries = sorted(ros_entries(ROS1), key=lambda entry: (entry[1] - START_NS) * num // (NUM_POSES * STEP_NS))
    size = -(-len(entries) // num)
    parts = [entries[n * size : (n + 1) * size] for n in range(num)]
    return [write_ros1(folder / f"drive_{n}.bag", part) for n, part in enumerate(parts)]


def test_parts_of_a_split_bag_are_one_recording(tmp_path: Path) -> None:
    parts = split(tmp_path, 12)
    assert find_recordings(tmp_path) == {"drive": tuple(parts)}  # 10 comes after 9
    for source in (tmp_path, parts):
        with open_recording(source) as recording:
            assert recording.paths == tuple(parts)
            assert recording.topics[POSE].count == NUM_POSES
            assert found(list(recording.messages([IMAGE, POSE]))) == by_time(plan())


def test_recordings_in_a_folder_are_told_apart(tmp_path: Path) -> None:
    entries = ros_entries(ROS1)
    for name in ("monday.bag", "tuesday_3.bag", "trip_0.bag", "trip_1.bag", "lab/a.bag"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_ros1(tmp_path / name, entries[:3])
    folder = write_ros2(tmp_path / "ros2", ros_entries(ROS2)[:3])
    names = {name: [path.name for path in paths] for name, paths in find_recordings(tmp_path).items()}
    assert names == {
        "trip": ["trip_0.bag", "trip_1.bag"],
        "monday": ["monday.bag"],
        "tuesday_3": ["tuesday_3.bag"],
        "lab-a": ["a.bag"],
        "ros2": ["ros2.db3"],
    }
    assert list(find_recordings(folder)) == ["ros2"]
    assert find_recordings(tmp_path / "monday.bag") == {"monday": (tmp_path / "monday.bag",)}


def test_a_part_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = write_ros2(tmp_path / "drive", ros_entries(ROS2))
    text = (folder / "metadata.yaml").read_text()
    (folder / "metadata.yaml").write_text(text.replace("- drive.db3", "- drive.db3\n  - drive_1.db3"))
    with open_recording(folder) as recording:
        assert recording.topics[POSE].count == NUM_POSES
        assert recording.problems == [
            f"{folder / 'metadata.yaml'} names drive_1.db3, which is not there: its messages are lost"
        ]


@pytest.mark.parametrize("name", ["ros1", "ros2-sqlite3", "ros2-mcap", "json"])
def test_an_empty_recording_has_no_topics(name: str, tmp_path: Path) -> None:
    if name == "ros1":
        path = write_ros1(tmp_path / "none.bag", [])
    elif name == "json":
        path = write_json(tmp_path / "none.mcap", [])
    else:
        path = write_ros2(tmp_path / "none", [], name.partition("-")[2])
    with open_recording(path) as recording:
        assert dict(recording.topics) == {}
        with pytest.raises(ShardError, match="has no topic '/x'; its topics: none"):
            recording.messages(["/x"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"PK\3\4 a zip", "it begins with b'PK"),
        (b"\x28\xb5\x2f\xfd packed", "unpack it first: unzstd"),
        (b"#ROSBAG V1.2\n", "only ROS bags of format 2.0 are read"),
        (b"SQLite format 3\0" + bytes(84), "cannot be read"),
    ],
    ids=["empty", "zip", "zstd", "old", "no-database"],
)
def test_other_files_are_refused_by_what_they_are(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "drive.bag"
    path.write_bytes(content)
    with pytest.raises(ShardError) as refused:
        open_recording(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_absent_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(ShardError, match=r"looked for .*\.bag.*found a\.jpg"):
        open_recording(tmp_path / "photos")
    with pytest.raises(ShardError, match=r"drive\.bag cannot be opened: No such file"):
        open_recording(tmp_path / "drive.bag")
    with pytest.raises(ShardError, match=r"looked for"):
        find_recordings(tmp_path)


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    import sqlite3

    database = sqlite3.connect(tmp_path / "other.db3")
    database.execute("CREATE TABLE pictures (id INTEGER)")
    database.commit()
    database.close()
    with pytest.raises(ShardError, match="expected tables topics and messages, found pictures"):
        open_recording(tmp_path / "other.db3")


def test_an_unknown_topic_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with open_recording(FORMATS["ros1"](tmp_path)) as recording, pytest.raises(ShardError) as refused:
        recording.messages(["/odom/posse"])
    assert "did you mean '/odom/pose'" in str(refused.value)


# ---- contents


def test_content_that_cannot_be_read_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_recording(FORMATS["json"](tmp_path)) as recording:
        decode = recording._decoder

        def broken(file: Any, channel: Any) -> Any:
            made = decode(file, channel)
            return lambda data: made(data[:-1] if channel.topic == IMAGE else data)

        monkeypatch.setattr(recording, "_decoder", broken)
        assert len(list(recording.messages([IMAGE, POSE]))) == NUM_POSES
        (problem,) = recording.problems
        assert problem.startswith(f"topic {IMAGE}: {NUM_IMAGES} messages cannot be read (JSONDecodeError")


def test_one_topic_has_one_type(tmp_path: Path) -> None:
    other = ros_entries(ROS1)
    other[0] = (IMAGE, START_NS, pose(ROS1, START_NS, 0.0))
    parts = [write_ros1(tmp_path / "a_0.bag", ros_entries(ROS1)), write_ros1(tmp_path / "a_1.bag", other[:1])]
    with open_recording(parts) as recording:
        assert recording.topics[IMAGE].count == NUM_IMAGES
        assert recording.problems == [
            f"topic {IMAGE} also has messages of geometry_msgs/msg/PoseStamped; "
            "only those of sensor_msgs/msg/CompressedImage are read"
        ]


def test_recordings_close_their_files(tmp_path: Path) -> None:
    recording = open_recording(FORMATS["ros1"](tmp_path))
    assert isinstance(recording, FilesRecording)
    recording.close()
    with pytest.raises(ValueError, match="closed file"):
        list(recording.messages([POSE]))


def test_arrays_of_ros_are_numpy(tmp_path: Path) -> None:
    with open_recording(FORMATS["ros2-mcap"](tmp_path)) as recording:
        message = next(recording.messages([IMAGE]))
        assert isinstance(message.content.data, np.ndarray)
        assert message.content.data.dtype == np.uint8
    shutil.rmtree(tmp_path / "drive")
