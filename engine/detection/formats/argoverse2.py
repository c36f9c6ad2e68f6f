"""Argoverse 2's feather tables of found objects and of annotations, one row an object.

Columns: tx_m, ty_m, tz_m of the centre, length_m, width_m, height_m, the heading as a quaternion qw, qx, qy, qz, all in
the vehicle's frame; log_id, timestamp_ns, category; and score in found objects, num_interior_pts in annotations. A
frame's key is the log and the time, as in `<log>/315968193659921000`.

Source: the submission format of av2 (released code), evaluation/detection/SUBMISSION_FORMAT.md; the user guide's table
of annotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
from jaxtyping import Float64

from engine.detection.formats.quaternions import yaws_of
from engine.detection.formats.tables import column, frames_of_rows, read_table, united
from engine.detection.frames import FoundObjects, TrueObjects
from engine.scores import JudgeError

_CENTER = ("tx_m", "ty_m", "tz_m")
_SIZE = ("length_m", "width_m", "height_m")
_QUATERNION = ("qw", "qx", "qy", "qz")
_NUMBERS = (*_CENTER, *_SIZE, *_QUATERNION)


def frame_key(log: str, timestamp_ns: int) -> str:
    """Key of a frame."""
    return f"{log}/{timestamp_ns}"


def read_truth(path: Path) -> list[TrueObjects]:
    """Annotations of a split: one file, or a folder of logs with `annotations.feather` each.

    Raises:
        JudgeError: there is no file, or one is not of this form.
    """
    files = [path] if path.is_file() else sorted(path.glob("*/annotations.feather"))
    if not files:
        raise JudgeError(f"{path}: no file, and no folder of <log>/annotations.feather")
    return [frame for file in files for frame in _truth(file)]


def _truth(file: Path) -> list[TrueObjects]:
    table = read_table(file, pa.feather.read_table)
    # A log's own file does not repeat the log's name.
    log = None if "log_id" in table.column_names else file.parent.name
    boxes, names, points = _boxes(table, file), _names(table, file), column(table, file, "num_interior_pts", np.int64)
    return [
        TrueObjects(
            key=key,
            boxes=boxes[rows],
            categories=tuple(names[row] for row in rows),
            num_lidar_points=points[rows],
        )
        for key, rows in frames_of_rows(_keys(table, file, log)).items()
    ]


def read_found(file: Path) -> list[FoundObjects]:
    """Found objects of a submission: the frames in which something was found.

    Raises:
        JudgeError: the file is missing or not of this form.
    """
    table = read_table(file, pa.feather.read_table)
    boxes, names, scores = _boxes(table, file), _names(table, file), column(table, file, "score", np.float64)
    return [
        FoundObjects(key=key, boxes=boxes[rows], scores=scores[rows], classes=tuple(names[row] for row in rows))
        for key, rows in frames_of_rows(_keys(table, file, None)).items()
    ]


def read_pair(predictions: Path, truth: Path) -> tuple[list[TrueObjects], list[FoundObjects]]:
    """Both sides, frame by frame, of all frames that either has; see `read_truth` and `read_found`.

    Raises:
        JudgeError: a file is missing or not of its form, or the two have no frame in common.
    """
    return united(read_truth(truth), read_found(predictions), predictions)


def write_found(file: Path, frames: Sequence[FoundObjects], *, names: Mapping[str, str] | None = None) -> None:
    """A submission.

    Args:
        file: feather, overwritten.
        frames: with keys as of `frame_key`, boxes in the vehicle's frame.
        names: class -> Argoverse 2's name, where it is not the same.

    Raises:
        JudgeError: a key has another form.
    """
    renamed = names or {}
    boxes = np.concatenate([np.zeros((0, 7)), *[frame.boxes for frame in frames]])
    half = boxes[:, 6] / 2
    logs, times = _key_columns(frames)
    columns: dict[str, Any] = dict(zip((*_CENTER, *_SIZE), boxes[:, :6].T, strict=True))
    columns |= {"qw": np.cos(half), "qx": 0 * half, "qy": 0 * half, "qz": np.sin(half)}
    columns["score"] = np.concatenate([np.zeros(0), *[frame.scores for frame in frames]])
    columns["log_id"] = pa.array(logs, pa.string())
    columns["timestamp_ns"] = pa.array(times, pa.int64())
    classes = [renamed.get(name, name) for frame in frames for name in frame.classes]
    columns["category"] = pa.array(classes, pa.string())
    file.parent.mkdir(parents=True, exist_ok=True)
    pa.feather.write_feather(pa.table(columns), str(file))


def _key_columns(frames: Sequence[FoundObjects]) -> tuple[list[str], list[int]]:
    """Log and time of every object."""
    logs, times = [], []
    for frame in frames:
        log, slash, time = frame.key.rpartition("/")
        if not (slash and log and time.isascii() and time.isdigit()):
            raise JudgeError(
                f"frame {frame.key!r}: expected <log>/<timestamp in ns> as the key of an Argoverse 2 frame"
            )
        logs += [log] * len(frame)
        times += [int(time)] * len(frame)
    return logs, times


def _keys(table: Any, file: Path, log: str | None) -> list[str]:
    times = column(table, file, "timestamp_ns", np.int64).tolist()
    logs = [log] * len(times) if log is not None else column(table, file, "log_id", None)
    return [frame_key(name, time) for name, time in zip(logs, times, strict=True)]


def _names(table: Any, file: Path) -> list[str]:
    names: list[str] = column(table, file, "category", None)
    return names


def _boxes(table: Any, file: Path) -> Float64[np.ndarray, "K 7"]:
    values = {name: column(table, file, name, np.float64) for name in _NUMBERS}
    yaws = yaws_of(np.column_stack([values[name] for name in _QUATERNION]))
    return np.column_stack([*(values[name] for name in (*_CENTER, *_SIZE)), yaws])
