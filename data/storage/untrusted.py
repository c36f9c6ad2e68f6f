"""Parsers for untrusted bytes: JSON, .npy, .npz and tar, as far as prepared sets use them.

A file may be cut, swapped, bit-flipped, or malicious. So nothing is unpickled, nothing is unpacked to more bytes than
came in, and every size is compared with the bytes that are there before anything is allocated. Whatever is wrong is a
`ValueError` that says what. The standard tar reader is not used: it follows links inside an archive and fills
sparse members with as many zeros as their header asks for.

Source: POSIX.1-2017, pax interchange format; NumPy Enhancement Proposal 1 (the .npy format).
"""

from __future__ import annotations

import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_BLOCK = 512
_REGULAR, _PAX = (b"0", b"\0"), b"x"
HEADER_ERRORS = (
    *(ValueError, SyntaxError, TypeError, KeyError, OverflowError, RecursionError, struct.error),
    tokenize.TokenError,  # from its second try, as if Python 2 had written the header
    MemoryError,  # from Python's own parser, for deep nesting
)
"""What numpy's parser of a damaged header raises."""
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
ZIP_ERRORS = (
    *(zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, OSError, EOFError, ValueError),
    *(struct.error, zlib.error),
)
"""What the standard library raises on a damaged archive."""


def parse_json(data: bytes, max_bytes: int) -> Any:
    """A JSON text in UTF-8; more than `max_bytes` are refused: as Python objects they take up to twenty times as much.

    Raises:
        ValueError: too long, nested too deeply, or no JSON.
    """
    if len(data) > max_bytes:
        raise ValueError(f"{len(data)} bytes of JSON, expected {max_bytes} at most")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error


def parse_npy(data: bytes) -> np.ndarray:
    """An array in .npy format of plain numbers or bytes.

    Raises:
        ValueError: an unknown version, Python objects, or another length than the header's.
    """
    stream = io.BytesIO(data)
    try:
        shape, fortran, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
    except HEADER_ERRORS as error:
        raise ValueError(f"no header of an array: {error}") from error
    if dtype.hasobject:
        raise ValueError("it holds python objects")
    if dtype.kind not in "biufS" or dtype.itemsize == 0 or dtype.shape:
        raise ValueError(f"an array of {dtype}, expected numbers")
    start, count = stream.tell(), math.prod(shape)
    if min(shape, default=0) < 0 or len(data) - start != count * dtype.itemsize:
        raise ValueError(f"{len(data) - start} bytes for {dtype.str} {shape}")
    values = np.frombuffer(data, dtype, count, start)
    array: np.ndarray = values.reshape(shape, order="F" if fortran else "C").copy(order="C")
    return array


def parse_npz(data: bytes, names: Sequence[str], *, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The named arrays of an uncompressed .npz archive, as `np.savez` writes it; those of `optional` may be missing.

    Raises:
        ValueError: no archive, an array missing or damaged, or compressed (which could unpack to any size).
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            stored = set(archive.namelist())
            for name in names:
                if name in optional and f"{name}.npy" not in stored:
                    continue
                info = archive.getinfo(f"{name}.npy")
                # Compressed data could unpack to any size.
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                    raise ValueError(f"{name} is compressed or larger than the archive")
                arrays[name] = parse_npy(archive.read(info))
    except ZIP_ERRORS as error:
        raise ValueError(f"no archive with {', '.join(names)}: {error!r}") from error
    return arrays


# ---- tar
def tar_members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a tar's plain files, in order.

    Raises:
        ValueError: truncated, a damaged header, or a member that is no plain file (a link, a sparse file).
    """
    position, long_name = 0, None
    while position < len(data):
        header = data[position : position + _BLOCK]
        if not any(header):  # the mark at the end of an archive
            return
        kind, size, name = _tar_header(header)
        content = data[position + _BLOCK : position + _BLOCK + size]
        if len(content) != size:
            raise ValueError(f"{name!r} is cut: {len(content)} of {size} bytes")
        position += _BLOCK + -(-size // _BLOCK) * _BLOCK
        if kind == _PAX:
            long_name = _pax_name(content)
            continue
        if kind not in _REGULAR:
            raise ValueError(f"{name!r} is no plain file (type {kind!r})")
        yield long_name or name, content
        long_name = None


def _tar_header(header: bytes) -> tuple[bytes, int, str]:
    """Type, size and name."""
    if len(header) < _BLOCK:
        raise ValueError("cut inside a header")
    stated = _octal(header[148:156])
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != stated:
        raise ValueError("the checksum of a header is wrong")
    name, prefix = (_text(header[start:stop]) for start, stop in ((0, 100), (345, 500)))
    return header[156:157], _octal(header[124:136]), f"{prefix}/{name}" if prefix else name


def _octal(field: bytes) -> int:
    digits = field.strip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise ValueError(f"{field!r} is no octal number")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", errors="replace")


def _pax_name(content: bytes) -> str:
    """The name in the one extended header that the writer makes: a name of more than 100 characters."""
    length, _, record = content.partition(b" ")
    key, _, value = record.partition(b"=")
    if not length.isdigit() or int(length[:9]) != len(content) or key != b"path" or not value.endswith(b"\n"):
        raise ValueError(f"an extended header other than a name: {content[:40]!r}")
    return value[:-1].decode("utf-8", errors="replace")
