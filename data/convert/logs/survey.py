"""What a recording holds for a set, found in its index: which topics are what, and which sweeps can become samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from data.convert.logs.base import LogSettings, Recording
from data.convert.logs.pairing import ReadSettings, stamp_of
from data.convert.logs.reader import moving_topics
from data.convert.logs.transforms import read_transforms
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

_ONE_CLOCK_NS = 10_000_000_000
"""Topics whose messages are written longer after their stamps than others are, by this, are of another clock."""
_JITTER_MS = 30.0
"""Sweeps that are before the first pose by less are tried: messages are not written equally long after their stamps."""
_HALF_TURN_MS = 100.0
"""Where each point needs a pose, its sweep lies so far after the first pose, and before the last."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """One log, small enough to be sent to each worker.

    Attributes:
        paths: its files.
        topics: which are what.
        written_ns: when each sweep of the first LiDAR was written.
        numbers: of the sweeps that may become samples.
        notes: what was left out, and what the recording lacks.
    """

    paths: tuple[Path, ...]
    topics: LogSettings
    written_ns: Int64[np.ndarray, " n"]
    numbers: tuple[int, ...]
    notes: tuple[str, ...]


def survey(
    name: str, paths: Sequence[Path], recording: Recording, topics: LogSettings, settings: ReadSettings, every: int
) -> Survey:
    """Of an open recording; reads its index and the first message of each topic that is used.

    Args:
        name: of the log.
        paths: its files.
        recording: open.
        topics: which are what.
        settings: how samples will be made.
        every: only each n-th sweep becomes a sample.

    Raises:
        ShardError: no sweep.
    """
    written_ns = recording.times(topics.lidars[0])
    if len(written_ns) == 0:
        problems = f" ({'; '.join(recording.problems[:2])})" if recording.problems else ""
        raise ShardError(f"{paths[0]}: topic {topics.lidars[0]} of the sweeps holds no message{problems}")
    inside = _inside(recording, topics, written_ns, settings)
    lost = len(written_ns) - int(inside.sum())
    notes = [f"{name}: {problem}" for problem in recording.problems]
    if lost:
        ends = "before the first or after the last pose or image"
        notes.append(f"{name}: {lost} of {len(written_ns)} sweeps are {ends}, and left out")
    if not topics.odometry and not topics.world_frame:
        notes.append(f"{name}: neither odometry nor a world frame is named, the vehicle stands still")
    numbers = np.flatnonzero(inside)[::every]
    return Survey(
        paths=tuple(paths),
        topics=topics,
        written_ns=written_ns,
        numbers=tuple(numbers.tolist()),
        notes=tuple(notes),
    )


def _inside(
    recording: Recording, topics: LogSettings, written_ns: Int64[np.ndarray, " n"], settings: ReadSettings
) -> Bool[np.ndarray, " n"]:
    """The sweeps that were measured while the poses and every camera were: recordings begin with any topic."""
    inside = np.ones(len(written_ns), dtype=bool)
    late_ns = _behind_ns(recording, topics.lidars[0], settings.by_header)
    if late_ns is None:
        return inside
    measured = written_ns - late_ns
    slack_ms = dict.fromkeys(topics.cameras.values(), settings.max_image_gap_ms)
    slack_ms |= dict.fromkeys(topics.lidars[1:], settings.max_lidar_gap_ms)
    if topics.odometry or topics.world_frame:
        slack = -_HALF_TURN_MS if settings.deskew else _JITTER_MS
        slack_ms |= dict.fromkeys(moving_topics(recording, topics), slack)
    for name, slack in slack_ms.items():
        topic, behind = recording.topics[name], _behind_ns(recording, name, settings.by_header)
        if behind is None or abs(behind - late_ns) > _ONE_CLOCK_NS or topic.first_ns is None or topic.last_ns is None:
            continue  # the frames say what is wrong
        first, last = topic.first_ns - behind, topic.last_ns - behind
        inside &= (measured >= first - slack * 1e6) & (measured <= last + slack * 1e6)
    return inside


def _behind_ns(recording: Recording, name: str, by_header: bool) -> int | None:
    """How long after its stamp the first message of a topic was written; None where none can be read."""
    message = next(iter(recording.messages([name])), None)
    if message is None:
        return None
    try:
        if recording.topics[name].kind not in ("transforms", "odometry"):
            return message.written_ns - stamp_of(message, by_header)
        stamp_ns = next((one.stamp_ns for one in read_transforms(recording.topics[name], message)), None)
    except DamagedError:
        return None
    if not by_header:
        return 0
    return None if stamp_ns is None else message.written_ns - stamp_ns
