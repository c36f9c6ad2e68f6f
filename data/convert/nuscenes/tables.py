"""Tables of nuScenes: JSON arrays of up to a gigabyte, read block by block, a few columns of them kept.

The tables of v1.0-trainval hold 2.6 million rows each of frames and of poses. Rows live as Python objects for one block
only; what is kept are arrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.convert.raw_files import layout_error
from data.storage.shard import ShardError

_BLOCK_BYTES = 1 << 23
_MAX_ROW_BYTES = 1 << 26
"""A file in which no row ends within this is no table."""


def read_columns(folder: Path, table: str, *names: str) -> Iterator[tuple[list[Any], ...]]:
    """Some columns of a table such as "sample_data", in blocks of rows.

    Rows are flat objects: in a table of more than one block, no text holds a closing brace (those with free text are
    small).

    Raises:
        ShardError: the table is missing, cut, no JSON array of objects, or a row lacks a column.
    """
    path = folder / f"{table}.json"
    if not path.is_file():
        raise layout_error(folder.parent, "nuScenes", path.name, folder)
    for rows in _blocks(path):
        try:
            yield tuple([row[name] for row in rows] for name in names)
        except (KeyError, TypeError) as error:
            raise ShardError(f"{path}: a row has no {error}, expected an object with {', '.join(names)}") from error


def read_table(folder: Path, table: str, *names: str) -> list[tuple[Any, ...]]:
    """All rows of a small table, reduced to some columns.

    Raises:
        ShardError: as `read_columns`.
    """
    return [row for columns in read_columns(folder, table, *names) for row in zip(*columns, strict=True)]


def _blocks(path: Path) -> Iterator[list[Any]]:
    pending, opening = b"", b"["
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                pending += block
                end = pending.rfind(b"}") + 1
                if end == 0 and len(pending) > _MAX_ROW_BYTES:
                    raise ShardError(f"{path} is no nuScenes table: no row ends in its first {len(pending)} bytes")
                if end > 0:
                    yield _rows(path, pending[:end], opening)
                    pending, opening = pending[end:], b","
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}") from error
    if b"".join(pending.split()) != (b"]" if opening == b"," else b"[]"):
        raise ShardError(f"{path} is cut: it ends with {pending[-40:]!r}, expected ']'")


def _rows(path: Path, text: bytes, opening: bytes) -> list[Any]:
    """Whole rows with the bracket or comma before them."""
    text = text.lstrip()
    if not text.startswith(opening):
        raise ShardError(f"{path}: {text[:40]!r} where {opening!r} was expected; the table is damaged")
    try:
        rows: list[Any] = json.loads(b"[" + text[1:] + b"]")
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path} is damaged: {error}") from error
    return rows
