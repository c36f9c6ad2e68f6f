"""Labelled objects cut out of sweeps, to be put into others: their boxes in a table, their points in a mapped file.

`<folder>/objects/<key>/` holds two files, of which the second is written last:

    points.f4     float32 [all points, columns], object after object, coordinates from the box's centre
    objects.npz   a row an object, what the columns are, and how many boxes of each class each sweep has

The key says which set, sweeps and classes it was made of. Files never change; two processes that make the same ones
write the same bytes. Letters: K objects, N points, n sweeps, C classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from data.shared_memory import SharesTables
from data.storage.manifest import Manifest
from data.storage.shard import ShardError
from data.storage.untrusted import parse_npz

POINTS_FILE, TABLE_FILE = "points.f4", "objects.npz"
_VERSION = 1
_COORDINATES = ("x", "y", "z")
_COLORS = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectTable(SharesTables):
    """What is known of objects beside their points; workers share large ones.

    Attributes:
        boxes: as `data.sample.BatchBoxes.boxes`, in the recorded LiDAR frame of the sweep they were in.
        velocities_mps: in the ground plane; NaN where unknown.
        classes: index into the names that were asked for.
        samples: row of the manifest of the sweep.
        num_points: points inside, at least 1.
        difficulties: see `Boxes`; -1 where unknown.
        truncations: see `Boxes`; NaN where unknown.
        occlusions: see `Boxes`; -1 where unknown.
        image_heights_px: height of the 2D box; NaN where unknown.
    """

    boxes: Float[np.ndarray, "K 7"]
    velocities_mps: Float[np.ndarray, "K 2"]
    classes: Int[np.ndarray, " K"]
    samples: Int[np.ndarray, " K"]
    num_points: Int[np.ndarray, " K"]
    difficulties: Int[np.ndarray, " K"]
    truncations: Float[np.ndarray, " K"]
    occlusions: Int[np.ndarray, " K"]
    image_heights_px: Float[np.ndarray, " K"]

    def __len__(self) -> int:
        """K."""
        return len(self.boxes)


def database_key(
    manifest: Manifest, samples: Int[np.ndarray, " n"], classes: Sequence[str], *, cut_to_cameras: bool
) -> str:
    """Name of the objects of some classes in some sweeps of a set, whose points were cut to the cameras or not."""
    of_samples = hashlib.sha256(np.sort(samples).astype("<i8").tobytes()).hexdigest()
    content = json.dumps([_VERSION, manifest.fingerprint(), of_samples, list(classes), cut_to_cameras])
    return hashlib.sha256(content.encode()).hexdigest()[:20]


class ObjectDatabase:
    """Read access; picklable, each process maps the points for itself.

    Attributes:
        path: its folder.
        table: of all objects.
        columns: of a point: x, y, z, then fields of `Sample`.
        samples: the sweeps that were looked through (rows of the manifest), ascending.
        num_boxes: boxes of each class in each of them, also those without points.
    """

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        """From what `objects.npz` holds."""
        self.path = path
        self.columns = tuple(bytes(name).decode() for name in arrays["columns"])
        self.samples: Int[np.ndarray, " n"] = arrays["scanned"]
        self.num_boxes: Int[np.ndarray, "n C"] = arrays["num_boxes"]
        self.table = ObjectTable(**{name: arrays[name] for name in ObjectTable.__dataclass_fields__})
        self._starts = np.cumsum([0, *self.table.num_points])
        self._points: Float[np.ndarray, "N columns"] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped points: a copy of them would be sent."""
        return {**self.__dict__, "_points": None}

    @staticmethod
    def open(path: Path) -> ObjectDatabase | None:
        """The finished database in a folder; None where there is none.

        Raises:
            ShardError: it is damaged; says what to do.
        """
        if not (path / TABLE_FILE).is_file():
            return None
        names = ("columns", "scanned", "num_boxes", *ObjectTable.__dataclass_fields__)
        try:
            database = ObjectDatabase(path, parse_npz((path / TABLE_FILE).read_bytes(), names))
            if len({len(arrays) for arrays in vars(database.table).values()}) != 1:
                raise ValueError(f"the columns of {TABLE_FILE} differ in length")
            size, stated = (path / POINTS_FILE).stat().st_size, 4 * len(database.columns) * int(database._starts[-1])
            if size != stated:
                raise ValueError(f"{POINTS_FILE} has {size} bytes, expected {stated}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ShardError(f"{path} is damaged ({error}); delete that folder, and it is made again") from error
        return database

    def points(self, number: int) -> dict[str, Shaped[np.ndarray, "N ..."]]:
        """The points of an object by field of `Sample`; `points_lidar` are from the centre of its box."""
        if self._points is None:
            shape = (int(self._starts[-1]), len(self.columns))
            self._points = np.memmap(self.path / POINTS_FILE, dtype="<f4", mode="r", shape=shape)
        rows = np.array(self._points[self._starts[number] : self._starts[number + 1]])
        places = {name: place for place, name in enumerate(self.columns)}
        others = {name: rows[:, place] for name, place in places.items() if name not in (*_COORDINATES, *_COLORS)}
        if _COLORS[0] in places:
            others["colors"] = rows[:, [places[name] for name in _COLORS]]
        return {"points_lidar": rows[:, :3], **others}


def columns_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns of the points of a sweep that has these fields for each point."""
    names = (name for name in ("intensity", "times_s", "elongations") if name in fields)
    return (*_COORDINATES, *names, *(_COLORS if "colors" in fields else ()))


def cloud_of(fields: Mapping[str, Shaped[np.ndarray, "N ..."]]) -> Float[np.ndarray, "N C"]:
    """The points of a sweep with these fields as rows of `columns_of`."""
    names = ("points_lidar", "intensity", "times_s", "elongations", "colors")
    return np.column_stack([fields[name] for name in names if name in fields])
