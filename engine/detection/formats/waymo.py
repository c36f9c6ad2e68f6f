"""Waymo's files of objects: the binary `Objects` message that its tools and leaderboard take, and Parquet tables.

Boxes are in the vehicle's frame: centres and sizes in metres, heading about z. A frame's key is the segment's context
name, an underscore and the time in microseconds.

The tables have the columns of the published version 2 (`lidar_box`); for found objects, which that version does not
know, a column `[LiDARBoxComponent].score` beside them.

Source: label.proto, metrics.proto and the v2 component definitions of waymo-open-dataset (released code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf.message import DecodeError
from jaxtyping import Float64, Int64

from common.protobuf_schema import message_classes
from engine.detection.formats.tables import column, frames_of_rows, read_table, united
from engine.detection.frames import FoundObjects, TrueObjects
from engine.scores import JudgeError

TYPES = ("unknown", "vehicle", "pedestrian", "sign", "cyclist")
"""Names of types 0 to 4."""

_MESSAGES = message_classes(
    "tandem.waymo_objects",
    {
        "Box": "center_x=1:double center_y=2:double center_z=3:double width=4:double length=5:double height=6:double "
        "heading=7:double",
        "Label": "box=1:Box type=3:int32 id=4:string detection_difficulty_level=5:int32 "
        "num_lidar_points_in_box=7:int32",
        "Object": "object=1:Label score=2:float overlap_with_nlz=3:bool context_name=4:string "
        "frame_timestamp_micros=5:int64",
        "Objects": "objects=1:Object*",
    },
)
_BOX_FIELDS = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
_PREFIX = "[LiDARBoxComponent]"
_BOX_COLUMNS = (*(f"box.{part}.{axis}" for part in ("center", "size") for axis in "xyz"), "box.heading")
_CONTEXT, _TIME = "key.segment_context_name", "key.frame_timestamp_micros"


@dataclass(frozen=True, kw_only=True)
class _Objects:
    """Objects of a file in its order: `score` of found ones, `points` and `levels` of true ones."""

    keys: list[str]
    boxes: Float64[np.ndarray, "K 7"]
    names: list[str]
    scores: Float64[np.ndarray, " K"]
    points: Int64[np.ndarray, " K"]
    levels: Int64[np.ndarray, " K"]


def frame_key(context: str, timestamp_us: int) -> str:
    """Key of a frame."""
    return f"{context}_{timestamp_us}"


def read_truth(path: Path) -> list[TrueObjects]:
    """Labelled objects: a binary file, a Parquet file, or a folder `lidar_box` of these.

    A number of points that a file does not state is 0, as for the official tool: such objects are not judged.

    Raises:
        JudgeError: there is no such file, or one is not of this form.
    """
    frames = []
    for file in _files(path):
        objects = _read(file, found=False)
        frames += [
            TrueObjects(
                key=key,
                boxes=objects.boxes[rows],
                categories=tuple(objects.names[row] for row in rows),
                num_lidar_points=objects.points[rows],
                difficulties=objects.levels[rows],
            )
            for key, rows in frames_of_rows(objects.keys).items()
        ]
    return frames


def read_found(path: Path) -> list[FoundObjects]:
    """Found objects of a binary or a Parquet file: the frames in which something was found.

    Raises:
        JudgeError: the file is missing or not of this form, or it has objects that are marked as overlapping a zone
            without labels, for which this metric has no rule.
    """
    objects = _read(path, found=True)
    return [
        FoundObjects(
            key=key,
            boxes=objects.boxes[rows],
            scores=objects.scores[rows],
            classes=tuple(objects.names[row] for row in rows),
        )
        for key, rows in frames_of_rows(objects.keys).items()
    ]


def read_pair(predictions: Path, truth: Path) -> tuple[list[TrueObjects], list[FoundObjects]]:
    """Both sides, frame by frame, of all frames that either has; see `read_truth` and `read_found`.

    Raises:
        JudgeError: a file is missing or not of its form, or the two have no frame in common.
    """
    return united(read_truth(truth), read_found(predictions), predictions)


def write_found(path: Path, frames: Sequence[FoundObjects], *, names: Mapping[str, str] | None = None) -> None:
    """Found objects of all frames.

    Args:
        path: `.parquet` for a table, any other name for the binary message; overwritten.
        frames: with keys as of `frame_key`, boxes in the vehicle's frame.
        names: class -> one of `TYPES`, where it is not the same in lower case.

    Raises:
        JudgeError: a key has another form, or a class is no type of Waymo's.
    """
    rows = [row for frame in frames for row in _rows(frame, names or {})]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        _write_table(path, rows)
    else:
        _write_message(path, rows)


_Row = tuple[str, int, int, list[float], float]
"""Context, time, type, box, score."""


def _rows(frame: FoundObjects, names: Mapping[str, str]) -> list[_Row]:
    context, underscore, time = frame.key.rpartition("_")
    if not (underscore and context and time.isascii() and time.isdigit()):
        raise JudgeError(f"frame {frame.key!r}: expected <context>_<timestamp in us> as the key of a Waymo frame")
    rows = []
    for box, name, score in zip(frame.boxes.tolist(), frame.classes, frame.scores.tolist(), strict=True):
        known = names.get(name, name).lower()
        if known not in TYPES:
            raise JudgeError(f"frame {frame.key}: class {name!r} is none of Waymo's types {', '.join(TYPES)}: map it")
        rows.append((context, int(time), TYPES.index(known), box, score))
    return rows


def _write_table(path: Path, rows: Sequence[_Row]) -> None:
    contexts, times, types, boxes, scores = zip(*rows, strict=True) if rows else ((),) * 5
    table = np.array(boxes, dtype=np.float64).reshape(-1, 7)
    columns = {_CONTEXT: pa.array(contexts, pa.string()), _TIME: pa.array(times, pa.int64())}
    columns |= {f"{_PREFIX}.{name}": pa.array(table[:, number]) for number, name in enumerate(_BOX_COLUMNS)}
    columns[f"{_PREFIX}.type"] = pa.array(types, pa.int8())
    columns[f"{_PREFIX}.score"] = pa.array(scores, pa.float64())
    pq.write_table(pa.table(columns), str(path))


def _write_message(path: Path, rows: Sequence[_Row]) -> None:
    message = _MESSAGES["Objects"]()
    for context, time, kind, box, score in rows:
        entry = message.objects.add(context_name=context, frame_timestamp_micros=time, score=score)
        entry.object.type = kind
        for field, value in zip(_BOX_FIELDS, box, strict=True):
            setattr(entry.object.box, field, value)
    path.write_bytes(message.SerializeToString())


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted((path / "lidar_box" if (path / "lidar_box").is_dir() else path).glob("*.parquet"))
    if not files:
        raise JudgeError(f"{path}: no Parquet file in it, nor in its folder lidar_box")
    return files


def _read(file: Path, *, found: bool) -> _Objects:
    return _read_table(file, found=found) if file.suffix == ".parquet" else _read_message(file, found=found)


def _read_table(file: Path, *, found: bool) -> _Objects:
    table = read_table(file, pq.read_table)
    boxes = np.column_stack([column(table, file, f"{_PREFIX}.{name}", np.float64) for name in _BOX_COLUMNS])
    contexts, times = column(table, file, _CONTEXT, None), column(table, file, _TIME, np.int64).tolist()
    types = column(table, file, f"{_PREFIX}.type", np.int64)
    none = np.zeros(len(times), dtype=np.int64)
    points, levels = (f"{_PREFIX}.{name}" for name in ("num_lidar_points_in_box", "difficulty_level.detection"))
    return _Objects(
        keys=[frame_key(*pair) for pair in zip(contexts, times, strict=True)],
        boxes=boxes,
        names=_names(types.tolist(), file),
        scores=column(table, file, f"{_PREFIX}.score", np.float64) if found else none.astype(np.float64),
        points=none if found else column(table, file, points, np.int64, gaps=0),
        levels=none if found else column(table, file, levels, np.int64, gaps=0),
    )


def _read_message(file: Path, *, found: bool) -> _Objects:
    try:
        objects = _MESSAGES["Objects"].FromString(file.read_bytes()).objects
    except (OSError, DecodeError) as error:
        raise JudgeError(f"{file}: cannot be read as an Objects message: {error}") from error
    if found:
        marked = next((number for number, entry in enumerate(objects) if entry.overlap_with_nlz), None)
        if marked is not None:
            raise JudgeError(
                f"{file}: object {marked} has overlap_with_nlz, for which this metric has no rule; write the file "
                "without it: it is not needed for the leaderboard"
            )
    for number, entry in enumerate(objects):
        if isinstance(entry.context_name, bytes):  # what protobuf gives in place of text that is no UTF-8
            raise JudgeError(
                f"{file}: object {number} has the context name {entry.context_name!r:.100}, which is no text"
            )
    labels = [entry.object for entry in objects]
    rows = [[getattr(label.box, field) for field in _BOX_FIELDS] for label in labels]
    return _Objects(
        keys=[frame_key(entry.context_name, entry.frame_timestamp_micros) for entry in objects],
        boxes=np.array(rows, dtype=np.float64).reshape(-1, 7),
        names=_names([label.type for label in labels], file),
        # A score that is not there is 1, the default of the official message.
        scores=np.array([entry.score if entry.HasField("score") else 1.0 for entry in objects], dtype=np.float64),
        points=np.array([label.num_lidar_points_in_box for label in labels], dtype=np.int64),
        levels=np.array([label.detection_difficulty_level for label in labels], dtype=np.int64),
    )


def _names(types: Sequence[int], file: Path) -> list[str]:
    wrong = next((number for number, kind in enumerate(types) if not 0 <= kind < len(TYPES)), None)
    if wrong is not None:
        raise JudgeError(f"{file}: object {wrong} has type {types[wrong]}, expected 0 to {len(TYPES) - 1}")
    return [TYPES[kind] for kind in types]
