"""Writing shards: whole tars with their rows of the sample table, and the manifest joined from them.

Bytes are deterministic: fixed owner, mode and time in the tar headers, sorted members, deterministic encoders.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.sample import Sample
from data.storage.encode import CodecConfig, SetBounds, check_fits_set, count_labelled, count_pairs, encode_sample
from data.storage.manifest import SAMPLE_COLUMNS, Manifest, SetInfo
from data.storage.manifest_writer import write_manifest
from data.storage.shard import Shard


@dataclass(frozen=True, kw_only=True)
class ShardTable:
    """A written tar and its samples' rows.

    Attributes:
        shard: the tar.
        keys: of its samples, in tar order.
        logs: name of each sample's log.
        columns: the other columns of samples.npz without shard and log numbers, which joining adds.
    """

    shard: Shard
    keys: tuple[str, ...]
    logs: tuple[str, ...]
    columns: dict[str, tuple[int, ...]]


COUNTED_COLUMNS = tuple(name for name in SAMPLE_COLUMNS if name not in ("sample_shard", "sample_log"))
"""What `ShardTable.columns` holds."""


class ShardWriter:
    """Writes one tar under a temporary name; `finish` renames it once it is whole and on disk.

    Use as a context manager: leaving it with an error removes the temporary file.
    """

    def __init__(self, path: Path, config: CodecConfig, bounds: SetBounds | None = None) -> None:
        """Open the temporary file; `bounds`: what the set's samples may hold, where that is known beforehand."""
        self._path = path
        self._config = config
        self._bounds = bounds
        self._temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._file = self._temporary.open("wb")
        # Not before a shard is written: it imports torch where that is installed.
        from webdataset.writer import TarWriter

        self._tar = TarWriter(self._file, user="", group="", mtime=0, encoder=False, compress=False)
        self._keys: list[str] = []
        self._logs: list[str] = []
        self._rows: list[dict[str, int]] = []

    def __enter__(self) -> ShardWriter:
        """The writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Remove the unfinished file after an error."""
        if kind is not None:
            self.discard()

    @property
    def num_samples(self) -> int:
        """Written so far."""
        return len(self._keys)

    def write(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            DamagedError: the sample is refused by `data.storage.encode.check_sample` or `check_fits_set`; the tar is
                as before.
        """
        if self._bounds is not None:
            check_fits_set(sample, self._bounds)
        members = encode_sample(sample, self._config)
        counts = {
            "sample_timestamp_us": int(sample.timestamp_us),
            "num_points": int(sample.points_lidar.shape[0]),
            "num_pairs": count_pairs(sample),
            "num_labelled": count_labelled(sample),
        }
        # Last, when nothing but the disk can fail: rows and tar must go together.
        start = int(self._tar.tarstream.offset)
        self._tar.write({"__key__": sample.key, **members})
        self._keys.append(sample.key)
        self._logs.append(sample.log)
        size = int(self._tar.tarstream.offset) - start
        self._rows.append({"sample_offset": start, "sample_size": size, **counts})

    def discard(self) -> None:
        """Remove the unfinished file."""
        # Closing flushes, which fails again on a full disk: the first error is the one to be seen.
        for part in (self._tar, self._file):
            with contextlib.suppress(OSError):
                part.close()
        self._temporary.unlink(missing_ok=True)

    def finish_or_discard(self) -> ShardTable | None:
        """`finish`; no tar at all where nothing was written."""
        if self.num_samples:
            return self.finish()
        self.discard()
        return None

    def finish(self) -> ShardTable:
        """Close, checksum, flush to disk and rename."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        shard = self._checksum()
        self._temporary.replace(self._path)
        columns = {name: tuple(row[name] for row in self._rows) for name in COUNTED_COLUMNS}
        return ShardTable(shard=shard, keys=tuple(self._keys), logs=tuple(self._logs), columns=columns)

    def _checksum(self) -> Shard:
        """Adds each sample's CRC; samples lie one after another from offset 0."""
        digest = hashlib.sha256()
        with self._temporary.open("rb") as file:
            for row in self._rows:
                data = file.read(row["sample_size"])
                digest.update(data)
                row["sample_crc32"] = zlib.crc32(data)
            digest.update(file.read())
            size = file.tell()
        return Shard(file=self._path.name, num_samples=len(self._rows), num_bytes=size, sha256=digest.hexdigest())


def write_shard(path: Path, samples: Iterable[Sample], config: CodecConfig | None = None) -> ShardTable:
    """Write samples into one tar, refusing damaged ones with `DamagedError`."""
    with ShardWriter(path, config or CodecConfig()) as writer:
        for sample in samples:
            writer.write(sample)
        return writer.finish()


def join_manifest(root: str, info: SetInfo, tables: Sequence[ShardTable]) -> Manifest:
    """Make and write the manifest of finished shards, in the order given.

    Raises:
        ShardError: two samples share a key.
    """
    log_number = {name: number for number, name in enumerate(info.logs)}
    columns = {
        name: np.array([value for table in tables for value in table.columns[name]], np.int64)
        for name in COUNTED_COLUMNS
    }
    counts = [len(table.keys) for table in tables]
    columns["sample_shard"] = np.repeat(np.arange(len(tables)), counts)
    columns["sample_log"] = np.array([log_number[log] for table in tables for log in table.logs], int)
    typed: dict[str, Any] = {name: columns[name].astype(kind) for name, kind in SAMPLE_COLUMNS.items()}
    manifest = Manifest(
        root=root,
        shards=tuple(table.shard for table in tables),
        **vars(info),
        keys=np.array([key.encode() for table in tables for key in table.keys], dtype=np.bytes_),
        **typed,
    )
    write_manifest(manifest)
    return manifest
