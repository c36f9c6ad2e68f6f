"""nuScenes' file of detection results (JSON), as its evaluation server takes it.

{"meta": {"use_camera": bool, "use_lidar": bool, "use_radar": bool, "use_map": bool, "use_external": bool},
 "results": {sample token: [{"sample_token", "translation": [x, y, z], "size": [width, length, height],
                             "rotation": [w, x, y, z], "velocity": [vx, vy], "detection_name", "detection_score",
                             "attribute_name"}, ...]}}

In the world's frame: metres, metres a second, quaternions; every sample of the split is there, if only with [].

Source: nuscenes-devkit 1.2.0 (released code), eval/detection/README.md and data_classes.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from common.files import replace_file
from engine.detection.formats.quaternions import yaws_of
from engine.detection.frames import FoundObjects, needed
from engine.detection.nuscenes_rules import ATTRIBUTES, NuscenesSettings
from engine.scores import JudgeError

USES = ("use_camera", "use_lidar", "use_radar", "use_map", "use_external")
"""What the meta data must say of a detector's input."""

_NUMBERS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}
_ATTRIBUTE_NAMES = frozenset(name for names in ATTRIBUTES.values() for name in names) | {""}


def read_results(path: Path) -> tuple[list[FoundObjects], dict[str, Any]]:
    """Found objects of each sample, in the file's order, and the meta data.

    Raises:
        JudgeError: the file is not of this format; says where and what was expected.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise JudgeError(f"{path} is no JSON file ({error}); expected nuScenes' detection results") from error
    for key in ("results", "meta"):
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise JudgeError(f'{path} has no object "{key}": expected {{"meta": {{...}}, "results": {{...}}}}')
    found = [_frame(path, token, records) for token, records in content["results"].items()]
    return found, content["meta"]


def _frame(path: Path, token: str, records: object) -> FoundObjects:
    if not isinstance(records, list):
        raise JudgeError(f"{path}: results of sample {token} are {type(records).__name__}, expected a list of boxes")
    limit = NuscenesSettings().max_boxes
    if len(records) > limit:
        raise JudgeError(f"{path}: {len(records)} boxes of sample {token}, at most {limit} are allowed")
    rows = [_row(record, token, f"{path}: box {number} of sample {token}") for number, record in enumerate(records)]
    values = np.array(rows, dtype=np.float64).reshape(-1, 13)
    return FoundObjects(
        key=token,
        boxes=np.column_stack([values[:, :3], values[:, [4, 3, 5]], yaws_of(values[:, 6:10])]),
        scores=values[:, 12],
        classes=tuple(record["detection_name"] for record in records),
        velocities_mps=values[:, 10:12],
        attributes=tuple(record["attribute_name"] for record in records),
    )


def _row(record: object, token: str, where: str) -> list[float]:
    """Numbers of a box, checked: place, size, rotation, velocity, score."""
    if not isinstance(record, dict):
        raise JudgeError(f"{where} is {type(record).__name__}, expected an object")
    if record.get("sample_token") != token:
        raise JudgeError(f"{where}: sample_token is {record.get('sample_token')!r}, expected that of the list")
    row: list[float] = []
    for name, count in _NUMBERS.items():
        row += _numbers(record, name, count, where)
    for name, known in (("detection_name", ATTRIBUTES), ("attribute_name", _ATTRIBUTE_NAMES)):
        value = record.get(name)
        if not isinstance(value, str) or value not in known:
            expected = ", ".join(entry or '""' for entry in sorted(known))
            raise JudgeError(f"{where}: {name} is {value!r}, expected one of {expected}")
    given = record.get("detection_score")
    score = _number(given) if _is_number(given) else math.nan
    if not 0 <= score < math.inf:
        raise JudgeError(f"{where}: detection_score is {given!r:.100}, expected a number of 0 or more")
    return [*row, score]


def _numbers(record: Mapping[str, Any], name: str, count: int, where: str) -> list[float]:
    values = record.get(name)
    fits = isinstance(values, list) and len(values) == count and all(_is_number(value) for value in values)
    if not fits:
        raise JudgeError(f"{where}: {name} is {values!r:.100}, expected {count} numbers")
    assert isinstance(values, list)
    row = [_number(value) for value in values]
    # A velocity may be unknown; the official tool skips it.
    if name != "velocity" and not all(map(math.isfinite, row)):
        raise JudgeError(f"{where}: {name} is {values!r:.100}, expected finite numbers")
    if name == "size" and min(row) <= 0:
        raise JudgeError(f"{where}: size is {values!r:.100}, expected width, length and height above 0")
    if name == "rotation" and not any(row):
        raise JudgeError(f"{where}: rotation is {values!r:.100}, expected a quaternion w, x, y, z")
    return row


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: int | float) -> float:
    """Whole numbers of JSON have no limit: what no float can hold is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value > 0 or -1)


def write_results(path: Path, found: Sequence[FoundObjects], uses: Mapping[str, bool]) -> None:
    """Write found objects, boxes in the world's frame.

    Args:
        path: is replaced as a whole.
        found: of every sample of the split, keyed by its token.
        uses: each of `USES`: what the detector was given.

    Raises:
        JudgeError: `uses` or objects are not what the format asks for.
    """
    if set(uses) != set(USES):
        raise JudgeError(f"meta data of nuScenes results: got {', '.join(sorted(uses))}, expected {', '.join(USES)}")
    limit = NuscenesSettings().max_boxes
    results: dict[str, list[dict[str, Any]]] = {}
    for frame in found:
        if frame.key in results:
            raise JudgeError(f"frame {frame.key} is found twice; each sample's objects must be in one place")
        results[frame.key] = _records(frame)
        for number, record in enumerate(results[frame.key]):
            _row(record, frame.key, f"found object {number} of frame {frame.key}")
        if len(frame) > limit:
            raise JudgeError(
                f"frame {frame.key}: {len(frame)} found objects, nuScenes takes {limit} at most; keep those with the "
                "highest scores"
            )
    replace_file(path, json.dumps({"meta": dict(uses), "results": results}).encode())


def _records(frame: FoundObjects) -> list[dict[str, Any]]:
    velocities = needed(frame.velocities_mps, "velocities_mps", frame, "nuScenes").tolist()
    attributes = needed(frame.attributes, "attributes", frame, "nuScenes")
    return [
        {
            "sample_token": frame.key,
            "translation": [x, y, z],
            "size": [width, length, height],
            "rotation": [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)],
            "velocity": velocity,
            "detection_name": name,
            "detection_score": score,
            "attribute_name": attribute,
        }
        for (x, y, z, length, width, height, yaw), velocity, name, score, attribute in zip(
            frame.boxes.tolist(), velocities, frame.classes, frame.scores.tolist(), attributes, strict=True
        )
    ]
