"""Messages that say where frames are: ROS' and Foxglove's transforms, poses and odometry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data.convert.logs.base import Message, Topic, Transform
from data.convert.logs.fields import field_of, frame_name, header_of, pose_of, reader_of, stamp_of
from data.storage.damage import DamagedError


def read_transforms(topic: Topic, message: Message, *, ego_frame: str = "base_link") -> list[Transform]:
    """Every transform that a message states.

    Those of a topic whose name ends in "tf_static" hold always.

    Args:
        topic: of the message.
        message: of one of `TRANSFORM_TYPES`.
        ego_frame: the child of messages that state a pose of they do not say what: PoseStamped and odometry without a
            child frame.

    Raises:
        DamagedError: another type; a field is missing or not finite, or a quaternion has not length 1.
    """
    return reader_of(topic, TRANSFORM_TYPES, "transforms or poses")(topic, message, ego_frame)


def _of(where: str, stamp_ns: int | None, parent: Any, child: Any, position: Any, orientation: Any) -> Transform:
    names = frame_name(parent), frame_name(child)
    if not all(names):
        raise DamagedError("meta-broken", f"{where}: from frame {names[1]!r} to {names[0]!r}, expected two names")
    what = f"{where}, {names[0]} -> {names[1]}"
    T = pose_of(what, position, orientation)
    return Transform(stamp_ns=stamp_ns, parent=names[0], child=names[1], T_parent_child=T)


def _stamped(topic: Topic, message: Message, ego_frame: str) -> list[Transform]:
    return [_of_ros(topic, message.content)]


def _list(topic: Topic, message: Message, ego_frame: str) -> list[Transform]:
    return [_of_ros(topic, entry) for entry in field_of(message.topic, message.content, "transforms")]


def _of_ros(topic: Topic, content: Any) -> Transform:
    header = field_of(topic.name, content, "header")
    stamp_ns = stamp_of(topic.name, field_of(topic.name, header, "stamp"))
    where = f"{topic.name} at {stamp_ns} ns"
    T = field_of(where, content, "transform")
    parent, child = field_of(where, header, "frame_id"), field_of(where, content, "child_frame_id")
    stamp = None if _is_static(topic) else stamp_ns
    return _of(where, stamp, parent, child, field_of(where, T, "translation"), field_of(where, T, "rotation"))


def _foxglove(topic: Topic, message: Message, ego_frame: str) -> list[Transform]:
    return [_of_foxglove(topic, message.content)]


def _foxglove_list(topic: Topic, message: Message, ego_frame: str) -> list[Transform]:
    return [_of_foxglove(topic, entry) for entry in field_of(message.topic, message.content, "transforms")]


def _of_foxglove(topic: Topic, content: Any) -> Transform:
    stamp_ns = stamp_of(topic.name, field_of(topic.name, content, "timestamp"))
    where = f"{topic.name} at {stamp_ns} ns"
    parent, child = field_of(where, content, "parent_frame_id"), field_of(where, content, "child_frame_id")
    stamp = None if _is_static(topic) else stamp_ns
    return _of(
        where, stamp, parent, child, field_of(where, content, "translation"), field_of(where, content, "rotation")
    )


def _pose(topic: Topic, message: Message, ego_frame: str) -> list[Transform]:
    """PoseStamped, and poses that have a covariance or a child's name around them."""
    where, stamp_ns, parent = header_of(message)
    pose = field_of(where, message.content, "pose")
    pose = getattr(pose, "pose", pose)
    child = getattr(message.content, "child_frame_id", "") or ego_frame
    return [
        _of(where, stamp_ns, parent, child, field_of(where, pose, "position"), field_of(where, pose, "orientation"))
    ]


def _is_static(topic: Topic) -> bool:
    return topic.name.endswith("tf_static")


TRANSFORM_TYPES: dict[str, Callable[[Topic, Message, str], list[Transform]]] = {
    "tf2_msgs/msg/TFMessage": _list,
    "tf/msg/tfMessage": _list,
    "geometry_msgs/msg/TransformStamped": _stamped,
    "nav_msgs/msg/Odometry": _pose,
    "geometry_msgs/msg/PoseStamped": _pose,
    "geometry_msgs/msg/PoseWithCovarianceStamped": _pose,
    "foxglove.FrameTransform": _foxglove,
    "foxglove_msgs/msg/FrameTransform": _foxglove,
    "foxglove.FrameTransforms": _foxglove_list,
    "foxglove_msgs/msg/FrameTransforms": _foxglove_list,
    "foxglove.PoseInFrame": _pose,
    "foxglove_msgs/msg/PoseInFrame": _pose,
}
"""Type of messages -> what reads them."""
