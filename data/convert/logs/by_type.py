"""Which topics of a recording are what, where their types leave no choice."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from data.convert.logs.base import Kind, LogSettings, Recording, Transform
from data.convert.logs.transforms import read_transforms
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

_IMAGE_WORDS = re.compile(r"/(image(_(raw|rect|color|mono|compressed))*|compressed|video)(?=/|\Z)")
"""Parts of a topic's name that say how the camera's images are stored, not which camera it is."""
_LOOKED_AT = 2000
"""Messages of transforms among which the vehicle's parents are looked for."""
_WORLDS = ("odom", "map", "world")
"""Frames that stand still, by ROS' convention (REP 105); odom first, whose poses do not jump."""


def found_by_type(recording: Recording, where: Path) -> LogSettings:
    """One LiDAR, one topic a camera, one way to the vehicle's pose.

    Raises:
        ShardError: there are several, and somebody has to choose; or no LiDAR.
    """
    lidars = _of_kind(recording, "lidar")
    if len(lidars) != 1:
        raise _choose(where, "LiDAR topics", lidars)
    cameras: dict[str, str] = {}
    for topic in _of_kind(recording, "camera"):
        name = camera_name(topic)
        if name in cameras:
            raise _choose(where, f"topics of camera {name}", [cameras[name], topic])
        cameras[name] = topic
    odometry = _of_kind(recording, "odometry")
    if len(odometry) > 1:
        raise _choose(where, "topics of odometry", odometry)
    infos = {camera_name(topic): topic for topic in _of_kind(recording, "camera_info")}
    transforms = tuple(_of_kind(recording, "transforms"))
    ego_frame, world_frame = "base_link", ""
    if odometry:
        first = _first(recording, odometry)
        ego_frame = first[0].child if first else ego_frame
    else:
        world_frame = _world(recording, transforms, ego_frame)
    return LogSettings(
        lidars=tuple(lidars),
        cameras=cameras,
        camera_infos={name: infos[name] for name in cameras if name in infos},
        transforms=transforms,
        odometry=odometry[0] if odometry else "",
        ego_frame=ego_frame,
        world_frame=world_frame,
    )


def camera_name(topic: str) -> str:
    """A camera's name by a topic of its images or its calibration: "/front/image_raw/compressed" is "front"."""
    name = _IMAGE_WORDS.sub("", re.sub(r"/(camera_info|calibration)\Z", "", topic))
    return re.sub(r"[^A-Za-z0-9_]", "_", name.strip("/")) or "camera"


def _of_kind(recording: Recording, kind: Kind) -> list[str]:
    return [topic.name for topic in recording.topics.values() if topic.kind == kind and topic.count]


def _choose(where: Path, what: str, found: Sequence[str]) -> ShardError:
    remedy = "tandem inspect RECORDING --settings FILE.yaml writes a file to choose in; then topics=FILE.yaml"
    return ShardError(
        f"{where} has {len(found)} {what}{' (' if found else ''}{', '.join(found)}"
        f"{')' if found else ''}, expected one: {remedy}"
    )


def _first(recording: Recording, topics: Sequence[str]) -> list[Transform]:
    for message in itertools.islice(recording.messages(topics), 1):
        try:
            return read_transforms(recording.topics[message.topic], message)
        except DamagedError:
            return []
    return []


def _world(recording: Recording, transforms: Sequence[str], ego_frame: str) -> str:
    """A frame above the vehicle's that stands still; "" without one."""
    parents: dict[str, str] = {}
    for message in itertools.islice(recording.messages(transforms), _LOOKED_AT) if transforms else ():
        try:
            parents |= {one.child: one.parent for one in read_transforms(recording.topics[message.topic], message)}
        except DamagedError:
            continue
    above = [ego_frame]
    while above[-1] in parents and parents[above[-1]] not in above:
        above.append(parents[above[-1]])
    named = [frame for frame in _WORLDS if frame in above[1:]]
    return named[0] if named else above[-1] if len(above) > 1 else ""
