"""ROS 1 bags of format 2.0: with their index, or cut and without one ("name.bag.active").

Source: the ROS bag format, version 2.0. A recorder writes the head of a chunk with length 0 first and the length when
the chunk is complete, so that in a bag that was not closed the last chunk's messages seem to lie in none.
"""

from __future__ import annotations

import bz2
import struct
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from data.convert.logs.contents import INSTALL, Definition
from data.convert.logs.files import MAX_CHUNK_BYTES, Channel, ChunkedFile, Extent, Piece, Raw
from data.convert.logs.kinds import ros_type
from data.storage.shard import ShardError

MAGIC = b"#ROSBAG V"
_VERSION = b"#ROSBAG V2.0\n"

_MESSAGE, _BAG, _INDEX, _CHUNK, _CHUNK_INFO, _CONNECTION = 2, 3, 4, 5, 6, 7
"""Kinds of records: field "op" of their heads."""

_U32 = struct.Struct("<I")
_TIME = struct.Struct("<II")
_MAX_HEAD_BYTES = 1 << 20
"""Of a record: a few fields of a few bytes."""
_BARE_BYTES = 4 << 20
"""Messages in no chunk are read so many at a time."""
_INDEX_ENTRY = np.dtype([("seconds", "<u4"), ("nanoseconds", "<u4"), ("offset", "<u4")])

_Fields = dict[bytes, bytes]


class Ros1File(ChunkedFile):
    """A ROS 1 bag."""

    def _open(self) -> None:
        if self.at(0, len(_VERSION)) != _VERSION:
            raise ShardError(f"{self.path} begins with {self.at(0, 13)!r}: only ROS bags of format 2.0 are read")
        self._ends: dict[int, int] = {}
        first = self._record(len(_VERSION))
        index_at = 0
        if first is not None and _kind(first[0]) == _BAG:
            index_at = _number(first[0], b"index_pos")
            if first[0].get(b"encryptor"):
                raise ShardError(f"{self.path} is encrypted ({first[0][b'encryptor']!r}); decrypt it first")
        if not (index_at and first is not None and self._use(index_at, first[0])):
            self.channels, self.extents, self._ends = {}, {}, {}
            self.pieces = self.look_into(self._scan())

    def _record(self, at: int) -> tuple[_Fields, int, int] | None:
        """Fields of a record's head, where its content begins, and where it ends; None where there is no whole head."""
        length = self.at(at, 4)
        if len(length) < 4 or not 0 < _U32.unpack(length)[0] <= _MAX_HEAD_BYTES:
            return None
        head = self.at(at + 4, _U32.unpack(length)[0] + 4)
        if len(head) < _U32.unpack(length)[0] + 4:
            return None
        fields = _fields(memoryview(head)[:-4])
        start = at + 4 + len(head)
        return None if fields is None else (fields, start, start + _U32.unpack(head[-4:])[0])

    # ---- the index

    def _use(self, at: int, bag: _Fields) -> bool:
        """Take connections and chunks from the bag's index; False where it is not whole."""
        connections, chunks = _number(bag, b"conn_count"), _number(bag, b"chunk_count")
        counts: dict[int, int] = {}
        pieces = []
        for _ in range(connections + chunks):
            record = self._record(at)
            if record is None or record[2] > self.size or _kind(record[0]) not in (_CONNECTION, _CHUNK_INFO):
                return False
            fields, start, at = record
            content = self.at(start, at - start)
            if _kind(fields) == _CONNECTION:
                self._define(fields, memoryview(content))
                continue
            entries = np.frombuffer(content[: len(content) // 8 * 8], "<u4").reshape(-1, 2).tolist()
            for channel, count in entries:
                counts[channel] = counts.get(channel, 0) + count
            if entries:
                offset = _number(fields, b"chunk_pos")
                first, last = (_time(fields.get(name, b"")) for name in (b"start_time", b"end_time"))
                channels = self.alike(channel for channel, _ in entries)
                pieces.append(Piece(offset=offset, length=0, first_ns=first, last_ns=last, channels=channels))
        pieces.sort(key=lambda piece: piece.offset)
        self.pieces = pieces
        self.extents = {channel: Extent(count=count) for channel, count in counts.items()}
        return True

    def _define(self, fields: _Fields, content: memoryview) -> None:
        """Take in a connection."""
        more = _fields(content)
        if more is None or b"conn" not in fields or b"type" not in more:
            self.report(f"{self.path}: a damaged definition of a connection")
            return
        type_name = more[b"type"].decode("utf-8", errors="replace")
        topic = fields.get(b"topic", b"").decode("utf-8", errors="replace")
        definition = Definition(
            type=ros_type(type_name) or type_name,
            encoding="ros1",
            language="ros1msg",
            text=more.get(b"message_definition", b""),
        )
        number = _number(fields, b"conn")
        self.define(Channel(id=number, topic=topic, definition=definition))

    # ---- without the index

    def _scan(self) -> list[Piece]:
        """Pieces of a bag without an index, by the heads of its records; what they hold is not read."""
        pieces: list[Piece] = []
        at = len(_VERSION)
        run = at  # where messages in no chunk begin
        bare = False
        while (record := self._record(at)) is not None:
            fields, start, end = record
            kind = _kind(fields)
            if kind == _CHUNK and end == start:  # not complete when the recorder was stopped
                packed = fields.get(b"compression", b"none")
                if packed != b"none":
                    pieces.append(_piece(at, self.size - at, cut=True))
                    at = self.size
                    break
            if kind == _CHUNK and end > start:
                pieces.append(_piece(at, min(end, self.size) - at, cut=end > self.size))
                self._ends[at] = end
            elif end > self.size:
                break
            elif kind in (_MESSAGE, _CONNECTION):
                run = run if bare else at
                bare = True
                if end - run > _BARE_BYTES:
                    pieces.append(_piece(run, end - run, bare=True))
                    bare = False
            if bare and kind not in (_MESSAGE, _CONNECTION):
                pieces.append(_piece(run, at - run, bare=True))
                bare = False
            at = min(end, self.size)
        if bare:
            pieces.append(_piece(run, at - run, bare=True))
        lost = "" if at >= self.size else f"; the {self.size - at:,} bytes from {at:,} on are no whole records"
        self.report(f"{self.path} ends early, without an index (the recorder or a copy was stopped){lost}")
        return pieces

    # ---- pieces

    def piece_times(self, piece: Piece) -> dict[int, Int64[np.ndarray, " n"]] | None:
        """From the index records that follow a chunk."""
        chunk = self._record(piece.offset)
        if chunk is None:
            return None
        times: dict[int, Int64[np.ndarray, " n"]] = {}
        at = chunk[2]
        while (record := self._record(at)) is not None and _kind(record[0]) == _INDEX and record[2] <= self.size:
            fields, start, at = record
            content = self.at(start, at - start)
            entries = np.frombuffer(content[: len(content) // 12 * 12], _INDEX_ENTRY)
            written = entries["seconds"].astype(np.int64) * 10**9 + entries["nanoseconds"]
            times[_number(fields, b"conn")] = written
        return times or None

    def load(self, piece: Piece, wanted: frozenset[int] | None = None) -> Iterator[Raw]:
        """Messages of a chunk, or those that lie in a row."""
        records = memoryview(self.at(piece.offset, piece.length)) if piece.bare else self._unpacked(piece)
        at, count = 0, 0
        while at < len(records):
            if at + 4 > len(records):
                break
            start = at + 4 + _U32.unpack_from(records, at)[0]
            fields = _fields(records[at + 4 : start]) if start + 4 <= len(records) else None
            end = start + 4 + _U32.unpack_from(records, start)[0] if fields is not None else 0
            if fields is None or end > len(records):
                break
            kind = _kind(fields)
            if kind == _MESSAGE:
                count += 1
                channel = _number(fields, b"conn")
                if channel not in self.channels:
                    self.report(f"{self.path}: messages of connection {channel}, which the bag does not define")
                elif wanted is None or channel in wanted:
                    yield _time(fields.get(b"time", b"")), channel, bytes(records[start + 4 : end])
            elif kind == _CONNECTION:
                self._define(fields, records[start + 4 : end])
            at = end
        else:
            return
        if not piece.cut:
            self.report(f"{self.path}: the chunk at byte {piece.offset:,} is damaged after {count} messages")

    def _unpacked(self, piece: Piece) -> memoryview:
        """The records of a chunk; those that can be had of a damaged or cut one."""
        where = f"{self.path}: the chunk at byte {piece.offset:,}"
        record = self._record(piece.offset)
        if record is None or _kind(record[0]) != _CHUNK:
            self.report(f"{where} is damaged (its head); its messages are lost")
            return memoryview(b"")
        fields, start, end = record
        name = fields.get(b"compression", b"none").decode("ascii", errors="replace")
        data = self.at(start, (self.size if piece.cut else end) - start)
        if start + len(data) < end and not piece.cut:
            self.report(f"{where} is cut; its last messages are lost")
        try:
            return memoryview(_unpack(name, data))
        except Exception as error:  # of the libraries, each with its own kinds
            self.report(f"{where} cannot be unpacked ({name}: {type(error).__name__}); its messages are lost")
            return memoryview(b"")


def _piece(at: int, length: int, *, bare: bool = False, cut: bool = False) -> Piece:
    return Piece(offset=at, length=length, first_ns=0, last_ns=0, channels=None, bare=bare, cut=cut)


def _fields(data: memoryview) -> _Fields | None:
    """Fields of a head, name=value each behind its length; None where they do not fill it."""
    fields: _Fields = {}
    at = 0
    while at + 4 <= len(data):
        end = at + 4 + _U32.unpack_from(data, at)[0]
        name, equals, value = bytes(data[at + 4 : end]).partition(b"=")
        if end > len(data) or not equals:
            return None
        fields[name] = value
        at = end
    return fields if at == len(data) else None


def _kind(fields: _Fields) -> int:
    return fields.get(b"op", b"\0")[0] if fields.get(b"op") else 0


def _number(fields: _Fields, name: bytes) -> int:
    """A number of 4 or 8 bytes; 0 where it is absent."""
    return int.from_bytes(fields.get(name, b""), "little")


def _time(value: bytes) -> int:
    if len(value) != _TIME.size:
        return 0
    seconds, nanoseconds = _TIME.unpack(value)
    return int(seconds) * 10**9 + int(nanoseconds)


def _unpack(name: str, data: bytes) -> bytes:
    """What was compressed, of cut data as much as can be had.

    Raises:
        Exception: of the library, for damaged data; ValueError for a compression that is not known.
    """
    if name == "none":
        return data
    if name == "bz2":
        return bz2.BZ2Decompressor().decompress(data, max_length=MAX_CHUNK_BYTES)
    if name == "lz4":
        try:
            import lz4.frame
        except ImportError as error:
            raise ImportError(INSTALL) from error
        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=MAX_CHUNK_BYTES))
    raise ValueError(f"compression {name!r}")
