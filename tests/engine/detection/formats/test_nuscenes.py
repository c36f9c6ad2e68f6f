"""nuScenes' result files: what is written is read again, and what the server would refuse is refused here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.detection.formats.nuscenes import USES, read_results, write_results
from engine.detection.formats.quaternions import yaws_of
from engine.detection.frames import FoundObjects
from engine.scores import JudgeError
from tests.helpers.nuscenes_scenes import scene

META = dict.fromkeys(USES, False) | {"use_lidar": True}
BOX: dict[str, Any] = {
    "sample_token": "a",
    "translation": [1.0, 2.0, 3.0],
    "size": [2.0, 4.0, 1.5],
    "rotation": [1.0, 0.0, 0.0, 1.0],
    "velocity": [0.5, -0.5],
    "detection_name": "car",
    "detection_score": 1,
    "attribute_name": "vehicle.parked",
}


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    return path


def test_a_box_is_read(tmp_path: Path) -> None:
    """Size is width, length, height there; a quarter turn whose quaternion has the length of sqrt 2."""
    (frame, empty), meta = read_results(written(tmp_path, {"meta": META, "results": {"a": [BOX], "b": []}}))
    assert meta == META
    np.testing.assert_allclose(frame.boxes, [[1, 2, 3, 4, 2, 1.5, np.pi / 2]])
    assert (frame.key, frame.classes, frame.attributes) == ("a", ("car",), ("vehicle.parked",))
    assert frame.scores.tolist() == [1.0]
    assert frame.velocities_mps is not None
    assert frame.velocities_mps.tolist() == [[0.5, -0.5]]
    assert (empty.key, len(empty), empty.boxes.shape) == ("b", 0, (0, 7))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    found = [frame for _, frame in scene(0, frames=3, num_true=8, num_found=12)]
    write_results(tmp_path / "results.json", found, META)
    again, meta = read_results(tmp_path / "results.json")
    assert meta == META
    for before, after in zip(found, again, strict=True):
        assert (before.key, before.classes, before.attributes) == (after.key, after.classes, after.attributes)
        np.testing.assert_array_equal(before.boxes[:, :6], after.boxes[:, :6])
        np.testing.assert_allclose(np.exp(1j * before.boxes[:, 6]), np.exp(1j * after.boxes[:, 6]), atol=1e-12)
        np.testing.assert_array_equal(before.scores, after.scores)
        np.testing.assert_array_equal(before.velocities_mps, after.velocities_mps)


def test_unknown_velocities_survive(tmp_path: Path) -> None:
    record = BOX | {"velocity": [float("nan")] * 2}
    (frame,), _ = read_results(written(tmp_path, {"meta": META, "results": {"a": [record]}}))
    assert frame.velocities_mps is not None
    assert np.isnan(frame.velocities_mps).all()


def test_heading_of_a_tilted_box() -> None:
    """Turned by 0.3 about z after a tilt of 0.2 about y: the x axis still points along 0.3."""
    about_z, about_y = np.array([np.cos(0.15), np.sin(0.15)]), np.array([np.cos(0.1), np.sin(0.1)])
    tilted = [about_z[0] * about_y[0], -about_z[1] * about_y[1], about_z[0] * about_y[1], about_z[1] * about_y[0]]
    assert yaws_of(np.array([tilted]))[0] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sample_token", "b", "sample_token is 'b', expected that of the list"),
        ("translation", [1.0, 2.0], r"translation is \[1.0, 2.0\], expected 3 numbers"),
        ("translation", [1.0, 2.0, float("nan")], "expected finite numbers"),
        ("translation", [1.0, 2.0, True], "expected 3 numbers"),
        ("size", [0.0, 1.0, 1.0], "expected width, length and height above 0"),
        ("rotation", [0, 0, 0, 0], "expected a quaternion"),
        ("velocity", None, "velocity is None, expected 2 numbers"),
        ("detection_name", "van", "detection_name is 'van', expected one of barrier, bicycle"),
        ("detection_name", ["car"], r"detection_name is \['car'\]"),
        ("attribute_name", "parked", "attribute_name is 'parked', expected one of \"\", cycle"),
        ("detection_score", -0.1, "detection_score is -0.1, expected a number of 0 or more"),
        ("detection_score", float("nan"), "detection_score is nan, expected a number"),
        ("detection_score", 10**400, "detection_score is 10+, expected a number"),
        ("translation", [10**400, 0, 0], "translation is .10+, expected finite numbers"),
        ("detection_score", "0.5", "detection_score is '0.5', expected a number"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_what_is_malformed_is_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    content = {"meta": META, "results": {"a": [copy.deepcopy(BOX), BOX | {field: value}]}}
    with pytest.raises(JudgeError, match=rf"box 1 of sample a: .*{message}"):
        read_results(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], 'no object "results"'),
        ({"results": []}, 'no object "results"'),
        ({"results": {}}, 'no object "meta"'),
        ({"meta": {}, "results": {"a": {}}}, "results of sample a are dict, expected a list"),
        ({"meta": {}, "results": {"a": [1]}}, "box 0 of sample a is int, expected an object"),
        ({"meta": {}, "results": {"a": [BOX] * 501}}, "501 boxes of sample a, at most 500"),
    ],
    ids=["a list", "results are a list", "no meta", "no list", "no object", "too many"],
)
def test_another_layout_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        read_results(written(tmp_path, content))


def test_no_json_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(data)
        with pytest.raises(JudgeError, match="is no JSON file"):
            read_results(tmp_path / "x.json")


def test_what_may_not_be_submitted_is_not_written(tmp_path: Path) -> None:
    (_, frame), *_ = scene(0, frames=1, num_true=3, num_found=4)
    path = tmp_path / "results.json"
    with pytest.raises(JudgeError, match="meta data of nuScenes results: got use_lidar, expected use_camera"):
        write_results(path, [frame], {"use_lidar": True})
    with pytest.raises(JudgeError, match="is found twice"):
        write_results(path, [frame, frame], META)
    wrong = FoundObjects(
        key="a",
        boxes=np.array([[0, 0, 0, 1, 0, 1, 0.0]]),
        scores=np.ones(1),
        classes=("car",),
        velocities_mps=np.zeros((1, 2)),
        attributes=("",),
    )
    with pytest.raises(JudgeError, match="found object 0 of frame a: size is"):
        write_results(path, [wrong], META)
    assert not path.exists()


@pytest.mark.parametrize("length", [1e-200, 1.0, 1e200], ids=["short", "unit", "long"])
def test_headings_do_not_depend_on_a_quaternions_length(length: float) -> None:
    """A quarter turn; its products would leave the range of a double."""
    half = np.sqrt(0.5) * length
    yaws = yaws_of(np.array([[half, 0, 0, half], [0, 0, 0, 0]]))
    assert yaws[0] == pytest.approx(np.pi / 2)
    assert np.isnan(yaws[1])
