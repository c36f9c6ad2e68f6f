"""Which topics of a recording are what: a guess for a person to look over, or to go by where it leaves no choice."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.convert.logs.base import LogSettings
from data.convert.logs.overview import Overview, TopicFacts
from data.convert.logs.pictures import why_no_picture
from data.convert.logs.topic_names import camera_name, derived, no_picture
from data.convert.logs.topics_file import topics_text
from data.storage.shard import ShardError

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
        left_out: field -> topics of its kind that were not taken, each with the reason.
        choices: what there are several of, and their topics: the guess took the first, or all.
    """

    settings: LogSettings | None
    notes: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, tuple[str, ...]]
    choices: Mapping[str, tuple[str, ...]]

    def without_choice(self, where: Path) -> LogSettings:
        """The guess where nothing had to be chosen: one LiDAR, one topic a camera, one way to the vehicle's pose.

        Raises:
            ShardError: there are several of something, and somebody has to choose; or no LiDAR.
        """
        remedy = "tandem inspect RECORDING --settings FILE.yaml writes a file to choose in; then topics=FILE.yaml"
        if self.settings is None:
            raise ShardError(f"{where} has 0 LiDAR topics, expected one: {remedy}")
        if self.choices:
            what, found = next(iter(self.choices.items()))
            raise ShardError(f"{where} has {len(found)} {what} ({', '.join(found)}), expected one: {remedy}")
        return self.settings

    def remarks(self) -> dict[str, tuple[str, ...]]:
        """All that is said, by field; what was left out first."""
        fields = dict.fromkeys((*self.left_out, *self.notes))
        return {field: (*self.left_out.get(field, ()), *self.notes.get(field, ())) for field in fields}


class _Remarks:
    """What a guess has to say, gathered on the way."""

    def __init__(self) -> None:
        self.notes: dict[str, list[str]] = {}
        self.left_out: dict[str, list[str]] = {}
        self.choices: dict[str, tuple[str, ...]] = {}

    def note(self, field: str, said: str) -> None:
        self.notes.setdefault(field, []).append(said)

    def leave_out(self, field: str, topic: str, why: str) -> None:
        self.left_out.setdefault(field, []).append(f"not {topic}: {why}")

    def choose(self, what: str, found: Iterable[str]) -> None:
        self.choices[what] = tuple(sorted({*self.choices.get(what, ()), *found}))


def guess(overview: Overview) -> FirstSettings:
    """Topics by their types; cameras and their calibrations by namespace or frame."""
    remarks = _Remarks()
    lidars = _lidars(overview, remarks)
    cameras = _cameras(overview, remarks)
    infos = {name: _info(overview, topic) for name, topic in cameras.items()}
    for name, found in infos.items():
        if not found:
            remarks.note("camera_infos", f"{name}: no topic of its calibration was found")
    odometry = _odometry(overview, lidars, remarks)
    ego_frame = _ego_frame(overview, odometry, lidars)
    world_frame = "" if odometry else _world_frame(overview, ego_frame)
    if not odometry and not world_frame:
        remarks.note("world_frame", "nothing says how the vehicle moves: sweeps cannot be compared with each other")
    settings = LogSettings(
        lidars=tuple(lidars),
        cameras=cameras,
        camera_infos={name: found for name, found in infos.items() if found},
        transforms=tuple(facts.topic.name for facts in overview.of_kind("transforms")),
        odometry=odometry,
        ego_frame=ego_frame,
        world_frame=world_frame,
    )
    return FirstSettings(
        settings=settings if lidars else None,
        notes={field: tuple(said) for field, said in remarks.notes.items()},
        left_out={field: tuple(said) for field, said in remarks.left_out.items()},
        choices=remarks.choices,
    )


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
    remarks = first.remarks()
    notes = {field: (said, *remarks.get(field, ())) for field, said in _EXPLAINED.items()}
    return topics_text(first.settings, [line.format(source=source) for line in _HEAD], notes)


def _lidars(overview: Overview, remarks: _Remarks) -> list[str]:
    """One topic of each frame, that with the most bytes first: several of one frame are one sensor's."""
    found = overview.of_kind("lidar")
    measured = [facts for facts in found if not derived(facts.topic.name)] or found
    for facts in found:
        if facts not in measured:
            word = derived(facts.topic.name)
            remarks.leave_out("lidars", facts.topic.name, f"by its name ({word}) made of a sensor's points")
    chosen: dict[str, TopicFacts] = {}
    for facts in sorted(measured, key=lambda facts: (-(facts.num_bytes or 0), facts.topic.name)):
        taken = chosen.setdefault(facts.frame, facts)
        if taken is not facts:
            why = f"it has the frame of {taken.topic.name} ({facts.frame!r}) and fewer bytes"
            remarks.leave_out("lidars", facts.topic.name, why)
    if len(chosen) > 1:
        remarks.note("lidars", "the first one's sweeps are the samples; the others are merged into them")
    if len(measured) > 1:
        remarks.choose("LiDAR topics", (facts.topic.name for facts in measured))
    return [facts.topic.name for facts in chosen.values()]


def _cameras(overview: Overview, remarks: _Remarks) -> dict[str, str]:
    """One topic of each camera: compressed images before videos before raw ones.

    A topic without a calibration of its own in the frame of one that has one shows what was made of that one's images.
    """
    calibrated = {camera_name(facts.topic.name) for facts in overview.of_kind("camera_info")}

    def order(facts: TopicFacts) -> tuple[bool, int, int, str]:
        word = facts.topic.type.replace(".", "/").rpartition("/")[2]
        rank = _COMPRESSED.index(word) if word in _COMPRESSED else len(_COMPRESSED)
        name = facts.topic.name
        return camera_name(name) not in calibrated, rank, len(name), name

    chosen: dict[str, str] = {}
    of_frame: dict[str, str] = {}
    for facts in sorted(overview.of_kind("camera"), key=order):
        topic, name = facts.topic.name, camera_name(facts.topic.name)
        own = name in calibrated
        if word := no_picture(topic):
            remarks.leave_out("cameras", topic, f"by its name ({word}) no picture")
        elif why := why_no_picture(facts.form):
            remarks.leave_out("cameras", topic, why)
        elif name in chosen:
            remarks.note("cameras", f"{name}: also {topic} ({facts.topic.type})")
            remarks.choose(f"topics of camera {name}", (chosen[name], topic))
        elif not own and facts.frame in of_frame:
            why = f"it has the frame of {of_frame[facts.frame]} ({facts.frame!r}) and no calibration of its own"
            remarks.leave_out("cameras", topic, why)
        else:
            chosen[name] = topic
            if own and facts.frame:
                of_frame.setdefault(facts.frame, topic)
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


def _odometry(overview: Overview, lidars: Iterable[str], remarks: _Remarks) -> str:
    """Odometry that says what it is of before poses; of several that with the most messages."""

    def order(facts: TopicFacts) -> tuple[bool, int, str]:
        return not _says_of_what(facts), -facts.topic.count, facts.topic.name

    found = sorted(overview.of_kind("odometry"), key=order)
    if not found:
        return ""
    if not _says_of_what(found[0]) and _moves(overview, _ego_frame(overview, "", lidars)):
        for facts in found:  # a pose that does not say what it is of: an aim, or a place on a map
            remarks.leave_out("odometry", facts.topic.name, f"{facts.topic.type}, and transforms move the vehicle")
        return ""
    for facts in found[1:]:
        remarks.note("odometry", f"also {facts.topic.name} ({facts.topic.type})")
    if len(found) > 1:
        remarks.choose("topics of odometry", (facts.topic.name for facts in found))
    return found[0].topic.name


def _says_of_what(facts: TopicFacts) -> bool:
    return facts.topic.type.endswith("Odometry")


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


def _above(overview: Overview, frame: str) -> list[str]:
    """A frame, and those above it in the tree."""
    above = [frame]
    while above[-1] in overview.edges and overview.edges[above[-1]].parent not in above:
        above.append(overview.edges[above[-1]].parent)
    return above


def _moves(overview: Overview, frame: str) -> bool:
    """Whether a frame moves in the one at the top of its tree."""
    return any(overview.edges[one].moves for one in _above(overview, frame) if one in overview.edges)


def _world_frame(overview: Overview, ego_frame: str) -> str:
    """A frame above the vehicle's that is called as one that stands still, else the top one if the vehicle moves in it.

    The name alone will do: a vehicle may stand still in all messages that were looked at.
    """
    above = _above(overview, ego_frame)[1:]
    named = next((name for name in _WORLDS if name in above), "")
    return named or (above[-1] if above and _moves(overview, ego_frame) else "")
