"""Checks that a manifest and its sample table are what the writer makes, before anything relies on them.

A manifest comes with a set that somebody else may have made: names of files must not lead out of the set's folder,
numbers must be numbers, and every index must point to something.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import numpy as np
from jaxtyping import Int, Shaped

from data.storage.npz_file import ascends, bounds, chunks, let_go
from data.storage.superpixel_record import SuperpixelRecord

MAX_MANIFEST_BYTES = 64 << 20
"""Enough for 300,000 shards in a list; a set with more has them as columns (`data.storage.columns`)."""

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
_COLUMNAR_FIELDS = {name: kind for name, kind in _FIELDS.items() if name not in ("logs", "shards")} | {
    "num_shards": int,
    "num_logs": int,
    "splits": list,
    "table_bytes": int,
}
_SHARD_FIELDS = {"file": str, "num_samples": int, "num_bytes": int, "sha256": str}
_LOG_FIELDS = {"name": str, "split": str}
_KEY_BYTES = np.zeros(256, dtype=bool)
_KEY_BYTES[list(b"\0-_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")] = True


def check_content(content: Mapping[str, Any], *, columnar: bool = False) -> None:
    """Types and names of manifest.json; `columnar`: of a set whose shards and logs are columns of its table.

    Raises:
        ValueError: says which field is wrong.
    """
    _check_fields("the manifest", content, _COLUMNAR_FIELDS if columnar else _FIELDS)
    for name in ("class_names", "camera_names", "notes", *(("splits",) if columnar else ())):
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
    for log in content.get("logs", ()):
        _check_fields("a log", log, _LOG_FIELDS)
    for shard in content.get("shards", ()):
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


def check_columns(
    content: Mapping[str, Any], table: Mapping[str, Shaped[np.ndarray, "..."]], kinds: Mapping[str, type]
) -> None:
    """As `check_table`, of mapped columns: without memory for any of them, and without reading the keys.

    Keys are looked at one by one when they are used, see `Manifest.key`.

    Raises:
        ValueError: says which column is wrong.
    """
    for name, column in table.items():
        if (column.dtype != kinds[name]) if name in kinds else column.dtype.kind != "S":
            raise ValueError(f"{name} is {column.dtype}")
    for name, count in (("shard_file", content["num_shards"]), ("log_name", content["num_logs"])):
        if len(table[name]) != count:
            raise ValueError(f"{name} has {len(table[name])} rows, expected {count}")
    for name, column in table.items():
        if name.startswith(("sample_", "num_", "keys")) and len(column) != content["num_samples"]:
            raise ValueError(f"{name} has {len(column)} rows, expected {content['num_samples']}")
    for name, count in (("sample_shard", content["num_shards"]), ("sample_log", content["num_logs"])):
        low, high = bounds(table[name])
        if not (low >= 0 and high < max(count, 1)):
            raise ValueError(f"{name} runs from {low} to {high}, expected 0 to {count - 1}")
    if not ascends(table["sample_shard"]):
        raise ValueError("sample_shard does not ascend, expected the samples of a shard side by side")
    for name in ("sample_shard", "sample_log"):
        let_go(table[name])


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


def is_key(key: str) -> bool:
    """Whether a key has letters, digits, '-' and '_' only, as a writer makes them."""
    return (
        bool(key)
        and key.isascii()
        and bool(_KEY_BYTES[np.frombuffer(key.encode(), np.uint8)].all())
        and "\0" not in key
    )


def repeated(keys: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    """Rows whose key an earlier row has, too.

    Compares words of 64 bits that are made of the keys, and only keys of equal words themselves: a tenth of the time
    and memory of sorting the keys.
    """
    words = np.empty(len(keys), dtype=np.uint64)
    for part in chunks(len(keys)):
        words[part] = _mixed(keys[part])
    order = np.argsort(words, kind="stable")
    alike = np.diff(words[order]) == 0
    suspects = np.sort(order[np.concatenate([[False], alike]) | np.concatenate([alike, [False]])])
    _, first = np.unique(np.asarray(keys[suspects]), return_index=True)
    return np.delete(suspects, first)


def _mixed(keys: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """A word for each key (the finaliser of SplitMix64: Steele, Lea, Flood, OOPSLA 2014, over its words of 8 bytes)."""
    width = -(-keys.dtype.itemsize // 8) * 8
    parts = np.ascontiguousarray(keys.astype(f"S{width}")).view("<u8").reshape(len(keys), -1)
    words = np.zeros(len(keys), dtype=np.uint64)
    for column in parts.T:
        words = (words ^ column) + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words ^= words >> np.uint64(31)
    return words
