"""TFRecord segments of the Waymo Open Dataset: where the frames of a file lie, and one frame's bytes.

A TFRecord is a row of records: length (8 bytes), CRC of the length, the message, CRC of the message; CRCs are CRC-32C,
rotated and shifted. A segment of 198 frames has some 1 GB: where its frames lie is found by walking the lengths, and
one frame is one read.

Source: TensorFlow's description of the TFRecord format; protobuf's of its encoding.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import google_crc32c

from data.convert.raw_files import read_range
from data.convert.waymo.frame import LASERS, RawFrame, WaymoParts
from data.convert.waymo.proto import raw_frame
from data.storage.damage import DamagedError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


@dataclass(frozen=True)
class _Record:
    """Where a message lies; `damage` where it cannot be read, and the file cannot be walked beyond it."""

    offset: int
    size: int
    damage: tuple[str, str] | None = None


def masked_crc(data: bytes) -> int:
    """The CRC that TFRecords hold."""
    crc = google_crc32c.value(data)
    return int((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _walk(path: Path) -> Iterator[_Record]:
    total, position = os.path.getsize(path), 0
    with path.open("rb", buffering=0) as file:
        while position < total:
            head = os.pread(file.fileno(), _HEADER.size, position)
            size, crc = _HEADER.unpack(head) if len(head) == _HEADER.size else (0, None)
            start = position + _HEADER.size
            if crc != masked_crc(head[:8]):
                detail = f"{path}: no record's length at byte {position}, so nothing behind it can be found"
                yield _Record(start, 0, ("checksum", detail))
                return
            if start + size + _FOOTER.size > total:
                detail = f"{path}: cut at byte {total}, inside a record of {size} bytes that begins at {position}"
                yield _Record(start, 0, ("member-missing", detail))
                return
            yield _Record(start, size)
            position = start + size + _FOOTER.size


class TfRecordSegment:
    """One ``*.tfrecord`` file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _records(self) -> tuple[_Record, ...]:
        try:
            return tuple(_walk(self._path))
        except OSError as error:
            return (_Record(0, 0, ("member-missing", f"{self._path} ({error.strerror})")),)

    def num_frames(self) -> int:
        """Records; what lies behind damage counts as one."""
        return len(self._records)

    def frame_name(self, index: int) -> str:
        """What messages and a skipped frame's key call it: its number, as the time is inside the message."""
        return f"{index:06d}"

    def labelled(self) -> tuple[int, ...]:
        """Frames whose top laser has a segmentation image, found by the messages' tags alone; damaged ones too."""
        damaged = {index for index, record in enumerate(self._records) if record.damage is not None}
        if len(damaged) == len(self._records):
            return tuple(damaged)
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return tuple(
                index
                for index, record in enumerate(self._records)
                if index in damaged or _has_segmentation(data, record.offset, record.offset + record.size)
            )

    def frames(self, indices: tuple[int, ...], parts: WaymoParts) -> Iterator[RawFrame | DamagedError]:
        """The frames of these numbers, one read each; a damaged one is an error that is not raised."""
        for index in indices:
            try:
                yield self._frame(self._records[index], f"{self._path}, record {index}", parts)
            except DamagedError as error:
                yield error

    def _frame(self, record: _Record, what: str, parts: WaymoParts) -> RawFrame:
        if record.damage is not None:
            raise DamagedError(*record.damage)
        data = read_range(self._path, record.offset, record.size + _FOOTER.size)
        message, (crc,) = data[: -_FOOTER.size], _FOOTER.unpack(data[-_FOOTER.size :])
        if masked_crc(message) != crc:
            raise DamagedError("checksum", f"{what}: {record.size} bytes with another CRC than stored")
        return raw_frame(message, what, parts)


# ---- fields by tag
_FRAME_LASERS, _LASER_NAME, _LASER_RETURN1, _RANGE_IMAGE_SEGMENTATION = 5, 1, 2, 6


def _has_segmentation(data: mmap.mmap, start: int, stop: int) -> bool:
    """Follows lengths instead of decoding, so that only a few pages of a frame's megabytes are touched."""
    try:
        for number, first, last in _fields(data, start, stop):
            if number != _FRAME_LASERS:
                continue
            laser = {number: (first, last) for number, first, last in _fields(data, first, last)}
            is_top = _LASER_NAME in laser and data[laser[_LASER_NAME][0]] == LASERS["top"]
            if is_top and _LASER_RETURN1 in laser:
                inner = _fields(data, *laser[_LASER_RETURN1])
                return any(number == _RANGE_IMAGE_SEGMENTATION and last > first for number, first, last in inner)
    except (IndexError, ValueError):
        return True  # no message: read as a frame it is named as damaged
    return False


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Number, first and last (exclusive) byte of the content of each field of a message."""
    while start < stop:
        tag, start = _varint(data, start)
        kind = tag & 7
        if kind == 2:
            size, start = _varint(data, start)
        elif kind == 0:
            size = _varint(data, start)[1] - start
        else:
            size = {1: 8, 5: 4}.get(kind, 0)
            if size == 0:
                raise ValueError(f"wire type {kind}")
        yield tag >> 3, start, start + size
        start += size


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
