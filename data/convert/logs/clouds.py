"""Messages of LiDARs as clouds: ROS' PointCloud2 in any layout, Livox' own messages, Foxglove's PointCloud."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from common.printable import listed
from data.convert.logs.base import Cloud, Message, Topic
from data.convert.logs.fields import bytes_of, field_of, header_of, pose_of, reader_of, whole
from data.convert.logs.point_fields import USED, Columns, PointLayout, cloud_of
from data.storage.damage import DamagedError

_ROS_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""sensor_msgs/PointField.datatype -> numpy's."""
_FOXGLOVE_TYPES = {1: "u1", 2: "i1", 3: "u2", 4: "i2", 5: "u4", 6: "i4", 7: "f4", 8: "f8"}
"""foxglove.PackedElementField.type -> numpy's: signed and unsigned are the other way round."""
_MOST_POINTS = 50_000_000
"""Of a message: far above any sensor's."""


def read_cloud(topic: Topic, message: Message, *, times: bool = True) -> Cloud:
    """A message of a LiDAR as a cloud, in the frame that its header names.

    Args:
        topic: of the message.
        message: of one of `CLOUD_TYPES`.
        times: whether times of points are read; where the sensor's clock has nothing to do with the stamps, without.

    Raises:
        DamagedError: another type; fields and data do not fit each other; a field that cannot be read.
    """
    return describe_cloud(topic, message, times=times)[0]


def describe_cloud(topic: Topic, message: Message, *, times: bool = True) -> tuple[Cloud, PointLayout]:
    """The same, and how the fields of its points were read, for a human to check."""
    return reader_of(topic, CLOUD_TYPES, "clouds")(message, times)


def packed_columns(
    where: str,
    data: UInt8[np.ndarray, " n"],
    fields: Mapping[str, tuple[int, str]],
    *,
    stride: int,
    width: int,
    height: int = 1,
    row_stride: int = 0,
) -> Columns:
    """Fields of points that lie in a buffer, one point after the other, as arrays of their own.

    Args:
        where: for messages.
        data: the buffer.
        fields: name -> its offset in a point, and numpy's type with the byte order.
        stride: bytes of a point.
        width: points of a row.
        height: rows.
        row_stride: bytes of a row; not looked at where there is one row, for which some drivers write anything.

    Raises:
        DamagedError: a field reaches beyond a point, or the points beyond the buffer.
    """
    for name, (offset, kind) in fields.items():
        end = offset + np.dtype(kind).itemsize
        if offset < 0 or end > stride:
            raise DamagedError("array-broken", f"{where}: {name} reaches to byte {end} of points of {stride} bytes")
    if width < 0 or height < 0 or width * height > _MOST_POINTS:
        raise DamagedError("too-large", f"{where}: {height} rows of {width} points")
    if width == 0 or height == 0:
        return {name: np.empty(0, kind) for name, (_, kind) in fields.items()}
    row_stride = stride * width if height == 1 else row_stride
    if row_stride < stride * width:
        detail = f"{where}: rows of {row_stride} bytes, but {width} points of {stride} bytes are {stride * width}"
        raise DamagedError("array-broken", detail)
    needed = row_stride * (height - 1) + stride * width
    if len(data) < needed:
        detail = f"{where}: {len(data)} bytes of data, {height} rows of {width} points need {needed}"
        raise DamagedError("array-broken", detail)
    return {
        name: np.ndarray((height, width), kind, data[offset:], strides=(row_stride, stride)).reshape(-1)
        for name, (offset, kind) in fields.items()
    }


# ---- ROS
def _point_cloud2(message: Message, times: bool) -> tuple[Cloud, PointLayout]:
    where, stamp_ns, frame = header_of(message)
    content = message.content
    order = ">" if field_of(where, content, "is_bigendian") else "<"
    fields: dict[str, tuple[int, str]] = {}
    entries = list(field_of(where, content, "fields"))
    for entry in entries:
        name = str(field_of(where, entry, "name"))
        if name not in USED:
            continue
        if name in fields:
            raise DamagedError("array-broken", f"{where} has two fields {name}")
        datatype, count = whole(where, entry, "datatype"), whole(where, entry, "count")
        if datatype not in _ROS_TYPES:
            detail = f"{where}: {name} has the datatype {datatype}, expected 1 (int8) to 8 (float64)"
            raise DamagedError("array-broken", detail)
        if count > 1:  # some drivers leave it 0 for one
            raise DamagedError("array-broken", f"{where}: {name} holds {count} numbers a point, expected one")
        fields[name] = (whole(where, entry, "offset"), order + _ROS_TYPES[datatype])
    if not {"x", "y", "z"} <= set(fields):
        held = listed([str(field_of(where, entry, "name")) for entry in entries], 12)
        raise DamagedError("array-broken", f"{where} has no fields x, y, z; it has {held or 'none'}")
    columns = packed_columns(
        where,
        bytes_of(where, field_of(where, content, "data")),
        fields,
        stride=whole(where, content, "point_step"),
        width=whole(where, content, "width"),
        height=whole(where, content, "height"),
        row_stride=whole(where, content, "row_step"),
    )
    # Whether `is_dense` holds is looked at point by point: drivers set it for clouds with NaN.
    return cloud_of(where, columns, stamp_ns=stamp_ns, frame=frame, times=times)


_LIVOX = {
    "x": np.float32,
    "y": np.float32,
    "z": np.float32,
    "reflectivity": np.uint8,
    "line": np.uint8,
    "tag": np.uint8,
    "offset_time": np.uint32,
}
"""Fields of livox_ros_driver's CustomPoint."""


def _livox(message: Message, times: bool) -> tuple[Cloud, PointLayout]:
    """Times are from `timebase` on, which is the first point's; the header's stamp may be another one."""
    where, stamp_ns, frame = header_of(message)
    points = list(field_of(where, message.content, "points"))
    stated = whole(where, message.content, "point_num")
    if stated != len(points):
        raise DamagedError("array-broken", f"{where}: {len(points)} points, point_num is {stated}")
    if points:
        field_of(f"{where}, a point", points[0], "offset_time")
    columns: dict[str, Any] = {
        name: np.fromiter((getattr(point, name) for point in points), kind, len(points))
        for name, kind in _LIVOX.items()
    }
    base_ns = whole(where, message.content, "timebase")
    columns["offset_time"] = columns["offset_time"].astype(np.int64) + base_ns
    return cloud_of(where, columns, stamp_ns=stamp_ns, frame=frame, times=times)


# ---- Foxglove
def _foxglove(message: Message, times: bool) -> tuple[Cloud, PointLayout]:
    where, stamp_ns, frame = header_of(message)
    content = message.content
    fields: dict[str, tuple[int, str]] = {}
    for entry in field_of(where, content, "fields"):
        name, kind = str(field_of(where, entry, "name")), whole(where, entry, "type")
        if name not in USED:
            continue
        if kind not in _FOXGLOVE_TYPES:
            raise DamagedError(
                "array-broken", f"{where}: {name} has the type {kind}, expected 1 (uint8) to 8 (float64)"
            )
        fields[name] = (whole(where, entry, "offset"), f"<{_FOXGLOVE_TYPES[kind]}")
    data, stride = bytes_of(where, field_of(where, content, "data")), whole(where, content, "point_stride")
    if stride < 1 or len(data) % stride:
        raise DamagedError("array-broken", f"{where}: {len(data)} bytes of data are no whole points of {stride} bytes")
    columns = packed_columns(where, data, fields, stride=stride, width=len(data) // stride)
    T = _pose(where, getattr(content, "pose", None))
    return cloud_of(where, columns, stamp_ns=stamp_ns, frame=frame, times=times, T_frame_points=T)


def _pose(where: str, pose: Any) -> Float[np.ndarray, "4 4"] | None:
    """Where the points' origin is in the frame; a pose that was left out is absent, or zeros in protobuf."""
    if pose is None:
        return None
    position, orientation = field_of(where, pose, "position"), field_of(where, pose, "orientation")
    if not any(getattr(part, axis, 0) for part in (position, orientation) for axis in "xyzw"):
        return None
    return pose_of(f"{where}: pose", position, orientation)


CLOUD_TYPES: dict[str, Callable[[Message, bool], tuple[Cloud, PointLayout]]] = {
    "sensor_msgs/msg/PointCloud2": _point_cloud2,
    "livox_ros_driver/msg/CustomMsg": _livox,
    "livox_ros_driver2/msg/CustomMsg": _livox,
    "livox_interfaces/msg/CustomMsg": _livox,
    "foxglove.PointCloud": _foxglove,
    "foxglove_msgs/msg/PointCloud": _foxglove,
}
"""Type of messages -> what reads them."""
