"""Feather tables (Arrow IPC files) as numpy columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.feather
from jaxtyping import Shaped

from data.convert.raw_files import read_bytes
from data.storage.damage import DamagedError

Table: TypeAlias = Mapping[str, Shaped[np.ndarray, " rows"]]
Kind: TypeAlias = Literal["number", "integer", "text"]

_KINDS = {"number": "fiu", "integer": "iu", "text": "O"}


def read_feather(path: Path, columns: Mapping[str, Kind]) -> Table:
    """The columns of these names and kinds in a feather file; numbers keep their type, text is Python's.

    A gap in a column of numbers is NaN: it is for its row to be refused.

    Raises:
        DamagedError: the file is missing or damaged, or a column is missing, of another kind, or has gaps but in
            numbers.
    """
    data = read_bytes(path)
    try:
        table = pa.feather.read_table(pa.BufferReader(data), memory_map=False, use_threads=False)
        absent = sorted(set(columns) - set(table.column_names))
        if absent:
            present = ", ".join(table.column_names)
            raise DamagedError("array-broken", f"{path} has no column {absent[0]}; it has {present or 'none'}")
        table = table.select(list(columns))
        table.validate(full=True)  # offsets and lengths inside the file may lie
        # Text may be stored as such, as a dictionary or as a view.
        parts = {n: table.column(n).cast(pa.string()) if columns[n] == "text" else table.column(n) for n in columns}
        arrays = {name: part.to_numpy() for name, part in parts.items()}
    except (pa.ArrowException, MemoryError, OSError, ValueError) as error:
        raise DamagedError("array-broken", f"{path}: {error}") from error
    for name, kind in columns.items():
        if (table.column(name).null_count and kind != "number") or arrays[name].dtype.kind not in _KINDS[kind]:
            stored = table.schema.field(name).type
            raise DamagedError("array-broken", f"{path}: column {name} holds {stored} or gaps, expected {kind}s")
    return arrays
