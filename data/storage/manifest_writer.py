"""Writing the manifest of a prepared set and its sample table; `data.storage.manifest` reads them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from common.files import file_sha256, replace_file, replacing
from data.storage.columns import MIN_SAMPLES, set_columns
from data.storage.manifest import COLUMNAR_VERSION, SAMPLE_COLUMNS, TABLE_NAME, Manifest
from data.storage.manifest_check import repeated
from data.storage.npz_file import write_npz
from data.storage.shard import ShardError
from data.storage.store import MANIFEST_NAME


def write_manifest(manifest: Manifest, *, columnar: bool | None = None) -> None:
    """Write `samples.npz` and then `manifest.json`, each whole or not at all; the set is finished with the latter.

    Args:
        manifest: of the set.
        columnar: shards and logs are columns of the table, see `data.storage.columns`; None: in large sets.

    Raises:
        ShardError: two samples share a key.
    """
    twice = repeated(manifest.keys)
    if len(twice):
        key = manifest.keys[twice[0]]
        count = int((manifest.keys == key).sum())
        raise ShardError(
            f"{manifest.root}: key {bytes(key).decode()!r} belongs to {count} samples; keys must be unique"
        )
    columns: dict[str, Any] = {"keys": manifest.keys}
    columns |= {name: np.asarray(getattr(manifest, name), dtype=kind) for name, kind in SAMPLE_COLUMNS.items()}
    content: dict[str, Any] = {
        "schema_version": manifest.schema_version,
        "set_name": manifest.set_name,
        "num_samples": len(manifest),
        "class_names": manifest.class_names,
        "box_categories": manifest.box_categories,
        "camera_names": manifest.camera_names,
        "table_sha256": "",
        "notes": manifest.notes,
        "skipped": manifest.skipped,
        "superpixels": None if manifest.superpixels is None else dataclasses.asdict(manifest.superpixels),
        # Only where it is another: sets of before keep their bytes.
        **({} if manifest.image_reduction == 1 else {"image_reduction": manifest.image_reduction}),
    }
    if len(manifest) > MIN_SAMPLES if columnar is None else columnar:
        more, splits = set_columns_of(manifest)
        columns |= more
        content |= {"schema_version": COLUMNAR_VERSION, "sample_version": manifest.schema_version, "splits": splits}
        content |= {"num_shards": len(manifest.shards), "num_logs": len(manifest.logs)}
    else:
        logs = zip(manifest.logs, manifest.splits, strict=True)
        content["logs"] = [{"name": name, "split": split} for name, split in logs]
        content["shards"] = [dataclasses.asdict(shard) for shard in manifest.shards]
    table = Path(manifest.root) / TABLE_NAME
    # In this order: a crash in between leaves an old manifest whose checksum refuses the new table.
    with replacing(table, durable=True) as temporary:
        write_npz(temporary, columns)
        content |= {"table_sha256": file_sha256(temporary), "table_bytes": temporary.stat().st_size}
    replace_file(Path(manifest.root) / MANIFEST_NAME, (json.dumps(content, indent=1) + "\n").encode())


def set_columns_of(manifest: Manifest) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """See `data.storage.columns.set_columns`."""
    names = ("shards", "logs", "splits", "sample_shard", "sample_log", "sample_timestamp_us")
    return set_columns(**{name: getattr(manifest, name) for name in names})
