import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.detection.formats.once import once_boxes, read_found, read_truth, write_found
from engine.detection.frames import FoundObjects
from engine.detection.judge import judge
from engine.scores import JudgeError

BOX = [1.0, 2.0, -0.5, 4.0, 1.8, 1.5, 0.3]


def _sequence(folder: Path, frames: list[dict[str, Any]]) -> Path:
    (folder / "000027").mkdir(parents=True)
    path = folder / "000027" / "000027.json"
    path.write_text(json.dumps({"meta_info": {}, "calib": {}, "frames": frames}))
    return folder


def _annotated(frame_id: str = "1616100800400") -> dict[str, Any]:
    return {"frame_id": frame_id, "annos": {"names": ["Car", "Cyclist"], "boxes_3d": [BOX, BOX], "boxes_2d": {}}}


def _results(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    return path


def test_annotated_frames_are_read_and_others_passed_over(tmp_path: Path) -> None:
    folder = _sequence(tmp_path, [{"frame_id": "1616100800000"}, _annotated(), _annotated("1616100801400")])
    frames = read_truth(folder)
    assert [frame.key for frame in frames] == ["1616100800400", "1616100801400"]
    assert frames[0].categories == ("Car", "Cyclist")
    assert frames[0].boxes.tolist() == [BOX, BOX]
    assert [frame.key for frame in read_truth(folder / "000027" / "000027.json", ["1616100801400"])] == [
        "1616100801400"
    ]
    with pytest.raises(JudgeError, match=r"frame 7 has no annotation in .* \(1 of 1 have none\)"):
        read_truth(folder, ["7"])


def test_what_is_written_is_read_in_onces_frame_and_judged(tmp_path: Path) -> None:
    """Our box 2 m ahead and 1 m to the right, heading left: in ONCE's frame x is left and y is back."""
    ours = np.array([[2.0, -1.0, -0.5, 4.0, 1.8, 1.5, np.pi / 2 + 0.3], [0, 0, 0, 1, 1, 1, -np.pi]])
    frame = FoundObjects(key="000027_5", boxes=ours, scores=np.array([0.25, 1 / 3]), classes=("car", "Cyclist"))
    write_found(tmp_path / "out" / "results.json", [frame], names={"car": "Car"})
    (back,) = read_found(tmp_path / "out" / "results.json", ["5"])
    assert back.boxes[0] == pytest.approx([-1, -2, -0.5, 4, 1.8, 1.5, 0.3])
    assert back.boxes[1, 6] == pytest.approx(np.pi / 2)
    assert back.classes == ("Car", "Cyclist")
    assert back.scores.tolist() == frame.scores.tolist()
    assert once_boxes(np.zeros((0, 7))).shape == (0, 7)

    labels = {"frame_id": "5", "annos": {"names": ["Car"], "boxes_3d": back.boxes[:1].tolist()}}
    scores = judge("once", read_truth(_sequence(tmp_path / "data", [labels])), [back])
    assert scores.value("Vehicle", "0-30m", "AP") == pytest.approx(100)


def test_empty_lists_are_a_frame_without_objects(tmp_path: Path) -> None:
    path = _results(tmp_path, [{"frame_id": 5, "name": [], "boxes_3d": [], "score": []}])
    assert len(read_found(path, ["5"])[0]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list of frames, got dict"),
        ([{"name": []}], r"entry 0: expected an object with a frame_id, got \{'name': \[\]\}"),
        ([{"frame_id": "5", "name": ["car"], "boxes_3d": [BOX], "score": [0.5]}], "unknown class 'car'.*did you mean"),
        (
            [{"frame_id": "5", "name": ["Car"], "boxes_3d": [BOX[:6]], "score": [0.5]}],
            "boxes_3d: expected numbers",
        ),
        ([{"frame_id": "5", "name": ["Car"], "boxes_3d": [BOX]}], "entry 0: score: expected numbers"),
        ([{"frame_id": "5", "name": ["Car"], "boxes_3d": [BOX], "score": []}], "score: expected numbers"),
        ([{"frame_id": "5", "name": ["Car"], "boxes_3d": [BOX], "score": [10**400]}], "score: expected numbers"),
        ([{"frame_id": "5", "name": "Car", "boxes_3d": [BOX], "score": [1]}], "name: expected a list of classes"),
        ([{"frame_id": "6", "name": [], "boxes_3d": [], "score": []}], "frame 5 has no predictions in .*empty lists"),
        ([{"frame_id": "5", "name": [], "boxes_3d": [], "score": []}] * 2, "entry 1: frame 5 is there twice"),
    ],
    ids=["no list", "no id", "class", "box", "no scores", "few scores", "huge score", "names", "missing", "twice"],
)
def test_malformed_results_are_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        read_found(_results(tmp_path, content), ["5"])


def test_malformed_annotations_are_named(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="expected ONCE's folder data, or one such file"):
        read_truth(tmp_path)
    path = _results(tmp_path, [])
    with pytest.raises(JudgeError, match="expected an object with a list `frames`"):
        read_truth(path)
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(JudgeError, match="no JSON"):
            read_truth(path)
