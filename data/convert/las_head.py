"""Sizes that the head of a LAS or LAZ file states, compared with the file, before a library takes memory for them.

laspy reads as many records as the header counts, also behind the end of the file, and lazrs takes the memory that a
chunk states for each of its layers, and unpacks as many points as the header counts, be it from layers without a byte:
a few damaged bytes would cost gigabytes and minutes.

Source: ASPRS, LAS specification 1.4 R15, public header block and variable length records; M. Isenburg, LASzip: lossless
compression of LiDAR data (2013), chunk table, and laszip's record 22204.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data.storage.damage import DamagedError

MAGIC = b"LASF"

_HEAD = struct.Struct("<94xHIIBHI")
"""Bytes of the header, where the points begin, variable length records, point format, bytes of a point, old count."""
_COUNT_AT = 247
"""Where the count of 8 bytes is, from version 1.4 on."""
_RECORD = struct.Struct("<2x16sHH32x")
"""Head of a variable length record: whose it is, its number, the bytes that follow."""
_COMPRESSED = 0x80
"""Of the point format."""
_LASZIP = (b"laszip encoded", 22204)
_VLR = struct.Struct("<HHBBHIIqqH")
"""Compressor, coder, version (3), options, points of a chunk, two places, number of items."""
_ITEM = struct.Struct("<HHH")
"""Kind, bytes, version."""
_LAYERED = 3
"""The compressor that packs each property of a chunk's points for itself."""
_MOST_POINTS = 1000
"""Of a byte: points that are all equal were seen to take 1/118 of one (format 0, a chunk of 50,000)."""
_LAYERS = {10: 9, 11: 1, 12: 2, 13: 1}
"""Kind of item -> its layers; of 14, bytes of anyone's own, each byte is one."""
_EXTRA_BYTES = 14


@dataclass(frozen=True, kw_only=True)
class _Packing:
    """What record 22204 says.

    Attributes:
        data: of the record.
        point_bytes: of an unpacked point.
        layers: of each chunk; 0 where points are packed one after another.
    """

    data: bytes
    point_bytes: int
    layers: int


def check_sizes(path: Path) -> int:
    """Compare them; the bytes of an unpacked point.

    Raises:
        DamagedError: the file is missing, or it states more than it can hold.
    """
    try:
        with path.open("rb") as file:
            return _checked(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise DamagedError("member-missing", f"{path} ({error.strerror})") from error
    except struct.error as error:
        raise DamagedError("array-broken", f"{path} ends in its header") from error


def _checked(path: Path, file: BinaryIO, size: int) -> int:
    head = file.read(375)
    if not head.startswith(MAGIC):
        raise DamagedError("array-broken", f"{path} is no LAS file: it begins with {head[:4]!r}")
    head_bytes, points_at, records, point_format, point_bytes, count = _HEAD.unpack_from(head)
    if head[25] >= 4:
        (count,) = struct.unpack_from("<Q", head, _COUNT_AT)
    if not head_bytes <= points_at <= size:
        raise DamagedError("array-broken", f"{path}: points from byte {points_at:,} on, the file has {size:,}")
    if records * _RECORD.size > points_at - head_bytes:
        detail = f"{path}: {records:,} records in {points_at - head_bytes:,} bytes before its points"
        raise DamagedError("array-broken", detail)
    if not point_format & _COMPRESSED:
        if count * point_bytes > size - points_at:
            detail = f"{path}: {count:,} points of {point_bytes} bytes, there are {size - points_at:,} bytes of them"
            raise DamagedError("array-broken", detail)
        return int(point_bytes)
    file.seek(head_bytes)
    packing = _packing(path, file.read(points_at - head_bytes), records)
    if packing.point_bytes != point_bytes:
        stated = f"{point_bytes} bytes in its header, {packing.point_bytes} where it says how it is packed"
        raise DamagedError("array-broken", f"{path}: points of {stated}")
    if count:
        points = _points_in_chunks(path, file, packing, points_at, size)
        if count > min(points, _MOST_POINTS * (size - points_at)):
            detail = f"{path}: {count:,} points, its chunks hold {points:,} in {size - points_at:,} bytes"
            raise DamagedError("array-broken", detail)
    return int(point_bytes)


def _packing(path: Path, data: bytes, records: int) -> _Packing:
    at = 0
    for _ in range(records):
        owner, number, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if (owner.rstrip(b"\0"), number) == _LASZIP:
            record = data[at : at + length]
            compressor, *_, num_items = _VLR.unpack_from(record)
            items = [_ITEM.unpack_from(record, _VLR.size + _ITEM.size * item) for item in range(num_items)]
            layers = sum(_LAYERS.get(kind, size if kind == _EXTRA_BYTES else 0) for kind, size, _ in items)
            point_bytes = sum(size for _, size, _ in items)
            return _Packing(data=record, point_bytes=point_bytes, layers=layers if compressor == _LAYERED else 0)
        at += length
    raise DamagedError("array-broken", f"{path} is compressed and does not say how (record 22204 is missing)")


def _points_in_chunks(path: Path, file: BinaryIO, packing: _Packing, points_at: int, size: int) -> int:
    """Points that the chunks have room for; all lie within the file, and the layers of each within it."""
    first, table_at = points_at + 8, _table_at(file, points_at, size)
    if not first <= table_at <= size - 8:
        raise DamagedError("array-broken", f"{path}: its table of chunks is at byte {table_at:,} of {size:,}")
    file.seek(table_at)
    _, chunks = struct.unpack("<II", file.read(8))
    if chunks * max(packing.point_bytes, 1) > table_at - first:
        raise DamagedError("array-broken", f"{path}: {chunks:,} chunks in {table_at - first:,} bytes")
    at, room = first, 0
    for points, length in _chunks(file, packing, points_at):
        if at + length > table_at:
            detail = f"{path}: a chunk of {length:,} bytes from byte {at:,} on, chunks end at {table_at:,}"
            raise DamagedError("array-broken", detail)
        if packing.layers:
            file.seek(at + packing.point_bytes)
            own, *layers = struct.unpack(f"<{1 + packing.layers}I", file.read(4 + 4 * packing.layers))
            if packing.point_bytes + 4 + 4 * packing.layers + sum(layers) > length:
                detail = f"{path}: the chunk at byte {at:,} has {length:,} bytes and states layers of {sum(layers):,}"
                raise DamagedError("array-broken", detail)
            points = min(points, own)
        at, room = at + length, room + points
    return room


def _table_at(file: BinaryIO, points_at: int, size: int) -> int:
    """Where the table of chunks is: written before the first chunk, or at the file's end by who cannot go back."""
    file.seek(points_at)
    (at,) = struct.unpack("<q", file.read(8))
    if at == -1:
        file.seek(size - 8)
        (at,) = struct.unpack("<q", file.read(8))
    return int(at)


def _chunks(file: BinaryIO, packing: _Packing, points_at: int) -> Iterator[tuple[int, int]]:
    """Points that a chunk has at most, and its bytes."""
    import lazrs

    file.seek(points_at)
    for points, length in lazrs.read_chunk_table(file, lazrs.LazVlr(packing.data)):
        yield int(points), int(length)
