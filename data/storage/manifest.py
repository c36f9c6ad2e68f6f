"""The manifest of a prepared set: what the set is, its shards, and one row for each sample.

A set is a folder of WebDataset tars with `manifest.json` (what the set is, its shards and logs) and `samples.npz` (one
row a sample) beside them; docs/shards.md describes both. Per sample only numpy rows are held: Python objects would be
copied into every worker as their reference counts change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from common.files import replace_file, sha256_of
from common.nearby import nearby
from common.retry import StorageAwayError
from common.run_files import CHECKPOINTS_FOLDER
from data.shared_memory import SharesTables
from data.storage.encode import READABLE_VERSIONS, SCHEMA_VERSION, SetBounds
from data.storage.manifest_check import MAX_MANIFEST_BYTES, check_content, check_table
from data.storage.remote.shard_cache import CacheConfig
from data.storage.shard import Shard, ShardError
from data.storage.store import MANIFEST_NAME, Store, is_url, join, open_store
from data.storage.superpixel_record import SuperpixelRecord
from data.storage.untrusted import parse_json, parse_npz

TABLE_NAME = "samples.npz"


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
    logs: tuple[str, ...]
    splits: tuple[str, ...]
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
        schema_version: of the stored set.
    """

    root: str
    shards: tuple[Shard, ...]
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

    def indices(self, split: str | None = None, log: str | None = None) -> Int[np.ndarray, " k"]:
        """Samples of a split, of a log, of both or of the whole set, ordered by log and then by time.

        Several splits are joined by "+", as in "train+minival".

        Raises:
            ShardError: the set has no such split or log.
        """
        selected = np.ones(len(self), dtype=bool)
        if split is not None:
            names = split.split("+")
            for name in names:
                _check_name("split", name, self.splits, self.root)
            selected &= np.isin(self.splits, names)[self.sample_log]
        if log is not None:
            _check_name("log", log, self.logs, self.root)
            selected &= self.sample_log == self.logs.index(log)
        order = np.lexsort((self.sample_timestamp_us, self.sample_log))
        return np.asarray(order[selected[order]], dtype=np.int64)

    def labelled(self, indices: Int[np.ndarray, " k"]) -> Int[np.ndarray, " m"]:
        """Those samples that have a point with a class, or may have one; all of them where none has."""
        with_labels = indices[self.num_labelled[indices] != 0]
        return with_labels if len(with_labels) else indices

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


def _check_name(what: str, name: str, names: tuple[str, ...], root: str) -> None:
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


def load_manifest(root: str, cache: CacheConfig | None = None) -> Manifest:
    """Read the manifest of the prepared set in a folder or behind a URL.

    Raises:
        ShardError: not a finished set, another schema version, a damaged manifest or table, or storage that cannot be
            read.
    """
    cache = cache or CacheConfig()
    # No retries: whoever starts a run with a wrong path should hear of it at once.
    store, path = open_store(root, cache, retry_min=0.0), join(root, MANIFEST_NAME)
    try:
        content = parse_json(store.read_file(MANIFEST_NAME), MAX_MANIFEST_BYTES)
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
    if version not in READABLE_VERSIONS:
        raise ShardError(
            f"{path} has schema version {version}, this code reads {READABLE_VERSIONS[0]} to {READABLE_VERSIONS[-1]}; "
            "prepare the set again"
        )
    try:
        check_content(content)
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


def _manifest_from(root: str, content: dict[str, Any], table: dict[str, np.ndarray], cache: CacheConfig) -> Manifest:
    record = content.get("superpixels")
    if record is not None:  # fields of later versions are left out, of earlier ones None
        record = SuperpixelRecord(**{f.name: record.get(f.name) for f in dataclasses.fields(SuperpixelRecord)})
    return Manifest(
        root=root,
        set_name=content["set_name"],
        class_names=tuple(content["class_names"]),
        box_categories=tuple(content.get("box_categories", ())),  # sets of versions 1 and 2 have none
        camera_names=tuple(content["camera_names"]),
        shards=tuple(Shard(**shard) for shard in content["shards"]),
        logs=tuple(log["name"] for log in content["logs"]),
        splits=tuple(log["split"] for log in content["logs"]),
        notes=tuple(content["notes"]),
        skipped={reason: tuple(keys) for reason, keys in content["skipped"].items()},
        **table,
        superpixels=record,
        image_reduction=content.get("image_reduction", 1),
        cache=cache,
        schema_version=content["schema_version"],
    )


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
        "box_categories": manifest.box_categories,
        "camera_names": manifest.camera_names,
        "table_sha256": hashlib.sha256(table).hexdigest(),
        "notes": manifest.notes,
        "skipped": manifest.skipped,
        "superpixels": None if manifest.superpixels is None else dataclasses.asdict(manifest.superpixels),
        # Only where it is another: sets of before keep their bytes.
        **({} if manifest.image_reduction == 1 else {"image_reduction": manifest.image_reduction}),
        "logs": [{"name": name, "split": split} for name, split in zip(manifest.logs, manifest.splits, strict=True)],
        "shards": [dataclasses.asdict(shard) for shard in manifest.shards],
    }
    # In this order: a crash in between leaves an old manifest whose checksum refuses the new table.
    replace_file(Path(manifest.root) / TABLE_NAME, table)
    replace_file(Path(manifest.root) / MANIFEST_NAME, (json.dumps(content, indent=1) + "\n").encode())
