"""The manifest of a prepared set: what the set is, its shards, and one row for each sample.

A set is a folder of WebDataset tars with `manifest.json` (what the set is, its shards and logs) and `samples.npz` (one
row a sample) beside them; docs/shards.md describes both. Per sample only numpy rows are held: Python objects would be
copied into every worker as their reference counts change.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from common.files import file_sha256, sha256_of
from common.nearby import nearby
from common.retry import StorageAwayError
from common.run_files import CHECKPOINTS_FOLDER
from data.shard_order import Blocks
from data.shared_memory import SharesTables
from data.storage.columns import (
    OPTIONAL,
    SET_COLUMNS,
    TEXT_COLUMNS,
    Names,
    SetIndex,
    Shards,
    index_of,
    set_fingerprint,
)
from data.storage.encode import READABLE_VERSIONS, SCHEMA_VERSION, SetBounds
from data.storage.manifest_check import (
    MAX_MANIFEST_BYTES,
    check_columns,
    check_content,
    check_table,
    is_key,
)
from data.storage.npz_file import map_npz
from data.storage.remote.shard_cache import CacheConfig
from data.storage.shard import Shard, ShardError
from data.storage.store import MANIFEST_NAME, Store, is_url, join, open_store
from data.storage.superpixel_record import SuperpixelRecord
from data.storage.untrusted import parse_json, parse_npz

TABLE_NAME = "samples.npz"
COLUMNAR_VERSION = 4
"""`schema_version` of a manifest.json whose set has shards and logs as columns; its samples have one of their own."""
COMPARED_BYTES = 64 << 20
"""The checksum of a mapped table up to this size is compared whenever the set is opened."""


@dataclass(frozen=True, kw_only=True)
class SetInfo:
    """What a manifest says about a set as a whole.

    Attributes:
        set_name: e.g. "kitti-raw".
        camera_names: in the fixed order of `Sample.cameras`.
        class_names: of `Sample.labels`, () if unlabelled.
        box_categories: of `Boxes.categories`, () where the set has none.
        logs: names of the drives.
        splits: split of each log, e.g. "train" or "val".
        notes: what the converter had to assume, to be read by whoever uses the set.
        skipped: source samples left out when the set was made, keys by reason.
        superpixels: how they were made; None for sets without them and for sets that do not record it.
        image_reduction: images are stored at 1/n of the height and width that the source has.
    """

    set_name: str
    camera_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    box_categories: tuple[str, ...] = ()
    logs: Sequence[str]
    splits: Sequence[str]
    notes: tuple[str, ...] = ()
    skipped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    superpixels: SuperpixelRecord | None = None
    image_reduction: int = 1

    @property
    def stored_images(self) -> str:
        """At what size, in words."""
        whole = self.image_reduction == 1
        return "as large as the source's" if whole else f"1/{self.image_reduction} of the source's height and width"

    @property
    def bounds(self) -> SetBounds:
        """What its samples may hold."""
        most_segments = None if self.superpixels is None else self.superpixels.num_segments
        return SetBounds(
            camera_names=self.camera_names,
            num_classes=len(self.class_names) or None,
            num_categories=len(self.box_categories),
            most_segments=most_segments,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest(SetInfo, SharesTables):
    """What a prepared set holds. Rows of the sample tables are in shard order, inside a shard in tar order.

    Attributes:
        root: folder or URL of the set.
        sample_shard: index into `shards`.
        sample_offset: byte offset of the sample's first tar header.
        sample_size: bytes from there to the end of its last member.
        sample_crc32: CRC-32 of those bytes.
        sample_log: index into `logs`.
        num_pairs: (point, camera) pairs, see `data.storage.encode.count_pairs`.
        num_labelled: points with a class; -1 where the set does not say.
        cache: where shards of a set behind a URL are kept.
        schema_version: of the stored samples.
        index: where the samples of shards, logs and splits are, in a set that has it stored.
    """

    root: str
    shards: Sequence[Shard]
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
    cache: CacheConfig = field(default_factory=CacheConfig)
    schema_version: int = SCHEMA_VERSION

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.sample_shard.shape[0])

    @property
    def index(self) -> SetIndex | None:
        """See above; no field, so that a manifest with other samples does not inherit it."""
        return self.__dict__.get("_index")

    def indices(
        self, split: str | None = None, log: str | None = None, *, limit: int | None = None
    ) -> Int[np.ndarray, " k"]:
        """Samples of a split, of a log, of both or of the whole set, ordered by log and then by time.

        Several splits are joined by "+", as in "train+minival". With `limit`, at most so many first ones.

        Raises:
            ShardError: the set has no such split or log.
        """
        number = None if log is None else self._number_of_log(log)
        names = self._splits(split)
        if self.index is not None:
            logs = np.ones(len(self.logs), dtype=bool) if names is None else self.index.logs_of(names)
            if number is not None:
                logs &= np.arange(len(logs)) == number
            return self.index.rows(logs, limit)
        selected = np.ones(len(self), dtype=bool)
        if names is not None:
            selected &= np.isin(self.splits, names)[self.sample_log]
        if number is not None:
            selected &= self.sample_log == number
        order = np.lexsort((self.sample_timestamp_us, self.sample_log))
        return np.asarray(order[selected[order]], dtype=np.int64)[:limit]

    def count(self, split: str | None = None) -> int:
        """Number of samples of a split; raises as `indices`."""
        names = self._splits(split)
        if self.index is None:
            return len(self.indices(split))
        return len(self) if names is None else self.index.count(self.index.logs_of(names))

    def blocks(self, split: str | None = None, limit: int | None = None) -> Blocks:
        """The same samples by shards; raises as `indices`."""
        blocks = self.index.blocks(self._splits(split)) if self.index is not None and limit is None else None
        if blocks is not None:
            return blocks
        rows = self.indices(split, limit=limit)
        return Blocks.of_rows(rows, self.sample_shard[rows])

    def rows_of_shard(self, shard: int) -> Int[np.ndarray, " k"]:
        """Samples of a shard, in tar order."""
        if self.index is not None:
            return np.arange(self.index.shard_first[shard], self.index.shard_first[shard + 1])
        return np.flatnonzero(self.sample_shard == shard)

    def _splits(self, split: str | None) -> list[str] | None:
        if split is None:
            return None
        known = tuple(self.splits) if self.index is None else self.index.split_names
        for name in split.split("+"):
            _check_name("split", name, known, self.root)
        return split.split("+")

    def _number_of_log(self, log: str) -> int:
        try:
            return self.logs.index(log)
        except ValueError:
            _check_name("log", log, self.logs, self.root)
            raise

    def labelled(self, indices: Int[np.ndarray, " k"]) -> Int[np.ndarray, " m"]:
        """Those samples that have a point with a class, or may have one; all of them where none has."""
        with_labels = indices[self.num_labelled[indices] != 0]
        return with_labels if len(with_labels) else indices

    def key(self, index: int) -> str:
        """The sample's key as text.

        Raises:
            ShardError: it has other characters than a key; of a small set, that is found when it is opened.
        """
        key = bytes(self.keys[index]).decode(errors="replace")
        if not is_key(key):
            raise ShardError(f"{join(self.root, TABLE_NAME)} is damaged: {key!r} of sample {index} is no key")
        return key

    def shard_path(self, shard: int) -> str:
        """Path or URL of a tar."""
        return join(self.root, self.shards[shard].file)

    def fingerprint(self) -> str:
        """Changes when any stored byte or the choice of the samples changes; caches beside the shards go by it."""
        return set_fingerprint(self.schema_version, self.shards, self.keys)

    def damaged_shards(self) -> list[str]:
        """Reads every tar whole and names those whose checksum differs from the manifest's, or that are gone."""
        store = open_store(self.root, self.cache, retry_min=0.0)
        return [shard.file for shard in self.shards if _stored_sha256(store, shard.file) != shard.sha256]


def _check_name(what: str, name: str, names: Sequence[str], root: str) -> None:
    if name not in names:
        shown = sorted(set(names))
        listed = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
        settings = "; data.split chooses for training, data.train_split and data.test_split for evaluation"
        hint = settings if what == "split" else ""
        raise ShardError(f"{what} {name!r} is not in the set {root}; it has {listed or 'none'}{hint}")


def _stored_sha256(store: Store, name: str) -> str | None:
    try:
        return str(sha256_of(store.blocks(name)).hexdigest())
    except FileNotFoundError:
        return None
    except (OSError, StorageAwayError) as error:
        raise ShardError(f"{name} cannot be read: {error}") from error


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
"""A column that sets prepared by earlier versions lack."""


def load_manifest(root: str, cache: CacheConfig | None = None, *, max_bytes: int = MAX_MANIFEST_BYTES) -> Manifest:
    """Read the manifest of the prepared set in a folder or behind a URL; its manifest.json has `max_bytes` at most.

    Raises:
        ShardError: not a finished set, another schema version, a damaged manifest or table, or storage that cannot be
            read.
    """
    cache = cache or CacheConfig()
    # No retries: whoever starts a run with a wrong path should hear of it at once.
    store, path = open_store(root, cache, retry_min=0.0), join(root, MANIFEST_NAME)
    try:
        content = parse_json(store.read_file(MANIFEST_NAME), max_bytes)
        version = content["schema_version"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ShardError(
            f"{root} holds no finished shard set: {MANIFEST_NAME} is missing ({error}); run `tandem prepare` (again) "
            f"into it, or give the folder or address of a set that is prepared{'' if is_url(root) else _near(root)}"
        ) from error
    except (OSError, StorageAwayError) as error:
        raise ShardError(f"{root} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} is damaged ({error!r}); run `tandem prepare` into a new folder") from error
    if version not in (*READABLE_VERSIONS, COLUMNAR_VERSION):
        raise ShardError(
            f"{path} has schema version {version}, this code reads {READABLE_VERSIONS[0]} to {COLUMNAR_VERSION}; "
            "prepare the set again"
        )
    try:
        check_content(content, columnar=version == COLUMNAR_VERSION)
        if version == COLUMNAR_VERSION:
            return _columnar(root, content, _map_table(store, root, content), cache)
        table = _read_table(store, root, content["table_sha256"])
        check_table(content, table, SAMPLE_COLUMNS)
        return _manifest_from(root, content, table, cache)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{path} is damaged ({error!r}); run `tandem prepare` into a new folder") from error


def _near(root: str) -> str:
    """What may have been meant: a set near the folder, or the set of a run."""
    if (Path(root) / CHECKPOINTS_FOLDER).is_dir():
        return "; this is a run, whose config.yaml names its set as data.shards"
    return nearby(root, lambda folder: (folder / MANIFEST_NAME).is_file())


def _read_table(store: Store, root: str, sha256: str) -> dict[str, np.ndarray]:
    path = join(root, TABLE_NAME)
    try:
        data = store.read_file(TABLE_NAME, sha256)
    except FileNotFoundError:
        data = b""  # has another checksum than any table
    except (OSError, StorageAwayError) as error:
        raise ShardError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ShardError(f"{path} is missing or not the one of {MANIFEST_NAME}; prepare the set again")
    table = parse_npz(data, ("keys", *SAMPLE_COLUMNS), optional=(_LATER,))
    table.setdefault(_LATER, np.full(table["keys"].shape, -1, SAMPLE_COLUMNS[_LATER]))
    return table


def _map_table(store: Store, root: str, content: dict[str, Any]) -> dict[str, np.ndarray]:
    """The table of a large set, where it lies.

    The checksum of one that is small is compared here, of others when it is fetched or verified: that takes seconds.
    """
    path, sha256, num_bytes = join(root, TABLE_NAME), content["table_sha256"], content["table_bytes"]
    try:
        file = store.local_file(TABLE_NAME, sha256, num_bytes)
        size = file.stat().st_size
        whole = size == num_bytes and (num_bytes > COMPARED_BYTES or file_sha256(file) == sha256)
        if not whole:
            raise ShardError(f"{path} is missing or not the one of {MANIFEST_NAME}; prepare the set again")
        table = map_npz(file, ("keys", *SAMPLE_COLUMNS, *TEXT_COLUMNS, *SET_COLUMNS), optional=OPTIONAL)
    except FileNotFoundError as error:
        raise ShardError(f"{path} is missing or not the one of {MANIFEST_NAME}; prepare the set again") from error
    except (OSError, StorageAwayError) as error:
        raise ShardError(f"{path} cannot be read: {error}") from error
    check_columns(content, table, {**SAMPLE_COLUMNS, **SET_COLUMNS})
    return table


def _columnar(root: str, content: dict[str, Any], table: dict[str, Any], cache: CacheConfig) -> Manifest:
    index = index_of(table, content["splits"], content["num_samples"])
    if content["sample_version"] not in READABLE_VERSIONS:
        raise ValueError(f"sample_version is {content['sample_version']!r}")
    parts = ("shard_file", "shard_num_samples", "shard_num_bytes", "shard_sha256")
    manifest = Manifest(
        root=root,
        **_set_info(content),
        shards=Shards(*(table[name] for name in parts)),
        logs=Names(table["log_name"]),
        splits=tuple(index.split_names[number] for number in index.log_split.tolist()),
        keys=table["keys"],
        **{name: table[name] for name in SAMPLE_COLUMNS},
        cache=cache,
        schema_version=content["sample_version"],
    )
    manifest.__dict__["_index"] = index
    return manifest


def _set_info(content: dict[str, Any]) -> dict[str, Any]:
    """What a manifest of any version says of the set as a whole, but for logs."""
    record = content.get("superpixels")
    if record is not None:  # fields of later versions are left out, of earlier ones None
        record = SuperpixelRecord(**{f.name: record.get(f.name) for f in dataclasses.fields(SuperpixelRecord)})
    return {
        "set_name": content["set_name"],
        "class_names": tuple(content["class_names"]),
        "box_categories": tuple(content.get("box_categories", ())),  # sets of versions 1 and 2 have none
        "camera_names": tuple(content["camera_names"]),
        "notes": tuple(content["notes"]),
        "skipped": {reason: tuple(keys) for reason, keys in content["skipped"].items()},
        "superpixels": record,
        "image_reduction": content.get("image_reduction", 1),
    }


def _manifest_from(root: str, content: dict[str, Any], table: dict[str, Any], cache: CacheConfig) -> Manifest:
    return Manifest(
        root=root,
        **_set_info(content),
        shards=tuple(Shard(**shard) for shard in content["shards"]),
        logs=tuple(log["name"] for log in content["logs"]),
        splits=tuple(log["split"] for log in content["logs"]),
        **table,
        cache=cache,
        schema_version=content["schema_version"],
    )
