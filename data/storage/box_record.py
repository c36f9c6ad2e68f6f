"""The boxes of a sample as members of its record, the checks of their values, and the way back.

`boxes.npy` holds what boxes of every set have, `box_details.npy` and `box_views.npy` what some sets add
(docs/shards.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from data.sample import Boxes
from data.storage.damage import DamagedError
from data.storage.run_lengths import npy_bytes

MAX_TRACK_ID = 1 << 53
"""Whole numbers beyond it are not all float64, as which tables of boxes are stored."""

_TABLE = {"centers_m": 3, "sizes_m": 3, "yaws": 1, "velocities_mps": 2, "classes": 1, "track_ids": 1}
"""Columns of `Boxes` that every set has, in their stored order, and how many numbers each takes."""
_DETAILS = ("num_points", "difficulties", "attributes", "categories", "num_radar_points", "occlusions")
"""Whole numbers that not every set has, in their stored order."""
_DETAILS_BEFORE_3 = 3
"""How many of them sets of schema versions 1 and 2 store."""
_VIEWS = {"truncations": 1, "image_boxes_px": 4, "alphas": 1}
"""Further numbers that not every set has, in their stored order, and how many each takes."""
_ABSENT_DETAIL = -2
_ABSENT_VIEW = -np.inf
"""Stored all down a column that `Boxes` does not have."""

NpyReader = Callable[[str, str, tuple[int | None, ...]], np.ndarray | None]
"""Name of a member, its type and shape to its array, None where the record has no such member."""


def check_boxes(boxes: Boxes, max_coordinate_m: float) -> None:
    """Refuse boxes that no set can mean.

    Args:
        boxes: of a sample.
        max_coordinate_m: largest coordinate of a centre.

    Raises:
        DamagedError: a value is not finite where it must be, or out of range, or columns differ in length.
    """
    finite = all(np.isfinite(part).all() for part in (boxes.centers_m, boxes.sizes_m, boxes.yaws))
    if not finite or np.isinf(boxes.velocities_mps).any():
        raise DamagedError("boxes-broken", "a box has a non-finite centre, size, heading or velocity")
    far = (np.abs(boxes.centers_m) > max_coordinate_m).any(axis=1)
    if far.any():
        raise DamagedError("boxes-broken", f"the centre of a box is at {boxes.centers_m[far][0].tolist()} m")
    flat = (boxes.sizes_m < 0).any(axis=1)
    if flat.any():
        raise DamagedError("boxes-broken", f"a box of {boxes.sizes_m[flat][0].tolist()} m")
    _check_details(boxes)
    _check_views(boxes)


def are_rectangles(rectangles: Float[np.ndarray, "k 4"]) -> Bool[np.ndarray, " k"]:
    """Which rows are finite with left <= right and top <= bottom."""
    left, top, right, bottom = rectangles.T
    return np.asarray(np.isfinite(rectangles).all(axis=1) & (left <= right) & (top <= bottom))


def _check_details(boxes: Boxes) -> None:
    for name in _DETAILS:
        column = getattr(boxes, name)
        if column is None:
            continue
        _check_length(name, column, (len(boxes.classes),))
        if column.size and column.min() < -1:
            raise DamagedError("boxes-broken", f"{name} of a box is {column.min()}, expected -1 (unknown) or more")


def _check_views(boxes: Boxes) -> None:
    count = len(boxes.classes)
    if boxes.truncations is not None:
        _check_length("truncations", boxes.truncations, (count,))
        known = boxes.truncations[~np.isnan(boxes.truncations)]
        if not ((known >= 0) & (known <= 1)).all():
            raise DamagedError("boxes-broken", f"truncations from {known.min():g} to {known.max():g}, expected 0 to 1")
    if boxes.alphas is not None:
        _check_length("alphas", boxes.alphas, (count,))
        known = boxes.alphas[~np.isnan(boxes.alphas)]
        if not (np.abs(known) <= 2 * np.pi).all():
            raise DamagedError("boxes-broken", f"alphas from {known.min():g} to {known.max():g}, expected radians")
    if boxes.image_boxes_px is not None:
        _check_length("image_boxes_px", boxes.image_boxes_px, (count, 4))
        wrong = ~np.isnan(boxes.image_boxes_px).all(axis=1) & ~are_rectangles(boxes.image_boxes_px)
        if wrong.any():
            example = boxes.image_boxes_px[wrong][0].tolist()
            raise DamagedError("boxes-broken", f"{example} px is no rectangle left, top, right, bottom, nor all NaN")


def _check_length(name: str, column: np.ndarray, shape: tuple[int, ...]) -> None:
    if column.shape != shape:
        raise DamagedError("array-broken", f"{name} of boxes is {column.shape}, expected {shape}")


# ---- encoding
def encode_boxes(boxes: Boxes) -> dict[str, bytes]:
    """Members by name.

    Raises:
        DamagedError: whole numbers that the stored types cannot hold.
    """
    tracks = boxes.track_ids
    if tracks.size and not (int(tracks.min()) >= -MAX_TRACK_ID and int(tracks.max()) <= MAX_TRACK_ID):
        detail = f"track ids from {tracks.min()} to {tracks.max()}, expected {MAX_TRACK_ID} at most"
        raise DamagedError("array-broken", detail)
    columns = [getattr(boxes, name).reshape(-1, width) for name, width in _TABLE.items()]
    members = {"boxes.npy": npy_bytes(np.concatenate(columns, axis=1).astype("<f8"))}
    count = len(boxes.classes)
    details = [getattr(boxes, name) for name in _DETAILS]
    if any(column is not None for column in details):
        filled = [np.full(count, _ABSENT_DETAIL) if column is None else column for column in details]
        members["box_details.npy"] = npy_bytes(
            whole_numbers(f"{', '.join(_DETAILS)} of boxes", np.stack(filled, axis=1), "<i4")
        )
    views = [(getattr(boxes, name), width) for name, width in _VIEWS.items()]
    if any(column is not None for column, _ in views):
        parts = [
            np.full((count, width), _ABSENT_VIEW) if column is None else column.reshape(count, width)
            for column, width in views
        ]
        members["box_views.npy"] = npy_bytes(np.concatenate(parts, axis=1).astype("<f8"))
    return members


def whole_numbers(name: str, values: Int[np.ndarray, "..."], stored: str) -> np.ndarray:
    """Whole numbers as they are stored; a type that cannot hold them would give others without a word.

    Raises:
        DamagedError: it cannot.
    """
    low, high = np.iinfo(stored).min, np.iinfo(stored).max
    if values.size and not (int(values.min()) >= low and int(values.max()) <= high):
        raise DamagedError(
            "array-broken", f"{name} run from {values.min()} to {values.max()}, expected {low} to {high}"
        )
    return values.astype(stored)


# ---- decoding
def decode_boxes(read: NpyReader, schema_version: int) -> Boxes | None:
    """The boxes that `encode_boxes` of that schema version wrote; None where the record has none.

    Raises:
        DamagedError: arrays of another type, shape or content than documented.
    """
    table = read("boxes.npy", "<f8", (None, sum(_TABLE.values())))
    if table is None:
        return None
    optional: dict[str, Any] = {}
    names = _DETAILS if schema_version >= 3 else _DETAILS[:_DETAILS_BEFORE_3]
    details = read("box_details.npy", "<i4", (len(table), len(names)))
    if details is not None:
        columns = zip(names, details.T, strict=True)
        optional |= {name: np.array(column) for name, column in columns if _ABSENT_DETAIL not in column}
    views = read("box_views.npy", "<f8", (len(table), sum(_VIEWS.values())))
    if views is not None:
        parts = np.split(views, np.cumsum([*_VIEWS.values()])[:-1], axis=1)
        present = [(name, part) for name, part in zip(_VIEWS, parts, strict=True) if not np.isneginf(part).any()]
        optional |= {name: np.array(part if _VIEWS[name] > 1 else part[:, 0]) for name, part in present}
    return Boxes(
        centers_m=table[:, 0:3],
        sizes_m=table[:, 3:6],
        yaws=table[:, 6],
        velocities_mps=table[:, 7:9],
        classes=_restored("classes", table[:, 9], (1 << 31) - 1).astype(np.int32),
        track_ids=_restored("track ids", table[:, 10], MAX_TRACK_ID),
        **optional,
    )


def _restored(name: str, values: Float[np.ndarray, " boxes"], most: int) -> Int[np.ndarray, " boxes"]:
    if not (np.abs(values) <= most).all():  # nor NaN
        raise DamagedError("array-broken", f"boxes.npy: {name} are no whole numbers of at most {most}")
    return values.astype(np.int64)
