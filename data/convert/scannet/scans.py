"""Whole ScanNet rooms as VoteNet's preparation writes them: .npy of vertices, labels, objects and boxes a scan.

Vertices are x y z (metres, z up, aligned with the walls) and r g b (0 to 255). Objects are numbered from 1. A box line:
centre, extents along x y z, NYU40 id; the numbers of the boxes' objects are in `bbox_idx`, where that is there.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from data.convert.box_labels import boxes_from_rows
from data.convert.raw_files import read_npy
from data.convert.rgbd import colour_bytes, luminance
from data.convert.scannet.classes import NUM_NYU40, evaluated_classes
from data.sample import Boxes, Sample
from data.storage.box_record import MAX_TRACK_ID
from data.storage.damage import DamagedError

_VERTICES = re.compile(r"(scene\d{4}_\d{2})_vert(_all)?\.npy\Z")
_MAX_OBJECTS = 65535


def scan_files(folder: Path) -> tuple[str, ...]:
    """Names of the scans whose vertices are in a folder."""
    matches = (_VERTICES.match(path.name) for path in folder.glob("*.npy"))
    return tuple(sorted({match[1] for match in matches if match}))


def read_scan(folder: Path, name: str) -> Sample:
    """One room, as a sample without cameras.

    Raises:
        DamagedError: a file is missing or has another form.
    """
    vertices = _table(folder, name, "vert", 2)
    if vertices.shape[1] != 6:
        raise DamagedError("array-broken", f"{name}: vertices are {vertices.shape}, expected rows of x y z r g b")
    semantic, objects = (_table(folder, name, kind, 1) for kind in ("sem_label", "ins_label"))
    for kind, values in (("sem_label", semantic), ("ins_label", objects)):
        if len(values) != len(vertices):
            raise DamagedError("array-broken", f"{name}: {len(values)} {kind} for {len(vertices)} vertices")
    if len(objects) and not 0 <= objects.min() <= objects.max() <= _MAX_OBJECTS:
        raise DamagedError("array-broken", f"{name}: objects from {objects.min()} to {objects.max()}")
    return Sample(
        key=name,
        log=name,
        timestamp_us=0,
        points_lidar=vertices[:, :3].astype(np.float32),
        intensity=luminance(vertices[:, 3:6].astype(np.float64) / 255),
        colors=colour_bytes(vertices[:, 3:6].astype(np.float64)),
        T_ego_lidar=np.eye(4),
        T_world_ego=np.eye(4),
        cameras=(),
        labels=evaluated_classes(semantic.astype(np.int64)),
        instances=objects.astype(np.int32),
        boxes=_boxes(folder, name),
    )


def _boxes(folder: Path, name: str) -> Boxes:
    table = _table(folder, name, "bbox", 2).astype(np.float64)
    if table.shape[1] < 7 or not np.isfinite(table).all():
        detail = f"{name}: boxes are {table.shape}, expected finite rows of centre, extents, NYU40 id"
        raise DamagedError("array-broken", detail)
    nyu40 = np.clip(table[:, 6], 0, NUM_NYU40 + 1).astype(np.int64)
    boxes = boxes_from_rows(
        np.column_stack([table[:, :6], np.zeros(len(table))]), evaluated_classes(nyu40).astype(np.int32)
    )
    known = (nyu40 >= 1) & (nyu40 <= NUM_NYU40)
    boxes = dataclasses.replace(boxes, categories=np.where(known, nyu40 - 1, -1))
    if _path(folder, name, "bbox_idx").is_file():
        numbers = _table(folder, name, "bbox_idx", 1)
        if len(numbers) != len(table) or not (np.abs(numbers.astype(np.float64)) <= MAX_TRACK_ID).all():
            detail = f"{name}: {len(numbers)} bbox_idx for {len(table)} boxes, expected whole numbers of at most 2**53"
            raise DamagedError("array-broken", detail)
        boxes = dataclasses.replace(boxes, track_ids=numbers.astype(np.int64))
    return boxes


def _path(folder: Path, name: str, kind: str) -> Path:
    """With VoteNet's name, or with the suffix of its copies that keep all vertices."""
    plain = folder / f"{name}_{kind}.npy"
    return plain if plain.is_file() or kind.startswith("bbox") else folder / f"{name}_{kind}_all.npy"


def _table(folder: Path, name: str, kind: str, axes: int) -> Shaped[np.ndarray, "*shape"]:
    path = _path(folder, name, kind)
    table = read_npy(path)
    if table.ndim != axes or not (np.issubdtype(table.dtype, np.number)):
        raise DamagedError("array-broken", f"{path}: {table.dtype} {table.shape}, expected numbers on {axes} axes")
    return np.asarray(table)
