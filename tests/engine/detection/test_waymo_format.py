"""Waymo's files of objects, binary and Parquet: what is written is read back, bytes as documented, errors by name."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.detection.formats import waymo
from engine.detection.frames import FoundObjects
from engine.detection.judge import judge
from engine.scores import JudgeError

BOX = [10.0, -2.0, 0.5, 4.2, 1.9, 1.6, 0.3]


def found(key: str = "1005_2", **other) -> FoundObjects:
    boxes = np.array([BOX, [30.0, 1, 0, 0.8, 0.7, 1.8, -3.0]])
    return FoundObjects(
        key=key, boxes=boxes, scores=np.array([0.75, 0.5]), classes=other.pop("classes", ("vehicle", "Pedestrian"))
    )


def truth_message(file: Path, *entries: dict) -> Path:
    """A binary file of labels, written with the schema that is read."""
    message = waymo._MESSAGES["Objects"]()
    for entry in entries:
        added = message.objects.add(context_name=entry.get("context", "1005"), frame_timestamp_micros=entry["time"])
        added.object.type = entry.get("type", 1)
        if "points" in entry:
            added.object.num_lidar_points_in_box = entry["points"]
        if "level" in entry:
            added.object.detection_difficulty_level = entry["level"]
        for field, value in zip(waymo._BOX_FIELDS, BOX, strict=True):
            setattr(added.object.box, field, value)
    file.write_bytes(message.SerializeToString())
    return file


@pytest.mark.parametrize("name", ["found.bin", "found.parquet"])
def test_written_and_read(tmp_path: Path, name: str):
    waymo.write_found(tmp_path / "new" / name, [found(), found("with_underscore_7"), _empty("1005_3")])
    first, second = waymo.read_found(tmp_path / "new" / name)
    assert (first.key, second.key) == ("1005_2", "with_underscore_7")
    assert np.array_equal(first.boxes, found().boxes)
    assert first.scores.tolist() == [0.75, 0.5]
    assert first.classes == ("vehicle", "pedestrian")


def test_bytes_are_those_of_the_documented_message(tmp_path: Path):
    """One object by hand: field numbers and wire types of metrics.proto and label.proto."""
    one = FoundObjects(key="a_5", boxes=np.array([BOX]), scores=np.array([0.5]), classes=("cyclist",))
    waymo.write_found(tmp_path / "one.bin", [one])
    doubles = dict(zip((1, 2, 3, 5, 4, 6, 7), BOX, strict=True))
    box = b"".join(bytes([number << 3 | 1]) + np.float64(doubles[number]).tobytes() for number in sorted(doubles))
    label = b"\x0a" + bytes([len(box)]) + box + b"\x18\x04"
    entry = b"\x0a" + bytes([len(label)]) + label + b"\x15" + np.float32(0.5).tobytes() + b"\x22\x01a" + b"\x28\x05"
    assert (tmp_path / "one.bin").read_bytes() == b"\x0a" + bytes([len(entry)]) + entry


def test_labels_and_predictions_are_judged(tmp_path: Path):
    """A frame that one side alone has is judged; an object without a number of points is dropped."""
    truth = truth_message(tmp_path / "gt.bin", {"time": 2, "points": 9}, {"time": 4, "points": 3}, {"time": 5})
    waymo.write_found(tmp_path / "found.bin", [found(), found("1005_8", classes=("vehicle", "vehicle"))])
    pair = waymo.read_pair(tmp_path / "found.bin", truth)
    assert [frame.key for frame in pair[0]] == ["1005_2", "1005_4", "1005_5", "1005_8"] == [f.key for f in pair[1]]
    scores = judge("waymo", *pair)
    # Above .5 one of the two wrong ones is left.
    assert scores.value("vehicle", "LEVEL_1", "AP") == pytest.approx(1 / 2)
    assert [row.num_true for row in scores.rows[:4]] == [1, 1, 2, 2]


def test_labels_from_the_published_tables(tmp_path: Path):
    columns = {f"[LiDARBoxComponent].{name}": [value] * 2 for name, value in zip(waymo._BOX_COLUMNS, BOX, strict=True)}
    columns |= {"key.segment_context_name": ["1005"] * 2, "key.frame_timestamp_micros": [2, 3]}
    columns |= {"[LiDARBoxComponent].type": [1, 4], "[LiDARBoxComponent].num_lidar_points_in_box": [12, None]}
    columns["[LiDARBoxComponent].difficulty_level.detection"] = pa.array([None, 2], pa.int8())
    (tmp_path / "lidar_box").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "lidar_box" / "1005.parquet")
    first, second = waymo.read_truth(tmp_path)
    assert (first.key, first.categories, first.num_lidar_points.tolist(), first.difficulties.tolist()) == (
        *("1005_2", ("vehicle",), [12], [0]),
    )
    assert (second.categories, second.num_lidar_points.tolist(), second.difficulties.tolist()) == (
        *(("cyclist",), [0], [2]),
    )
    assert first.boxes.tolist() == [BOX]


def test_errors(tmp_path: Path):
    with pytest.raises(JudgeError, match="<context>_<timestamp in us>"):
        waymo.write_found(tmp_path / "x.bin", [found("nothing")])
    with pytest.raises(JudgeError, match="class 'tram' is none of Waymo's types"):
        waymo.write_found(tmp_path / "x.bin", [found(classes=("vehicle", "tram"))])
    waymo.write_found(tmp_path / "x.bin", [found(classes=("vehicle", "tram"))], names={"tram": "sign"})
    with pytest.raises(JudgeError, match=r"nowhere.bin: cannot be read"):
        waymo.read_found(tmp_path / "nowhere.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:-3])
    with pytest.raises(JudgeError, match=r"cut.bin: cannot be read as an Objects message"):
        waymo.read_found(tmp_path / "cut.bin")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(JudgeError, match=r"cut.parquet: cannot be read as a table"):
        waymo.read_found(tmp_path / "cut.parquet")
    pq.write_table(pa.table({"key": [1]}), tmp_path / "other.parquet")
    with pytest.raises(JudgeError, match=r"no column .*box.center.x.*it has key"):
        waymo.read_found(tmp_path / "other.parquet")
    with pytest.raises(JudgeError, match="no Parquet file"):
        waymo.read_truth(_folder(tmp_path))
    with pytest.raises(JudgeError, match="type 9, expected 0 to 4"):
        waymo.read_truth(truth_message(tmp_path / "nine.bin", {"time": 1, "type": 9}))
    with pytest.raises(JudgeError, match="no frame of the predictions is one of the ground truth"):
        waymo.read_pair(tmp_path / "x.bin", truth_message(tmp_path / "gt.bin", {"time": 77, "points": 1}))
    message = waymo._MESSAGES["Objects"]()
    message.objects.add(context_name="a", frame_timestamp_micros=1, overlap_with_nlz=True)
    (tmp_path / "nlz.bin").write_bytes(message.SerializeToString())
    with pytest.raises(JudgeError, match="object 0 has overlap_with_nlz"):
        waymo.read_found(tmp_path / "nlz.bin")


def _empty(key: str) -> FoundObjects:
    return FoundObjects(key=key, boxes=np.zeros((0, 7)), scores=np.zeros(0), classes=())


def _folder(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"
