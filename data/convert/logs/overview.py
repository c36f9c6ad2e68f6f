"""What a recording holds, in numbers: rates, gaps, sizes, clocks, frames and how they hang together.

Times of writing come from the index; of each topic a few messages are read, spread over it. So hundreds of gigabytes
take seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from data.convert.logs.base import Message, Topic, Transform
from data.convert.logs.fields import header_of
from data.convert.logs.recording import FilesRecording
from data.convert.logs.transforms import TRANSFORM_TYPES, read_transforms
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

_SAMPLES = 8
"""Messages of a topic that are read."""
_TRANSFORMS = 400
"""Messages of a topic of transforms that are read: static ones are few, moving ones repeat each other's frames."""
_NS = 1e-9


@dataclass(frozen=True, kw_only=True)
class TopicFacts:
    """A topic in numbers.

    Attributes:
        topic: as the recording lists it.
        rate_hz: messages a second between the first and the last; None for fewer than two.
        gap_s: the longest time between two neighbours.
        gap_at_s: when it begins, from the recording's start.
        num_bytes: of a message, mean of those that were read; None without any.
        offset_s: of a header's stamp from the time of writing, median; None where there is no header.
        frame: that the header names; "" without one.
        child: frame that odometry is of; "" where it is not said.
        form: of an image, its encoding or format as the last message has it; "" of anything else.
        unread: why its messages cannot be read; "" where they can.
    """

    topic: Topic
    rate_hz: float | None = None
    gap_s: float = 0.0
    gap_at_s: float = 0.0
    num_bytes: float | None = None
    offset_s: float | None = None
    frame: str = ""
    child: str = ""
    form: str = ""
    unread: str = ""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A frame in its parent.

    Attributes:
        parent, child: frames.
        topic: that says where.
        moves: whether places of it differ.
    """

    parent: str
    child: str
    topic: str
    moves: bool


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A recording in numbers.

    Attributes:
        topics: facts of each, by name.
        start_ns: when the first message was written; None without any.
        duration_s: to the last one.
        edges: of the tree of frames, child -> edge; the first one said of each child.
        other_parents: edges of children that have another parent already.
        problems: what could not be read.
    """

    topics: dict[str, TopicFacts]
    start_ns: int | None
    duration_s: float
    edges: dict[str, Edge]
    other_parents: tuple[Edge, ...]
    problems: tuple[str, ...]

    def of_kind(self, kind: str) -> list[TopicFacts]:
        """Topics of a kind that have messages."""
        return [facts for facts in self.topics.values() if facts.topic.kind == kind and facts.topic.count]

    def root(self, frame: str) -> str:
        """The frame at the top of a frame's tree; itself where nothing is said of it."""
        above = [frame]
        while above[-1] in self.edges and self.edges[above[-1]].parent not in above:
            above.append(self.edges[above[-1]].parent)
        return above[-1]


def look_over(recording: FilesRecording) -> Overview:
    """Facts of every topic, and the tree of frames."""
    topics = recording.topics
    first = [topic.first_ns for topic in topics.values() if topic.first_ns is not None]
    last = [topic.last_ns for topic in topics.values() if topic.last_ns is not None]
    start_ns = min(first, default=None)
    times = recording.times_of(list(topics))
    facts = {name: _facts(recording, topic, times[name], start_ns or 0) for name, topic in topics.items()}
    edges: dict[str, Edge] = {}
    others: list[Edge] = []
    for edge in _edges(recording, facts):
        if edge.child not in edges:
            edges[edge.child] = edge
        elif edges[edge.child].parent != edge.parent:
            others.append(edge)
    return Overview(
        topics=facts,
        start_ns=start_ns,
        duration_s=(max(last) - min(first)) * _NS if first else 0.0,
        edges=edges,
        other_parents=tuple(others),
        problems=tuple(recording.problems),
    )


def _facts(recording: FilesRecording, topic: Topic, times: Int64[np.ndarray, " n"], start_ns: int) -> TopicFacts:
    if not len(times):
        return TopicFacts(topic=topic)
    rate, gap_s, gap_at_s = None, 0.0, 0.0
    if len(times) > 1 and times[-1] > times[0]:
        rate = (len(times) - 1) / (float(times[-1] - times[0]) * _NS)
        gaps = np.diff(times)
        longest = int(gaps.argmax())
        gap_s, gap_at_s = float(gaps[longest]) * _NS, float(times[longest] - start_ns) * _NS
    sizes: list[int] = []
    offsets: list[float] = []
    frame = child = form = unread = ""
    wanted = times[np.unique(np.linspace(0, len(times) - 1, _SAMPLES).round().astype(np.int64))].tolist()
    for written_ns in dict.fromkeys(wanted):
        for _, _, data in recording.raw_messages([topic.name], written_ns, written_ns + 1):
            sizes.append(len(data))
            try:
                content = recording.decode(topic.name, data)
                message = Message(topic=topic.name, written_ns=written_ns, content=content)
                _, stamp_ns, frame = header_of(message)
                child = str(getattr(content, "child_frame_id", child))
                form = str(getattr(content, "encoding", getattr(content, "format", form)))
                offsets.append((stamp_ns - written_ns) * _NS)
            except DamagedError:
                pass  # without a header: nothing that every message has
            except ShardError as error:
                unread = str(error)
            except Exception as error:  # of the libraries, for damaged contents
                unread = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            break
    return TopicFacts(
        topic=topic,
        rate_hz=rate,
        gap_s=gap_s,
        gap_at_s=gap_at_s,
        num_bytes=float(np.mean(sizes)) if sizes else None,
        offset_s=float(np.median(offsets)) if offsets else None,
        frame=frame,
        child=child.removeprefix("/"),
        form=form if topic.kind == "camera" else "",
        unread=unread,
    )


def _edges(recording: FilesRecording, facts: dict[str, TopicFacts]) -> list[Edge]:
    """What topics of transforms say, then odometry."""
    found: dict[tuple[str, str, str], list[Transform]] = {}
    for kind in ("transforms", "odometry"):
        for name, one in facts.items():
            if one.topic.kind != kind or one.unread or one.topic.type not in TRANSFORM_TYPES:
                continue
            if kind == "odometry" and not one.child:  # a pose of what it does not say
                continue
            for transform in _transforms(recording, one.topic):
                found.setdefault((transform.parent, transform.child, name), []).append(transform)
    return [
        Edge(parent=parent, child=child, topic=topic, moves=_moves(said))
        for (parent, child, topic), said in found.items()
    ]


def _transforms(recording: FilesRecording, topic: Topic) -> Iterator[Transform]:
    """Transforms of the first messages of a topic, and of its last."""
    for number, message in enumerate(recording.messages([topic.name])):
        if number == _TRANSFORMS:
            break
        yield from _read(topic, message)
    if topic.last_ns is not None and topic.count > _TRANSFORMS:
        for message in recording.messages([topic.name], topic.last_ns):
            yield from _read(topic, message)


def _read(topic: Topic, message: Message) -> list[Transform]:
    try:
        return read_transforms(topic, message)
    except DamagedError:
        return []


def _moves(said: list[Transform]) -> bool:
    return any(not np.allclose(one.T_parent_child, said[0].T_parent_child, rtol=0, atol=1e-6) for one in said[1:])
