"""Damage and malice for files of any kind: a function of a random generator, the file's name and its bytes."""

from __future__ import annotations

import functools
import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator
Mutation = tuple[str, bytes]
"""What was done, and the file after it."""

BOMB_BYTES = 128 << 20
"""What a bomb unpacks to."""

HUGE = (10**400, 10**30, 2**63, 2**31, -1, -(10**400))
NASTY_JSON: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: "",
    lambda: "../../outside",
    lambda: "x" * 100_000,
    list,
    dict,
    lambda: [[]],
    lambda: {"a": [None]},
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: 1e308,
    lambda: "\x00",
    lambda: "\ud800",
    *(functools.partial(lambda value: value, value) for value in HUGE),
)
NASTY_WORDS = (b"nan", b"inf", b"-", b"1e999", b"9" * 400, b"-1", b"", b"\xff\xfe", b"../..", b"0x10", b"\x00", b"1,5")


class Payload:
    """Unpickled, it makes a file: proof that code was run."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        """Call open(canary, "w")."""
        return open, (self.canary, "w")


def mutate(rng: Rng, name: str, data: bytes, canary: str) -> Mutation:
    """One random change, three times in five one made for this kind of file.

    Args:
        rng: decides everything.
        name: of the file; its ending says what it is.
        data: its bytes.
        canary: file that only executed code could make.
    """
    ending = name[name.find(".") :].lower() if name.startswith("frame-") else name[name.rfind(".") :].lower()
    special = SPECIAL.get(ending)
    if special is not None and rng.random() < 0.6:
        return special[int(rng.integers(len(special)))](rng, data, canary)
    return GENERIC[int(rng.integers(len(GENERIC)))](rng, data, canary)


# ---- any bytes
def flip_bits(rng: Rng, data: bytes, canary: str) -> Mutation:
    changed = bytearray(data)
    for place in rng.integers(0, max(len(data), 1), int(rng.integers(1, 9))) if data else ():
        changed[place] ^= 1 << int(rng.integers(8))
    return "bit flips", bytes(changed)


def truncate(rng: Rng, data: bytes, canary: str) -> Mutation:
    return "truncated", data[: int(rng.integers(0, max(len(data), 1)))]


def extend(rng: Rng, data: bytes, canary: str) -> Mutation:
    return "extended", data + rng.bytes(int(rng.integers(1, 2000)))


def zero_run(rng: Rng, data: bytes, canary: str) -> Mutation:
    start = int(rng.integers(0, max(len(data), 1)))
    length = int(rng.integers(1, 600))
    return "a run of zeros", data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def cut_out(rng: Rng, data: bytes, canary: str) -> Mutation:
    start = int(rng.integers(0, max(len(data), 1)))
    return "a piece cut out", data[:start] + data[start + int(rng.integers(1, 600)) :]


def swap_blocks(rng: Rng, data: bytes, canary: str) -> Mutation:
    a, b, c = sorted(rng.integers(0, max(len(data), 1), 3).tolist())
    return "two pieces swapped", data[:a] + data[b:c] + data[a:b] + data[c:]


def big_number(rng: Rng, data: bytes, canary: str) -> Mutation:
    value = (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000)[int(rng.integers(3))]
    start = int(rng.integers(0, max(min(len(data), 200) - 4, 1)))
    order = "<I" if rng.random() < 0.5 else ">I"
    return "a giant or negative number", data[:start] + struct.pack(order, value) + data[start + 4 :]


def noise(rng: Rng, data: bytes, canary: str) -> Mutation:
    return "noise", rng.bytes(int(rng.integers(0, 3000)))


def empty(rng: Rng, data: bytes, canary: str) -> Mutation:
    return "empty", b""


def pickled(rng: Rng, data: bytes, canary: str) -> Mutation:
    return "a pickle", pickle.dumps(Payload(canary), protocol=int(rng.integers(0, 5)))


GENERIC = (flip_bits, flip_bits, truncate, truncate, extend, zero_run, cut_out, swap_blocks, big_number, noise, empty)


# ---- arrays
def npy(descr: object, shape: object, body: bytes, fortran: object = False, version: int = 1) -> bytes:
    """A file with this header, whatever it means."""
    header = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + body


def npy_header(rng: Rng, data: bytes, canary: str) -> Mutation:
    body = data[128:]
    shapes = [(10**12, 4), (-1, 4), (2**63, 4), (10**30,), (), (0,), ((),), ("4",), (4, -4), [4], 4, (1,) * 40]
    kinds = ["<f4", "<f8", "|O", "<U4000", "|V0", "<M8[s]", ">f4", [("a", "<f4")], "<f4, <f4", "(1000000,1000)<f4", "b"]
    choice = int(rng.integers(5))
    shape = shapes[int(rng.integers(len(shapes)))]
    kind = kinds[int(rng.integers(len(kinds)))]
    if choice == 0:
        return f"shape {shape}", npy("<f4", shape, body)
    if choice == 1:
        return f"type {kind}", npy(kind, (len(body) // 4,), body)
    if choice == 2:
        return "columns first", npy("<f4", (len(body) // 16, 4), body, fortran=True)
    if choice == 3:
        return "another version", npy("<f4", (len(body) // 16, 4), body, version=int(rng.integers(2, 9)))
    nested = b"(" * 9000
    return "a header nested deeply", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(nested)) + nested


def npy_objects(rng: Rng, data: bytes, canary: str) -> Mutation:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    return "an array of objects", buffer.getvalue()


def npy_other(rng: Rng, data: bytes, canary: str) -> Mutation:
    arrays = (
        np.zeros((3, 4)),
        np.full((5, 4), np.nan, "<f4"),
        np.full((5, 4), 3e38, "<f4"),
        np.zeros((0, 4), "<f4"),
        np.full(7, 2**40),
        np.full((4, 11), 1e300),
        np.zeros((2, 3), ">i2"),
        np.array("x"),
    )
    buffer = io.BytesIO()
    np.save(buffer, arrays[int(rng.integers(len(arrays)))])
    return "another array", buffer.getvalue()


def npz_bomb(rng: Rng, data: bytes, canary: str) -> Mutation:
    """Every array of the archive compressed, one of them a long run of zeros."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    chosen = sorted(members)[int(rng.integers(len(members)))]
    members[chosen] = npy("<i8", (BOMB_BYTES // 8,), b"") + _zeros()
    return "an archive that unpacks to gigabytes", _zip(members, zipfile.ZIP_DEFLATED)


def npz_member(rng: Rng, data: bytes, canary: str) -> Mutation:
    """One array of the archive changed, the archive whole."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    chosen = sorted(members)[int(rng.integers(len(members)))]
    change = (npy_header, npy_objects, npy_other, npy_values, npy_values)[int(rng.integers(5))]
    label, members[chosen] = change(rng, members[chosen], canary)
    return f"{chosen}: {label}", _zip(members, zipfile.ZIP_STORED)


def npy_values(rng: Rng, data: bytes, canary: str) -> Mutation:
    """Same type and shape, other numbers."""
    array = np.load(io.BytesIO(data)).copy()
    flat = array.reshape(-1).view(np.uint8)
    place = int(rng.integers(len(flat)))
    flat[place : place + int(rng.integers(1, 17))] = int(rng.integers(256))
    buffer = io.BytesIO()
    np.save(buffer, array)
    return "other values", buffer.getvalue()


@functools.cache
def _zeros() -> bytes:
    return bytes(BOMB_BYTES)


@functools.cache
def _packed_zeros(wbits: int) -> bytes:
    packer = zlib.compressobj(1, wbits=wbits)
    return packer.compress(_zeros()) + packer.flush()


def _zip(members: dict[str, bytes], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def gzip_bomb(rng: Rng, data: bytes, canary: str) -> Mutation:
    return "a gzip bomb", _packed_zeros(31)


def gzip_content(rng: Rng, data: bytes, canary: str) -> Mutation:
    label, content = (npy_header, npy_objects, npy_other, flip_bits, truncate)[int(rng.integers(5))](
        rng, gzip.decompress(data), canary
    )
    return f"packed: {label}", gzip.compress(content, 1)


def mat_bomb(rng: Rng, data: bytes, canary: str) -> Mutation:
    """A MATLAB file whose one compressed element unpacks to zeros, or to a matrix of 2**31 numbers."""
    if rng.random() < 0.5:
        packed = _packed_zeros(15)
    else:
        body = struct.pack("<IIIIIIIIII", 14, 2**31 - 1, 6, 8, 6, 0, 5, 8, 2**30, 2)
        packed = zlib.compress(body + struct.pack("<II", 1, 8) + b"instance" + struct.pack("<II", 7, 2**31 - 8))
    return "a MATLAB bomb", data[:128] + struct.pack("<II", 15, len(packed)) + packed


# ---- images
def png_bomb(rng: Rng, data: bytes, canary: str) -> Mutation:
    return "a PNG bomb", png(8192, 16384, _packed_zeros(15))


def png(height: int, width: int, packed: bytes, depth: int = 8) -> bytes:
    """A grey image with these packed rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_size(rng: Rng, data: bytes, canary: str) -> Mutation:
    """A size in the header, with a right checksum, that is not the content's."""
    side = (0, 1, 20000, 2**31 - 1, 2**32 - 1)[int(rng.integers(5))]
    header = struct.pack(">II", side, (side, 50)[int(rng.integers(2))]) + data[24:29]
    return f"PNG of side {side}", data[:8] + _chunk(b"IHDR", header) + data[33:]


def png_kind(rng: Rng, data: bytes, canary: str) -> Mutation:
    """Another bit depth or colour type, palette and interlacing included."""
    choice = (0, 2, 3, 4, 6)[int(rng.integers(5))], int(rng.integers(2))
    header = data[16:24] + bytes([(1, 2, 4, 8, 16)[int(rng.integers(5))], choice[0], 0, 0, choice[1]])
    return f"PNG of colour type {choice[0]}", data[:8] + _chunk(b"IHDR", header) + data[33:]


def jpeg_size(rng: Rng, data: bytes, canary: str) -> Mutation:
    """Another size in the frame header."""
    position = 2
    while position + 9 < len(data) and not 0xC0 <= data[position + 1] <= 0xC2:
        position += 2 + int(struct.unpack(">H", data[position + 2 : position + 4])[0])
    sides = (0, 1, 16384, 65535)
    height, width = sides[int(rng.integers(4))], sides[int(rng.integers(4))]
    size = struct.pack(">HH", height, width)
    return f"JPEG of {height} x {width}", data[: position + 5] + size + data[position + 9 :]


# ---- JSON and text
def json_value(rng: Rng, data: bytes, canary: str) -> Mutation:
    """A value somewhere in the tree replaced."""
    tree = json.loads(data)
    holder: Any = None
    place: Any = None
    node = tree
    while isinstance(node, (dict, list)) and node and (holder is None or rng.random() < 0.8):
        holder, place = node, (list(node) if isinstance(node, dict) else range(len(node)))[int(rng.integers(len(node)))]
        node = node[place]
    if holder is None:
        return "no tree", b"[]"
    value = NASTY_JSON[int(rng.integers(len(NASTY_JSON)))]()
    if rng.random() < 0.2:
        del holder[place]
        return f"without {place!r}", _dumps(tree)
    holder[place] = value
    return f"{place!r}: {str(value)[:20]!r}", _dumps(tree)


def _dumps(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", errors="surrogatepass")


def json_nested(rng: Rng, data: bytes, canary: str) -> Mutation:
    opening = (b"[", b'{"a":')[int(rng.integers(2))]
    return "JSON nested deeply", opening * 100_000


def json_digits(rng: Rng, data: bytes, canary: str) -> Mutation:
    return "a number of many digits", data.replace(b"1", b"1" * 6000, 1)


def json_long(rng: Rng, data: bytes, canary: str) -> Mutation:
    return "a list of many lists", b"[" + b"[]," * 100_000 + b"[]]"


def text_word(rng: Rng, data: bytes, canary: str) -> Mutation:
    """A word replaced, line breaks kept."""
    words = data.split(b" ")
    place = int(rng.integers(len(words)))
    tail = b"\n" if b"\n" in words[place] else b""
    word = NASTY_WORDS[int(rng.integers(len(NASTY_WORDS)))]
    words[place] = word + tail
    return f"a word is {word[:20]!r}", b" ".join(words)


def text_line(rng: Rng, data: bytes, canary: str) -> Mutation:
    """A line twice, gone, or very long."""
    lines = data.split(b"\n")
    place = int(rng.integers(len(lines)))
    choice = int(rng.integers(3))
    lines[place : place + 1] = ([lines[place]] * 2, [], [lines[place] + b" 1" * 100_000])[choice]
    return ("a line twice", "a line gone", "a line very long")[choice], b"\n".join(lines)


# ---- points
def odd_floats(rng: Rng, data: bytes, canary: str) -> Mutation:
    """NaN, infinity, 3e38 or numbers that no sensor gives among numbers of four bytes."""
    count = len(data) // 4
    values = np.frombuffer(data[: 4 * count], "<f4").copy()
    if count:
        odd = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-42, 1e7, -3e6, 255], "<f4")
        values[rng.integers(0, count, 5)] = odd[rng.integers(0, len(odd), 5)]
    return "odd numbers", values.tobytes() + data[4 * count :]


# ---- files with lengths inside
def number_anywhere(rng: Rng, data: bytes, canary: str) -> Mutation:
    """A number of 1, 2, 4 or 8 bytes replaced, at a multiple of its own size or not."""
    size = (1, 2, 4, 8)[int(rng.integers(4))]
    value = (0, 1, 255, 2**15, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)[int(rng.integers(11))]
    start = int(rng.integers(0, max(len(data) - size, 1)))
    number = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return f"{size} bytes at {start} are {value}", data[:start] + number + data[start + size :]


def number_in_head(rng: Rng, data: bytes, canary: str) -> Mutation:
    """The same in the first 400 bytes: the header of a LAS file is 375 long."""
    label, head = number_anywhere(rng, data[:400], canary)
    return label, head + data[400:]


def text_head(rng: Rng, data: bytes, canary: str) -> Mutation:
    """A word or line of the first 200 bytes."""
    label, head = (text_word, text_line)[int(rng.integers(2))](rng, data[:200], canary)
    return label, head + data[200:]


# ---- tar
def tar_header(rng: Rng, data: bytes, canary: str) -> Mutation:
    """A field of one member's header, with a right checksum."""
    starts = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    start = starts[int(rng.integers(len(starts)))]
    header = bytearray(data[start : start + 512])
    fields: tuple[tuple[str, int, bytes], ...] = (
        ("escape: name", 0, b"../../outside.npy".ljust(100, b"\0")),
        ("escape: absolute name", 0, b"/etc/passwd".ljust(100, b"\0")),
        ("escape: prefix", 345, b"../..".ljust(155, b"\0")),
        ("size giant", 124, b"77777777777\0"),
        ("size negative", 124, b"\xff" * 12),
        ("size base 256", 124, b"\x80" + bytes(6) + b"\x7f" * 5),
        ("size of no digits", 124, b"  \0\0 12 x 9 "),
        ("type link", 156, b"1"),
        ("type symlink", 156, b"2"),
        ("type folder", 156, b"5"),
        ("type sparse", 156, b"S"),
        ("type pax", 156, b"x"),
        ("type pax global", 156, b"g"),
        ("type GNU long name", 156, b"L"),
        ("type contiguous", 156, b"7"),
        ("link to itself", 156, b"2" + bytes(header[0:100])),
    )
    label, place, value = fields[int(rng.integers(len(fields)))]
    header[place : place + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return f"tar {label}", data[:start] + bytes(header) + data[start + 512 :]


def tar_twice(rng: Rng, data: bytes, canary: str) -> Mutation:
    return "every member twice", data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512) + data


SPECIAL: dict[str, tuple[Callable[[Rng, bytes, str], Mutation], ...]] = {
    ".npy": (npy_header, npy_header, npy_objects, npy_other, npy_values, pickled),
    ".npz": (npz_bomb, npz_member, npz_member, npz_member),
    ".gz": (gzip_bomb, gzip_content, gzip_content),
    ".mat": (mat_bomb,),
    ".png": (png_bomb, png_size, png_size, png_kind),
    ".jpg": (jpeg_size,),
    ".json": (json_value, json_value, json_value, json_value, json_nested, json_digits, json_long),
    ".txt": (text_word, text_word, text_line),
    ".csv": (text_word, text_line),
    ".bin": (odd_floats,),
    ".tar": (tar_header, tar_header, tar_header, tar_twice),
    ".pkl": (pickled,),
    ".pcd": (text_head, text_head, number_anywhere),
    ".las": (number_in_head, number_in_head, number_anywhere),
    ".laz": (number_in_head, number_in_head, number_anywhere),
    ".bag": (number_anywhere, number_in_head),
    ".db3": (number_anywhere, number_in_head),
    ".mcap": (number_anywhere, number_in_head),
}
"""File ending -> what is made for it."""
