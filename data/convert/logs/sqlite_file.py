"""ROS 2's SQLite databases (.db3), whole or cut.

Contents are fetched one by one in the order that the index of times gives, so that memory holds one message; a part of
the file that is gone costs the messages in it. SQLite keeps no checksums: bytes that were changed within a message stay
unnoticed.

Source: rosbag2's storage plug-in sqlite3, schema versions 1 to 4; SQLite's file format, section 1.3.
"""

from __future__ import annotations

import array
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Int64

from data.convert.logs.contents import INSTALL, Definition
from data.convert.logs.files import Channel, Extent, LogFile, Raw, Report
from data.convert.logs.kinds import ros_type
from data.storage.shard import ShardError

MAGIC = b"SQLite format 3\0"

Rows = tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]
"""Number, channel and time of messages."""


class SqliteFile(LogFile):
    """A database."""

    def __init__(self, path: Path, report: Report) -> None:
        super().__init__(path, report)
        try:
            import apsw
        except ImportError as error:
            raise ImportError(INSTALL) from error
        self._damaged: tuple[type[Exception], ...] = (apsw.Error, ValueError, TypeError)
        self._extents: dict[int, Extent] | None = None
        self._rows: Rows | None = None
        self._cut = _is_cut(path)
        self._vfs = _vfs_that_ends(path) if self._cut else None
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        name = None if self._vfs is None else self._vfs.name
        try:
            self._database = apsw.Connection(f"file:{quote(str(path.absolute()))}?immutable=1", flags=flags, vfs=name)
        except self._damaged as error:
            raise ShardError(f"{path} cannot be read: {error}") from error
        try:
            # A file that is shorter than its head says is refused without this.
            self._database.execute("PRAGMA writable_schema=ON")
            self._open()
        except self._damaged as error:
            self.close()
            raise ShardError(f"{path} cannot be read: {error}; its list of topics is gone") from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        tables = {str(name) for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        if not {"topics", "messages"} <= tables:
            found = ", ".join(sorted(tables)) or "none"
            wanted = "expected tables topics and messages"
            raise ShardError(f"{self.path} is no recording of ROS 2: {wanted}, found {found}")
        texts: dict[str, tuple[str, bytes]] = {}
        if "message_definitions" in tables:
            query = "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
            for kind, language, text in self._database.execute(query):
                texts[str(kind)] = (str(language), str(text).encode())
        query = "SELECT id, name, type, serialization_format FROM topics ORDER BY id"
        for number, topic, kind, encoding in self._database.execute(query):
            language, definition = texts.get(str(kind), ("", b""))
            defined = Definition(
                type=ros_type(str(kind)) or str(kind), encoding=str(encoding), language=language, text=definition
            )
            self.channels[int(number)] = Channel(id=int(number), topic=str(topic), definition=defined)
        beside = self.path.with_name(f"{self.path.name}-wal")
        if beside.is_file() and beside.stat().st_size:
            self.report(
                f"{beside} holds messages that the recorder did not put into {self.path.name}; they are not read "
                f"(`sqlite3 {self.path.name} 'PRAGMA wal_checkpoint'` puts them there)"
            )

    def _counted(self) -> dict[int, Extent]:
        """Extents by channel, counted once."""
        if self._extents is None:
            query = "SELECT topic_id, count(*), min(timestamp), max(timestamp) FROM messages GROUP BY topic_id"
            try:
                rows: list[Any] = [] if self._cut else list(self._database.execute(query))
            except self._damaged:
                self._cut = True
            if self._cut:
                _, channels, times = self._salvaged()
                self._extents = {number: Extent.of(times[channels == number]) for number in self.channels}
            else:
                self._extents = {id_: Extent(count=n, first_ns=first, last_ns=last) for id_, n, first, last in rows}
        return self._extents

    def _salvaged(self) -> Rows:
        """Messages of a damaged database that can be reached from the first on, and from the last on; by time."""
        if self._rows is None:
            found: dict[int, tuple[int, int]] = {}
            for order in ("ASC", "DESC"):
                try:
                    # By number: the index of times is another part of the file that may be gone.
                    query = f"SELECT id, topic_id, timestamp FROM messages NOT INDEXED ORDER BY id {order}"
                    for number, channel, written_ns in self._database.execute(query):
                        if order == "DESC" and number in found:
                            break
                        if channel in self.channels and isinstance(written_ns, int):
                            found[number] = (channel, written_ns)
                except self._damaged as error:
                    self.report(f"{self.path} is damaged or cut ({_said(error)}): what can be reached in it is read")
            rows = np.array([(number, *rest) for number, rest in found.items()], dtype=np.int64).reshape(-1, 3)
            rows = rows[np.lexsort((rows[:, 0], rows[:, 2]))]
            self._rows = (rows[:, 0], rows[:, 1], rows[:, 2])
        return self._rows

    def extent(self, channel: int) -> Extent:
        """Counted from the table."""
        return self._counted().get(channel, Extent())

    def times(self, channels: frozenset[int]) -> dict[int, Int64[np.ndarray, " n"]]:
        """From the table."""
        if not self._cut:
            try:
                written: dict[int, array.array[int]] = {channel: array.array("q") for channel in channels}
                for channel, written_ns in self._database.execute("SELECT topic_id, timestamp FROM messages"):
                    if channel in written:
                        written[channel].append(written_ns)
                return {channel: np.sort(np.array(found, dtype=np.int64)) for channel, found in written.items()}
            except self._damaged:
                self._cut = True
        _, owners, times = self._salvaged()
        return {channel: times[owners == channel] for channel in channels}

    def messages(self, channels: frozenset[int], start_ns: int | None, stop_ns: int | None) -> Iterator[Raw]:
        """By time; contents that cannot be read are counted."""
        lost, why = 0, ""
        for number, channel, written_ns in self._chosen(channels, start_ns, stop_ns):
            try:
                ((data,),) = self._database.execute("SELECT data FROM messages WHERE id = ?", (number,))
                content = bytes(data)
            except self._damaged as error:  # ValueError where the row is gone
                lost, why = lost + 1, _said(error)
                continue
            yield written_ns, channel, content
        if lost:
            self.report(f"{self.path}: {lost} messages cannot be read ({why})")

    def _chosen(self, channels: frozenset[int], start_ns: int | None, stop_ns: int | None) -> Iterator[tuple[int, ...]]:
        """Number, channel and time of messages, by time."""
        low, high = (-(2**63) if start_ns is None else start_ns), (2**63 - 1 if stop_ns is None else stop_ns)
        last: tuple[int, int] | None = None
        if not self._cut:
            marks = ",".join("?" * len(channels))
            query = (
                f"SELECT id, topic_id, timestamp FROM messages WHERE topic_id IN ({marks}) "
                "AND timestamp >= ? AND timestamp < ? ORDER BY timestamp, id"
            )
            try:
                for number, channel, written_ns in self._database.execute(query, (*sorted(channels), low, high)):
                    yield number, channel, written_ns
                    last = (written_ns, number)
                return
            except self._damaged:
                self._cut = True
        for number, channel, written_ns in zip(*(column.tolist() for column in self._salvaged()), strict=True):
            behind = last is None or (written_ns, number) > last
            if channel in channels and low <= written_ns < high and behind:
                yield number, channel, written_ns

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
        if self._vfs is not None:
            self._vfs.unregister()


def _said(error: Exception) -> str:
    return " ".join(f"{error}".split())[:200]


def _is_cut(path: Path) -> bool:
    """Whether a file is shorter than its head says."""
    with path.open("rb") as file:
        head = file.read(100)
    if len(head) < 100:
        return True
    page = int.from_bytes(head[16:18], "big")
    changes, pages, valid_for = struct.unpack_from(">II", head, 24) + struct.unpack_from(">I", head, 92)
    size = path.stat().st_size
    return bool(size % (65536 if page == 1 else page or 1)) or (changes == valid_for and pages * page > size)


def _vfs_that_ends(path: Path) -> Any:
    """Access to a file in which reading beyond its end is an error; SQLite itself would see zeros there."""
    import apsw

    class End(apsw.VFSFile):
        def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802  # SQLite's name
            if offset + amount > size:
                raise apsw.IOError(f"the file ends at byte {size:,}")
            return bytes(super().xRead(amount, offset))

    class Ending(apsw.VFS):
        def __init__(self, name: str) -> None:
            self.name = name
            super().__init__(name, "")

        def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
            return End("", name, flags)

    size = path.stat().st_size
    _opened[0] += 1
    return Ending(f"tandem-{os.getpid()}-{_opened[0]}")


_opened = [0]
"""Cut files that this process has opened: each needs a name of its own."""
