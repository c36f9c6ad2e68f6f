"""Small files that people and crashes may have damaged: read with the expected shape, or refused with what is wrong.

Whatever stands in such a file, reading it takes bounded time and memory and ends in content whose types were checked,
or in a `DamagedFileError`: never in an error of the parser, and never in a wait (for a pipe that nobody writes to).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Kind = Literal["text", "count", "number", "flag", "mapping", "list"]
"""What a field has to be. A count is a whole number from 0, a number is one that a float can hold (NaN included)."""

MOST_BYTES = 64 << 20
"""Of a file that is read as a whole. As Python objects it takes some twenty times as much."""
_MOST_COUNT = 2**63


class DamagedFileError(ValueError):
    """A file that is there and cannot be used; the message names it and says what is wrong."""


def read_text(path: Path, *, errors: str = "strict") -> str | None:
    """The text of a file, without the byte order mark that some editors put before it; None where there is none.

    Raises:
        DamagedFileError: it is no file, a link that leads nowhere, too long, no UTF-8 (unless `errors` says "replace"),
            or may not be read.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            what = "a folder" if stat.S_ISDIR(state.st_mode) else "something that is no file"
            raise DamagedFileError(f"{path}: expected a file, got {what}")
        if state.st_size > MOST_BYTES:
            raise DamagedFileError(f"{path}: {state.st_size >> 20} MiB, expected {MOST_BYTES >> 20} at most")
        return path.read_bytes().decode(errors=errors).removeprefix("\ufeff")
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise DamagedFileError(f"{path}: a link to {os.readlink(path)}, which is not there") from None
        return None
    except OSError as error:
        raise DamagedFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DamagedFileError(
            f"{path}, line {line}: no text in UTF-8 (byte {error.object[error.start]:#x}); save it in that encoding"
        ) from error


def read_json(path: Path, fields: Mapping[str, Kind], *, optional: Mapping[str, Kind] | None = None) -> Any:
    """A JSON object whose fields have the expected kinds; None where there is no file.

    Args:
        path: the file.
        fields: those that must be there.
        optional: those that may be missing, or null.

    Raises:
        DamagedFileError: it cannot be read or is something else.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        return checked(parse_json(text), fields, optional or {})
    except ValueError as error:
        raise DamagedFileError(f"{path}: {error}") from error


def parse_json(text: str) -> Any:
    """A JSON text.

    Raises:
        ValueError: no JSON, or nested too deeply.
    """
    if not text.strip():
        raise ValueError("empty")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not readable as JSON: {error}") from error


def checked(tree: object, fields: Mapping[str, Kind], optional: Mapping[str, Kind]) -> dict[str, Any]:
    """A mapping with text keys, after a look at its fields as in `read_json`; others may be anything.

    Raises:
        ValueError: names the field, what it is and what it should be.
    """
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ValueError(f"expected a mapping of {', '.join([*fields, *optional])}, got {shown(tree)}")
    for name, kind in {**fields, **optional}.items():
        value = tree.get(name)
        if (name in fields or value is not None) and not is_kind(value, kind):
            got = "nothing" if name not in tree else shown(value)
            raise ValueError(f"{name}: expected {_NAMES[kind]}, got {got}")
    return tree


_NAMES: Mapping[Kind, str] = {
    "text": "a text",
    "count": "a whole number from 0",
    "number": "a number",
    "flag": "true or false",
    "mapping": "a mapping",
    "list": "a list",
}


def is_kind(value: object, kind: Kind) -> bool:
    """Whether a value is what a field has to be."""
    if kind in ("count", "number"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if kind == "count":
            return isinstance(value, int) and 0 <= value < _MOST_COUNT
        return isinstance(value, float) or abs(value) < _MOST_COUNT
    if kind == "mapping":
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return isinstance(value, {"text": str, "flag": bool, "list": list}[kind])


def shown(value: object) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= _MOST_COUNT:
        return "a giant number"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
