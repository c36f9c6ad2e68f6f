"""Arrays in one file that all processes of a machine share: an .npz as `numpy.savez` writes it, mapped into memory.

The archive is not compressed and each array begins at a multiple of 64 bytes, so that it is used where it lies: pages
are read when they are touched, and are there once for all processes. Without this repository `numpy.load` reads it.
"""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Shaped

from data.storage.untrusted import HEADER_ERRORS, ZIP_ERRORS

_ALIGN = 64
_ZIP_HEADER, _ZIP64_EXTRA = 30, 20
"""Bytes of a member's header without its name, and of what `force_zip64` adds to it."""
_PADDING_ID = 0xD935
"""Type of the extra field that only pads; the one that Android's zipalign uses."""
_CHUNK = 1 << 22
"""Elements that are looked at together, so that no check needs memory for a whole column."""


def write_npz(path: Path, columns: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Write arrays so that `map_npz` can map them; the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, column in columns.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            start = archive.start_dir + _ZIP_HEADER + len(info.filename) + _ZIP64_EXTRA
            padding = -(start + 4) % _ALIGN
            info.extra = struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(column), version=(1, 0), allow_pickle=False)


def map_npz(path: Path, names: Sequence[str], *, optional: Sequence[str] = ()) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The named arrays of an uncompressed .npz, read-only and where they lie; those of `optional` may be missing.

    Raises:
        ValueError: no archive, an array missing, damaged or compressed.
        OSError: it cannot be read.
    """
    arrays = {}
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            stored = set(archive.namelist())
            for name in names:
                if name not in optional or f"{name}.npy" in stored:
                    arrays[name] = _mapped(path, file, archive.getinfo(f"{name}.npy"))
    except OSError:
        raise
    except (*ZIP_ERRORS, *HEADER_ERRORS) as error:
        raise ValueError(f"no archive with {', '.join(names)}: {error!r}") from error
    return arrays


def _mapped(path: Path, file: IO[bytes], info: zipfile.ZipInfo) -> Shaped[np.ndarray, "..."]:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    file.seek(info.header_offset)
    header = file.read(_ZIP_HEADER)
    begin = info.header_offset + _ZIP_HEADER + sum(struct.unpack("<HH", header[26:30]))
    file.seek(begin)
    if np.lib.format.read_magic(file) != (1, 0):  # others may state headers of any size
        raise ValueError(f"{info.filename} is of another version of .npy")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    start, num_bytes = file.tell(), math.prod(shape) * dtype.itemsize
    if dtype.kind not in "iuS" or dtype.itemsize == 0 or len(shape) != 1 or shape[0] < 0 or fortran:
        raise ValueError(f"{info.filename} is {dtype} {shape}, expected a row of whole numbers or bytes")
    if start - begin + num_bytes != info.file_size or start + num_bytes > path.stat().st_size:
        raise ValueError(f"{info.filename} has {info.file_size} bytes, expected {start - begin + num_bytes}")
    if num_bytes == 0:  # nothing to map
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape)


def chunks(num: int, *, overlap: int = 0) -> Iterator[slice]:
    """Pieces of a column of `num` elements to be looked at one after another, each with the first ones of the next."""
    for start in range(0, num, _CHUNK):
        yield slice(start, start + _CHUNK + overlap)


def bounds(column: Shaped[np.ndarray, " n"]) -> tuple[int, int]:
    """Smallest and largest value; (0, 0) of nothing."""
    parts = [(int(column[part].min()), int(column[part].max())) for part in chunks(len(column))]
    return min((low for low, _ in parts), default=0), max((high for _, high in parts), default=0)


def ascends(column: Shaped[np.ndarray, " n"]) -> bool:
    """Whether no value is smaller than the one before."""
    return all(bool((np.diff(column[part]) >= 0).all()) for part in chunks(len(column), overlap=1))


def let_go(column: Shaped[np.ndarray, " n"]) -> None:
    """Of a mapped column that is not needed for now: its pages stay in the machine's cache, not in this process."""
    if isinstance(column, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        column._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
