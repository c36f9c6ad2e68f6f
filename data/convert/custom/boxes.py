"""Boxes of the plain layout: a list of JSON objects for each sweep; what only some sets know is optional."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.convert.custom.formats import fields_of, numbers
from data.convert.raw_files import read_json
from data.sample import IGNORE_LABEL, Boxes
from data.storage.box_record import MAX_TRACK_ID
from data.storage.damage import DamagedError

_KEYS = ("class", "center", "size", "yaw")
_WHOLE = {
    "num_points": "num_points",
    "num_radar_points": "num_radar_points",
    "difficulty": "difficulties",
    "occlusion": "occlusions",
}
"""Name in the file -> column of `Boxes`: whole numbers, -1 for unknown, as are those of boxes without the name."""
_MOST = (1 << 31) - 1
"""Of those, as they are stored."""
_EXTRAS = ("velocity", "track_id", "category", *_WHOLE, "truncation", "image_box", "alpha")


def read_boxes(path: Path, class_names: tuple[str, ...], categories: tuple[str, ...] = ()) -> Boxes:
    """Boxes in the LiDAR frame; columns that no box of the file has are None.

    Args:
        path: of the file.
        class_names: of classes.txt; a box whose class is null has none of them and is IGNORE_LABEL.
        categories: of categories.txt.

    Raises:
        DamagedError: the file is missing, or an entry has another form or an unknown class or category.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DamagedError("meta-broken", f"{path} holds a {type(entries).__name__}, expected a list of boxes")
    places = [f"{path}: box {number}" for number in range(len(entries))]
    boxes = [fields_of(where, entry, _KEYS, _EXTRAS) for where, entry in zip(places, entries, strict=True)]
    geometry = [_geometry(where, box) for where, box in zip(places, boxes, strict=True)]
    table = np.array(geometry, dtype=np.float64).reshape(-1, 9)
    classes = [
        IGNORE_LABEL if box["class"] is None else _index(where, "class", box["class"], class_names, "classes.txt")
        for where, box in zip(places, boxes, strict=True)
    ]
    tracks = [
        _whole(where, "track_id", box.get("track_id", -1), -MAX_TRACK_ID, MAX_TRACK_ID)
        for where, box in zip(places, boxes, strict=True)
    ]
    plain = Boxes(
        centers_m=table[:, 0:3],
        sizes_m=table[:, 3:6],
        yaws=table[:, 6],
        velocities_mps=table[:, 7:9],
        classes=np.array(classes, dtype=np.int32),
        track_ids=np.array(tracks, dtype=np.int64),
    )
    return dataclasses.replace(plain, **_optional(places, boxes, categories))


def _geometry(where: str, box: Mapping[str, Any]) -> list[float]:
    center, size = _several(where, box["center"], "center", 3), _several(where, box["size"], "size", 3)
    row = numbers(where, [*center, *size, box["yaw"]])
    if (row[3:6] <= 0).any():
        raise DamagedError("meta-broken", f"{where} has the size {size}, expected sizes above 0")
    velocity = box.get("velocity")
    known = [np.nan, np.nan] if velocity is None else numbers(where, _several(where, velocity, "velocity", 2)).tolist()
    return [*row.tolist(), *known]


def _optional(places: Sequence[str], boxes: Sequence[Mapping[str, Any]], categories: tuple[str, ...]) -> dict[str, Any]:
    """Columns that some box has a value of."""

    def column(name: str, unknown: Any, read: Callable[[str, Any], Any], kind: type = np.float64) -> Any:
        if not any(name in box for box in boxes):
            return None
        values = [read(where, box[name]) if name in box else unknown for where, box in zip(places, boxes, strict=True)]
        return np.array(values, dtype=kind)

    def whole(name: str) -> Any:
        return column(name, -1, lambda where, value: _whole(where, name, value, -1, _MOST), np.int64)

    def within(name: str, least: float, most: float) -> Any:
        return column(name, np.nan, lambda where, value: _within(where, name, value, least, most))

    def category(where: str, value: Any) -> int:
        return _index(where, "category", value, categories, "categories.txt")

    return {
        **{attribute: whole(name) for name, attribute in _WHOLE.items()},
        "categories": column("category", -1, category, np.int64),
        "truncations": within("truncation", 0.0, 1.0),
        "alphas": within("alpha", -2 * np.pi, 2 * np.pi),
        "image_boxes_px": column("image_box", [np.nan] * 4, _rectangle),
    }


def _index(where: str, what: str, name: Any, names: tuple[str, ...], file: str) -> int:
    if name not in names:
        listed = ", ".join(names) or "which is missing"
        raise DamagedError("meta-broken", f"{where}: {what} {name!r} is not in {file} ({listed})")
    return names.index(name)


def _whole(where: str, name: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        bounds = "at most 2**53" if most == MAX_TRACK_ID else f"{least} to {most}"
        raise DamagedError("meta-broken", f"{where}: {name} is {value!r:.80}, expected a whole number, {bounds}")
    return value


def _within(where: str, name: str, value: Any, least: float, most: float) -> float:
    number = math.nan if isinstance(value, list) else float(numbers(where, [value])[0])
    if not least <= number <= most:
        raise DamagedError("meta-broken", f"{where}: {name} is {value!r:.80}, expected {least:g} to {most:g}")
    return number


def _rectangle(where: str, value: Any) -> list[float]:
    left, top, right, bottom = numbers(where, _several(where, value, "image_box", 4)).tolist()
    if left > right or top > bottom:
        raise DamagedError("meta-broken", f"{where}: image_box is {value!r:.80}, expected left, top, right, bottom")
    return [left, top, right, bottom]


def _several(where: str, value: Any, name: str, count: int) -> list[Any]:
    if isinstance(value, list) and len(value) == count and not any(isinstance(entry, list) for entry in value):
        return [*value]
    raise DamagedError("meta-broken", f"{where}: {name} is {value!r:.80}, expected {count} numbers")
