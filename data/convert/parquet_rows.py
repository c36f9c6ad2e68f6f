"""Rows of a Parquet file, decoded in small batches from the row group of the first one asked for.

Of a file only key columns are read whole. Neither a file nor a row group is ever in memory, and rows that are asked for
in ascending order are decoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from data.storage.damage import DamagedError

_ROWS_A_BATCH = 5


class ParquetRows:
    """One file of rows that are keyed by `key.*` columns, read by row number.

    Attributes:
        path: of the file, which may be missing until rows are asked for.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        """`prefix` stands before the names of all columns that are no keys, and is left out by callers."""
        self.path = path
        self._prefix = prefix
        self._rows_by: dict[str, dict[Any, list[int]]] = {}
        self._columns: tuple[str, ...] = ()
        self._batches: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        self._batch: tuple[int, pa.RecordBatch] | None = None

    @cached_property
    def _file(self) -> pq.ParquetFile:
        if not self.path.is_file():
            raise DamagedError("member-missing", str(self.path))
        return named(self.path, lambda: pq.ParquetFile(self.path, memory_map=True, page_checksum_verification=True))

    @cached_property
    def _group_starts(self) -> Int[np.ndarray, " groups"]:
        metadata = self._file.metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return np.cumsum([0, *counts])

    def key(self, name: str) -> Any:
        """A key column, whole.

        Raises:
            DamagedError: the file is missing, damaged, or has no such column.
        """
        self._check([name])
        return named(self.path, lambda: self._file.read(columns=[name]).column(0).to_pylist())

    def rows_by(self, key: str) -> dict[Any, list[int]]:
        """Rows of each value of a key column; kept."""
        if key not in self._rows_by:
            rows_by: dict[Any, list[int]] = {}
            for row, value in enumerate(self.key(key)):
                rows_by.setdefault(value, []).append(row)
            self._rows_by[key] = rows_by
        return self._rows_by[key]

    def _check(self, columns: Sequence[str]) -> None:
        have = set(self._file.schema_arrow.names)
        absent = [column for column in columns if column not in have]
        if absent:
            raise DamagedError("meta-broken", f"{self.path} has no column {absent[0]!r}")

    def rows(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """These ascending rows' keys and columns (without the component's prefix), as Arrow scalars.

        Raises:
            DamagedError: the file is missing or damaged.
        """
        scalars: list[dict[str, Any]] = named(self.path, lambda: [self._row(row, tuple(columns)) for row in rows])
        return scalars

    def _row(self, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        if columns != self._columns or self._batch is None or row < self._batch[0]:
            self._start(row, columns)
        while self._batch is None or row >= self._batch[0] + self._batch[1].num_rows:
            self._batch = next(self._batches, None)
            if self._batch is None:
                raise DamagedError("array-broken", f"{self.path} ends before row {row}")
        start, batch = self._batch
        names = (name.removeprefix(self._prefix) for name in batch.schema.names)
        return {name: batch.column(index)[row - start] for index, name in enumerate(names)}

    def _start(self, row: int, columns: tuple[str, ...]) -> None:
        names = [name if name.startswith("key.") else self._prefix + name for name in columns]
        self._check(names)
        group = int(np.searchsorted(self._group_starts, row, side="right")) - 1
        groups = range(group, self._file.metadata.num_row_groups)
        batches = self._file.iter_batches(batch_size=_ROWS_A_BATCH, row_groups=list(groups), columns=names)
        self._columns, self._batch = columns, None
        self._batches = _numbered(batches, int(self._group_starts[group]))


def _numbered(batches: Iterator[pa.RecordBatch], start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    for batch in batches:
        yield start, batch
        start += batch.num_rows


def named(path: Path, read: Any) -> Any:
    """What Arrow raises on damaged files, as damage of this file."""
    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise DamagedError("array-broken", f"{path}: {error}") from error
