"""The manifest of a prepared set, and random access to its samples.

A set is a folder of WebDataset tars with `manifest.json` (what the set is, its shards and logs) and `samples.npz` (one
row a sample) beside them; docs/shards.md describes both. A sample is read with one `pread` at its (shard, offset), so
any order costs the same. Per sample only numpy rows are held: Python objects would be copied into every worker as
their reference counts change. The set may lie behind a URL; `data.storage.store` says where its bytes come from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from common.files import replace_file, sha256_of
from common.retry import RETRY_MIN, StorageAwayError
from data.sample import Sample
from data.shared_memory import SharesTables
from data.storage.decode import DecodeSpec, Images, decode_sample
from data.storage.encode import MAX_SAMPLE_BYTES, READABLE_VERSIONS, SCHEMA_VERSION, DamagedError
from data.storage.manifest_check import MAX_MANIFEST_BYTES, check_content, check_table
from data.storage.remote.shard_cache import CacheConfig
from data.storage.store import MANIFEST_NAME, Store, join, open_store
from data.storage.superpixel_record import SuperpixelRecord
from data.storage.untrusted import parse_json, parse_npz, tar_members

TABLE_NAME = "samples.npz"


class ShardError(RuntimeError):
    """A prepared set is absent, incomplete, of another schema, or too damaged to go on."""


class SampleError(ShardError):
    """One sample cannot be used; the loader skips and counts it.

    Attributes:
        reason: one of `data.storage.encode.REASONS`, or one of the loader's own: "zero-pairs", "no-points",
            "no-partner", "superpixels-missing", "not-cached".
        key: the sample's key.
        shard: file name of its tar.
    """

    def __init__(self, reason: str, key: str, shard: str, detail: str = "") -> None:
        super().__init__(reason, key, shard, detail)
        self.reason = reason
        self.key = key
        self.shard = shard
        self.detail = detail

    def __str__(self) -> str:
        """One line for a log."""
        return f"sample {self.key} in {self.shard}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of the set; `num_samples` counts what was written into it, also what a repair has dropped since."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest(SharesTables):
    """What a prepared set holds. Rows of the sample tables are in shard order, inside a shard in tar order.

    Attributes:
        root: folder or URL of the set.
        set_name: e.g. "kitti-raw".
        class_names: of `Sample.labels`, () if unlabelled.
        camera_names: in the fixed order of `Sample.cameras`.
        shards: the tars.
        logs: names of the drives.
        splits: split of each log, e.g. "train" or "val".
        notes: what the converter had to assume, for people.
        skipped: source samples left out when the set was made, keys by reason.
        superpixels: how they were made; None for sets without them and for sets that do not record it.
        keys: of each sample.
        sample_shard: index into `shards`.
        sample_offset: byte offset of the sample's first tar header.
        sample_size: bytes from there to the end of its last member.
        sample_crc32: CRC-32 of those bytes.
        sample_log: index into `logs`.
        sample_timestamp_us: time of the sweep.
        num_points: points of the sweep.
        num_pairs: (point, camera) pairs, see `data.storage.encode.count_pairs`.
        num_labelled: points with a class; -1 where the set does not say.
        cache: where shards of a set behind a URL are kept.
        schema_version: of the stored set.
    """

    root: str
    set_name: str
    class_names: tuple[str, ...]
    camera_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    logs: tuple[str, ...]
    splits: tuple[str, ...]
    notes: tuple[str, ...]
    skipped: dict[str, tuple[str, ...]]
    keys: Shaped[np.ndarray, " n"]
    sample_shard: Int[np.ndarray, " n"]
    sample_offset: Int[np.ndarray, " n"]
    sample_size: Int[np.ndarray, " n"]
    sample_crc32: Int[np.ndarray, " n"]
    sample_log: Int[np.ndarray, " n"]
    sample_timestamp_us: Int[np.ndarray, " n"]
    num_points: Int[np.ndarray, " n"]
    num_pairs: Int[np.ndarray, " n"]
    num_labelled: Int[np.ndarray, " n"]
    superpixels: SuperpixelRecord | None = None
    cache: CacheConfig = field(default_factory=CacheConfig)
    schema_version: int = SCHEMA_VERSION

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.sample_shard.shape[0])

    def indices(self, split: str | None = None, log: str | None = None) -> Int[np.ndarray, " k"]:
        """Samples of a split, of a log, of both or of the whole set, ordered by log and then by time.

        Args:
            split: name; several joined by "+", as in "train+minival", for all of them.
            log: name.

        Raises:
            ShardError: the set has no such split or log.
        """
        chosen = np.ones(len(self), dtype=bool)
        if split is not None:
            wanted = split.split("+")
            for name in wanted:
                _known("split", name, self.splits, self.root)
            in_split = np.array([name in wanted for name in self.splits], dtype=bool)
            chosen &= in_split[self.sample_log]
        if log is not None:
            _known("log", log, self.logs, self.root)
            chosen &= self.sample_log == self.logs.index(log)
        order = np.lexsort((self.sample_timestamp_us, self.sample_log))
        return np.asarray(order[chosen[order]], dtype=np.int64)

    def labelled(self, indices: Int[np.ndarray, " k"]) -> Int[np.ndarray, " m"]:
        """Those samples that have a point with a class, or may have one; all of them where none has."""
        kept = indices[self.num_labelled[indices] != 0]
        return kept if len(kept) else indices

    def key(self, index: int) -> str:
        """The sample's key as text."""
        return bytes(self.keys[index]).decode()

    def shard_path(self, shard: int) -> str:
        """Path or URL of a tar."""
        return join(self.root, self.shards[shard].file)

    def fingerprint(self) -> str:
        """Changes when any stored byte or the choice of the samples changes; caches beside the shards go by it."""
        content: list[Any] = [self.schema_version, [[shard.file, shard.sha256] for shard in self.shards]]
        if len(self) != sum(shard.num_samples for shard in self.shards):  # some were dropped by a repair
            content.append(hashlib.sha256(self.keys.tobytes()).hexdigest())
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def damaged_shards(self) -> list[str]:
        """Reads every tar whole and names those whose checksum differs from the manifest's, or that are gone."""
        store = open_store(self.root, self.cache, retry_min=0.0)
        return [shard.file for shard in self.shards if _stored_sha256(store, shard.file) != shard.sha256]


def _known(what: str, name: str, names: tuple[str, ...], root: str) -> None:
    if name not in names:
        shown = sorted(set(names))
        listed = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
        raise ShardError(f"{what} {name!r} is not in the set {root}; it has {listed or 'none'}")


def _stored_sha256(store: Store, name: str) -> str | None:
    try:
        return str(sha256_of(store.blocks(name)).hexdigest())
    except FileNotFoundError:
        return None
    except (OSError, StorageAwayError) as error:
        raise ShardError(f"{name} cannot be read: {error}") from error


# ---- manifest
SAMPLE_COLUMNS = {
    "sample_shard": np.int32,
    "sample_offset": np.int64,
    "sample_size": np.int64,
    "sample_crc32": np.int64,
    "sample_log": np.int32,
    "sample_timestamp_us": np.int64,
    "num_points": np.int32,
    "num_pairs": np.int32,
    "num_labelled": np.int32,
}
"""Columns of samples.npz beside `keys`."""
_LATER = "num_labelled"
"""A column that sets prepared before it was thought of lack."""


def load_manifest(root: str, cache: CacheConfig | None = None) -> Manifest:
    """Read the manifest of a prepared set.

    Args:
        root: folder or URL of the set.
        cache: where shards behind a URL are kept; None: the default place.

    Raises:
        ShardError: not a finished set, another schema version, a damaged manifest or table, or storage that cannot be
            read.
    """
    cache = cache or CacheConfig()
    store, path = open_store(root, cache, retry_min=0.0), join(root, MANIFEST_NAME)
    try:
        content = parse_json(store.read_file(MANIFEST_NAME), MAX_MANIFEST_BYTES)
        version = content["schema_version"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ShardError(
            f"{root} holds no finished shard set: {MANIFEST_NAME} is missing ({error}); run `tandem prepare` (again) "
            "into it, or give its folder or address as it is"
        ) from error
    except (OSError, StorageAwayError) as error:
        raise ShardError(f"{root} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} is damaged ({error!r}); run `tandem prepare` into a new folder") from error
    if version not in READABLE_VERSIONS:
        raise ShardError(
            f"{path} has schema version {version}, this code reads {' and '.join(map(str, READABLE_VERSIONS))}; "
            "prepare the set again"
        )
    try:
        check_content(content)
        table = _read_table(store, root, content["table_sha256"])
        check_table(content, table, SAMPLE_COLUMNS)
        manifest = _manifest_from(root, content, table, cache)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{path} is damaged ({error!r}); run `tandem prepare` into a new folder") from error
    return manifest


def _read_table(store: Store, root: str, sha256: str) -> dict[str, np.ndarray]:
    path = join(root, TABLE_NAME)
    try:
        data = store.read_file(TABLE_NAME, sha256)
    except FileNotFoundError:
        data = b""
    except (OSError, StorageAwayError) as error:
        raise ShardError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ShardError(f"{path} is missing or not the one of {MANIFEST_NAME}; prepare the set again")
    table = parse_npz(data, ("keys", *SAMPLE_COLUMNS), optional=(_LATER,))
    table.setdefault(_LATER, np.full(table["keys"].shape, -1, SAMPLE_COLUMNS[_LATER]))
    return table


def _manifest_from(root: str, content: dict[str, Any], table: dict[str, np.ndarray], cache: CacheConfig) -> Manifest:
    return Manifest(
        root=root,
        set_name=content["set_name"],
        class_names=tuple(content["class_names"]),
        camera_names=tuple(content["camera_names"]),
        shards=tuple(Shard(**shard) for shard in content["shards"]),
        logs=tuple(log["name"] for log in content["logs"]),
        splits=tuple(log["split"] for log in content["logs"]),
        notes=tuple(content["notes"]),
        skipped={reason: tuple(keys) for reason, keys in content["skipped"].items()},
        **table,
        superpixels=_superpixels_from(content.get("superpixels")),
        cache=cache,
        schema_version=content["schema_version"],
    )


def _superpixels_from(content: dict[str, Any] | None) -> SuperpixelRecord | None:
    if content is None:
        return None
    return SuperpixelRecord(**{f.name: content.get(f.name) for f in dataclasses.fields(SuperpixelRecord)})


def write_manifest(manifest: Manifest) -> None:
    """Write `samples.npz` and then `manifest.json`, each whole or not at all; the set is finished with the latter.

    Raises:
        ShardError: two samples share a key.
    """
    unique, counts = np.unique(manifest.keys, return_counts=True)
    if (counts > 1).any():
        twice = bytes(unique[counts > 1][0]).decode()
        raise ShardError(f"{manifest.root}: key {twice!r} belongs to {counts.max()} samples; keys must be unique")
    buffer = io.BytesIO()
    columns: dict[str, Any] = {"keys": manifest.keys}
    columns |= {name: getattr(manifest, name).astype(kind) for name, kind in SAMPLE_COLUMNS.items()}
    np.savez(buffer, **columns)
    table = buffer.getvalue()
    content = {
        "schema_version": manifest.schema_version,
        "set_name": manifest.set_name,
        "num_samples": len(manifest),
        "class_names": manifest.class_names,
        "camera_names": manifest.camera_names,
        "table_sha256": hashlib.sha256(table).hexdigest(),
        "notes": manifest.notes,
        "skipped": manifest.skipped,
        "superpixels": None if manifest.superpixels is None else dataclasses.asdict(manifest.superpixels),
        "logs": [{"name": name, "split": split} for name, split in zip(manifest.logs, manifest.splits, strict=True)],
        "shards": [dataclasses.asdict(shard) for shard in manifest.shards],
    }
    replace_file(Path(manifest.root) / TABLE_NAME, table)
    replace_file(Path(manifest.root) / MANIFEST_NAME, (json.dumps(content, indent=1) + "\n").encode())


# ---- reader
class SampleReader:
    """Reads samples by their row in the manifest.

    Safe to pickle and to use on both sides of a fork; one reader a thread.
    """

    def __init__(self, manifest: Manifest, *, retry_min: float = RETRY_MIN) -> None:
        """Nothing is opened yet.

        Args:
            manifest: of the set.
            retry_min: minutes for which the set's storage may be away.
        """
        self.manifest = manifest
        self._store = open_store(manifest.root, manifest.cache, retry_min=retry_min)

    @property
    def roots(self) -> tuple[str, ...]:
        """Folder or URL of the set."""
        return (self.manifest.root,)

    @property
    def shards_each(self) -> tuple[int, ...]:
        """Shards of each of `roots`."""
        return (len(self.manifest.shards),)

    def close(self) -> None:
        """Close the tars; the next read opens them again."""
        self._store.close()

    def expect(self, shards: Sequence[int]) -> None:
        """Say which shards will be read next, in this order: a set behind a URL fetches them ahead."""
        self._store.expect([self.manifest.shards[shard] for shard in shards])

    def read(
        self,
        index: int,
        *,
        images: Images = True,
        superpixels: bool = True,
        labels: bool = True,
        depth: bool = False,
        image_labels: bool = False,
    ) -> Sample:
        """One sample; what is not asked for is not decoded and None.

        Raises:
            SampleError: the sample is damaged. Its bytes are compared with their checksum even where the damaged
                part was not asked for.
            ShardError: the storage of the set went away and did not come back in time.
            IndexError: no such sample.
        """
        if not 0 <= index < len(self.manifest):
            raise IndexError(f"sample {index} of a set of {len(self.manifest)}")
        key = self.manifest.key(index)
        wanted = DecodeSpec(
            images=images, superpixels=superpixels, labels=labels, depth=depth, image_labels=image_labels
        )
        try:
            data = self._sample_bytes(index)
            sample = decode_sample(key, _members(key, data), wanted)
            # Last, so that damage that has a name gets it.
            if zlib.crc32(data) != int(self.manifest.sample_crc32[index]):
                raise DamagedError("checksum", "the bytes are not those that were written")
        except DamagedError as error:
            shard = self.manifest.shards[int(self.manifest.sample_shard[index])].file
            raise SampleError(error.reason, key, shard, error.detail) from error
        return sample

    def _sample_bytes(self, index: int) -> bytes:
        offset, size = int(self.manifest.sample_offset[index]), int(self.manifest.sample_size[index])
        if not (offset >= 0 and 0 < size <= MAX_SAMPLE_BYTES):
            raise DamagedError("tar-broken", f"the manifest states {size} bytes at {offset}")
        shard = self.manifest.shards[int(self.manifest.sample_shard[index])]
        try:
            data = self._store.read_at(shard, size, offset, int(self.manifest.sample_crc32[index]))
        except OSError as error:
            raise DamagedError("shard-missing", str(error)) from error
        except StorageAwayError as error:
            raise ShardError(str(error)) from error
        if len(data) != size:
            raise DamagedError("tar-broken", f"truncated: {len(data)} of {size} bytes at {offset}")
        return data


def _members(key: str, data: bytes) -> dict[str, bytes]:
    """Files of one sample by name without the key.

    Raises:
        DamagedError: not a whole tar, or it holds files of another sample.
    """
    members: dict[str, bytes] = {}
    try:
        for name, content in tar_members(data):
            if not name.startswith(key + "."):
                raise DamagedError("tar-broken", f"{name!r} is no file of this sample")
            if members.setdefault(name[len(key) + 1 :], content) is not content:
                raise DamagedError("tar-broken", f"{name!r} is there twice")
    except ValueError as error:
        raise DamagedError("tar-broken", str(error)) from error
    return members
