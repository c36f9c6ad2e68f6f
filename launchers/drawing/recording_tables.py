"""A recording in tables: topics, frames, cameras, and what deserves a look."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.convert.logs.base import LogSettings
from data.convert.logs.first_settings import FirstSettings
from data.convert.logs.overview import Edge, Overview, TopicFacts
from launchers.drawing.page import TextTable
from launchers.drawing.set_tables import human_bytes

_GAP_TIMES = 10
"""A gap is long beyond so many times the mean time between messages."""
_GAP_S = 0.5
"""And beyond this."""
_OFFSET_S = 0.5
"""Stamps further from the recorder's clock than this are of another clock, or came late."""
_KINDS = {
    "lidar": "LiDAR",
    "camera": "camera",
    "camera_info": "camera info",
    "transforms": "transforms",
    "odometry": "pose",
}


def recording_tables(overview: Overview, first: FirstSettings, paths: Sequence[Path]) -> list[TextTable]:
    """All tables of a recording."""
    tables = [_contents(overview, paths), _topics(overview)]
    if overview.edges:
        rows = tuple((line,) for line in tree_lines(overview.edges))
        tables.append(TextTable(title="frames", rows=rows))
    if first.settings is not None and first.settings.cameras:
        tables.append(_cameras(overview, first.settings))
    doubts = recording_doubts(overview, first)
    if doubts:
        tables.append(TextTable(title="look at", rows=tuple((doubt,) for doubt in doubts)))
    if overview.problems:
        tables.append(TextTable(title="could not be read", rows=tuple((problem,) for problem in overview.problems)))
    return tables


def _contents(overview: Overview, paths: Sequence[Path]) -> TextTable:
    began = "never: it is empty"
    if overview.start_ns is not None:
        at = datetime.datetime.fromtimestamp(overview.start_ns / 1e9, tz=datetime.timezone.utc)
        began = f"{at:%Y-%m-%d %H:%M:%S} UTC"
    named = ", ".join(path.name for path in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    rows = (
        ("files", f"{named}, {human_bytes(sum(path.stat().st_size for path in paths))}"),
        ("began", began),
        ("duration", f"{overview.duration_s:,.1f} s"),
        ("messages", f"{sum(facts.topic.count for facts in overview.topics.values()):,}"),
    )
    return TextTable(title="recording", rows=rows)


def _topics(overview: Overview) -> TextTable:
    """Topics, those that are used first."""
    order = [*_KINDS, "other"]
    facts = sorted(overview.topics.values(), key=lambda one: (order.index(one.topic.kind), one.topic.name))
    header = ("topic", "is", "type", "messages", "rate", "longest gap", "a message", "stamp - written", "frame")
    return TextTable(title="topics", header=header, rows=tuple(map(_row, facts)), numeric=(3, 4, 5, 6, 7))


def _row(facts: TopicFacts) -> tuple[str, ...]:
    topic = facts.topic
    return (
        topic.name,
        _KINDS.get(topic.kind, ""),
        f"{topic.type} ({topic.encoding})",
        f"{topic.count:,}",
        "" if facts.rate_hz is None else f"{facts.rate_hz:.4g} Hz",
        "" if facts.rate_hz is None else f"{facts.gap_s:.3g} s",
        "" if facts.num_bytes is None else human_bytes(facts.num_bytes),
        "" if facts.offset_s is None else f"{facts.offset_s * 1e3:+,.1f} ms",
        f"{facts.frame} > {facts.child}" if facts.child else facts.frame,
    )


def tree_lines(edges: Mapping[str, Edge]) -> list[str]:
    """The tree of frames, each below its parent."""
    below: dict[str, list[Edge]] = {}
    for stated in edges.values():
        below.setdefault(stated.parent, []).append(stated)
    lines: list[str] = []
    # No recursion, and each frame once: the depth is the file's to choose, and loops are possible.
    roots = sorted(parent for parent in below if parent not in edges) or sorted(below)[:1]
    waiting: list[tuple[int, str, Edge | None]] = [(0, root, None) for root in reversed(roots)]
    seen: set[str] = set()
    while waiting:
        depth, frame, edge = waiting.pop()
        said = "" if edge is None else f"  ({'moves' if edge.moves else 'stands still'}, {edge.topic})"
        lines.append(f"{'  ' * depth}{frame}{said}")
        if frame not in seen:
            seen.add(frame)
            children = sorted(below.get(frame, ()), key=lambda one: one.child, reverse=True)
            waiting += [(depth + 1, one.child, one) for one in children]
    return lines


def _cameras(overview: Overview, settings: LogSettings) -> TextTable:
    rows = []
    for name, topic in settings.cameras.items():
        info = settings.camera_infos.get(name, "")
        frames = overview.topics[topic].frame, overview.topics[info].frame if info else ""
        rows.append((name, topic, info or "none", frames[0], frames[1] if frames[1] != frames[0] else ""))
    header = ("camera", "images", "calibration", "frame", "calibration's frame, where it differs")
    return TextTable(title="cameras", header=header, rows=tuple(rows))


def recording_doubts(overview: Overview, first: FirstSettings) -> list[str]:
    """What may spoil a preparation, in words."""
    doubts = [f"{field}: {note}" for field, notes in first.remarks().items() for note in notes]
    if first.settings is None:
        doubts.append("no LiDAR: no topic has messages of a type of point clouds that is read")
    for facts in overview.topics.values():
        doubts += _topic_doubts(facts)
    for other in overview.other_parents:
        parents = f"{overview.edges[other.child].parent} and {other.parent} ({other.topic})"
        doubts.append(f"frame {other.child} has two parents, {parents}: leave one topic out of the settings")
    if first.settings is not None:
        doubts += _frame_doubts(overview, first.settings)
    return doubts


def _topic_doubts(facts: TopicFacts) -> list[str]:
    """Of one topic."""
    name, doubts = facts.topic.name, []
    if facts.topic.kind == "other":
        return []
    if not facts.topic.count:
        return [f"{name} has no messages"]
    if facts.unread:
        doubts.append(f"{name} cannot be read: {facts.unread}")
    if facts.topic.kind in ("camera_info", "transforms"):
        return doubts
    if facts.rate_hz is not None and facts.gap_s > max(_GAP_TIMES / facts.rate_hz, _GAP_S):
        doubts.append(f"{name} is silent for {facts.gap_s:.3g} s, from {facts.gap_at_s:,.1f} s on")
    if facts.offset_s is not None and abs(facts.offset_s) > _OFFSET_S:
        offset = f"{abs(facts.offset_s):,.1f} s {'after' if facts.offset_s > 0 else 'before'}"
        doubts.append(f"{name} is stamped {offset} it was written: of another clock, or written late")
    return doubts


def _frame_doubts(overview: Overview, settings: LogSettings) -> list[str]:
    """Sensors that no transform ties to the vehicle."""
    doubts = []
    root = overview.root(settings.ego_frame)
    for topic in (*settings.lidars, *settings.cameras.values()):
        frame = overview.topics[topic].frame
        if frame and frame != settings.ego_frame and overview.root(frame) != root:
            doubts.append(f"no transform leads from frame {frame!r} of {topic} to {settings.ego_frame!r} (ego_frame)")
    return doubts
