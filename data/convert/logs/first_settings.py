"""A first guess at which topics of a recording are what, to be looked over by a person."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from data.convert.logs.base import LogSettings
from data.convert.logs.by_type import camera_name
from data.convert.logs.overview import Overview, TopicFacts
from data.convert.logs.topics_file import topics_text

_NO_PICTURES = ("depth", "theora", "disparity", "thermal")
"""Words in names of topics whose images are not taken for a camera's."""
_COMPRESSED = ("CompressedImage", "CompressedVideo")
"""Last word of a type: the best first."""
_WORLDS = ("odom", "map", "world")
"""Frames that stand still, by ROS' convention (REP 105); odom first, whose poses do not jump."""
_EGO = ("base_link", "base_footprint", "ego_vehicle", "vehicle")


@dataclass(frozen=True, kw_only=True)
class FirstSettings:
    """A guess.

    Attributes:
        settings: the guess; None where there is no LiDAR.
        notes: field -> remarks on it: what else it could be, what is missing.
    """

    settings: LogSettings | None
    notes: Mapping[str, tuple[str, ...]]


def guess(overview: Overview) -> FirstSettings:
    """Topics by their types; cameras and their calibrations by namespace or frame."""
    notes: dict[str, list[str]] = {}
    lidars = _lidars(overview, notes)
    cameras = _cameras(overview, notes)
    infos = {name: _info(overview, topic) for name, topic in cameras.items()}
    for name, found in infos.items():
        if not found:
            notes.setdefault("camera_infos", []).append(f"{name}: no topic of its calibration was found")
    odometry = _odometry(overview, notes)
    ego_frame = _ego_frame(overview, odometry, lidars)
    world_frame = "" if odometry else _world_frame(overview, ego_frame)
    if not odometry and not world_frame:
        notes.setdefault("world_frame", []).append(
            "nothing says how the vehicle moves: sweeps cannot be compared with each other"
        )
    if not lidars:
        return FirstSettings(settings=None, notes={name: tuple(said) for name, said in notes.items()})
    settings = LogSettings(
        lidars=tuple(lidars),
        cameras=cameras,
        camera_infos={name: found for name, found in infos.items() if found},
        transforms=tuple(facts.topic.name for facts in overview.of_kind("transforms")),
        odometry=odometry,
        ego_frame=ego_frame,
        world_frame=world_frame,
    )
    return FirstSettings(settings=settings, notes={name: tuple(said) for name, said in notes.items()})


_HEAD = (
    "Which topics of {source} are what: a first guess by their types and names. Look it over:",
    "`tandem prepare rosbag SRC OUT topics=THIS_FILE` (or mcap) reads these topics and no others.",
)
_EXPLAINED = {
    "lidars": "Topics of LiDARs. Sweeps of the first are the samples.",
    "cameras": "A camera's name in the set: topic of its images.",
    "camera_infos": "A camera's name: topic of its calibration.",
    "transforms": "Topics that say where frames are, those that move and those that stand still.",
    "odometry": 'Topic of the vehicle\'s pose; "" where the transforms have it.',
    "ego_frame": "Frame of the vehicle.",
    "world_frame": 'Frame that stands still, in which transforms say where the vehicle is; "" with odometry.',
}
"""Field -> what it is."""


def first_text(first: FirstSettings, source: str) -> str:
    """A guess as a file for a person.

    Args:
        first: with settings.
        source: the recording.
    """
    assert first.settings is not None
    notes = {field: (said, *first.notes.get(field, ())) for field, said in _EXPLAINED.items()}
    return topics_text(first.settings, [line.format(source=source) for line in _HEAD], notes)


def _lidars(overview: Overview, notes: dict[str, list[str]]) -> list[str]:
    """One topic of each frame, that with the most bytes first: several of one frame are one sensor's."""
    most = sorted(overview.of_kind("lidar"), key=lambda facts: (-(facts.num_bytes or 0), facts.topic.name))
    chosen: dict[str, TopicFacts] = {}
    for facts in most:
        taken = chosen.setdefault(facts.frame, facts)
        if taken is not facts:
            said = f"not {facts.topic.name}: it has the frame of {taken.topic.name} ({facts.frame!r}) and fewer bytes"
            notes.setdefault("lidars", []).append(said)
    if len(chosen) > 1:
        notes.setdefault("lidars", []).append("the first one's sweeps are the samples; the others are merged into them")
    return [facts.topic.name for facts in chosen.values()]


def _cameras(overview: Overview, notes: dict[str, list[str]]) -> dict[str, str]:
    """One topic of each camera: compressed images before videos before raw ones."""

    def order(facts: TopicFacts) -> tuple[int, int, str]:
        word = facts.topic.type.replace(".", "/").rpartition("/")[2]
        rank = _COMPRESSED.index(word) if word in _COMPRESSED else len(_COMPRESSED)
        return rank, len(facts.topic.name), facts.topic.name

    chosen: dict[str, str] = {}
    for facts in sorted(overview.of_kind("camera"), key=order):
        topic, name = facts.topic.name, camera_name(facts.topic.name)
        word = next((word for word in _NO_PICTURES if word in topic.lower()), None)
        if word:
            notes.setdefault("cameras", []).append(f"not {topic}: by its name ({word}) no picture")
        elif name in chosen:
            notes.setdefault("cameras", []).append(f"{name}: also {topic} ({facts.topic.type})")
        else:
            chosen[name] = topic
    return dict(sorted(chosen.items()))


def _info(overview: Overview, camera: str) -> str:
    """Topic of a camera's calibration: that of its namespace, else the only one of its frame; "" without."""
    infos = overview.of_kind("camera_info")
    named = [facts.topic.name for facts in infos if camera_name(facts.topic.name) == camera_name(camera)]
    if named:
        return max(named, key=lambda topic: (_shared(topic, camera), -len(topic)))
    frame = overview.topics[camera].frame
    framed = [facts.topic.name for facts in infos if frame and facts.frame == frame]
    return framed[0] if len(framed) == 1 else ""


def _shared(one: str, other: str) -> int:
    """Parts of two names, from the first on, that are alike."""
    pairs = zip(one.split("/"), other.split("/"), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _odometry(overview: Overview, notes: dict[str, list[str]]) -> str:
    """Odometry that says what it is of before poses; of several that with the most messages."""

    def order(facts: TopicFacts) -> tuple[bool, int, str]:
        return not facts.topic.type.endswith("Odometry"), -facts.topic.count, facts.topic.name

    found = sorted(overview.of_kind("odometry"), key=order)
    if not found or (
        not found[0].topic.type.endswith("Odometry") and any(edge.moves for edge in overview.edges.values())
    ):
        for facts in found:  # a pose that does not say what it is of: an aim, or a place on a map
            notes.setdefault("odometry", []).append(
                f"not {facts.topic.name} ({facts.topic.type}): frames move without it"
            )
        return ""
    for facts in found[1:]:
        notes.setdefault("odometry", []).append(f"also {facts.topic.name} ({facts.topic.type})")
    return found[0].topic.name


def _ego_frame(overview: Overview, odometry: str, lidars: Iterable[str]) -> str:
    """What odometry is of; else a frame with a usual name; else what the LiDAR is fixed to."""
    if odometry and overview.topics[odometry].child:
        return overview.topics[odometry].child
    frames = {*overview.edges, *(edge.parent for edge in overview.edges.values())}
    for name in _EGO:
        if name in frames:
            return name
    frame = next((overview.topics[topic].frame for topic in lidars), "")
    while frame in overview.edges and not overview.edges[frame].moves and overview.edges[frame].parent not in _WORLDS:
        frame = overview.edges[frame].parent
    return frame or "base_link"


def _world_frame(overview: Overview, ego_frame: str) -> str:
    """A frame above the vehicle's in which it moves; "" without one."""
    above: list[str] = []
    frame, moves = ego_frame, False
    while frame in overview.edges and overview.edges[frame].parent not in above:
        moves = moves or overview.edges[frame].moves
        frame = overview.edges[frame].parent
        above.append(frame)
    if not moves:
        return ""
    return next((name for name in _WORLDS if name in above), above[-1])
