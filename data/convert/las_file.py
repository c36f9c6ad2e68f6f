"""Files of surveys (.las, .laz), read a part at a time by laspy (extra `[logs]`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from data.convert.las_head import check_sizes
from data.convert.logs.point_fields import Columns
from data.convert.raw_files import MAX_FILE_BYTES
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

_NOISE = (7, 18)
"""Classifications. Source: ASPRS, LAS specification 1.4 R15, table 17."""
_CHUNK_POINTS = 1_000_000
_CHUNK_BYTES = 1 << 27
"""Of points that are in memory at a time, as the file has them: a million of any format without bytes of one's own."""
_PANIC = "PanicException"
"""Of Rust, on which lazrs is built: no `Exception`."""
_FARTHEST_M = 1e8
"""Beyond any national grid, whatever its false origin."""


def read_las(path: Path) -> Columns:
    """x, y, z in the file's units, and the raw intensity of each point of a file of one sweep.

    Raises:
        DamagedError: as `chunks_of`, or the file is far larger than a sweep's.
        ShardError: as `chunks_of`.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size > MAX_FILE_BYTES:
        raise DamagedError("too-large", f"{path} has {size} bytes")
    chunks = list(chunks_of(path, False))
    xyz = np.concatenate([chunk["xyz"] for chunk in chunks]) if chunks else np.empty((0, 3))
    intensity = np.concatenate([chunk["intensity"] for chunk in chunks]) if chunks else np.empty(0, np.uint16)
    return {"x": xyz[:, 0], "y": xyz[:, 1], "z": xyz[:, 2], "intensity": intensity}


def chunks_of(path: Path, labels: bool) -> Iterator[dict[str, Any]]:
    """Points of a file, a part at a time, without noise and those that are withheld.

    Raises:
        DamagedError: the file is missing or damaged.
        ShardError: the extra [logs] is not installed.
    """
    try:
        import laspy
    except ImportError as error:
        raise ShardError(f"LAS files need laspy ({error}): pip install 'tandem-pretrain[logs]'") from error
    for chunk in _read(path, laspy.open):
        yield _of(path, chunk, labels)


def _read(path: Path, opened: Callable[..., Any]) -> Iterator[Any]:
    """Points as laspy's `opened` has them, as many as the header says."""
    found = 0
    try:
        part = max(min(_CHUNK_POINTS, _CHUNK_BYTES // max(check_sizes(path), 1)), 1)
        with opened(path, read_evlrs=False) as reader:
            for chunk in reader.chunk_iterator(part):
                found += len(chunk)
                yield chunk
            if found != reader.header.point_count:
                detail = f"{path} holds {found} points, its header says {reader.header.point_count}"
                raise DamagedError("array-broken", detail)
    except DamagedError:
        raise
    except Exception as error:  # of laspy and lazrs, whatever they meet in damaged bytes
        raise DamagedError("array-broken", f"{path}: {type(error).__name__}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        raise DamagedError("array-broken", f"{path}: lazrs gave up: {error}") from error


def _of(path: Path, chunk: Any, labels: bool) -> dict[str, Any]:
    names = set(chunk.point_format.dimension_names)
    codes = np.asarray(chunk.classification, dtype=np.uint8)
    kept: Bool[np.ndarray, " N"] = ~np.isin(codes, _NOISE)
    if "withheld" in names:
        kept &= ~np.asarray(chunk.withheld, dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale
        xyz = np.stack([np.asarray(chunk[axis], dtype=np.float64) for axis in ("x", "y", "z")], axis=1)[kept]
    if not (np.abs(xyz) < _FARTHEST_M).all():
        raise DamagedError(
            "points-range", f"{path}: coordinates beyond {_FARTHEST_M:g} m (scale and offset of its header)"
        )
    points = {
        "xyz": xyz,
        "intensity": np.asarray(chunk.intensity)[kept],
    }
    if "gps_time" in names:
        points["gps_time"] = np.asarray(chunk.gps_time)[kept]
    if labels:
        points["classification"] = codes[kept]
    return points
