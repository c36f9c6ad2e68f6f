"""Cut and damaged recordings are read as far as they go, and what is lost is said."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.convert.logs.base import Message
from data.convert.logs.files import ChunkedFile
from data.convert.logs.open import open_recording
from data.storage.shard import ShardError
from tests.helpers.log_files import FORMATS, IMAGE, NUM_IMAGES, NUM_POSES, POSE, START_NS, STEP_NS, image_bytes

CHUNKED = ("ros1", "ros1-bz2", "ros1-lz4", "protobuf", "json", "json-plain", "json-no-index")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The file of each kind of recording."""
    files = {}
    for name, write in FORMATS.items():
        path = write(tmp_path_factory.mktemp(name))
        files[name] = next(path.glob("drive.[dm]*")) if path.is_dir() else path
    return files


def check(messages: Sequence[Message]) -> tuple[int, int]:
    """Each message is whole and at its time, and comes once; number of poses and images."""
    times = [message.written_ns for message in messages]
    assert times == sorted(times)
    seen = set()
    for message in messages:
        if message.topic == POSE:
            number = (message.written_ns - START_NS) // STEP_NS
            assert message.content.pose.position.x == number
        else:
            number = (message.written_ns - START_NS) // (5 * STEP_NS)
            assert bytes(message.content.data) == image_bytes(number)
        seen.add((message.topic, number))
    assert len(seen) == len(messages)
    return sum(topic == POSE for topic, _ in seen), sum(topic == IMAGE for topic, _ in seen)


def read(path: Path) -> tuple[tuple[int, int], list[str]]:
    with open_recording(path) as recording:
        found = check(list(recording.messages(sorted({IMAGE, POSE} & recording.topics.keys()))))
        counted = tuple(recording.topics[topic].count if topic in recording.topics else 0 for topic in (POSE, IMAGE))
        assert counted >= found
        if path.suffix != ".db3":  # whose messages are counted without looking at their contents
            assert counted == found
        return found, recording.problems


@pytest.mark.parametrize("name", [*CHUNKED, "json-no-chunks", "ros2-mcap-messages"])
def test_a_cut_file_is_read_up_to_the_cut(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    data = whole[name].read_bytes()
    path = tmp_path / f"cut{whole[name].suffix}"
    read_before = (0, 0)
    for share in (0.3, 0.5, 0.7, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        found, problems = read(path)
        # Of 60 and 12: one chunk holds some 4 images, and of bz2's all is lost that is not complete.
        assert found[0] >= NUM_POSES * (share - 0.3)
        assert found >= read_before
        assert len(problems) == 1
        assert f"{path} ends early" in problems[0]
        read_before = found
    assert read_before[0] >= 36
    assert read_before[1] >= 8


@pytest.mark.parametrize("name", ["ros1", "json-plain"])
def test_messages_of_the_chunk_that_was_cut_are_read(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    with open_recording(whole[name]) as recording:
        (file,) = recording._files
        assert isinstance(file, ChunkedFile)
        before, inside = (sum(1 for _ in file.load(piece)) for piece in file.pieces[:2])
        second = file.pieces[1].offset
    path = tmp_path / f"cut{whole[name].suffix}"
    path.write_bytes(whole[name].read_bytes()[: second + 12_000])
    found, problems = read(path)
    assert before < sum(found) < before + inside
    assert len(problems) == 1


@pytest.mark.parametrize("name", ["ros1", "protobuf", "json-no-chunks"])
def test_a_file_that_lost_its_index_only_is_read_whole(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    data = whole[name].read_bytes()
    path = tmp_path / f"cut{whole[name].suffix}"
    path.write_bytes(data[:-30])
    found, problems = read(path)
    assert found == (NUM_POSES, NUM_IMAGES)
    assert len(problems) == (1 if name == "ros1" else 0)  # MCAP says where its data end: nothing is lost
    with open_recording(path) as recording:  # and its ranges of time are found by the heads of its chunks
        start = START_NS + 50 * STEP_NS
        assert check(list(recording.messages([POSE], start, start + 3 * STEP_NS))) == (3, 0)
        assert len(recording.times(IMAGE)) == NUM_IMAGES


def active(data: bytes) -> bytes:
    """A bag as a recorder leaves it that was stopped: no index, the last chunk's length not yet written."""
    bag_head = data.index(b"index_pos=") + len(b"index_pos=")
    index_pos = int.from_bytes(data[bag_head : bag_head + 8], "little")
    open_bag = bytearray(data[:bag_head] + bytes(8) + data[bag_head + 8 : index_pos])
    start = open_bag.rindex(b"compression=") - 4  # of the last chunk's first field
    start = min(start, open_bag.rindex(b"op=\x05") - 4, open_bag.rindex(b"size=", 0, start + 200) - 4) - 4
    (head,) = struct.unpack_from("<I", open_bag, start)
    (length,) = struct.unpack_from("<I", open_bag, start + 4 + head)
    struct.pack_into("<I", open_bag, start + 4 + head, 0)
    return bytes(open_bag[: start + 8 + head + length - 500])


def test_a_bag_that_was_not_closed_is_read(whole: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "drive.bag.active"
    path.write_bytes(active(whole["ros1"].read_bytes()))
    found, problems = read(path)
    assert found[0] >= NUM_POSES - 3
    assert found[1] >= NUM_IMAGES - 1
    assert len(problems) == 1
    assert "are no whole records" in problems[0]


@pytest.mark.parametrize("name", ["ros1-bz2", "protobuf", "json", "json-plain", "json-no-index"])
def test_a_damaged_chunk_costs_its_own_messages(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    with open_recording(whole[name]) as recording:
        (file,) = recording._files
        assert isinstance(file, ChunkedFile)
        sizes = [sum(1 for _ in file.load(piece)) for piece in file.pieces]
        second = file.pieces[1]
    path = tmp_path / f"bad{whole[name].suffix}"
    shutil.copy(whole[name], path)
    with path.open("r+b") as bad:
        bad.seek(second.offset + 3000)
        bad.write(bytes(400))
    with open_recording(path) as recording:
        found = check(list(recording.messages([IMAGE, POSE])))
        again = check(list(recording.messages([IMAGE, POSE])))
    assert found == again
    assert sum(sizes) - sizes[1] <= sum(found) < sum(sizes)
    (problem,) = recording.problems  # listed once, though it was met twice
    assert f"{path}: the chunk at byte {second.offset:,}" in problem
    assert "lost" in problem


def test_a_damaged_index_is_not_believed(whole: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(whole["protobuf"].read_bytes())
    data[-200] ^= 1
    path = tmp_path / "index.mcap"
    path.write_bytes(data)
    found, problems = read(path)
    assert found == (NUM_POSES, NUM_IMAGES)
    assert problems == [f"{path}: the index is damaged (its checksum differs); read without it"]


@pytest.mark.parametrize("share", [0.7, 0.9])
@pytest.mark.parametrize("name", ["ros2-sqlite3", "ros2-sqlite3-messages"])
def test_a_cut_database_is_read_up_to_the_cut(name: str, share: float, whole: dict[str, Path], tmp_path: Path) -> None:
    data = whole[name].read_bytes()
    path = tmp_path / "cut.db3"
    path.write_bytes(data[: int(len(data) * share)])
    found, problems = read(path)
    assert found[0] >= NUM_POSES * (share - 0.4)
    assert sum(found) < NUM_POSES + NUM_IMAGES
    assert str(path) in problems[0]
    assert "the file ends at byte" in problems[0] or "malformed" in problems[0]


def test_a_damaged_page_of_a_database_costs_its_messages(whole: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(whole["ros2-sqlite3"].read_bytes())
    leaves = [at for at in range(0, len(data), 4096) if data[at] == 13]  # pages that rows begin in
    page = leaves[-2]
    data[page : page + 4096] = bytes(4096)
    path = tmp_path / "bad.db3"
    path.write_bytes(data)
    with open_recording(path) as recording:
        found = list(recording.messages([IMAGE, POSE]))
    poses, images = check(found)
    assert NUM_POSES > poses >= NUM_POSES - 30
    assert images >= NUM_IMAGES - 6
    assert "is damaged or cut" in recording.problems[0]


def test_a_journal_beside_a_database_is_named(whole: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "drive.db3"
    shutil.copy(whole["ros2-sqlite3"], path)
    (tmp_path / "drive.db3-wal").write_bytes(b"x" * 100)
    found, problems = read(path)
    assert found == (NUM_POSES, NUM_IMAGES)
    assert len(problems) == 1
    assert "drive.db3-wal holds messages" in problems[0]


def test_a_database_without_its_first_page_is_refused(whole: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "cut.db3"
    path.write_bytes(whole["ros2-sqlite3"].read_bytes()[:1000])
    with pytest.raises(ShardError, match=r"cut\.db3 (cannot be read|is no recording)"):
        open_recording(path)


@pytest.mark.parametrize("num_bytes", [8, 13, 20, 60, 4000, 4400])
@pytest.mark.parametrize("name", ["ros1", "ros1-lz4", "protobuf", "json-no-chunks"])
def test_a_file_that_was_hardly_begun_is_opened(
    name: str, num_bytes: int, whole: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "begun"
    path.write_bytes(whole[name].read_bytes()[:num_bytes])
    if name.startswith("ros1") and num_bytes < 13:
        with pytest.raises(ShardError, match="no ROS 1 bag, MCAP file or ROS 2 database: it begins with b'#ROSBAG '"):
            open_recording(path)
        return
    found, problems = read(path)
    assert found[0] <= 4  # the JSON of poses is short
    assert found[1] <= 1
    assert len(problems) == 1


def test_a_channel_that_is_defined_anew_stays_what_it_was(whole: dict[str, Path], tmp_path: Path) -> None:
    """A bag's connections stand in its index and again in its chunks, where one letter of a name is damaged."""
    data = bytearray(whole["ros1"].read_bytes())
    data[data.index(POSE.encode())] ^= 1
    path = tmp_path / "bad.bag"
    path.write_bytes(data)
    found, problems = read(path)
    assert found == (NUM_POSES, NUM_IMAGES)
    (problem,) = problems
    assert "is '/odom/pose', and later '.odom/pose': damaged?" in problem


def test_an_index_beyond_any_file_is_not_looked_for(whole: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(whole["ros1"].read_bytes())
    place = data.index(b"index_pos=") + len(b"index_pos=")
    for wrong in (2**64 - 1, 2**63 - 1, len(data)):
        data[place : place + 8] = wrong.to_bytes(8, "little")
        (tmp_path / "bad.bag").write_bytes(data)
        found, (problem,) = read(tmp_path / "bad.bag")
        assert found == (NUM_POSES, NUM_IMAGES)
        assert "without an index" in problem
