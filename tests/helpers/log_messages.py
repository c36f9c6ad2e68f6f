"""Messages of recordings as their readers hand them out: ROS' by way of bytes, Foxglove's as protobuf and JSON."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from data.convert.logs.base import Kind, Message, Topic

STAMP_NS = 1_700_000_000_250_000_000
"""Of messages whose time does not matter."""

_LIVOX = """std_msgs/Header header
uint64 timebase
uint32 point_num
uint8 lidar_id
uint8[3] rsvd
CustomPoint[] points
================================================================================
MSG: livox_ros_driver2/CustomPoint
uint32 offset_time
float32 x
float32 y
float32 z
uint8 reflectivity
uint8 tag
uint8 line
"""


@functools.cache
def typestore() -> Any:
    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg(_LIVOX, "livox_ros_driver2/msg/CustomMsg"))
    return store


def made(type_name: str, /, **fields: Any) -> Any:
    """An object of a ROS type; nested ones are made beforehand."""
    return typestore().types[type_name](**fields)


def stamp(ns: int) -> Any:
    return made("builtin_interfaces/msg/Time", sec=ns // 1_000_000_000, nanosec=ns % 1_000_000_000)


def header(frame: str, ns: int = STAMP_NS) -> Any:
    return made("std_msgs/msg/Header", stamp=stamp(ns), frame_id=frame)


def topic(type_name: str, name: str = "/topic", kind: Kind = "other", encoding: str = "cdr") -> Topic:
    return Topic(name=name, kind=kind, type=type_name, encoding=encoding, count=1, first_ns=STAMP_NS, last_ns=STAMP_NS)


def recorded(content: Any, name: str = "/topic") -> tuple[Topic, Message]:
    """A ROS object after a way through bytes."""
    type_name = content.__msgtype__
    store = typestore()
    content = store.deserialize_cdr(store.serialize_cdr(content, type_name), type_name)
    return topic(type_name, name), Message(topic=name, written_ns=STAMP_NS, content=content)


def ros1(type_name: str, fields: Mapping[str, Any], name: str = "/topic") -> tuple[Topic, Message]:
    """An object of a ROS 1 type after a way through bytes."""
    store = get_typestore(Stores.ROS1_NOETIC)

    def of(kind: str, values: Mapping[str, Any]) -> Any:
        nested = {field: desc for field, desc in store.get_msgdef(kind).fields}
        return store.types[kind](
            **{
                field: of(nested[field][1], value) if isinstance(value, Mapping) else value
                for field, value in values.items()
            }
        )

    content = store.deserialize_ros1(store.serialize_ros1(of(type_name, fields), type_name), type_name)
    return topic(type_name, name, encoding="ros1"), Message(topic=name, written_ns=STAMP_NS, content=content)


def from_json(type_name: str, fields: Mapping[str, Any], name: str = "/topic") -> tuple[Topic, Message]:
    """Foxglove's JSON: bytes are base64, as the schema says."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        if isinstance(value, Mapping):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value

    content = json.loads(json.dumps(plain(fields)), object_hook=lambda entries: SimpleNamespace(**entries))
    return topic(type_name, name, encoding="json"), Message(topic=name, written_ns=STAMP_NS, content=content)


def protobuf(message: Any, name: str = "/topic") -> tuple[Topic, Message]:
    """A protobuf message after a way through bytes."""
    content = type(message)()
    content.ParseFromString(message.SerializeToString())
    type_name = message.DESCRIPTOR.full_name
    return topic(type_name, name, encoding="protobuf"), Message(topic=name, written_ns=STAMP_NS, content=content)


# ---- clouds
_DATATYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}
Field = tuple[str, str, int]
"""Name, numpy's type without byte order, offset."""


def point_cloud2(
    fields: Sequence[Field],
    columns: Mapping[str, Any],
    *,
    stride: int,
    height: int = 1,
    row_padding: int = 0,
    big_endian: bool = False,
    frame: str = "lidar",
    **changed: Any,
) -> tuple[Topic, Message]:
    """A PointCloud2 whose points are the columns; bytes that belong to no field are 0xAA."""
    order = ">" if big_endian else "<"
    count = len(next(iter(columns.values())))
    width = count // height
    rows = np.full((height, width * stride + row_padding), 0xAA, np.uint8)
    for name, kind, offset in fields:
        if name in columns and count:
            values = np.asarray(columns[name]).astype(order + kind).reshape(height, width)
            cells = np.ndarray((height, width), order + kind, rows.data, offset, (rows.shape[1], stride))
            cells[...] = values
    content = {
        "header": header(frame),
        "height": height,
        "width": width,
        "fields": [
            made("sensor_msgs/msg/PointField", name=name, offset=offset, datatype=_DATATYPES[kind], count=1)
            for name, kind, offset in fields
        ],
        "is_bigendian": big_endian,
        "point_step": stride,
        "row_step": rows.shape[1],
        "data": rows.reshape(-1),
        "is_dense": True,
    }
    return recorded(made("sensor_msgs/msg/PointCloud2", **{**content, **changed}), "/points")
