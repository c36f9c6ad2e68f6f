"""S3DIS, aligned version 1.2: ``Area_N/<room>/Annotations/<class>_k.txt``, 272 rooms as samples without a camera.

A file is one object: lines of x y z (metres, z up) and r g b (0 to 255). Rooms have about a million points (some ten
million), far denser than any network here resolves: one point is kept in each cell of `grid_m`. A room stays in one
piece. The LiDAR frame stands on the room's floor below its middle; the world is the area's.

The published files have a few damaged lines (a control character inside a number, in Area_5/hallway_6 among others):
lines that are not six numbers are left out, and a file with more than a few of them is damaged. Objects of the class
"stairs", which the benchmark does not know, are clutter, as usual.

Source: Armeni et al., 3D Semantic Parsing of Large-Scale Indoor Spaces (CVPR 2016); the set's readme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow
from jaxtyping import Float, Int
from pyarrow import csv

from common.ranges import at_least, below, some_of
from data.convert.base import FrameConverter, check_cameras
from data.convert.raw_files import layout_error, read_bytes
from data.convert.rgbd import colour_bytes, luminance
from data.geometry import rigid
from data.sample import Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

CLASS_NAMES = (
    *("ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board"),
    "clutter",
)
_OTHERS = {"stairs": "clutter"}
_OBJECT = re.compile(r"([a-z]+)_(\d+)\Z")
_AREA = re.compile(r"Area_[1-6]\Z")
_COLUMNS = ("x", "y", "z", "r", "g", "b")
_MAX_DAMAGED_LINES = 10
_EXPECTED = "Area_<1 to 6>/<room>/Annotations/<class>_<number>.txt (Stanford3dDataset_v1.2_Aligned_Version)"


@dataclass(frozen=True, kw_only=True)
class S3disConverter(FrameConverter):
    """Settings and reader of S3DIS.

    Attributes:
        source: folder of the areas.
        grid_m: one point a cell of this side is kept; 0 keeps all.
        cameras: () or ("none",): there are none.
        val_areas: areas of the split "val"; the other ones are "train".
    """

    source: str
    grid_m: float = 0.02
    val_areas: tuple[int, ...] = (5,)
    cameras: tuple[str, ...] = ()

    set_name: ClassVar[str] = "s3dis"
    measures_intensity: ClassVar[bool] = False
    _later: ClassVar[tuple[str, ...]] = ("cameras",)
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES

    def __post_init__(self) -> None:
        at_least(self, "0: keep all", grid_m=0)
        below(self, grid_m=10)
        check_cameras(self)
        some_of(self, val_areas=range(1, 7))

    @cached_property
    def _logs(self) -> dict[str, Path]:
        root = Path(self.source)
        areas = sorted(path for path in root.glob("Area_*") if _AREA.match(path.name) and path.is_dir())
        rooms = {
            f"{area.name}_{room.name}": room
            for area in areas
            for room in sorted(area.iterdir())
            if (room / "Annotations").is_dir()
        }
        if not rooms:
            raise layout_error(self.source, "S3DIS", _EXPECTED)
        return rooms

    def split_of(self, log: str) -> str:
        """By area."""
        return "val" if int(log.split("_")[1]) in self.val_areas else "train"

    def notes(self) -> tuple[str, ...]:
        """What was done to the rooms."""
        areas = sorted({int(log.split("_")[1]) for log in self._logs})
        notes = ["no cameras, intensity is the luminance of the colours"]
        if len(areas) < 6:
            notes.append(f"only areas {', '.join(map(str, areas))} of 1 to 6")
        if self.grid_m:
            notes.append(f"one point a cell of {self.grid_m:g} m")
        return tuple(notes)

    def _reader(self, log: str) -> Callable[[str], Sample]:
        return self._read

    def _read(self, log: str) -> Sample:
        tables, labels = [], []
        for path in _objects(self._logs[log]):
            match = _OBJECT.match(path.stem)
            name = "" if match is None else _OTHERS.get(match[1], match[1])
            if name not in CLASS_NAMES:
                raise ShardError(f"{path}: expected <class>_<number>.txt with a class of {', '.join(CLASS_NAMES)}")
            tables.append(read_object(path))
            labels.append(CLASS_NAMES.index(name))
        if not sum(len(table) for table in tables):
            raise DamagedError("empty-sweep", f"{self._logs[log] / 'Annotations'} holds no points")
        table = np.concatenate(tables)
        objects = np.repeat(np.arange(1, len(tables) + 1), [len(part) for part in tables])
        if self.grid_m:
            firsts = one_a_cell(table[:, :3], self.grid_m)
            table, objects = table[firsts], objects[firsts]
        low, high = table[:, :3].min(axis=0), table[:, :3].max(axis=0)
        origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        return Sample(
            key=log,
            log=log,
            timestamp_us=0,
            points_lidar=(table[:, :3] - origin).astype(np.float32),
            intensity=luminance(table[:, 3:] / 255),
            colors=colour_bytes(table[:, 3:]),
            T_ego_lidar=np.eye(4),
            T_world_ego=rigid(np.eye(3), origin),
            cameras=(),
            labels=np.array(labels, dtype=np.uint8)[objects - 1],
            instances=objects.astype(np.int32),
        )


def _objects(room: Path) -> list[Path]:
    """Annotation files in a fixed order (the folders also hold files of the editor that made them)."""
    files = (room / "Annotations").glob("*.txt")
    return sorted(path for path in files if path.name[0] != "." and path.name not in ("Icon.txt", "labels.txt"))


def read_object(path: Path) -> Float[np.ndarray, "N 6"]:
    """Rows x y z r g b; a few damaged lines are left out.

    Raises:
        DamagedError: the file is missing, or more than a few lines are not six numbers.
    """
    data = read_bytes(path)
    if not data.strip():
        return np.zeros((0, len(_COLUMNS)))
    try:
        table = _parse(data)
    except pyarrow.ArrowInvalid:
        lines = data.splitlines()
        sound = [line for line in lines if _is_row(line)]
        damaged = sum(bool(line.strip()) for line in lines) - len(sound)
        if damaged > _MAX_DAMAGED_LINES or not sound:
            raise DamagedError("array-broken", f"{path}: {damaged} lines are not six numbers") from None
        table = _parse(b"\n".join(sound))
    return np.asarray(table[np.isfinite(table).all(axis=1)])


def _is_row(line: bytes) -> bool:
    try:
        return len([float(word) for word in line.split(b" ")]) == len(_COLUMNS)
    except ValueError:
        return False


def _parse(data: bytes) -> Float[np.ndarray, "N 6"]:
    """The reader for tables is some twenty times as fast as numpy's, and the set has gigabytes of text."""
    table = csv.read_csv(
        io.BytesIO(data),
        read_options=csv.ReadOptions(column_names=list(_COLUMNS), use_threads=False),
        parse_options=csv.ParseOptions(delimiter=" "),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pyarrow.float64()), null_values=[]),
    )
    return np.stack([table[name].to_numpy() for name in _COLUMNS], axis=1)


def one_a_cell(points: Float[np.ndarray, "N 3"], side_m: float) -> Int[np.ndarray, " kept"]:
    """The first point in each cell, in the points' order."""
    cells = np.floor((points - points.min(axis=0)) / side_m).astype(np.int64)
    extent = cells.max(axis=0) + 1
    # One number for each cell.
    flat = (cells[:, 0] * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2]
    _, first = np.unique(flat, return_index=True)
    return np.asarray(np.sort(first))
