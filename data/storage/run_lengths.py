"""Planes of few values as run lengths: how superpixels are stored.

A superpixel map is some 25 runs a row. As gzipped runs it takes half the bytes of a PNG and a seventh of its decoding
time (docs/lab_book.md). The file is an `.npy.gz`: uint16 [2, runs], first the value of each run, then its length, row
by row; no run goes beyond its row. `numpy.repeat(values, lengths).reshape(height, width)` is the plane.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from jaxtyping import Integer, Shaped

from data.runs import Runs

_GZIP = 31
"""Window bits that make zlib write and read gzip's frame, with a time of 0: the same plane gives the same bytes."""
_HEADER_BYTES = 256
"""An .npy header and more."""
_MAX_BYTES = 32 << 20
"""Unpacked; 8 million runs, each pixel of a large image one of its own. More comes from a file made to harm."""


def encode_runs(plane: Integer[np.ndarray, "H W"], level: int) -> bytes:
    """The plane as an `.npy.gz`, packed with zlib's `level` (0 to 9).

    Raises:
        ValueError: values or a width that 16 bits cannot hold.
    """
    if plane.size == 0 or plane.shape[1] > 65535 or not (plane.min() >= 0 and plane.max() <= 65535):
        raise ValueError(
            f"a plane {plane.shape} from {plane.min(initial=0)} to {plane.max(initial=0)}: expected 16 bit"
        )
    begins = np.ones(plane.shape, dtype=bool)
    np.not_equal(plane[:, 1:], plane[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    runs = np.stack((plane.ravel()[starts], np.diff(starts, append=plane.size))).astype("<u2")
    packer = zlib.compressobj(level, wbits=_GZIP)
    return packer.compress(npy_bytes(runs)) + packer.flush()


def npy_bytes(array: Shaped[np.ndarray, "..."]) -> bytes:
    """The array as an .npy file of version 1.0; the same array gives the same bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_runs(data: bytes, size: tuple[int, int]) -> Shaped[np.ndarray, "H W"]:
    """The plane of a stated size (height, width), in 8 bits where they hold its values and in 16 elsewhere.

    Raises:
        ValueError: no such file.
        SizeError: a plane of another size.
    """
    return read_runs(data, size).plane()


def read_runs(data: bytes, size: tuple[int, int]) -> Runs:
    """As `decode_runs`, of which parts can be asked for.

    Raises:
        ValueError: no such file.
        SizeError: a plane of another size.
    """
    # In the worst case each pixel is a run of its own, of 2 + 2 bytes: whatever unpacks to more is refused.
    values, lengths = _runs(_unpacked(data, 4 * size[0] * size[1] + _HEADER_BYTES))
    ends = np.cumsum(lengths, dtype=np.int64)
    if ends[-1] != size[0] * size[1]:
        raise SizeError(f"runs of {ends[-1]} pixels, expected {size[0]}x{size[1]}")
    return Runs(values=values.astype(np.uint8) if values.max() < 256 else values, ends=ends, size=size)


class SizeError(ValueError):
    """A whole plane, but of another size than stated."""


def _unpacked(data: bytes, max_bytes: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=_GZIP)
    try:
        content = unpacker.decompress(data, min(max_bytes, _MAX_BYTES))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacker.eof:
        raise ValueError("cut, or more runs than pixels")
    return content


def _runs(content: bytes) -> tuple[Shaped[np.ndarray, " runs"], Shaped[np.ndarray, " runs"]]:
    """Values and lengths."""
    if content[:8] != b"\x93NUMPY\x01\x00" or len(content) < 10:
        raise ValueError("no .npy of version 1.0")
    body = content[10 + int(struct.unpack("<H", content[8:10])[0]) :]
    if b"'<u2'" not in content[: len(content) - len(body)] or len(body) % 4 or not body:
        raise ValueError("no pairs of 16 bit numbers")
    runs = np.frombuffer(body, "<u2").reshape(2, -1)
    return runs[0], runs[1]
