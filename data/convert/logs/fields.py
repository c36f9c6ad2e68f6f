"""Fields of messages, whoever wrote them: the same type looks different in ROS 1, ROS 2, protobuf and JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from common.printable import listed
from data.convert.logs.base import Message, Topic
from data.convert.poses import pose
from data.storage.damage import DamagedError

_STAMPS = (("sec", "nanosec"), ("seconds", "nanos"), ("sec", "nsec"), ("secs", "nsecs"))
"""Names of a time's whole seconds and the nanoseconds beyond them: ROS 2, protobuf, JSON, ROS 1."""

_NS = 1_000_000_000

Reader = TypeVar("Reader")


def reader_of(topic: Topic, readers: Mapping[str, Reader], what: str) -> Reader:
    """What reads a topic's type of messages.

    Raises:
        DamagedError: nothing does; names the types that are read as `what`.
    """
    if topic.type not in readers:
        known = ", ".join(sorted(readers))
        detail = f"{topic.name} holds {topic.type or 'messages of no type'}, expected {what}: one of {known}"
        raise DamagedError("meta-broken", detail)
    return readers[topic.type]


def field_of(where: str, content: Any, *names: str) -> Any:
    """The field of the first of these names that a message has (ROS 1 writes K where ROS 2 writes k).

    Raises:
        DamagedError: it has none of them.
    """
    for name in names:
        if hasattr(content, name):
            return getattr(content, name)
    raise DamagedError(
        "meta-broken", f"{where}: no field {' or '.join(names)}; it has {listed(_held(content)) or 'none'}"
    )


def _held(content: Any) -> list[str]:
    descriptor = getattr(content, "DESCRIPTOR", None)  # protobuf's
    names = getattr(content, "__dict__", {}) if descriptor is None else descriptor.fields_by_name
    return [name for name in names if not name.startswith("_")]


def whole(where: str, content: Any, name: str) -> int:
    """A field that is a whole number.

    Raises:
        DamagedError: it is missing or none.
    """
    value = field_of(where, content, name)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise DamagedError("meta-broken", f"{where}: {name} is {value!r:.80}, expected a whole number")
    return int(value)


def stamp_of(where: str, stamp: Any) -> int:
    """Nanoseconds since 1970 of a stamp's seconds and nanoseconds.

    Raises:
        DamagedError: it has neither of the pairs of fields that stamps have.
    """
    for seconds, rest in _STAMPS:
        if hasattr(stamp, seconds) and hasattr(stamp, rest):
            return whole(where, stamp, seconds) * _NS + whole(where, stamp, rest)
    raise DamagedError("meta-broken", f"{where}: the stamp {stamp!r:.80} has no seconds and nanoseconds")


def frame_name(name: Any) -> str:
    """A frame's name; tf's first version wrote "/map" for what is "map" today."""
    return str(name).removeprefix("/")


def header_of(message: Message) -> tuple[str, int, str]:
    """Where to say a message is, its own stamp in nanoseconds, and its frame: of a header, or fields of their own.

    Raises:
        DamagedError: it has neither.
    """
    where, content = f"{message.topic}, written at {message.written_ns} ns", message.content
    if hasattr(content, "header"):
        stamp, frame = field_of(where, content.header, "stamp"), field_of(where, content.header, "frame_id")
    else:
        stamp, frame = field_of(where, content, "timestamp"), getattr(content, "frame_id", "")
    stamp_ns = stamp_of(where, stamp)
    return f"{message.topic} at {stamp_ns} ns", stamp_ns, frame_name(frame)


def bytes_of(where: str, data: Any) -> UInt8[np.ndarray, " n"]:
    """A field of bytes: numpy's, Python's, a list of numbers, or base64 as JSON has them; not copied where it need not.

    Raises:
        DamagedError: it is none.
    """
    try:
        if isinstance(data, np.ndarray):
            if data.dtype.itemsize != 1:
                raise ValueError(f"numbers of {data.dtype.itemsize} bytes")
            return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if isinstance(data, str):
            data = base64.b64decode(data, validate=True)
        return np.frombuffer(data if isinstance(data, bytes | bytearray | memoryview) else bytes(data), np.uint8)
    except (TypeError, ValueError, binascii.Error) as error:
        raise DamagedError("array-broken", f"{where}: data is no field of bytes ({error})") from error


def numbers_in(where: str, name: str, values: Any) -> Float[np.ndarray, " n"]:
    """A field of numbers.

    Raises:
        DamagedError: it holds something else, or what is not finite.
    """
    try:
        array = np.array(list(values), dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise DamagedError("meta-broken", f"{where}: {name}: {error}") from error
    if not np.isfinite(array).all():
        raise DamagedError(
            "calibration-singular", f"{where}: {name} is {array.tolist()!s:.200}, expected finite numbers"
        )
    return array


def pose_of(where: str, position: Any, orientation: Any) -> Float[np.ndarray, "4 4"]:
    """The transform of a position and a quaternion with the fields x, y, z (, w).

    Raises:
        DamagedError: a field is missing or not finite, or the quaternion has not length 1.
    """
    quaternion = [field_of(f"{where}, orientation", orientation, axis) for axis in "wxyz"]
    return pose(where, quaternion, [field_of(f"{where}, position", position, axis) for axis in "xyz"])
