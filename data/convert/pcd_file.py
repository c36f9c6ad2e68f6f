"""Files of the Point Cloud Library: ascii, binary and compressed, read by what their header says.

Source: "The PCD (Point Cloud Data) file format", pointclouds.org; that of compressed data from PCL's PCDWriter.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from data.convert.logs.clouds import packed_columns
from data.convert.logs.point_fields import Columns
from data.convert.poses import pose
from data.convert.raw_files import MAX_FILE_BYTES, read_bytes
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

_TYPES = {
    **{("F", 4): "<f4", ("F", 8): "<f8"},
    **{(letter, size): f"<{letter.lower()}{size}" for letter in "IU" for size in (1, 2, 4, 8)},
}
"""TYPE and SIZE -> numpy's type."""
_KEYS = ("VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA")
_MAX_HEADER = 1 << 16
_MOST_UNPACKED = 88
"""Bytes that come of one: LZF's longest match is 264 bytes, in 3. Source: LibLZF 3.6, lzf_c.c (MAX_REF)."""
_ENCODINGS = ("ascii", "binary", "binary_compressed")


@dataclass(frozen=True, kw_only=True)
class _Field:
    name: str
    kind: str
    count: int

    @property
    def size(self) -> int:
        return int(np.dtype(self.kind).itemsize) * self.count


@dataclass(frozen=True, kw_only=True)
class _Header:
    fields: tuple[_Field, ...]
    points: int
    viewpoint: tuple[str, ...]
    encoding: str
    size: int  # of the header itself, bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class PcdCloud:
    """What a file holds.

    Attributes:
        columns: fields of one number a point, in the file's order; padding ("_") and fields of several are left out.
        T_cloud_sensor: VIEWPOINT, the sensor's place when the cloud was taken; what points have to do with it, the
            format does not say. None where it is the origin.
    """

    columns: Columns
    T_cloud_sensor: Float[np.ndarray, "4 4"] | None


def read_pcd(path: Path) -> PcdCloud:
    """A file of one cloud.

    Raises:
        DamagedError: the file is missing; the header lacks an entry, or its entries contradict each other; the data are
            of another length than it says.
        ShardError: compressed data without the extra [logs].
    """
    data = read_bytes(path)
    header = _header(path, data)
    where = str(path)
    stride = sum(field.size for field in header.fields)
    if header.points * stride > MAX_FILE_BYTES:
        raise DamagedError("too-large", f"{where}: {header.points} points of {stride} bytes")
    body = data[header.size :]
    if header.encoding == "ascii":
        columns = _from_text(where, body, header)
    elif header.encoding == "binary":
        ends = list(itertools.accumulate(field.size for field in header.fields))
        fields = {field.name: (end - field.size, field.kind) for field, end in zip(header.fields, ends, strict=True)}
        kept = {field.name: fields[field.name] for field in _single(header)}
        columns = packed_columns(where, np.frombuffer(body, np.uint8), kept, stride=stride, width=header.points)
    else:
        columns = _unpacked(where, body, header, stride)
    T = _viewpoint(where, header.viewpoint)
    return PcdCloud(columns=columns, T_cloud_sensor=None if np.array_equal(T, np.eye(4)) else T)


def _single(header: _Header) -> list[_Field]:
    return [field for field in header.fields if field.count == 1 and field.name != "_"]


# ---- the header
def _header(path: Path, data: bytes) -> _Header:
    entries: dict[str, tuple[str, ...]] = {}
    position = 0
    while "DATA" not in entries:
        end = data.find(b"\n", position, _MAX_HEADER)
        if end < 0:
            raise DamagedError("meta-broken", f"{path}: no PCD file: its header has no line DATA")
        words = data[position:end].decode("ascii", errors="replace").split()
        position = end + 1
        if not words or words[0].startswith("#"):
            continue
        if words[0] not in _KEYS:
            raise DamagedError("meta-broken", f"{path}: no PCD file: {words[0]!r:.40} in its header")
        entries[words[0]] = tuple(words[1:])
    missing = [key for key in ("FIELDS", "SIZE", "TYPE", "WIDTH", "HEIGHT") if key not in entries]
    if missing:
        raise DamagedError("meta-broken", f"{path}: its header has no {missing[0]}")
    encoding = " ".join(entries["DATA"])
    if encoding not in _ENCODINGS:
        raise DamagedError("meta-broken", f"{path}: DATA is {encoding!r:.40}, expected {', '.join(_ENCODINGS)}")
    width, height = (_counts(path, entries, key)[0] for key in ("WIDTH", "HEIGHT"))
    points = _counts(path, entries, "POINTS")[0] if "POINTS" in entries else width * height
    if points != width * height:
        raise DamagedError("meta-broken", f"{path}: POINTS is {points}, WIDTH {width} times HEIGHT {height}")
    return _Header(
        fields=_fields(path, entries),
        points=points,
        viewpoint=entries.get("VIEWPOINT", ()),
        encoding=encoding,
        size=position,
    )


def _counts(path: Path, entries: Mapping[str, tuple[str, ...]], key: str) -> list[int]:
    words = entries[key]
    if not words or not all(word.isascii() and word.isdigit() and len(word) < 12 for word in words):
        raise DamagedError("meta-broken", f"{path}: {key} is {' '.join(words)!r:.80}, expected whole numbers")
    return [int(word) for word in words]


def _fields(path: Path, entries: Mapping[str, tuple[str, ...]]) -> tuple[_Field, ...]:
    names, types, sizes = entries["FIELDS"], entries["TYPE"], _counts(path, entries, "SIZE")
    counts = _counts(path, entries, "COUNT") if "COUNT" in entries else [1] * len(names)
    if not names or not len(names) == len(types) == len(sizes) == len(counts):
        lengths = f"{len(names)} FIELDS, {len(sizes)} of SIZE, {len(types)} of TYPE, {len(counts)} of COUNT"
        raise DamagedError("meta-broken", f"{path}: its header has {lengths}")
    fields = []
    for name, letter, size, count in zip(names, types, sizes, counts, strict=True):
        if (letter, size) not in _TYPES or not 0 < count < 10_000:
            detail = f"{path}: {name!r:.40} has TYPE {letter!r:.8}, SIZE {size}, COUNT {count}"
            raise DamagedError(
                "meta-broken", f"{detail}; expected F of 4 or 8 bytes, I or U of 1, 2, 4 or 8, COUNT above 0"
            )
        fields.append(_Field(name=name, kind=_TYPES[letter, size], count=count))
    twice = [name for name in names if name != "_" and names.count(name) > 1]
    if twice:
        raise DamagedError("meta-broken", f"{path} has two fields {twice[0]!r:.40}")
    return tuple(fields)


def _viewpoint(where: str, words: tuple[str, ...]) -> Float[np.ndarray, "4 4"]:
    if not words:
        return np.eye(4)
    if len(words) != 7:
        raise DamagedError("meta-broken", f"{where}: VIEWPOINT is {' '.join(words)!r:.80}, expected x y z qw qx qy qz")
    return pose(f"{where}: VIEWPOINT", words[3:], words[:3])


# ---- the data
def _from_text(where: str, body: bytes, header: _Header) -> Columns:
    words, width = body.split(), sum(field.count for field in header.fields)
    if len(words) != header.points * width:
        needed = f"{header.points} points of {width} need {header.points * width}"
        raise DamagedError("array-broken", f"{where}: {len(words)} numbers of text, {needed}")
    ends = list(itertools.accumulate(field.count for field in header.fields))
    columns = {}
    kept = {field.name for field in _single(header)}
    for field, end in zip(header.fields, ends, strict=True):
        if field.name in kept:
            try:
                # Through Python's numbers: whole ones of 64 bits keep all their digits.
                of = float if field.kind[1] == "f" else int
                columns[field.name] = np.array([of(word) for word in words[end - 1 :: width]], dtype=field.kind)
            except (ValueError, OverflowError) as error:
                raise DamagedError("array-broken", f"{where}: {field.name}: {error}") from error
    return columns


def _unpacked(where: str, body: bytes, header: _Header, stride: int) -> Columns:
    """Compressed data hold all points' first field, then all points' second one, and so on."""
    try:
        import lzf
    except ImportError as error:
        remedy = "pip install 'tandem-pretrain[logs]'"
        raise ShardError(f"{where} is compressed, which needs python-neo-lzf ({error}): {remedy}") from error
    if len(body) < 8:
        raise DamagedError("array-broken", f"{where} ends before its compressed data")
    packed, size = struct.unpack("<II", body[:8])
    needed = header.points * stride
    fields = [field for field in header.fields if field.name != "_"]
    if size == needed:
        fields = list(header.fields)
    elif size != header.points * sum(field.size for field in fields):  # PCL leaves padding out, other writers do not
        detail = f"{where}: {size} bytes when unpacked, {header.points} points of {stride} bytes need {needed}"
        raise DamagedError("array-broken", detail)
    if len(body) < 8 + packed:
        raise DamagedError("array-broken", f"{where} ends {8 + packed - len(body)} bytes before its compressed data do")
    if size > _MOST_UNPACKED * packed:  # before memory is taken for it
        raise DamagedError("array-broken", f"{where}: {size:,} bytes when unpacked, {packed:,} cannot become so many")
    data = b""
    if size:
        try:
            data = lzf.decompress(body[8 : 8 + packed], size) or b""
        except ValueError as error:
            raise DamagedError("array-broken", f"{where}: {error}") from error
    if len(data) != size:
        raise DamagedError("array-broken", f"{where}: the compressed data give {len(data)} bytes, expected {size}")
    ends = itertools.accumulate(field.size * header.points for field in fields)
    kept = {field.name for field in _single(header)}
    return {
        field.name: np.frombuffer(data, field.kind, header.points, end - field.size * header.points)
        for field, end in zip(fields, ends, strict=True)
        if field.name in kept
    }
