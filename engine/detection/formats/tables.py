"""Objects in tables with one row each, as Feather and Parquet files have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from engine.detection.frames import FoundObjects, TrueObjects
from engine.scores import JudgeError


def read_table(file: Path, read: Callable[..., Any]) -> Any:
    """A pyarrow table.

    Args:
        file: of the table.
        read: pyarrow's reader of the format.

    Raises:
        JudgeError: the file is missing or damaged.
    """
    try:
        return read(str(file))
    except (pa.ArrowException, OSError) as error:
        raise JudgeError(f"{file}: cannot be read as a table: {error}") from error


def column(table: Any, file: Path, name: str, kind: type[np.number[Any]] | None, *, gaps: int | None = None) -> Any:
    """A column as numbers of a kind, or as a list of texts.

    Args:
        table: of `read_table`.
        file: for messages.
        name: of the column.
        kind: numpy's; None: text.
        gaps: what stands for a number that is not there; None: every row must have one.

    Raises:
        JudgeError: there is no such column, it has gaps or another kind.
    """
    if name not in table.column_names:
        raise JudgeError(f"{file}: no column {name!r}; it has {', '.join(table.column_names) or 'none'}")
    values = table.column(name)
    if values.null_count and gaps is not None:
        values = values.fill_null(gaps)
    if values.null_count:
        raise JudgeError(f"{file}: column {name!r} has {values.null_count} gaps; every object needs a value")
    try:
        if kind is None:
            return values.cast(pa.string()).to_pylist()
        numbers = values.cast(pa.int64() if issubclass(kind, np.integer) else pa.float64())
        return np.array(numbers.to_numpy(), dtype=kind)
    except pa.ArrowException as error:
        wanted = "text" if kind is None else kind.__name__
        raise JudgeError(f"{file}: column {name!r} holds {values.type}, expected {wanted}: {error}") from error


def frames_of_rows(keys: Sequence[str]) -> dict[str, Int64[np.ndarray, " rows"]]:
    """Rows of each frame in their order, frames in order of appearance; `keys` are those of each row's frame."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return {key: np.array(numbers, dtype=np.int64) for key, numbers in rows.items()}


def united(
    truth: Sequence[TrueObjects], found: Sequence[FoundObjects], file: Path
) -> tuple[list[TrueObjects], list[FoundObjects]]:
    """Both sides of all frames, where files do not list frames in which nothing is: as the official tools have it.

    Args:
        truth: frames with true objects.
        found: frames with found objects.
        file: of the found ones, for messages.

    Returns:
        The true frames, then those with found objects alone; and the found objects of each.

    Raises:
        JudgeError: the two have no frame in common.
    """
    found_by_key = {frame.key: frame for frame in found}
    true_by_key = {frame.key: frame for frame in truth}
    if truth and found and not true_by_key.keys() & found_by_key.keys():
        raise JudgeError(
            f"{file}: no frame of the predictions is one of the ground truth: {found[0].key} is not, as an example; "
            f"expected frames such as {truth[0].key}: judge with the split that was predicted"
        )
    none, counts = np.zeros((0, 7)), np.zeros(0, dtype=np.int64)
    keys = [*true_by_key, *(key for key in found_by_key if key not in true_by_key)]
    return (
        [
            true_by_key.get(key)
            or TrueObjects(key=key, boxes=none, categories=(), num_lidar_points=counts, difficulties=counts)
            for key in keys
        ],
        [found_by_key.get(key) or FoundObjects(key=key, boxes=none, scores=np.zeros(0), classes=()) for key in keys],
    )
