"""Drops from a prepared set what `data.preparing.verify` found broken, so that no loader sees it again.

The tars stay as they are: the broken samples' rows leave samples.npz and go to the manifest's `skipped`, by reason; a
tar of which nothing is left leaves the manifest. The records of `tandem prepare` say the same, so that preparing into
the folder again does not bring the samples back. The manifest's fingerprint changes, and with it what caches go by.

What is replaced stays beside it under its name with `.before-repair`. Each file is replaced whole or not at all, the
manifest last; where a crash came between samples.npz and the manifest, the next repair begins with the old pair.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from common.files import file_sha256, replace_file
from data.preparing.folder import locked
from data.preparing.shard_task import RECORDS
from data.preparing.verify import VerifyReport
from data.storage.manifest import SAMPLE_COLUMNS, TABLE_NAME, Manifest, load_manifest
from data.storage.manifest_check import MAX_MANIFEST_BYTES
from data.storage.manifest_writer import write_manifest
from data.storage.shard import Shard, ShardError
from data.storage.store import MANIFEST_NAME
from data.storage.untrusted import parse_json

SUFFIX = ".before-repair"
_MAX_OLD_BYTES = 1 << 31
"""Of a manifest.json that is upgraded: lists of shards that are too long to be read each time a set is opened."""


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What was done.

    Attributes:
        dropped: keys of samples that are no longer in the set, by their first reason.
        dropped_shards: tars of which nothing is left.
        changed_shards: tars whose checksum the manifest had wrong and whose other samples stay.
        kept: files as they were before.
    """

    dropped: dict[str, tuple[str, ...]]
    dropped_shards: tuple[str, ...]
    changed_shards: tuple[str, ...]
    kept: tuple[str, ...]


def repair(report: VerifyReport) -> Repaired:
    """Drop what a report names; the report must be of the set as it is now.

    Raises:
        ShardError: the folder is in use or cannot be written, or no sample would be left.
    """
    root = report.root
    with _alone(root):
        manifest = load_manifest(root)
        if len(manifest) != report.num_samples:
            raise ShardError(f"{root} has changed since it was verified; verify it again")
        reasons = {problem.row: problem for problem in reversed(report.problems) if problem.row >= 0}
        keep = np.ones(len(manifest), dtype=bool)
        keep[list(reasons)] = False
        if not keep.any():
            raise ShardError(f"{root}: every sample is broken, nothing would be left; prepare the set again")
        dropped: dict[str, list[str]] = {}
        for row in sorted(reasons):
            dropped.setdefault(reasons[row].reason, []).append(manifest.key(row))
        after, changed = _without(manifest, keep, dropped)
        details = {manifest.key(row): (reasons[row].reason, reasons[row].detail) for row in sorted(reasons)}
        kept = _replace(manifest, after, details)
    gone = {shard.file for shard in manifest.shards} - {shard.file for shard in after.shards}
    return Repaired(
        dropped={reason: tuple(keys) for reason, keys in dropped.items()},
        dropped_shards=tuple(sorted(gone)),
        changed_shards=changed,
        kept=kept,
    )


def upgrade(root: str) -> tuple[str, ...]:
    """Write the manifest of a set anew with columns (`data.storage.columns`), whatever its size; no shard is read.

    Samples, their order and the fingerprint of the set stay as they are.

    Returns:
        The names under which the old files stay; () where there is nothing to do.

    Raises:
        ShardError: the folder is in use or cannot be written, or holds no set.
    """
    with _alone(root):
        manifest = load_manifest(root, max_bytes=_MAX_OLD_BYTES)
        return () if manifest.index is not None else _replace(manifest, manifest, {}, columnar=True)


@contextlib.contextmanager
def _alone(root: str) -> Iterator[None]:
    """As for preparing; a set that was copied without its records is locked by its manifest."""
    if (Path(root) / RECORDS).is_dir():
        with locked(root):
            yield
        return
    with (Path(root) / MANIFEST_NAME).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(f"another process is repairing {root}; wait for it") from None
        yield


def _without(
    manifest: Manifest, keep: Bool[np.ndarray, " n"], dropped: Mapping[str, Sequence[str]]
) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest of the rows that stay, with the tars' checksums as they are now; tars whose checksum was wrong."""
    numbers = np.unique(manifest.sample_shard[keep])
    before = [manifest.shards[number] for number in numbers]
    shards = tuple(_as_it_is(manifest.root, shard) for shard in before)
    changed = tuple(new.file for old, new in zip(before, shards, strict=True) if new != old)
    columns: dict[str, Any] = {name: getattr(manifest, name)[keep] for name in ("keys", *SAMPLE_COLUMNS)}
    columns["sample_shard"] = np.searchsorted(numbers, columns["sample_shard"]).astype(np.int32)
    skipped = dict(manifest.skipped)
    for reason, keys in dropped.items():
        skipped[reason] = (*skipped.get(reason, ()), *keys)
    return dataclasses.replace(manifest, shards=shards, skipped=skipped, **columns), changed


def _as_it_is(root: str, shard: Shard) -> Shard:
    path = Path(root) / shard.file
    sha256 = file_sha256(path)
    if sha256 is None:  # samples of it were read a moment ago
        raise ShardError(f"{path} was removed during the repair; run `tandem verify` again")
    return dataclasses.replace(shard, sha256=sha256, num_bytes=path.stat().st_size)


# ---- on disk
def _replace(
    before: Manifest, after: Manifest, details: Mapping[str, tuple[str, str]], *, columnar: bool | None = None
) -> tuple[str, ...]:
    """Records, then samples.npz, then the manifest; the names under which the old ones stay."""
    root, shards = Path(before.root), {shard.file: shard for shard in after.shards}
    try:
        old_files = []
        for path, content in _new_records(root, shards, details):
            old_files.append(_keep(path))
            replace_file(path, content)
        old_files += [_keep(root / TABLE_NAME), _keep(root / MANIFEST_NAME)]
        write_manifest(after, columnar=columnar)
    except OSError as error:
        raise ShardError(f"{root} cannot be repaired: {error}") from error
    return tuple(str(path.relative_to(root)) for path in old_files)


def _new_records(
    root: Path, shards: Mapping[str, Shard], details: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[Path, bytes]]:
    """Records that must say something else; those that cannot be read are left: their shards are made again anyway."""
    for path in sorted((root / RECORDS).glob("unit-*.json")):
        try:
            content = parse_json(path.read_bytes(), MAX_MANIFEST_BYTES)
            table = content["table"]
            if table is None:
                continue
            stays = [key not in details for key in table["keys"]]
            shard = shards.get(table["shard"]["file"])
            if all(stays) and shard is not None and dataclasses.asdict(shard) == table["shard"]:
                continue
            content["skipped"] += [
                {"reason": details[key][0], "key": key, "detail": details[key][1]}
                for key, stay in zip(table["keys"], stays, strict=True)
                if not stay
            ]
            content["table"] = None if shard is None else _rows(table, stays, shard)
        except (ValueError, KeyError, TypeError):
            continue
        yield path, json.dumps(content).encode()


def _rows(table: Mapping[str, Any], stays: Sequence[bool], shard: Shard) -> dict[str, Any]:
    def of(values: Sequence[Any]) -> list[Any]:
        return [value for value, stay in zip(values, stays, strict=True) if stay]

    columns = {name: of(values) for name, values in table["columns"].items()}
    texts = {name: of(table[name]) for name in ("keys", "logs")}
    return {"shard": dataclasses.asdict(shard), **texts, "columns": columns}


def _keep(path: Path) -> Path:
    """A copy under a name that is free."""
    number = 1
    while (copy := path.with_name(path.name + SUFFIX + (f"-{number}" if number > 1 else ""))).exists():
        number += 1
    shutil.copy2(path, copy)
    descriptor = os.open(copy, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return copy


def undo_half(root: str) -> bool:
    """Put the sample table back where a repair was killed between it and the manifest; True where that was so."""
    folder = Path(root)
    try:
        content = parse_json((folder / MANIFEST_NAME).read_bytes(), MAX_MANIFEST_BYTES)
        stated = content["table_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if file_sha256(folder / TABLE_NAME) == stated:
        return False
    for copy in folder.glob(TABLE_NAME + SUFFIX + "*"):
        data = copy.read_bytes()
        if hashlib.sha256(data).hexdigest() == stated:
            replace_file(folder / TABLE_NAME, data)
            return True
    return False
