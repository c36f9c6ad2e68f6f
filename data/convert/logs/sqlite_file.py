"""ROS 2's SQLite databases (.db3), whole or cut.

Contents are fetched one by one in the order that the index of times gives, so that memory holds one message; a part of
the file that is gone costs the messages in it.

Source: rosbag2's storage plug-in sqlite3, schema versions 1 to 4.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Int64

from data.convert.logs.contents import Definition
from data.convert.logs.files import Channel, Extent, LogFile, Raw, Report
from data.convert.logs.kinds import ros_type
from data.storage.shard import ShardError

MAGIC = b"SQLite format 3\0"
_DAMAGED = (sqlite3.DatabaseError, OverflowError)
"""What reading a damaged page raises."""

Rows = tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]
"""Number, channel and time of messages."""


class SqliteFile(LogFile):
    """A database."""

    def __init__(self, path: Path, report: Report) -> None:
        super().__init__(path, report)
        self._extents: dict[int, Extent] | None = None
        self._rows: Rows | None = None
        self._database = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1", uri=True)
        self._database.text_factory = lambda text: text.decode("utf-8", errors="replace")
        try:
            # A file that is shorter than its head says is refused without this; nothing is ever written (immutable).
            self._database.execute("PRAGMA writable_schema=ON")
            self._open()
        except _DAMAGED as error:
            self.close()
            raise ShardError(f"{path} cannot be read: {error}; it holds no readable tables of topics") from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        tables = {str(name) for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        if not {"topics", "messages"} <= tables:
            found = ", ".join(sorted(tables)) or "none"
            raise ShardError(
                f"{self.path} is no recording of ROS 2: expected tables topics and messages, found {found}"
            )
        texts: dict[str, tuple[str, bytes]] = {}
        if "message_definitions" in tables:
            query = "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
            texts = {kind: (language, text.encode()) for kind, language, text in self._database.execute(query)}
        query = "SELECT id, name, type, serialization_format FROM topics ORDER BY id"
        for number, topic, kind, encoding in self._database.execute(query):
            language, text = texts.get(kind, ("", b""))
            definition = Definition(type=ros_type(kind) or kind, encoding=encoding, language=language, text=text)
            self.channels[number] = Channel(id=number, topic=topic, definition=definition)
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
                found = self._database.execute(query).fetchall()
                self._extents = {id_: Extent(count=n, first_ns=first, last_ns=last) for id_, n, first, last in found}
            except _DAMAGED:
                _, channels, times = self._salvaged()
                self._extents = {
                    int(id_): Extent.of(times[channels == id_]) for id_ in np.unique(channels) if id_ in self.channels
                }
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
                        found[number] = (channel, written_ns)
                except _DAMAGED as error:
                    self.report(
                        f"{self.path} is damaged or cut ({error}): {len(found):,} messages of it can be reached"
                    )
            rows = np.array([(number, *rest) for number, rest in found.items()], dtype=np.int64).reshape(-1, 3)
            rows = rows[np.lexsort((rows[:, 0], rows[:, 2]))]
            self._rows = (rows[:, 0], rows[:, 1], rows[:, 2])
        return self._rows

    def extent(self, channel: int) -> Extent:
        """Counted from the table."""
        return self._counted().get(channel, Extent())

    def times(self, channel: int) -> Int64[np.ndarray, " N"]:
        """From the table."""
        if self._rows is None:
            try:
                query = "SELECT timestamp FROM messages WHERE topic_id = ? ORDER BY timestamp"
                found = self._database.execute(query, (channel,))
                return np.fromiter((written_ns for (written_ns,) in found), dtype=np.int64)
            except _DAMAGED:
                pass
        _, channels, times = self._salvaged()
        chosen: Int64[np.ndarray, " N"] = times[channels == channel]
        return chosen

    def messages(self, channels: frozenset[int], start_ns: int | None, stop_ns: int | None) -> Iterator[Raw]:
        """By time; contents that cannot be read are counted."""
        lost, why = 0, ""
        for number, channel, written_ns in self._chosen(channels, start_ns, stop_ns):
            try:
                data = self._content(number)
            except _DAMAGED as error:
                lost, why = lost + 1, str(error)
                continue
            yield written_ns, channel, data
        if lost:
            self.report(f"{self.path}: {lost} messages cannot be read ({why})")

    def _content(self, number: int) -> bytes:
        found = self._database.execute("SELECT data FROM messages WHERE id = ?", (number,)).fetchone()
        if found is None:
            raise sqlite3.DatabaseError("a row is gone")
        return bytes(found[0])

    def _chosen(self, channels: frozenset[int], start_ns: int | None, stop_ns: int | None) -> Iterator[tuple[int, ...]]:
        """Number, channel and time of messages, by time."""
        low, high = (-(2**63) if start_ns is None else start_ns), (2**63 - 1 if stop_ns is None else stop_ns)
        last: tuple[int, int] | None = None
        if self._rows is None:
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
            except _DAMAGED:
                pass
        for number, channel, written_ns in zip(*(column.tolist() for column in self._salvaged()), strict=True):
            behind = last is None or (written_ns, number) > last
            if channel in channels and low <= written_ns < high and behind:
                yield number, channel, written_ns

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
