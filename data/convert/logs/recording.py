"""A recording in one file or several, as `data.convert.logs.base.Recording`."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from common.nearby import nearest
from common.printable import listed
from data.convert.logs.base import Message, Recording, Topic
from data.convert.logs.contents import Decode, UndefinedError, decoder
from data.convert.logs.files import Channel, Extent, LogFile, Report
from data.convert.logs.kinds import kind_of
from data.storage.shard import ShardError

Opener = Callable[[Path, Report], LogFile]

RawMessage = tuple[str, int, bytes]
"""Topic, when the message was written, its bytes."""


class FilesRecording(Recording):
    """Files that were recorded together, such as the parts of a split bag; each is opened by the opener beside it."""

    def __init__(self, files: Sequence[tuple[Path, Opener]]) -> None:
        super().__init__()
        self._topics: dict[str, Topic] | None = None
        self._files: list[LogFile] = []
        self._decoders: dict[tuple[int, int], Decode] = {}
        self._undecoded: dict[str, tuple[str, int]] = {}
        try:
            for path, opener in files:
                self._files.append(opener(path, self.report))
        except BaseException:
            self.close()
            raise
        self._by_topic: dict[str, list[tuple[LogFile, Channel]]] = {}
        for file in self._files:
            for channel in file.channels.values():
                self._by_topic.setdefault(channel.topic, []).append((file, channel))
        for name, channels in self._by_topic.items():
            self._one_type(name, channels)

    def _one_type(self, name: str, channels: list[tuple[LogFile, Channel]]) -> None:
        """Keep the channels of a topic's first type: the others are messages of another thing under the same name."""
        first = channels[0][1].definition
        others = {one.definition.type for _, one in channels if one.definition.type != first.type}
        if others:
            self.report(
                f"topic {name} also has messages of {listed(sorted(others))}; only those of {first.type} are read"
            )
            channels[:] = [one for one in channels if one[1].definition.type == first.type]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(file.path for file in self._files)

    @property
    def topics(self) -> Mapping[str, Topic]:
        """By name; counted at the first call."""
        if self._topics is None:
            self._topics = {name: self._topic(name) for name in sorted(self._by_topic)}
        return self._topics

    def _topic(self, name: str) -> Topic:
        extent = Extent()
        for file, channel in self._by_topic[name]:
            extent = extent.joined(file.extent(channel.id))
        definition = self._by_topic[name][0][1].definition
        return Topic(
            name=name,
            kind=kind_of(definition.type),
            type=definition.type,
            encoding=definition.encoding,
            count=extent.count,
            first_ns=extent.first_ns,
            last_ns=extent.last_ns,
        )

    def _channels(self, topic: str) -> list[tuple[LogFile, Channel]]:
        if topic not in self._by_topic:
            known = listed(sorted(self._by_topic), 8) or "none"
            hint = nearest(topic, self._by_topic)
            where = self._files[0].path if len(self._files) == 1 else self._files[0].path.parent
            raise ShardError(f"{where} has no topic {topic!r}; its topics: {known}{hint}")
        return self._by_topic[topic]

    def times(self, topic: str) -> Int64[np.ndarray, " N"]:
        """From the files' indexes."""
        return self.times_of([topic])[topic]

    def times_of(self, topics: Sequence[str]) -> dict[str, Int64[np.ndarray, " n"]]:
        """The same of several topics, in one pass.

        Raises:
            ShardError: no such topic.
        """
        found = {topic: [np.zeros(0, dtype=np.int64)] for topic in topics}
        for number, channels in self._wanted(topics).items():
            file = self._files[number]
            for channel, written in file.times(frozenset(channels)).items():
                found[file.channels[channel].topic].append(written)
        return {topic: np.sort(np.concatenate(written)) for topic, written in found.items()}

    def _wanted(self, topics: Sequence[str]) -> dict[int, set[int]]:
        """Channels of topics, by the number of their file."""
        wanted: dict[int, set[int]] = {}
        for topic in topics:
            for file, channel in self._channels(topic):
                wanted.setdefault(self._files.index(file), set()).add(channel.id)
        return wanted

    def raw_messages(
        self, topics: Sequence[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[RawMessage]:
        """As `messages`, without reading what the bytes mean.

        Raises:
            ShardError: no such topic.
        """
        for file, written_ns, number, data in self._raw(topics, start_ns, stop_ns):
            yield file.channels[number].topic, written_ns, data

    def _raw(
        self, topics: Sequence[str], start_ns: int | None, stop_ns: int | None
    ) -> Iterator[tuple[LogFile, int, int, bytes]]:
        wanted = self._wanted(topics)

        def of(number: int) -> Iterator[tuple[LogFile, int, int, bytes]]:
            file = self._files[number]
            for written_ns, one, data in file.messages(frozenset(wanted[number]), start_ns, stop_ns):
                yield file, written_ns, one, data

        # By time alone: files are in the order of their names where times are equal.
        yield from heapq.merge(*map(of, sorted(wanted)), key=lambda raw: raw[1])

    def messages(
        self, topics: Sequence[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[Message]:
        """By time across files, lazily; contents that cannot be read are counted in `problems`.

        Raises:
            ShardError: no such topic, or nothing here can read its messages.
        """
        for topic in topics:
            for file, channel in self._channels(topic):
                self._decoder(file, channel)
        return self._decoded(topics, start_ns, stop_ns)

    def _decoded(self, topics: Sequence[str], start_ns: int | None, stop_ns: int | None) -> Iterator[Message]:
        for file, written_ns, number, data in self._raw(topics, start_ns, stop_ns):
            channel = file.channels[number]
            try:
                content = self._decoder(file, channel)(data)
            except Exception as error:  # of three libraries, for bytes that are not what the definition says
                self._count(channel.topic, error)
                continue
            yield Message(topic=channel.topic, written_ns=written_ns, content=content)

    def decode(self, topic: str, data: bytes) -> object:
        """Content of one of `raw_messages`.

        Raises:
            Exception: of the library that reads it, for bytes that are not what the topic's definition says.
        """
        file, channel = self._channels(topic)[0]
        return self._decoder(file, channel)(data)

    def _count(self, topic: str, error: Exception) -> None:
        """Keep one problem for each topic, with how many of its messages it concerns."""
        text, count = self._undecoded.get(topic, ("", 0))
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200] if not count else text.partition(" (")[2][:-1]
        told = f"topic {topic}: {count + 1} messages cannot be read ({why})"
        if count:
            self.problems[self.problems.index(text)] = told
        else:
            self.report(told)
        self._undecoded[topic] = (told, count + 1)

    def _decoder(self, file: LogFile, channel: Channel) -> Decode:
        """What reads a channel's messages; a definition that one file lacks may be in another."""
        key = (self._files.index(file), channel.id)
        if key not in self._decoders:
            definition = channel.definition
            if not definition.text.strip():
                others = (one.definition for file in self._files for one in file.channels.values())
                same = (one for one in others if (one.type, one.encoding) == (definition.type, definition.encoding))
                definition = next((one for one in same if one.text.strip()), definition)
            try:
                self._decoders[key] = decoder(definition)
            except UndefinedError as error:
                raise ShardError(f"{file.path}: topic {channel.topic}: {error}") from error
        return self._decoders[key]

    def __enter__(self) -> FilesRecording:
        return self

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            file.close()
