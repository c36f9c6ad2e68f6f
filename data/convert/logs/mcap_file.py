"""MCAP files: with their index, or cut and without one.

Records are split here, since a cut file is what a recording that ended by a power switch looks like, and mcap's own
readers give nothing of it; the fields of definitions, channels and the index are read by `mcap`.

Source: the MCAP format, version 0 (records, compression, message indexes, summary).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from data.convert.logs.contents import INSTALL, Definition
from data.convert.logs.files import MAX_CHUNK_BYTES, Channel, ChunkedFile, Extent, Piece, Raw, Report
from data.convert.logs.kinds import ros_type

MAGIC = b"\x89MCAP0\r\n"

_HEAD = struct.Struct("<BQ")
"""Of each record: its kind, and the bytes that follow."""
_MESSAGE = struct.Struct("<HIQQ")
"""Channel, sequence number, written, published; the content follows."""
_CHUNK = struct.Struct("<QQQII")
"""First and last time, unpacked bytes, their CRC-32, bytes of the compression's name."""
_FOOTER = struct.Struct("<QQI")
"""Where the summary begins, where its second part does, its CRC-32."""
_FOOTER_BYTES = _HEAD.size + _FOOTER.size + len(MAGIC)

_SCHEMA, _CHANNEL, _MESSAGE_OF_CHANNEL, _CHUNK_OF_MESSAGES, _MESSAGE_INDEX = 3, 4, 5, 6, 7
_CHUNK_INDEX, _STATISTICS, _DATA_END, _LARGEST = 8, 11, 15, 15
"""Kinds of records."""
_PRIVATE = 0x80
"""Kinds from here on are anybody's own."""

_BARE_BYTES = 4 << 20
"""Messages in no chunk are read so many at a time."""

_ENCODINGS = {"ros1": "ros1", "cdr": "cdr", "protobuf": "protobuf", "json": "json"}


class McapFile(ChunkedFile):
    """An MCAP file."""

    def __init__(self, path: Path, report: Report) -> None:
        self._schemas: dict[int, Any] = {}
        self._indexes: dict[int, int] = {}
        """Where a chunk begins -> bytes of the indexes of messages that follow it."""
        super().__init__(path, report)

    def _open(self) -> None:
        summary = self._summary()
        if summary is None or not self._use(summary):
            self.channels, self.extents, self._schemas, self._indexes = {}, {}, {}, {}
            self.pieces = self.look_into(self._scan())

    # ---- the index

    def _summary(self) -> bytes | None:
        """The records of the file's summary; None where there is none, or a damaged one."""
        end = self.at(max(self.size - _FOOTER_BYTES, 0), _FOOTER_BYTES)
        if len(end) < _FOOTER_BYTES or not end.endswith(MAGIC):
            return None
        start, _, crc = _FOOTER.unpack_from(end, _HEAD.size)
        if not len(MAGIC) <= start < self.size - _FOOTER_BYTES:
            return None
        summary = self.at(start, self.size - _FOOTER_BYTES - start)
        # The checksum is of the summary and of the footer up to itself.
        if crc and zlib.crc32(end[: _HEAD.size + _FOOTER.size - 4], zlib.crc32(summary)) != crc:
            self.report(f"{self.path}: the index is damaged (its checksum differs); read without it")
            return None
        return summary

    def _use(self, summary: bytes) -> bool:
        """Take channels, chunks and counts from the summary; False where it has not all of them."""
        from mcap.records import ChunkIndex, Statistics

        statistics: Any = None
        unindexed = False
        for kind, record in _records(memoryview(summary)):
            if kind in (_SCHEMA, _CHANNEL):
                self._define(kind, record)
            elif kind == _STATISTICS:
                statistics = Statistics.read(_stream(record))
            elif kind == _CHUNK_INDEX:
                chunk = ChunkIndex.read(_stream(record))
                unindexed |= bool(not chunk.message_index_offsets and chunk.message_end_time)
                self._indexes[chunk.chunk_start_offset] = chunk.message_index_length
                piece = Piece(
                    offset=chunk.chunk_start_offset,
                    length=chunk.chunk_length,
                    first_ns=chunk.message_start_time,
                    last_ns=chunk.message_end_time,
                    channels=self.alike(chunk.message_index_offsets),
                )
                self.pieces.append(piece)
        if unindexed or statistics is None or statistics.chunk_count != len(self.pieces):
            return False
        if statistics.channel_count > len(self.channels) or (statistics.message_count and not self.pieces):
            return False  # definitions are in the chunks only, or messages are in none
        self.pieces.sort(key=lambda piece: piece.offset)
        self.extents = {id_: Extent(count=count) for id_, count in statistics.channel_message_counts.items()}
        return True

    def _define(self, kind: int, record: memoryview) -> None:
        """Take in a definition or a channel."""
        from mcap import records

        try:
            if kind == _SCHEMA:
                schema = records.Schema.read(_stream(record))
                self._schemas[schema.id] = schema
                return
            channel = records.Channel.read(_stream(record))
        except Exception as error:  # of mcap, for lengths that reach beyond the record
            self.report(f"{self.path}: a damaged definition of a channel ({type(error).__name__})")
            return
        schema = self._schemas.get(channel.schema_id)
        type_name = "" if schema is None else schema.name
        definition = Definition(
            type=ros_type(type_name) or type_name if channel.message_encoding in ("ros1", "cdr") else type_name,
            encoding=_ENCODINGS.get(channel.message_encoding, channel.message_encoding),
            language="" if schema is None else schema.encoding,
            text=b"" if schema is None else bytes(schema.data),
        )
        self.define(Channel(id=channel.id, topic=channel.topic, definition=definition))

    # ---- without the index

    def _scan(self) -> list[Piece]:
        """Pieces of a file without an index, by the heads of its records; what they hold is not read."""
        pieces: list[Piece] = []
        bare = _Run()
        at = len(MAGIC)
        complete = False
        while not complete:
            head = self.at(at, _HEAD.size)
            if len(head) < _HEAD.size:
                break
            kind, length = _HEAD.unpack(head)
            end = at + _HEAD.size + length
            if not (0 < kind <= _LARGEST or kind >= _PRIVATE) or (end > self.size and kind != _CHUNK_OF_MESSAGES):
                break
            if kind == _MESSAGE_OF_CHANNEL:
                pieces += bare.add(at, end)
            elif kind in (_SCHEMA, _CHANNEL):
                self._define(kind, memoryview(self.at(at + _HEAD.size, length)))
            elif kind == _CHUNK_OF_MESSAGES:
                pieces.append(self._scanned_chunk(at, min(end, self.size), cut=end > self.size))
                self._indexes[at] = 0
            elif kind == _MESSAGE_INDEX and pieces and not pieces[-1].bare:
                self._indexes[pieces[-1].offset] = end - (pieces[-1].offset + pieces[-1].length)
            complete = kind == _DATA_END
            at = min(end, self.size)
        pieces += bare.rest()
        if not complete:
            last = " in a chunk" if pieces and pieces[-1].cut else ""
            lost = "" if at >= self.size else f"; the {self.size - at:,} bytes from {at:,} on are no whole records"
            self.report(f"{self.path} ends early{last}, without an index (the recorder or a copy was stopped){lost}")
        return sorted(pieces, key=lambda piece: piece.offset)

    def _scanned_chunk(self, at: int, end: int, *, cut: bool) -> Piece:
        head = self.at(at + _HEAD.size, 16)
        first, last = struct.unpack("<QQ", head) if len(head) == 16 else (0, 0)
        return Piece(offset=at, length=end - at, first_ns=first, last_ns=last, channels=None, cut=cut)

    # ---- pieces

    def piece_times(self, piece: Piece) -> dict[int, Int64[np.ndarray, " n"]] | None:
        """From the message indexes that follow a chunk."""
        length = self._indexes.get(piece.offset)
        if not length:
            return None
        times: dict[int, Int64[np.ndarray, " n"]] = {}
        for kind, record in _records(memoryview(self.at(piece.offset + piece.length, length))):
            if kind == _MESSAGE_INDEX and len(record) >= 6:
                channel, size = struct.unpack_from("<HI", record)
                entries = np.frombuffer(record[6 : 6 + size // 16 * 16], "<u8").reshape(-1, 2)
                times[channel] = entries[:, 0].astype(np.int64)
        return times

    def load(self, piece: Piece, wanted: frozenset[int] | None = None) -> Iterator[Raw]:
        """Messages of a chunk, or those that lie in a row."""
        data = self.at(piece.offset, piece.length)
        records = memoryview(data) if piece.bare else self._unpacked(piece, data)
        at, count = 0, 0
        while at < len(records):
            if at + _HEAD.size > len(records):
                break
            kind, length = _HEAD.unpack_from(records, at)
            at += _HEAD.size
            if at + length > len(records):
                break
            if kind == _MESSAGE_OF_CHANNEL and length >= _MESSAGE.size:
                channel, _, written_ns, _ = _MESSAGE.unpack_from(records, at)
                count += 1
                if channel not in self.channels:
                    self.report(f"{self.path}: messages of channel {channel}, which the file does not define")
                elif wanted is None or channel in wanted:
                    yield written_ns, channel, bytes(records[at + _MESSAGE.size : at + length])
            elif kind in (_SCHEMA, _CHANNEL):
                self._define(kind, records[at : at + length])
            at += length
        else:
            return
        if not piece.cut:  # of a cut one the file has told already
            self.report(f"{self.path}: the chunk at byte {piece.offset:,} is damaged after {count} messages")

    def _unpacked(self, piece: Piece, data: bytes) -> memoryview:
        """The records of a chunk; those that can be had of a damaged or cut one."""
        where = f"{self.path}: the chunk at byte {piece.offset:,}"
        try:
            first = _HEAD.size
            _, _, size, crc, name_length = _CHUNK.unpack_from(data, first)
            first += _CHUNK.size
            name = data[first : first + name_length].decode("ascii")
            (length,) = struct.unpack_from("<Q", data, first + name_length)
        except (struct.error, UnicodeDecodeError):
            if not piece.cut:
                self.report(f"{where} is damaged (its head); its messages are lost")
            return memoryview(b"")
        first += name_length + 8
        if size > MAX_CHUNK_BYTES or (first + length > len(data) and not piece.cut):
            self.report(f"{where} is damaged (it states {size:,} bytes); its messages are lost")
            return memoryview(b"")
        packed = memoryview(data)[first : first + length]
        try:
            records = _unpack(name, packed, size)
        except Exception as error:  # of the libraries, each with its own kinds
            self.report(f"{where} cannot be unpacked ({name}: {type(error).__name__}); its messages are lost")
            return memoryview(b"")
        if not piece.cut and (len(records) != size or (crc and zlib.crc32(records) != crc)):
            self.report(f"{where} is damaged (its checksum differs); its messages are lost")
            return memoryview(b"")
        return memoryview(records)


class _Run:
    """Messages in a row that are in no chunk, gathered into pieces."""

    def __init__(self) -> None:
        self.start, self.end = 0, 0

    def add(self, at: int, end: int) -> list[Piece]:
        """A message; the piece before it where that is complete."""
        done = self.rest() if self.end != at or end - self.start > _BARE_BYTES else []
        if self.end == self.start:
            self.start = at
        self.end = end
        return done

    def rest(self) -> list[Piece]:
        """The piece that is not yet complete, if any."""
        if self.end == self.start:
            return []
        piece = Piece(offset=self.start, length=self.end - self.start, first_ns=0, last_ns=0, channels=None, bare=True)
        self.start = self.end
        return [piece]


def _records(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Kind and content of whole records in a row."""
    at = 0
    while at + _HEAD.size <= len(data):
        kind, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if at + length > len(data):
            return
        yield kind, data[at : at + length]
        at += length


def _stream(record: memoryview) -> Any:
    """A record's content as mcap reads it."""
    try:
        from mcap.data_stream import ReadDataStream
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return ReadDataStream(io.BytesIO(record))


def _unpack(name: str, packed: memoryview, size: int) -> bytes:
    """What was compressed, at most `size` bytes; of cut data as much as can be had.

    Raises:
        Exception: of the library, for damaged data; ValueError for a compression that is not known.
    """
    if name == "":
        return bytes(packed)
    if name == "zstd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed), read_across_frames=False)
        return reader.read(size)
    if name == "lz4":
        import lz4.frame

        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=size))
    raise ValueError(f"compression {name!r}")
