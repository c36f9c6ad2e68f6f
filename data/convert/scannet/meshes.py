"""Whole ScanNet rooms as the set is released: a mesh, its labels, its segments, and which object each segment is of.

::

    <scan>/<scan>_vh_clean_2.ply                   vertices with colours
    <scan>/<scan>_vh_clean_2.labels.ply            NYU40 id of each vertex; the next two need it
    <scan>/<scan>_vh_clean_2.0.010000.segs.json    segment of each vertex
    <scan>/<scan>.aggregation.json                 the segments of each object
    <scan>/<scan>.txt                              axisAlignment: turns the room so that its walls are along the axes

Without the labels (test scans have none) a room is unlabelled. A vertex of several objects belongs to the last one. The
box of an object is that of its vertices along the axes, its category that of most of its vertices.

Source: Dai et al., ScanNet (CVPR 2017), and the description of the files on the set's page; Qi et al., VoteNet (ICCV
2019), for boxes along the axes of the aligned room.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64, Shaped

from common.small_files import is_kind
from data.convert.box_labels import boxes_from_rows
from data.convert.poses import nearest_rotation
from data.convert.raw_files import read_bytes, read_json
from data.convert.rgbd import colour_bytes, luminance
from data.convert.scannet.classes import NUM_NYU40, SCAN, evaluated_classes
from data.geometry import transform
from data.sample import Boxes, Sample
from data.storage.damage import DamagedError

_TYPES = {
    **{"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2"},
    **{"uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4"},
    **{"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8"},
}
"""Name of a type in a PLY file -> numpy's."""

_HEADER_BYTES = 1 << 14
_MAX_OBJECTS = 65535


def mesh_folders(root: Path) -> dict[str, Path]:
    """Folder of each scan whose mesh is there, by name; {} where there is none."""
    if not root.is_dir():
        return {}
    base = root / "scans" if (root / "scans").is_dir() else root
    folders = (path for path in sorted(base.iterdir()) if SCAN.match(path.name) and path.is_dir())
    return {path.name: path for path in folders if _mesh(path).is_file()}


def read_mesh(folder: Path) -> Sample:
    """One room, as a sample without cameras, in its aligned frame.

    Raises:
        DamagedError: a file is missing or has another form.
    """
    name = folder.name
    vertices = read_vertices(_mesh(folder), ("x", "y", "z", "red", "green", "blue"))
    with np.errstate(invalid="ignore"):  # of damaged numbers, which are refused as what they become
        places = np.stack([vertices[axis] for axis in ("x", "y", "z")], axis=1).astype(np.float64)
    colours = np.stack([vertices[channel] for channel in ("red", "green", "blue")], axis=1).astype(np.float64)
    points = transform(_alignment(folder / f"{name}.txt"), places)
    labels = instances = boxes = None
    if (folder / f"{name}_vh_clean_2.labels.ply").is_file():
        nyu40 = read_vertices(folder / f"{name}_vh_clean_2.labels.ply", ("label",))["label"].astype(np.int64)
        _expect_length(f"{name}: labels", len(nyu40), len(points))
        objects = _objects(folder, len(points))
        labels, instances = evaluated_classes(nyu40), objects.astype(np.int32)
        boxes = _boxes(points, nyu40, objects)
    return Sample(
        key=name,
        log=name,
        timestamp_us=0,
        points_lidar=points.astype(np.float32),
        intensity=luminance(colours / 255),
        colors=colour_bytes(colours),
        T_ego_lidar=np.eye(4),
        T_world_ego=np.eye(4),
        cameras=(),
        labels=labels,
        instances=instances,
        boxes=boxes,
    )


def read_vertices(path: Path, wanted: tuple[str, ...]) -> Shaped[np.ndarray, " N"]:
    """The vertices of a binary PLY file, with a field for each property.

    Raises:
        DamagedError: the file is missing, cut, or of another form; or a property is not there.
    """
    data = read_bytes(path)
    head, end, _ = data[:_HEADER_BYTES].partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", errors="replace").splitlines()]
    if not end or lines[:1] != [["ply"]] or ["format", "binary_little_endian", "1.0"] not in lines:
        raise DamagedError("array-broken", f"{path}: expected a PLY file in binary_little_endian 1.0")
    elements = [number for number, line in enumerate(lines) if line[:1] == ["element"]]
    if not elements or len(lines[elements[0]]) != 3 or lines[elements[0]][1] != "vertex":
        raise DamagedError("array-broken", f"{path}: its first element is not vertex")
    properties = lines[elements[0] + 1 : elements[1] if len(elements) > 1 else None]
    kinds = [(line[2], _TYPES[line[1]]) for line in properties if len(line) == 3 and line[1] in _TYPES]
    names = [name for name, _ in kinds]
    if len(kinds) != len(properties) or len(set(names)) != len(names) or not {*wanted} <= {*names}:
        raise DamagedError("array-broken", f"{path}: properties {', '.join(names)}, expected {', '.join(wanted)}")
    count, kind = lines[elements[0]][2], np.dtype(kinds)
    start = len(head) + len(end)
    if not count.isdecimal() or start + int(count) * kind.itemsize > len(data):
        raise DamagedError("array-broken", f"{path}: {len(data)} bytes, fewer than its {count} vertices take")
    return np.frombuffer(data, dtype=kind, count=int(count), offset=start)


def _mesh(folder: Path) -> Path:
    return folder / f"{folder.name}_vh_clean_2.ply"


def _expect_length(what: str, got: int, expected: int) -> None:
    if got != expected:
        raise DamagedError("array-broken", f"{what} are {got}, expected {expected}, one for each vertex")


def _alignment(path: Path) -> Float[np.ndarray, "4 4"]:
    """World of the scanner to a room with walls along the axes; test scans state none and stay as they are."""
    if not path.is_file():
        raise DamagedError("calibration-missing", str(path))
    for line in read_bytes(path).decode("utf-8", errors="replace").splitlines():
        name, _, values = line.partition("=")
        if name.strip() != "axisAlignment":
            continue
        try:
            T = np.array(values.split(), dtype=np.float64).reshape(4, 4)
        except ValueError as error:
            raise DamagedError("calibration-missing", f"{path}: axisAlignment: {error}") from error
        if not np.isfinite(T).all() or abs(np.linalg.det(T[:3, :3]) - 1) > 1e-2:
            raise DamagedError("calibration-singular", f"{path}: axisAlignment {T.tolist()}")
        T[:3, :3] = nearest_rotation(T[:3, :3])
        return T
    return np.eye(4)


def _objects(folder: Path, num_vertices: int) -> Int64[np.ndarray, " N"]:
    """Object of each vertex, from 1 on; 0 for none."""
    segments_file = folder / f"{folder.name}_vh_clean_2.0.010000.segs.json"
    of_vertex = _whole_numbers(segments_file, _entry(segments_file, read_json(segments_file), "segIndices"))
    _expect_length(f"{segments_file}: segIndices", len(of_vertex), num_vertices)
    groups_file = folder / f"{folder.name}.aggregation.json"
    groups = _entry(groups_file, read_json(groups_file), "segGroups")
    if not isinstance(groups, list) or len(groups) > _MAX_OBJECTS:
        raise DamagedError("meta-broken", f"{groups_file}: segGroups is no list of objects")
    objects = np.zeros(num_vertices, dtype=np.int64)
    for number, group in enumerate(groups, start=1):
        of_object = _whole_numbers(groups_file, _entry(groups_file, group, "segments"))
        objects[np.isin(of_vertex, of_object)] = number
    return objects


def _entry(path: Path, content: Any, name: str) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise DamagedError("meta-broken", f"{path} has no {name}")
    return content[name]


def _whole_numbers(path: Path, values: Any) -> Int64[np.ndarray, " n"]:
    if not isinstance(values, list) or not all(is_kind(value, "count") for value in values):
        raise DamagedError("meta-broken", f"{path}: expected a list of whole numbers from 0 on")
    return np.array(values, dtype=np.int64)


def _boxes(points: Float[np.ndarray, "N 3"], nyu40: Int[np.ndarray, " N"], objects: Int[np.ndarray, " N"]) -> Boxes:
    """Of the objects that have a vertex."""
    rows, kinds, numbers = [], [], []
    for number in np.unique(objects[objects > 0]).tolist():
        mine = objects == number
        low, high = points[mine].min(axis=0), points[mine].max(axis=0)
        rows.append([*((low + high) / 2), *(high - low), 0.0])
        kinds.append(int(np.bincount(np.clip(nyu40[mine], 0, NUM_NYU40 + 1)).argmax()))
        numbers.append(number)
    nyu = np.array(kinds, dtype=np.int64)
    known = (nyu >= 1) & (nyu <= NUM_NYU40)
    return dataclasses.replace(
        boxes_from_rows(rows, evaluated_classes(nyu).astype(np.int32)),
        categories=np.where(known, nyu - 1, -1),
        track_ids=np.array(numbers, dtype=np.int64),
    )
