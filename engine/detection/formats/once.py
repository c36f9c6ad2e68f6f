"""ONCE's annotations and results.

Annotations are the sequences' own files, `<sequence>.json`. Results are one JSON file: a list of frames, each with
`frame_id`, `name` (classes), `boxes_3d` (centre, length, width, height, heading; in ONCE's LiDAR frame, x to the left,
y to the back) and `score`, as ONCE's benchmark code keeps them. Frames are told apart by their `frame_id`.

Source: documentation and development kit of ONCE (Mao et al., NeurIPS 2021 datasets track).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from common.nearby import nearest
from engine.detection.frames import FoundObjects, TrueObjects
from engine.scores import JudgeError

CLASSES = ("Car", "Truck", "Bus", "Pedestrian", "Cyclist")
"""That are labelled, and may be found."""


def read_truth(path: Path, keys: Sequence[str] | None = None) -> list[TrueObjects]:
    """Annotated frames.

    Args:
        path: a sequence's file, or a folder: all `<sequence>/<sequence>.json` in it, in order.
        keys: `frame_id`s that are wanted; None: all annotated ones.

    Raises:
        JudgeError: nothing is there, a frame is missing or has another form.
    """
    files = sorted(path.glob("*/*.json")) + sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise JudgeError(f"{path}: no <sequence>/<sequence>.json there; expected ONCE's folder data, or one such file")
    frames = {frame.key: frame for file in files for frame in _annotated(file)}
    if keys is None:
        return list(frames.values())
    missing = [key for key in keys if key not in frames]
    if missing:
        raise JudgeError(f"frame {missing[0]} has no annotation in {path} ({len(missing)} of {len(keys)} have none)")
    return [frames[key] for key in keys]


def read_found(path: Path, keys: Iterable[str]) -> list[FoundObjects]:
    """Results of the frames that are judged; others in the file are passed over.

    Args:
        path: the JSON file.
        keys: `frame_id`s.

    Raises:
        JudgeError: a frame is missing, twice there or has another form.
    """
    content = _json(path)
    if not isinstance(content, list):
        raise JudgeError(f"{path}: expected a list of frames, got {type(content).__name__}")
    frames: dict[str, FoundObjects] = {}
    for number, entry in enumerate(content):
        where = f"{path}, entry {number}"
        key = _frame_id(entry, where)
        if key in frames:
            raise JudgeError(f"{where}: frame {key} is there twice")
        names = _names(entry, "name", where)
        frames[key] = FoundObjects(
            key=key,
            classes=names,
            boxes=_rows(entry, "boxes_3d", (len(names), 7), where),
            scores=_rows(entry, "score", (len(names),), where),
        )
    wanted = list(keys)
    missing = [key for key in wanted if key not in frames]
    if missing:
        raise JudgeError(
            f"frame {missing[0]} has no predictions in {path} ({len(missing)} of {len(wanted)} have none); a frame in "
            "which nothing was found needs an entry with empty lists"
        )
    return [frames[key] for key in wanted]


def write_found(path: Path, frames: Iterable[FoundObjects], *, names: Mapping[str, str] | None = None) -> None:
    """Write results.

    Args:
        path: the JSON file; its folder is made.
        frames: boxes in our LiDAR frame (x forward, y left); keys are `frame_id`s, or those of a prepared set
            (`<sequence>_<frame_id>`).
        names: class -> ONCE's name, where it is not the same.
    """
    entries = [
        {
            "frame_id": frame.key.rpartition("_")[2],
            "name": [(names or {}).get(name, name) for name in frame.classes],
            "boxes_3d": once_boxes(frame.boxes).tolist(),
            "score": frame.scores.tolist(),
        }
        for frame in frames
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")


def once_boxes(boxes: Float64[np.ndarray, "K 7"]) -> Float64[np.ndarray, "K 7"]:
    """Boxes of our LiDAR frame in ONCE's, whose axes are turned by 90 degrees."""
    heading = boxes[:, 6] - np.pi / 2
    wrapped = np.arctan2(np.sin(heading), np.cos(heading))
    return np.column_stack([boxes[:, 1], -boxes[:, 0], boxes[:, 2:6], wrapped])


def _annotated(file: Path) -> list[TrueObjects]:
    content = _json(file)
    entries = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise JudgeError(f"{file}: expected an object with a list `frames`, as ONCE's <sequence>.json has it")
    frames = []
    for number, entry in enumerate(entries):
        where = f"{file}, frame {number}"
        key = _frame_id(entry, where)
        if "annos" in entry:
            names = _names(entry["annos"], "names", where)
            boxes = _rows(entry["annos"], "boxes_3d", (len(names), 7), where)
            frames.append(TrueObjects(key=key, categories=names, boxes=boxes))
    return frames


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise JudgeError(f"{path}: no JSON: {error}") from error


def _frame_id(entry: Any, where: str) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("frame_id"), (str, int)):
        raise JudgeError(f"{where}: expected an object with a frame_id, got {entry!r:.100}")
    return str(entry["frame_id"])


def _names(entry: Any, field: str, where: str) -> tuple[str, ...]:
    names = entry.get(field) if isinstance(entry, dict) else None
    if not isinstance(names, list):
        raise JudgeError(f"{where}: {field}: expected a list of classes, got {names!r:.100}")
    wrong = next((name for name in names if name not in CLASSES), None)
    if wrong is not None:
        near = nearest(wrong, CLASSES) if isinstance(wrong, str) else ""
        raise JudgeError(f"{where}: unknown class {wrong!r}{near}; expected one of {', '.join(CLASSES)}")
    return tuple(names)


def _rows(entry: Mapping[str, Any], field: str, shape: tuple[int, ...], where: str) -> Float64[np.ndarray, "..."]:
    try:
        values = np.array(entry[field], dtype=np.float64)
        if values.size == 0:  # [] for no object
            values = values.reshape(shape)
        if values.shape != shape:
            raise ValueError(f"got {values.shape}")
        return values
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise JudgeError(f"{where}: {field}: expected numbers of shape {shape}, one row an object ({error})") from error
