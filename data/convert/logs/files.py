"""One file of a recording: its topics, and its messages as bytes.

ROS 1 bags and MCAP keep messages in chunks, each of which states when its first and its last message were written. So a
range of time is found without reading what lies before it, and no more is in memory than chunks that overlap in time.
A file without its index (its recorder was killed, the copy stopped) is passed over once from head to head; its messages
stay where they are.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64

from data.convert.logs.contents import Definition

Report = Callable[[str], None]
"""Takes a problem, in words."""

Raw = tuple[int, int, bytes]
"""When a message was written, its channel, its bytes."""

MAX_CHUNK_BYTES = 1 << 30
"""Of one chunk, unpacked; recorders write some MB. What states more is damaged."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One stream of messages in a file; a topic may have several.

    Attributes:
        id: number in the file.
        topic: name of the topic.
        definition: of its messages.
    """

    id: int
    topic: str
    definition: Definition


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How many messages a channel has, and when the first and the last were written; None without any."""

    count: int = 0
    first_ns: int | None = None
    last_ns: int | None = None

    def joined(self, other: Extent) -> Extent:
        """Both together."""
        first = [one.first_ns for one in (self, other) if one.first_ns is not None]
        last = [one.last_ns for one in (self, other) if one.last_ns is not None]
        count = self.count + other.count
        return Extent(count=count, first_ns=min(first, default=None), last_ns=max(last, default=None))

    @staticmethod
    def of(times: Int64[np.ndarray, " N"]) -> Extent:
        """Of messages that were written at these times."""
        return Extent(count=len(times), first_ns=int(times.min()), last_ns=int(times.max())) if len(times) else Extent()


class LogFile(ABC):
    """One open file of a recording.

    Attributes:
        path: of the file.
        report: told of what cannot be read.
        channels: by number.
    """

    def __init__(self, path: Path, report: Report) -> None:
        self.path = path
        self.report = report
        self.channels: dict[int, Channel] = {}

    @abstractmethod
    def extent(self, channel: int) -> Extent:
        """Number and times of a channel's messages."""

    @abstractmethod
    def times(self, channels: frozenset[int]) -> dict[int, Int64[np.ndarray, " n"]]:
        """When each message of some channels was written, by channel, ascending; in one pass over the index."""

    @abstractmethod
    def messages(self, channels: frozenset[int], start_ns: int | None, stop_ns: int | None) -> Iterator[Raw]:
        """Messages of some channels by time, from `start_ns` to before `stop_ns`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of a file that is read at once: a chunk, or messages in a row that are in none.

    Attributes:
        offset: of its first byte in the file.
        length: bytes.
        first_ns, last_ns: when its first and last message were written.
        channels: that have messages in it; None where nobody has looked.
        bare: whether its messages are in no chunk.
        cut: whether the file ends in it.
    """

    offset: int
    length: int
    first_ns: int
    last_ns: int
    channels: frozenset[int] | None
    bare: bool = False
    cut: bool = False


class ChunkedFile(LogFile):
    """A file of pieces.

    Attributes:
        file: open for reading.
        size: bytes of it.
        pieces: all, in the order of the file.
    """

    def __init__(self, path: Path, report: Report) -> None:
        super().__init__(path, report)
        self.file: BinaryIO = path.open("rb")
        try:
            self.size = path.stat().st_size
            self.pieces: list[Piece] = []
            self.extents: dict[int, Extent] = {}
            self._alike: dict[frozenset[int], frozenset[int]] = {}
            self._open()
        except BaseException:
            self.file.close()
            raise

    @abstractmethod
    def _open(self) -> None:
        """Find channels, pieces and, where the file's index states them, extents."""

    @abstractmethod
    def load(self, piece: Piece, wanted: frozenset[int] | None = None) -> Iterator[Raw]:
        """Messages of a piece as they lie there, of some channels or of all; what is damaged is reported and ends it.

        Channels that the piece defines are added.
        """

    @abstractmethod
    def piece_times(self, piece: Piece) -> dict[int, Int64[np.ndarray, " n"]] | None:
        """When a piece's messages were written, by channel, from the index that follows it; None without one."""

    def at(self, offset: int, length: int) -> bytes:
        """Bytes of the file; fewer at its end, none beyond it."""
        if not 0 <= offset < self.size:
            return b""
        self.file.seek(offset)
        return self.file.read(min(length, self.size - offset))

    def alike(self, channels: Iterable[int]) -> frozenset[int]:
        """A set of channels, one for all that are equal: long recordings have millions of pieces and few such sets."""
        found = frozenset(channels)
        return self._alike.setdefault(found, found)

    def define(self, channel: Channel) -> None:
        """Take in a channel; one that is known stays what it is."""
        known = self.channels.setdefault(channel.id, channel)
        if known.topic != channel.topic:
            self.report(f"{self.path}: channel {channel.id} is {known.topic!r}, and later {channel.topic!r}: damaged?")

    def _known_times(self, piece: Piece) -> dict[int, Int64[np.ndarray, " n"]]:
        """Times by channel, read from the messages where there is no index."""
        times = None if piece.bare or piece.cut else self.piece_times(piece)
        if times is not None:
            return times
        found: dict[int, list[int]] = {}
        for written_ns, channel, _ in self.load(piece):
            found.setdefault(channel, []).append(written_ns)
        return {channel: np.array(written, dtype=np.int64) for channel, written in found.items()}

    def look_into(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces of a file without an index, with their channels and times; counts messages on the way."""
        looked = []
        for piece in pieces:
            times = self._known_times(piece)
            if not times.keys() <= self.channels.keys():  # stated in the piece itself, once for all that follow
                for _ in self.load(piece, frozenset()):
                    pass
            times = {
                channel: written for channel, written in times.items() if channel in self.channels and len(written)
            }
            if not times:
                continue
            for channel, written in times.items():
                self.extents[channel] = self.extents.get(channel, Extent()).joined(Extent.of(written))
            first, last = min(int(one.min()) for one in times.values()), max(int(one.max()) for one in times.values())
            looked.append(replace(piece, channels=self.alike(times), first_ns=first, last_ns=last))
        return looked

    def extent(self, channel: int) -> Extent:
        """From the index; times from that of the pieces that may hold the first and the last message."""
        extent = self.extents.get(channel, Extent())
        if extent.count and extent.first_ns is None:
            extent = extent.joined(replace(Extent.of(self._outermost(channel)), count=0))
            self.extents[channel] = extent
        return extent

    def _outermost(self, channel: int) -> Int64[np.ndarray, " n"]:
        """Times of a channel in the pieces that may hold its first and its last message."""
        pieces = self._with(frozenset((channel,)))
        found: list[Int64[np.ndarray, " n"]] = []
        for ordered, early in (
            (sorted(pieces, key=lambda piece: piece.first_ns), True),
            (sorted(pieces, key=lambda piece: -piece.last_ns), False),
        ):
            best: int | None = None
            for piece in ordered:
                if best is not None and (piece.first_ns >= best if early else piece.last_ns <= best):
                    break
                times = self._known_times(piece).get(channel)
                if times is not None and len(times):
                    found.append(times)
                    edge = int(times.min() if early else times.max())
                    best = edge if best is None else (min if early else max)(best, edge)
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def times(self, channels: frozenset[int]) -> dict[int, Int64[np.ndarray, " n"]]:
        """From the index of each piece."""
        found = {channel: [np.zeros(0, dtype=np.int64)] for channel in channels}
        for piece in self._with(channels):
            for channel, written in self._known_times(piece).items():
                if channel in channels:
                    found[channel].append(written)
        return {channel: np.sort(np.concatenate(written)) for channel, written in found.items()}

    def _with(self, channels: frozenset[int]) -> list[Piece]:
        return [piece for piece in self.pieces if piece.channels is None or piece.channels & channels]

    def messages(self, channels: frozenset[int], start_ns: int | None, stop_ns: int | None) -> Iterator[Raw]:
        """By time across pieces that overlap; those outside the range are not read."""
        pieces = [
            piece
            for piece in self._with(channels)
            if (start_ns is None or piece.last_ns >= start_ns) and (stop_ns is None or piece.first_ns < stop_ns)
        ]
        pieces.sort(key=lambda piece: (piece.first_ns, piece.offset))
        waiting: list[tuple[int, int, int, bytes]] = []
        number = 0  # of messages of one time, those that lie first in the file come first
        for piece in pieces:
            while waiting and waiting[0][0] < piece.first_ns:
                written_ns, _, channel, data = heapq.heappop(waiting)
                yield written_ns, channel, data
            for written_ns, channel, data in self.load(piece, channels):
                if (start_ns is None or written_ns >= start_ns) and (stop_ns is None or written_ns < stop_ns):
                    heapq.heappush(waiting, (written_ns, number, channel, data))
                    number += 1
        while waiting:
            written_ns, _, channel, data = heapq.heappop(waiting)
            yield written_ns, channel, data

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()
