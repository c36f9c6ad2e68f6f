"""What a large set has as columns of its sample table instead of lists in its manifest: shards, logs and an index.

With a list in JSON, 350,000 shards take 62 MB of text and far more as Python objects, in every process. As columns they
are mapped (`data.storage.npz_file`), and an object is made when somebody asks for one.

The index is what would have to be computed from all samples each time that the set is opened: the rows of each shard,
the samples by log and time, and which shards a split has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

import numpy as np
from jaxtyping import Bool, Int, Shaped

from data.shard_order import Blocks
from data.shared_memory import SharesTables
from data.storage.manifest_check import is_plain_name
from data.storage.npz_file import ascends, bounds
from data.storage.shard import Shard, ShardError

MIN_SAMPLES = 500_000
"""Sets of more samples are written with columns. Smaller ones stay readable by eye and by earlier versions."""

_PIECE = 4096
"""Shards that are looked at together."""

MIXED = -1
"""`SetIndex.shard_split` of a shard with samples of several splits."""

SET_COLUMNS = {
    "shard_num_samples": np.int64,
    "shard_num_bytes": np.int64,
    "shard_first": np.int64,
    "shard_split": np.int32,
    "log_split": np.int32,
    "log_start": np.int64,
    "in_time": np.int64,
}
TEXT_COLUMNS = ("shard_file", "shard_sha256", "log_name")
OPTIONAL = ("in_time",)


class Names(SharesTables, Sequence[str]):
    """Texts in a column of UTF-8."""

    def __init__(self, column: Shaped[np.ndarray, " n"]) -> None:
        """Decodes nothing yet."""
        self._column = column

    def __len__(self) -> int:
        """How many."""
        return len(self._column)

    @overload
    def __getitem__(self, place: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: SupportsIndex | slice) -> str | Sequence[str]:
        """One, or some."""
        if isinstance(place, slice):
            return self.texts(place)
        number = range(len(self))[place]
        return self.texts(slice(number, number + 1))[0]

    def texts(self, place: slice) -> list[str]:
        """Some, decoded.

        Raises:
            ShardError: one is no UTF-8.
        """
        try:
            return [text.decode() for text in self._column[place].tolist()]
        except UnicodeDecodeError as error:
            raise ShardError(f"the set's table is damaged: a name is no UTF-8 ({error})") from error

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Its first place; raises ValueError where it does not occur."""
        found = np.flatnonzero(self._column[start:stop] == str(value).encode())
        if not len(found):
            raise ValueError(f"{value!r} is not among the names")
        return start + int(found[0])


class Shards(SharesTables, Sequence[Shard]):
    """The shards of a set in columns.

    Attributes:
        num_samples, num_bytes: as of `Shard`, of all of them.
    """

    def __init__(
        self,
        file: Shaped[np.ndarray, " s"],
        num_samples: Int[np.ndarray, " s"],
        num_bytes: Int[np.ndarray, " s"],
        sha256: Shaped[np.ndarray, " s"],
    ) -> None:
        """Makes no `Shard` yet."""
        self.num_samples, self.num_bytes = num_samples, num_bytes
        self._files, self._sha256 = Names(file), Names(sha256)

    def __len__(self) -> int:
        """How many."""
        return len(self._files)

    @overload
    def __getitem__(self, place: SupportsIndex) -> Shard: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Shard]: ...
    def __getitem__(self, place: SupportsIndex | slice) -> Shard | Sequence[Shard]:
        """One, or some.

        Raises:
            ShardError: its name leads out of the set's folder.
        """
        if not isinstance(place, slice):
            number = range(len(self))[place]
            return self[number : number + 1][0]
        texts = zip(self._files.texts(place), self._sha256.texts(place), strict=True)
        numbers = zip(self.num_samples[place].tolist(), self.num_bytes[place].tolist(), strict=True)
        found = []
        for (file, sha256), (num_samples, num_bytes) in zip(texts, numbers, strict=True):
            if not is_plain_name(file):
                raise ShardError(f"the set's table is damaged: shard {file!r} is no name inside the set's folder")
            found.append(Shard(file=file, num_samples=num_samples, num_bytes=num_bytes, sha256=sha256))
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class SetIndex(SharesTables):
    """Where the samples of shards, logs and splits are.

    Attributes:
        shard_first: first row of each shard, and the number of samples.
        shard_split: number of the split that all samples of a shard are of; `MIXED` where it has several.
        log_split: number of each log's split.
        log_start: place of each log's first sample among all by log and time, and the number of samples.
        in_time: rows by log and time; None where they are stored that way.
        split_names: of the splits, by number.
    """

    shard_first: Int[np.ndarray, " shards_and_one"]
    shard_split: Int[np.ndarray, " shards"]
    log_split: Int[np.ndarray, " logs"]
    log_start: Int[np.ndarray, " logs_and_one"]
    in_time: Int[np.ndarray, " n"] | None
    split_names: tuple[str, ...]

    def logs_of(self, splits: Sequence[str]) -> Bool[np.ndarray, " logs"]:
        """Which logs are of any of these splits."""
        return np.isin(self.log_split, [self.split_names.index(name) for name in splits])

    def count(self, logs: Bool[np.ndarray, " logs"]) -> int:
        """Samples of these logs."""
        return int(np.diff(self.log_start)[logs].sum())

    def rows(self, logs: Bool[np.ndarray, " logs"], limit: int | None = None) -> Int[np.ndarray, " k"]:
        """Rows of these logs by log and time, at most the first `limit`."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], logs, [False]]).astype(np.int8)))
        starts, stops = self.log_start[edges[::2]], self.log_start[edges[1::2]]
        found, left = [np.empty(0, dtype=np.int64)], self.count(logs) if limit is None else limit
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            stop = min(stop, start + left)
            found.append(np.arange(start, stop) if self.in_time is None else self.in_time[start:stop])
            left -= stop - start
        return np.concatenate(found)

    def blocks(self, splits: Sequence[str] | None) -> Blocks | None:
        """The samples of splits (None: all) by shards; None where a shard has samples of several splits."""
        wanted = np.ones(len(self.shard_split), dtype=bool)
        if splits is not None:
            if (self.shard_split == MIXED).any():
                return None
            wanted = np.isin(self.shard_split, [self.split_names.index(name) for name in splits])
        count = np.diff(self.shard_first)
        shards = np.flatnonzero(wanted)
        return Blocks.of_runs(np.asarray(self.shard_first[shards]), np.asarray(count[shards]), shards)


def set_columns(
    *,
    shards: Sequence[Shard],
    logs: Sequence[str],
    splits: Sequence[str],
    sample_shard: Int[np.ndarray, " n"],
    sample_log: Int[np.ndarray, " n"],
    sample_timestamp_us: Int[np.ndarray, " n"],
) -> tuple[dict[str, Shaped[np.ndarray, " _"]], tuple[str, ...]]:
    """What the table of a set holds beside its samples' columns, and the names of the splits by their number."""
    names = tuple(sorted(set(splits)))
    log_split = np.array([names.index(split) for split in splits], dtype=np.int32)
    in_time = np.lexsort((sample_timestamp_us, sample_log))
    split_of = log_split[sample_log]
    first = np.searchsorted(sample_shard, np.arange(len(shards) + 1))
    shard_split = np.full(len(shards), MIXED, dtype=np.int32)
    filled = np.flatnonzero(np.diff(first))  # reduceat takes no empty pieces
    if len(filled):
        low, high = (of.reduceat(split_of, first[filled]) for of in (np.minimum, np.maximum))
        shard_split[filled] = np.where(low == high, low, MIXED)
    shard_split[np.diff(first) == 0] = 0
    columns = {
        "shard_file": np.array([shard.file.encode() for shard in shards], dtype=np.bytes_),
        "shard_sha256": np.array([shard.sha256.encode() for shard in shards], dtype=np.bytes_),
        "log_name": np.array([log.encode() for log in logs], dtype=np.bytes_),
        "shard_num_samples": np.array([shard.num_samples for shard in shards], dtype=np.int64),
        "shard_num_bytes": np.array([shard.num_bytes for shard in shards], dtype=np.int64),
        "shard_first": first.astype(np.int64),
        "shard_split": shard_split,
        "log_split": log_split,
        "log_start": np.searchsorted(sample_log[in_time], np.arange(len(logs) + 1)).astype(np.int64),
    }
    if not np.array_equal(in_time, np.arange(len(in_time))):
        columns["in_time"] = in_time.astype(np.int64)
    return columns, names


def index_of(table: Mapping[str, Shaped[np.ndarray, " _"]], split_names: Sequence[str], num_samples: int) -> SetIndex:
    """The index of a table that was read.

    Raises:
        ValueError: a number of it points to nothing; says which column.
    """
    num_shards, num_logs = len(table["shard_file"]), len(table["log_name"])
    for name, count in (("shard_first", num_shards), ("log_start", num_logs)):
        column = table[name]
        fits = column.shape == (count + 1,) and column[0] == 0 and column[-1] == num_samples
        if not fits or not ascends(column):
            raise ValueError(f"{name} is no ascending row of {count + 1} numbers from 0 to {num_samples}")
    lengths = {"shard": num_shards, "log": num_logs, "in": num_samples}
    for name in ("shard_num_samples", "shard_num_bytes", "shard_sha256", "shard_split", "log_split", "in_time"):
        expected = lengths[name.partition("_")[0]]
        if name in table and len(table[name]) != expected:
            raise ValueError(f"{name} has {len(table[name])} rows, expected {expected}")
    for name, least, most in (
        ("shard_split", MIXED, len(split_names) - 1),
        ("log_split", 0, len(split_names) - 1),
        ("in_time", 0, num_samples - 1),
        ("shard_num_samples", 0, 1 << 62),
        ("shard_num_bytes", 0, 1 << 62),
    ):
        low, high = bounds(table[name]) if name in table else (least, most)
        if len(table.get(name, ())) and not (low >= least and high <= most):
            raise ValueError(f"{name} runs from {low} to {high}, expected {least} to {most}")
    own = {name: table[name] for name in ("shard_first", "shard_split", "log_split", "log_start")}
    return SetIndex(**own, in_time=table.get("in_time"), split_names=tuple(split_names))


def set_fingerprint(schema_version: int, shards: Sequence[Shard], keys: Shaped[np.ndarray, " n"]) -> str:
    """SHA-256 of the shards' names and checksums, and of the keys where samples were dropped from their shards.

    It is that of the text of one JSON list, made in pieces: of a large set that text would take as much memory as all
    else.
    """
    digest = hashlib.sha256(f"[{json.dumps(schema_version)}, [".encode())
    num_samples = 0
    for start in range(0, len(shards), _PIECE):
        part = shards[start : start + _PIECE]
        num_samples += sum(shard.num_samples for shard in part)
        names = json.dumps([[shard.file, shard.sha256] for shard in part])[1:-1]
        digest.update(f"{', ' if start else ''}{names}".encode())
    dropped = len(keys) != num_samples
    digest.update(f'], "{hashlib.sha256(keys.tobytes()).hexdigest()}"]'.encode() if dropped else b"]]")
    return digest.hexdigest()
