"""Checks that a manifest and its sample table are what the writer makes, before anything relies on them.

A manifest comes with a set that somebody else may have made: names of files must not lead out of the set's folder,
numbers must be numbers, and every index must point to something.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import numpy as np
from jaxtyping import Shaped

from data.storage.superpixel_record import SuperpixelRecord

MAX_MANIFEST_BYTES = 64 << 20
"""Enough for 300,000 shards."""

_FIELDS = {
    "set_name": str,
    "num_samples": int,
    "class_names": list,
    "camera_names": list,
    "table_sha256": str,
    "notes": list,
    "skipped": dict,
    "logs": list,
    "shards": list,
}
_SHARD_FIELDS = {"file": str, "num_samples": int, "num_bytes": int, "sha256": str}
_LOG_FIELDS = {"name": str, "split": str}
_KEY_BYTES = np.zeros(256, dtype=bool)
_KEY_BYTES[list(b"\0-_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")] = True


def check_content(content: Mapping[str, Any]) -> None:
    """Types and names of manifest.json.

    Raises:
        ValueError: says which field is wrong.
    """
    _check_fields("the manifest", content, _FIELDS)
    for name in ("class_names", "camera_names", "notes"):
        _check_words(name, content[name])
    categories = content.get("box_categories", [])
    if not isinstance(categories, list):
        raise ValueError(f"box_categories is {reprlib.repr(categories)}, expected a list")
    _check_words("box_categories", categories)
    for reason, keys in content["skipped"].items():
        if not isinstance(keys, list):
            raise ValueError(f"skipped.{reason} is {reprlib.repr(keys)}, expected a list")
        _check_words(f"skipped.{reason}", keys)
    _check_superpixels(content.get("superpixels"))
    reduction = content.get("image_reduction", 1)
    if not isinstance(reduction, int) or isinstance(reduction, bool) or reduction < 1:
        raise ValueError(f"image_reduction is {reprlib.repr(reduction)}, expected a whole number from 1 on")
    for log in content["logs"]:
        _check_fields("a log", log, _LOG_FIELDS)
    for shard in content["shards"]:
        _check_fields("a shard", shard, _SHARD_FIELDS)
        if not is_plain_name(shard["file"]):
            raise ValueError(
                f"a shard's file is {reprlib.repr(shard['file'])}, expected a name inside the set's folder"
            )
        if min(shard["num_samples"], shard["num_bytes"]) < 0:
            raise ValueError(f"{shard['file']} states {shard['num_samples']} samples, {shard['num_bytes']} bytes")


def _check_superpixels(record: Any) -> None:
    """Types; ranges are those of `SuperpixelRecord`. Sets of earlier versions have no record, others may know more."""
    if record is None:
        return
    if not isinstance(record, dict):
        raise ValueError(f"superpixels is {reprlib.repr(record)}, expected an object or null")
    for name, hint in get_type_hints(SuperpixelRecord).items():
        value, kind = record.get(name), get_args(hint)[0]  # of `int | None`, int
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if value is not None and not fits:
            raise ValueError(f"superpixels.{name} is {reprlib.repr(value)}, expected {kind.__name__} or null")


def is_plain_name(name: str) -> bool:
    """Whether a file of this name can only lie in the folder itself, neither above nor below it."""
    return name.isprintable() and name not in ("", ".", "..") and not set(name) & set("/\\:")


def _check_fields(what: str, holder: Any, fields: Mapping[str, type]) -> None:
    if not isinstance(holder, dict):
        raise ValueError(f"{what} is {reprlib.repr(holder)}, expected an object")
    for name, kind in fields.items():
        value = holder.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):  # True is an int to Python
            raise ValueError(f"{name} of {what} is {reprlib.repr(value)}, expected {kind.__name__}")


def _check_words(name: str, values: list[Any]) -> None:
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"an entry of {name} is no string")


def check_table(
    content: Mapping[str, Any], table: Mapping[str, Shaped[np.ndarray, "..."]], kinds: Mapping[str, type]
) -> None:
    """Types, lengths and indices of samples.npz, whose manifest passed `check_content`; `kinds`: type of each column.

    Raises:
        ValueError: says which column is wrong.
    """
    expected = (content["num_samples"],)
    for name, column in table.items():
        right = column.dtype.kind == "S" if name == "keys" else column.dtype == kinds[name]
        if column.shape != expected or not right:
            raise ValueError(f"{name} is {column.dtype} {column.shape}, expected {expected[0]} rows")
    for name, count in (("sample_shard", len(content["shards"])), ("sample_log", len(content["logs"]))):
        column = table[name]
        if column.size and not (column.min() >= 0 and column.max() < count):
            raise ValueError(f"{name} runs from {column.min()} to {column.max()}, expected 0 to {count - 1}")
    keys = np.ascontiguousarray(table["keys"])
    if keys.size and not (_KEY_BYTES[keys.view(np.uint8)].all() and (keys != b"").all()):
        raise ValueError("a key has other characters than letters, digits, '-' and '_'")
