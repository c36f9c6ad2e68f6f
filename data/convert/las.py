"""`las`: tiles of surveys (.las, .laz), cut into square blocks along x and y (docs/recordings.md).

Each file is a log, each block a sample: its points relative to the middle of the block and to its ground, in the axes
of the survey. There are no cameras.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt8

from common.ranges import at_least, below, expect, positive
from data.convert.base import Converter, Skipped, check_cameras, read_or_skip, unique_logs
from data.convert.intensity import scaled_intensity
from data.convert.las_file import chunks_of
from data.convert.raw_files import layout_error
from data.convert.s3dis import one_a_cell
from data.geometry import rigid
from data.sample import IGNORE_LABEL, Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

CODES: dict[int, str] = {
    **{2: "ground", 3: "low_vegetation", 4: "medium_vegetation", 5: "high_vegetation", 6: "building", 9: "water"},
    **{10: "rail", 11: "road", 13: "wire_guard", 14: "wire_conductor", 15: "transmission_tower"},
    **{16: "wire_connector", 17: "bridge_deck", 19: "overhead_structure", 21: "snow"},
}
"""Classification -> class; the standard's other codes are of noise, of points not classified or not to be used.

Source: ASPRS, LAS specification 1.4 R15, tables 9 and 17.
"""
_HELD_POINTS = 20_000_000
"""Of the blocks that one pass through a file collects: some 700 MB."""
_MOST_BLOCKS = 1_000_000
_GROUND = 0.01
"""Share of a block's points below its ground: single ones lie under it."""


@dataclass(frozen=True, kw_only=True)
class LasConverter(Converter):
    """Settings and reader of tiles.

    Attributes:
        source: folder of .las and .laz files, at any depth, or one of them.
        block_m: side of a block, metres.
        min_points: blocks of fewer are left out: slivers at a tile's border.
        grid_m: one point a cell of this side is kept; 0 keeps all.
        intensity_max: the raw value that becomes 1; 0: the files have none.
        labels: read the points' classification.
        codes: the classifications that are classes, in this order; () for the standard's. All others are unlabelled.
        val_logs: files, by name without ending, of the split "val"; all others are "train".
        cameras: () or ("none",): there are none.
    """

    source: str
    block_m: float = 50.0
    min_points: int = 1000
    grid_m: float = 0.0
    intensity_max: float = 65535.0
    labels: bool = False
    codes: tuple[int, ...] = ()
    val_logs: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()

    set_name: ClassVar[str] = "las"

    def __post_init__(self) -> None:
        positive(self, "block_m")
        below(self, block_m=1000)
        at_least(self, "0: keep all", grid_m=0)
        at_least(self, "0: there is none", intensity_max=0)
        at_least(self, min_points=1)
        check_cameras(self)
        right = all(0 <= code < 256 for code in self.codes) and len(set(self.codes)) == len(self.codes)
        expect(self, "codes", right and len(self.codes) < IGNORE_LABEL, "different numbers from 0 to 255")

    # ---- what is there
    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the codes."""
        return tuple(CODES.get(code, f"code_{code}") for code in self._codes)

    @property
    def _codes(self) -> tuple[int, ...]:
        return (self.codes or tuple(CODES)) if self.labels else ()

    def camera_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    @cached_property
    def _logs(self) -> Mapping[str, Path]:
        root = Path(self.source)
        files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if _is_tile(path))
        if not files:
            raise layout_error(self.source, "LAS", "*.las or *.laz, at any depth")
        logs = unique_logs((re.sub(r"[^A-Za-z0-9_-]", "_", path.stem), path, path) for path in files)
        unknown = sorted(set(self.val_logs) - set(logs))
        if unknown:
            raise ShardError(f"val_logs names {unknown[0]!r}, which is not in {self.source} ({', '.join(logs)})")
        return logs

    def logs(self) -> tuple[str, ...]:
        """Names of the files, without endings; other characters than letters, digits, '-' and '_' are '_'."""
        return tuple(self._logs)

    def split_of(self, log: str) -> str:
        """As `val_logs` says."""
        return "val" if log in self.val_logs else "train"

    def num_frames(self, log: str) -> int:
        """Blocks with enough points; one for a file that cannot be read, which is skipped."""
        blocks = self._blocks(log)
        return 1 if isinstance(blocks, Skipped) else len(blocks)

    def _blocks(self, log: str) -> Mapping[tuple[int, int], int] | Skipped:
        """Column and row of each block, in this order, and how many points it has; whatever of it is damaged."""
        path = self._logs[log]
        stat = read_or_skip(lambda: _stat(path), log, log)
        if isinstance(stat, Skipped):
            return stat
        counted = read_or_skip(lambda: _count_blocks(str(path), *stat, self.block_m), log, log)
        if isinstance(counted, Skipped):
            return counted
        return {place: count for place, count in counted.items() if count >= self.min_points}

    def notes(self) -> tuple[str, ...]:
        """What the samples are."""
        notes = [f"blocks of {self.block_m:g} m, no cameras, and no poses of a vehicle"]
        if self.grid_m:
            notes.append(f"one point a cell of {self.grid_m:g} m")
        if not self.intensity_max:
            notes.append("intensity_max is 0, every intensity is 0")
        return tuple(notes)

    # ---- frames
    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Blocks, column by column; each pass through the file collects as many as fit into memory."""
        blocks = self._blocks(log)
        if isinstance(blocks, Skipped):
            yield from [blocks][start:stop]
            return
        wanted = list(blocks)[start:stop]
        while wanted:
            held, total = [wanted[0]], blocks[wanted[0]]
            for place in wanted[1:]:
                total += blocks[place]
                if total > _HELD_POINTS:
                    break
                held.append(place)
            wanted = wanted[len(held) :]
            collected = read_or_skip(functools.partial(self._collect, log, held), log, log)
            for place in held:
                key = f"{log}_{place[0]}_{place[1]}"
                if isinstance(collected, Skipped):
                    yield dataclasses.replace(collected, key=key)
                else:
                    yield read_or_skip(functools.partial(self._sample, log, key, collected.pop(place)), key, log)

    def _collect(self, log: str, places: list[tuple[int, int]]) -> dict[tuple[int, int], dict[str, Any]]:
        """Points of some blocks."""
        number = {place: index for index, place in enumerate(places)}
        parts: list[list[dict[str, Any]]] = [[] for _ in places]
        for points in chunks_of(self._logs[log], self.labels):
            cells, of_point = _cells(points["xyz"], self.block_m)
            of_cell = np.array([number.get((int(column), int(row)), -1) for column, row in cells], dtype=np.int64)
            of_block = of_cell[of_point]
            for index in np.unique(of_block[of_block >= 0]):
                rows = of_block == index
                parts[index].append({name: values[rows] for name, values in points.items()})
        return {
            place: {name: np.concatenate([part[name] for part in held]) for name in held[0]}
            for place, held in zip(places, parts, strict=True)
        }

    def _sample(self, log: str, key: str, points: dict[str, Any]) -> Sample:
        xyz = points["xyz"]
        if self.grid_m:
            kept = one_a_cell(xyz, self.grid_m)
            points = {name: values[kept] for name, values in points.items()}
            xyz = points["xyz"]
        middle = (np.floor(xyz[0, :2] / self.block_m) + 0.5) * self.block_m
        origin = np.array([*middle, np.quantile(xyz[:, 2], _GROUND)])
        remedy = "intensity_max is the raw value that becomes 1, 0 where the files have no intensity"
        where = f"{self._logs[log]}, block {key}"
        raw = points["intensity"]
        return Sample(
            key=key,
            log=log,
            timestamp_us=round(float(points["gps_time"].min()) * 1e6) if "gps_time" in points else 0,
            points_lidar=(xyz - origin).astype(np.float32),
            intensity=scaled_intensity(raw, self.intensity_max, where, remedy)
            if self.intensity_max
            else np.zeros(len(raw), dtype=np.float32),
            T_ego_lidar=np.eye(4),
            T_world_ego=rigid(np.eye(3), origin),
            cameras=(),
            labels=self._classes(points["classification"]) if self.labels else None,
        )

    def _classes(self, codes: UInt8[np.ndarray, " N"]) -> UInt8[np.ndarray, " N"]:
        table = np.full(256, IGNORE_LABEL, dtype=np.uint8)
        table[list(self._codes)] = np.arange(len(self._codes))
        return np.asarray(table[codes])


# ---- files
def _is_tile(path: Path) -> bool:
    return path.suffix.lower() in (".las", ".laz") and not path.name.startswith(".") and path.is_file()


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise DamagedError("member-missing", f"{path} ({error.strerror})") from error
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=256)
def _count_blocks(path: str, size: int, changed_ns: int, block_m: float) -> dict[tuple[int, int], int]:
    """Points of each block of a file, by column and row; size and time make a file that was repaired another one."""
    counts: dict[tuple[int, int], int] = {}
    for points in chunks_of(Path(path), False):
        cells, of_point = _cells(points["xyz"], block_m)
        for (column, row), count in zip(cells.tolist(), np.bincount(of_point), strict=True):
            counts[column, row] = counts.get((column, row), 0) + int(count)
        if len(counts) > _MOST_BLOCKS:
            raise DamagedError("too-large", f"{path} has over {_MOST_BLOCKS} blocks of {block_m:g} m: is it in metres?")
    return dict(sorted(counts.items()))


def _cells(xyz: Float[np.ndarray, "N 3"], block_m: float) -> tuple[Int[np.ndarray, "cells 2"], Int[np.ndarray, " N"]]:
    """Columns and rows of the blocks that points are in, and which of them each is in."""
    cells, of_point = np.unique(np.floor(xyz[:, :2] / block_m).astype(np.int64), axis=0, return_inverse=True)
    return cells, of_point.reshape(-1)
