"""Bytes of messages by their definitions: what is read, and what is said of the rest."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from google.protobuf import descriptor_pb2

from data.convert.logs.contents import Definition, UndefinedError, decoder
from data.convert.logs.kinds import kind_of, ros_type
from tests.helpers.log_files import ROS2, pose


def definition(type_name: str, encoding: str, language: str = "", text: bytes = b"") -> Definition:
    return Definition(type=type_name, encoding=encoding, language=language, text=text)


def test_ros_2_databases_need_no_definitions() -> None:
    data = bytes(ROS2.serialize_cdr(pose(ROS2, 5 * 10**9 + 7, 1.5), "geometry_msgs/msg/PoseStamped"))
    read = decoder(definition("geometry_msgs/msg/PoseStamped", "cdr"))(data)
    assert (read.pose.position.x, read.header.stamp.nanosec, read.header.frame_id) == (1.5, 7, "odom")


def test_livox_own_messages_need_no_definitions() -> None:
    head = b"\0\1\0\0" + struct.pack("<iI", 3, 4) + struct.pack("<I", 6) + b"livox\0" + bytes(6)
    body = struct.pack("<QIB3x", 17, 1, 2) + struct.pack("<I", 1) + struct.pack("<Ifff3B", 9, 1.0, 2.0, 3.0, 40, 5, 6)
    read = decoder(definition("livox_ros_driver2/msg/CustomMsg", "cdr"))(head + body)
    assert (read.header.frame_id, read.timebase, read.point_num, len(read.points)) == ("livox", 17, 1, 1)
    point = read.points[0]
    assert (point.offset_time, point.x, point.z, point.reflectivity, point.line) == (9, 1.0, 3.0, 40, 6)


def test_definitions_in_idl_are_read() -> None:
    text = f"""{"=" * 80}
IDL: robot_msgs/msg/Speed
module robot_msgs {{ module msg {{ struct Speed {{ double metres_per_second; sequence<float> wheels; }}; }}; }};
"""
    read = decoder(definition("robot_msgs/msg/Speed", "cdr", "ros2idl", text.encode()))
    found = read(b"\0\1\0\0" + struct.pack("<dIff", 2.5, 2, 1.0, 3.0))
    assert found.metres_per_second == 2.5
    np.testing.assert_array_equal(found.wheels, np.array([1, 3], np.float32))


def test_files_of_protobuf_come_in_any_order() -> None:
    made = descriptor_pb2.FileDescriptorSet()
    for number in range(200):  # each imports the next one: deeper than any recursion should go
        file = made.file.add(name=f"{number}.proto", package="robot", syntax="proto3")
        if number < 199:
            file.dependency.append(f"{number + 1}.proto")
        field = file.message_type.add(name=f"M{number}").field.add(name="value", number=1)
        field.type, field.label = field.TYPE_INT32, field.LABEL_OPTIONAL
    read = decoder(definition("robot.M0", "protobuf", "protobuf", made.SerializeToString()))
    assert read(b"\x08\x2a").value == 42


def test_base64_of_json_becomes_bytes_where_the_schema_says_so() -> None:
    schema = b'{"properties": {"scan": {"properties": {"raw": {"type": "string", "contentEncoding": "base64"}}}}}'
    read = decoder(definition("robot.Scan", "json", "jsonschema", schema))
    found = read(b'{"name": "QUJD", "scan": {"raw": "QUJD", "data": "QUJD"}}')
    assert (found.name, found.scan.raw, found.scan.data) == ("QUJD", b"ABC", "QUJD")
    cloud = decoder(definition("foxglove.PointCloud", "json"))(b'{"data": "QUJD", "fields": [{"name": "x"}]}')
    assert (cloud.data, cloud.fields[0].name) == (b"ABC", "x")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            definition("robot_msgs/msg/Speed", "cdr"),
            "type robot_msgs/msg/Speed: the recording holds no definition of it",
        ),
        (
            definition("robot_msgs/msg/Speed", "ros1", "ros1msg", b"metres of/speed x x"),
            "its definition cannot be read",
        ),
        (definition("a/msg/B", "cdr", "ros2msg", b"c/D d"), "its definition cannot be read"),
        (definition("robot.Speed", "protobuf", "protobuf", b"\xff\xff"), "its definition cannot be read"),
        (definition("robot.Speed", "protobuf", "protobuf", b""), "its definition cannot be read"),
        (definition("robot.Speed", "json", "jsonschema", b"{"), "its schema is no JSON"),
        (definition("foxglove.Grid", "flatbuffer", "flatbuffer"), "ros1, cdr, protobuf and json are read"),
        (definition("robot.Speed", "protobuf", "ros1msg"), "a definition in 'ros1msg'"),
    ],
    ids=["absent", "no-message", "unknown-part", "no-set", "not-in-set", "no-json", "flatbuffer", "crossed"],
)
def test_types_that_cannot_be_read_are_named(given: Definition, said: str) -> None:
    with pytest.raises(UndefinedError) as refused:
        decoder(given)
    assert said in str(refused.value)
    assert given.type in str(refused.value)


def test_a_name_of_a_type_never_becomes_code() -> None:
    name = "a/msg/B:\n    pass\nraise SystemExit(3)\nclass C"
    with pytest.raises(UndefinedError, match="is no name of a ROS type"):
        decoder(definition(name, "cdr", "ros2msg", b"int32 x"))


@pytest.mark.parametrize(
    ("name", "spelt", "kind"),
    [
        ("sensor_msgs/PointCloud2", "sensor_msgs/msg/PointCloud2", "lidar"),
        ("sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/PointCloud2", "lidar"),
        ("livox_ros_driver2/CustomMsg", "livox_ros_driver2/msg/CustomMsg", "lidar"),
        ("foxglove_msgs/msg/CompressedVideo", "foxglove_msgs/msg/CompressedVideo", "camera"),
        ("tf/tfMessage", "tf/msg/tfMessage", "transforms"),
        ("sensor_msgs/Imu", "sensor_msgs/msg/Imu", "other"),
    ],
    ids=["ros1", "ros2", "livox", "foxglove", "tf", "imu"],
)
def test_types_have_one_spelling_and_a_kind(name: str, spelt: str, kind: str) -> None:
    assert ros_type(name) == spelt
    assert kind_of(spelt) == kind


def test_kinds_of_foxglove() -> None:
    names = ("PointCloud", "RawImage", "CameraCalibration", "FrameTransforms", "PoseInFrame", "SceneUpdate")
    kinds = ["lidar", "camera", "camera_info", "transforms", "odometry", "other"]
    assert [kind_of(f"foxglove.{name}") for name in names] == kinds
    assert kind_of("mine.PointCloud") == "other"
    assert ros_type("foxglove.PointCloud") is None
