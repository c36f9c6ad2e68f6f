"""Argoverse 2's feather tables: what is written is read back, quaternions of any turn, errors by name."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest

from engine.detection.formats import argoverse2
from engine.detection.frames import FoundObjects
from engine.detection.judge import judge
from engine.scores import JudgeError

COLUMNS = ["tx_m", "ty_m", "tz_m", "length_m", "width_m", "height_m", "qw", "qx", "qy", "qz"]
YAWS = [0.0, 1.0, -2.5, math.pi, 3.0]


def found(key: str = "log-a/315968193659921000", name: str = "BUS") -> FoundObjects:
    boxes = np.array([[10.0 * number, 1, 2, 4, 2, 1.5, yaw] for number, yaw in enumerate(YAWS)])
    scores = np.linspace(0.9, 0.1, len(YAWS))
    return FoundObjects(key=key, boxes=boxes, scores=scores, classes=(name,) * len(YAWS))


def annotations(file: Path, times: list[int], **other: list) -> Path:
    """Labels where `found` has its first objects."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = found().boxes[: len(times)]
    half = rows[:, 6] / 2
    values = [*rows[:, :6].T, np.cos(half), 0 * half, 0 * half, np.sin(half)]
    table = dict(zip(COLUMNS, values, strict=True)) | {
        "timestamp_ns": times,
        "category": ["BUS"] * len(times),
        "num_interior_pts": [7] * len(times),
    }
    pa.feather.write_feather(pa.table(table | other), str(file))
    return file


def test_written_and_read(tmp_path: Path):
    file = tmp_path / "new" / "found.feather"
    argoverse2.write_found(file, [found(name="bus"), found("log/b/2", "DOG")], names={"bus": "BUS"})
    first, second = argoverse2.read_found(file)
    assert (first.key, second.key) == ("log-a/315968193659921000", "log/b/2")
    assert (first.classes[0], second.classes[0]) == ("BUS", "DOG")
    assert np.allclose(first.boxes, found().boxes, rtol=0, atol=1e-12)
    assert np.array_equal(first.scores, found().scores)
    table = pa.feather.read_table(str(file))
    assert table.column_names == [*COLUMNS, "score", "log_id", "timestamp_ns", "category"]
    assert table.schema.field("timestamp_ns").type == pa.int64()
    norms = sum(table.column(name).to_numpy() ** 2 for name in ("qw", "qx", "qy", "qz"))
    assert np.allclose(norms, 1)


def test_heading_of_a_tilted_or_scaled_quaternion(tmp_path: Path):
    """Turned by 40 degrees, pitched a little before, and twice as long: the direction of +x in the plane."""
    turn, pitch = math.radians(40) / 2, 0.05
    qw, qx, qy, qz = (
        math.cos(turn) * math.cos(pitch),
        -math.sin(turn) * math.sin(pitch),
        math.cos(turn) * math.sin(pitch),
        math.sin(turn) * math.cos(pitch),
    )
    file = annotations(
        tmp_path / "log" / "annotations.feather", [1], qw=[2 * qw], qx=[2 * qx], qy=[2 * qy], qz=[2 * qz]
    )
    (frame,) = argoverse2.read_truth(file)
    assert frame.boxes[0, 6] == pytest.approx(math.radians(40))


def test_split_of_logs_is_judged(tmp_path: Path):
    """A frame that one side alone has is judged."""
    annotations(tmp_path / "val" / "log-a" / "annotations.feather", [1, 1])
    annotations(tmp_path / "val" / "log-b" / "annotations.feather", [5])
    argoverse2.write_found(tmp_path / "found.feather", [found("log-a/1"), found("log-a/9")])
    truth, predictions = argoverse2.read_pair(tmp_path / "found.feather", tmp_path / "val")
    assert [frame.key for frame in truth] == ["log-a/1", "log-b/5", "log-a/9"] == [frame.key for frame in predictions]
    assert truth[0].num_lidar_points.tolist() == [7, 7]
    assert 0 < judge("argoverse2", truth, predictions).value("BUS", "", "AP") < 1


def test_errors(tmp_path: Path):
    with pytest.raises(JudgeError, match="<log>/<timestamp in ns>"):
        argoverse2.write_found(tmp_path / "x.feather", [found("log")])
    with pytest.raises(JudgeError, match=r"no folder of <log>/annotations.feather"):
        argoverse2.read_truth(tmp_path)
    with pytest.raises(JudgeError, match=r"nowhere.feather: cannot be read"):
        argoverse2.read_found(tmp_path / "nowhere.feather")
    file = annotations(tmp_path / "log" / "annotations.feather", [1])
    with pytest.raises(JudgeError, match="no column 'score'"):
        argoverse2.read_found(file)
    gap = annotations(tmp_path / "gap" / "annotations.feather", [1], tx_m=pa.array([None], pa.float64()))
    with pytest.raises(JudgeError, match="column 'tx_m' has 1 gaps"):
        argoverse2.read_truth(gap)
    words = annotations(tmp_path / "words" / "annotations.feather", [1], tx_m=["far"])
    with pytest.raises(JudgeError, match="column 'tx_m' holds string, expected float64"):
        argoverse2.read_truth(words)
    argoverse2.write_found(tmp_path / "found.feather", [found("log/2")])
    with pytest.raises(JudgeError, match="no frame of the predictions is one of the ground truth: log/2"):
        argoverse2.read_pair(tmp_path / "found.feather", file)
