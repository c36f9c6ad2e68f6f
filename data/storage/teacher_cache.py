"""Storage for features of a frozen teacher, pooled over superpixels, beside the shards. No network runs here.

`<root>/teacher_cache/<key>/` holds parts, each a pair of files, and `cache.json`, which is written last:

    part-<digest>.npy         float16 [rows, dim]
    part-<digest>.index.npz   sample int64 [k], key uint64 [k], num_segments int32 [k, V], sha256 of the .npy
    cache.json                dim, number of cameras, fingerprint of the shard set, the parts with sizes and checksums
    build.lock                held by the one process that builds; names it and how far it is

The rows of a sample are its cameras' superpixels, camera after camera in the set's order. Several runs may want the
same cache: one builds, the others wait, and who comes later reads. Parts are named by their content and never change,
so whoever reads keeps what it has opened. The index says whose rows a part has: by the sample's row in the set, and by
a digest of its key, against which every read is checked. What a killed build finished is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from common.file_lock import FileLock
from common.files import file_sha256, replace_file, replacing
from common.retry import RETRY_MIN, StorageAwayError, StorageRetry
from data.shared_memory import SharesTables
from data.storage.manifest import Manifest
from data.storage.shard import ShardError
from data.storage.store import LocalStore

logger = logging.getLogger(__name__)

_ITEM_BYTES = 2  # float16
_VERSION = 1
_LOCK = "build.lock"
_PIXELS = 2
"""Raised when the same stored image gives a teacher other pixels than before; 1: all were decoded at full size."""
_PART_BYTES = 256 << 20
_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")


def teacher_cache_key(teacher_fingerprint: str, manifest: Manifest, image_size: tuple[int, int]) -> str:
    """Name of a cache: changes with the teacher, the shards, the size that images are brought to, and how."""
    content = json.dumps([_VERSION, teacher_fingerprint, manifest.fingerprint(), list(image_size), _PIXELS])
    return hashlib.sha256(content.encode()).hexdigest()[:20]


@dataclass(frozen=True, kw_only=True)
class _Part:
    file: str
    num_bytes: int
    sha256: str


class CacheDamagedError(ShardError):
    """A cache is not what was written; its damaged parts have to be built again."""


class CacheBusyError(RuntimeError):
    """Another process builds this cache; the message says who and how far it is."""


def _folder(root: str, key: str) -> Path:
    if not _KEY.match(key):
        raise ValueError(f"key is {key!r}, expected letters, digits, '-' and '_'")
    return Path(root) / "teacher_cache" / key


class TeacherCache(SharesTables):
    """Read access; picklable, each process opens the files for itself.

    Attributes:
        path: folder of the cache.
        dim: D, width of the features.
        manifest_fingerprint: of the shard set that it was built from.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.dim = int(content["dim"])
        self.manifest_fingerprint = str(content["manifest_fingerprint"])
        self._parts = [_Part(**part) for part in content["parts"]]
        num_samples, num_cameras = int(content["num_samples"]), int(content["num_cameras"])
        # Row tables: which part a sample is in (-1: none), its first row there, superpixels of each camera.
        self._part = np.full(num_samples, -1, dtype=np.int32)
        self._row = np.zeros(num_samples, dtype=np.int64)
        self._counts = np.zeros((num_samples, num_cameras), dtype=np.int32)
        self._keys = np.zeros(num_samples, dtype=np.uint64)
        self._starts: list[int] = []
        for number, part in enumerate(self._parts):
            samples, keys, counts, sha256 = _read_index(path / part.file)
            if sha256 != part.sha256:  # two builds of a version without a lock: rows of other samples
                raise ValueError(f"{_index_path(path / part.file).name} is the index of another part")
            self._keys[samples] = keys
            self._starts.append(part.num_bytes - int(counts.sum()) * self.dim * _ITEM_BYTES)  # behind the .npy header
            self._part[samples] = number
            self._row[samples] = np.cumsum(counts.sum(axis=1)) - counts.sum(axis=1)
            self._counts[samples] = counts
        self._store = LocalStore(str(path), RETRY_MIN, probe="cache.json")

    @staticmethod
    def open(root: str, key: str, *, verify: bool = True) -> TeacherCache | None:
        """The finished cache of a key in the folder of the shard set; None where there is none (or an unfinished one).

        Sizes are always compared; `verify` also reads all of it and compares checksums, about 1 s a gigabyte.

        Raises:
            CacheDamagedError: a part is missing, damaged or of another version.
            ShardError: it cannot be read, also some seconds later, or after minutes where all storage is away.
        """
        path = _folder(root, key)
        if not (path / "cache.json").is_file():
            return None
        try:
            return StorageRetry(path / "cache.json", RETRY_MIN).read(lambda: TeacherCache._opened(path, verify))
        except (OSError, StorageAwayError) as error:
            raise ShardError(f"{path} cannot be read: {error}; it is left as it is: start again when it can") from error

    @staticmethod
    def _opened(path: Path, verify: bool) -> TeacherCache:
        remedy = f"delete {path} and build the teacher cache again"
        try:
            content = json.loads((path / "cache.json").read_bytes())
            if content["version"] != _VERSION:
                raise CacheDamagedError(f"{path} has version {content['version']}, expected {_VERSION}; {remedy}")
            for part in (_Part(**fields) for fields in content["parts"]):
                file = path / part.file
                size = file.stat().st_size if file.is_file() else -1
                if size != part.num_bytes:
                    what = f"{file} has {size} bytes (-1: missing), expected {part.num_bytes}"
                    raise CacheDamagedError(f"{what}; {remedy}")
                if verify and file_sha256(file) != part.sha256:
                    raise CacheDamagedError(f"{file} does not have the checksum of cache.json; {remedy}")
            return TeacherCache(path, content)
        except (ValueError, KeyError, TypeError, IndexError, MemoryError, OverflowError) as error:
            raise CacheDamagedError(f"{path} is damaged ({error!r}); {remedy}") from error

    def __contains__(self, index: int) -> bool:
        """Whether the sample's features are here."""
        return bool(self._part[index] >= 0)

    def offsets(self, index: int) -> Int[np.ndarray, " bounds"]:
        """First row of each camera within the sample's features; the last entry is their number."""
        return np.concatenate(([0], np.cumsum(self._counts[index], dtype=np.int64)))

    def features(self, index: int, key: str) -> Float[np.ndarray, "S D"]:
        """float16 features of the superpixels of the sample in a row of the set, whose key it has.

        Raises:
            KeyError: the sample is not in the cache.
            ShardError: they cannot be read, or are those of a sample with another key.
        """
        part = int(self._part[index])
        if part < 0:
            raise KeyError(f"sample {index} is not in the teacher cache {self.path}")
        if int(self._keys[index]) not in (_NO_KEY, _digest(key)):
            raise ShardError(
                f"{self.path / self._parts[part].file}: row {index} of the set is sample {key}, and the features there "
                f"are those of another one; delete {self.path} and build the teacher cache again"
            )
        row_bytes, rows = self.dim * _ITEM_BYTES, int(self._counts[index].sum())
        start = self._starts[part] + int(self._row[index]) * row_bytes
        # Not mapped: where storage goes away, touching a map kills the process, while a read can be tried again.
        try:
            data = self._store.piece(self._parts[part].file, rows * row_bytes, start)
        except (OSError, StorageAwayError) as error:
            raise ShardError(f"{self.path / self._parts[part].file} cannot be read: {error}") from error
        if len(data) != rows * row_bytes:
            raise ShardError(f"{self.path / self._parts[part].file} has become shorter; delete {self.path}")
        return np.frombuffer(data, dtype=np.float16).reshape(rows, self.dim)


def _index_path(part: Path) -> Path:
    return part.with_name(part.stem + ".index.npz")


_NO_KEY = 0
"""In place of a key's digest: parts of earlier versions have none."""


def _digest(key: str) -> int:
    """Of a sample's key, never `_NO_KEY`."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") or 1


def _read_index(part: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Samples, digests of their keys, superpixels of each camera, checksum of the part.

    Raises:
        ValueError: missing or damaged.
    """
    try:
        with np.load(_index_path(part), allow_pickle=False) as archive:
            samples = archive["sample"]
            keys = archive["key"] if "key" in archive.files else np.full(len(samples), _NO_KEY, dtype=np.uint64)
            return samples, keys, archive["num_segments"], str(archive["sha256"])
    except (ValueError, KeyError, TypeError, EOFError, FileNotFoundError, zipfile.BadZipFile) as error:
        raise ValueError(f"{_index_path(part).name} cannot be read: {error!r}") from error


class TeacherCacheWriter:
    """Builds a cache part by part; what earlier, interrupted builds finished is kept.

    One process at a time, on any machine, holds it, from the constructor to `finish` or the end of a `with` block:

        with TeacherCacheWriter(root, key, dim, manifest) as writer:
            for index in writer.missing(indices): writer.add(index, features, counts)
            cache = writer.finish()
    """

    def __init__(self, root: str, key: str, dim: int, manifest: Manifest, *, part_bytes: int = _PART_BYTES) -> None:
        """Take the lock, and look at what is there.

        Raises:
            CacheBusyError: another process builds it.
            ShardError: the folder cannot be written.
        """
        self._root, self._key, self._dim, self._manifest = root, key, dim, manifest
        self._rows_per_part = max(part_bytes // (_ITEM_BYTES * dim), 1)
        self._path = _folder(root, key)
        self._done = np.zeros(len(manifest), dtype=bool)
        self._parts: dict[str, _Part] = {}
        self._buffer: list[tuple[int, np.ndarray, tuple[int, ...]]] = []
        self._lock = FileLock(self._path / _LOCK)
        with self._writing():
            self._path.mkdir(parents=True, exist_ok=True)
            if not self._lock.take():
                raise CacheBusyError(f"{self._path} is being built by {self._lock.holder}")
        try:
            with self._writing():
                self._recover()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> TeacherCacheWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Let others build; what is not flushed is lost."""
        self._lock.release()

    def missing(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
        """Those of the samples that still have to be added."""
        return np.asarray(indices[~self._done[indices]])

    def note(self, how_far: str) -> None:
        """Tell those who wait."""
        self._lock.note(how_far)

    def add(self, index: int, features: Float[np.ndarray, "S D"], num_segments: Sequence[int]) -> None:
        """Take the features of a sample's superpixels, camera after camera; `num_segments`: how many each camera has.

        Raises:
            ValueError: shapes that do not fit, values that float16 cannot hold, or a sample that is already there.
        """
        cameras = len(self._manifest.camera_names)
        if len(num_segments) != cameras or features.shape != (sum(num_segments), self._dim):
            raise ValueError(
                f"sample {index}: features are {features.shape} for {tuple(num_segments)} superpixels, expected "
                f"{(sum(num_segments), self._dim)} and {cameras} cameras"
            )
        if self._done[index]:
            raise ValueError(f"sample {index} is already in the cache")
        with np.errstate(over="ignore"):  # infinities are refused below
            rows = features.astype(np.float16)
        if not np.isfinite(rows).all():
            raise ValueError(f"sample {index}: features are not finite in float16")
        self._buffer.append((index, rows, tuple(num_segments)))
        self._done[index] = True
        if sum(len(rows) for _, rows, _ in self._buffer) >= self._rows_per_part:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last part as a part of its own.

        Raises:
            ShardError: it cannot be written.
        """
        if self._buffer:
            with self._writing():
                self._write_part()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ShardError(
                f"{self._path} cannot be written: {error}; what is finished is kept: when the cause is removed, start "
                "again"
            ) from error

    def _write_part(self) -> None:
        samples = np.array([index for index, _, _ in self._buffer], dtype=np.int64)
        rows = np.concatenate([rows for _, rows, _ in self._buffer])
        # Whose rows they are is part of the name: two samples may look the same.
        part = self._path / f"part-{hashlib.sha256(samples.tobytes() + rows.tobytes()).hexdigest()[:20]}.npy"
        with replacing(part, durable=True) as temporary:
            with temporary.open("wb") as file:
                np.save(file, rows, allow_pickle=False)
            sha256 = file_sha256(temporary)
        assert sha256 is not None
        # The index makes the part count; it comes last, so a part is there whole or not at all.
        with replacing(_index_path(part), durable=True) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                sample=samples,
                key=np.array([_digest(self._manifest.key(index)) for index, _, _ in self._buffer], dtype=np.uint64),
                num_segments=np.array([counts for _, _, counts in self._buffer], dtype=np.int32),
                sha256=np.array(sha256),
            )
        self._parts[part.name] = _Part(file=part.name, num_bytes=part.stat().st_size, sha256=sha256)
        self._buffer = []

    def finish(self) -> TeacherCache:
        """Write the rest, let others build, and open the cache. Samples that were never added are not in it."""
        self.flush()
        content = {
            "version": _VERSION,
            "dim": self._dim,
            "num_samples": len(self._manifest),
            "num_cameras": len(self._manifest.camera_names),
            "manifest_fingerprint": self._manifest.fingerprint(),
            "parts": [asdict(self._parts[name]) for name in sorted(self._parts)],
        }
        with self._writing():
            replace_file(self._path / "cache.json", (json.dumps(content, indent=1) + "\n").encode())
        cache = TeacherCache.open(self._root, self._key, verify=False)
        assert cache is not None
        self._lock.release()
        return cache

    def _recover(self) -> None:
        """Count the finished parts of earlier builds, and remove what they left unfinished or damaged."""
        for leftover in self._path.glob("*.tmp"):  # we hold the lock: nobody writes them any more
            leftover.unlink()
        for part in sorted(self._path.glob("part-*.npy")):
            problem = None
            if _index_path(part).is_file():  # else a part never finished, which is nothing to tell
                try:
                    samples, _, _, sha256 = _read_index(part)
                    if file_sha256(part) == sha256:
                        self._done[samples] = True
                        self._parts[part.name] = _Part(file=part.name, num_bytes=part.stat().st_size, sha256=sha256)
                        continue
                    problem = f"{part.name} has another checksum"
                except (ValueError, IndexError) as error:
                    problem = str(error)
            if problem is not None:
                logger.warning("%s: %s; its samples are built again", self._path, problem)
            _index_path(part).unlink(missing_ok=True)
            part.unlink()
