"""Recordings by the libraries' own writers: the same messages in any container."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.PoseInFrame_pb2 import PoseInFrame
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from mcap_protobuf.writer import Writer as ProtobufWriter
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import Writer as Writer2
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

ROS1 = get_typestore(Stores.ROS1_NOETIC)
ROS1.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", "tf2_msgs/msg/TFMessage"))
ROS2 = get_typestore(Stores.ROS2_HUMBLE)

Entry = tuple[str, int, Any]
"""Topic, when it is written, message: an object of `ROS1` or `ROS2`, of protobuf, or JSON behind its schema."""

POSE, IMAGE = "/odom/pose", "/front/image/compressed"
START_NS = 1_700_000_000 * 10**9
STEP_NS = 100_000_000
NUM_POSES, NUM_IMAGES = 60, 12
IMAGE_BYTES = 4000


def ros(store: Any, name: str, /, **fields: Any) -> Any:
    """A message of ROS; `fields` that are not given are its type's zeros."""
    return store.types[name](**fields)


def stamp(store: Any, time_ns: int) -> Any:
    return ros(store, "builtin_interfaces/msg/Time", sec=time_ns // 10**9, nanosec=time_ns % 10**9)


def header(store: Any, time_ns: int, frame: str) -> Any:
    more = {"seq": 0} if store is ROS1 else {}
    return ros(store, "std_msgs/msg/Header", stamp=stamp(store, time_ns), frame_id=frame, **more)


def pose(store: Any, time_ns: int, x: float) -> Any:
    point = ros(store, "geometry_msgs/msg/Point", x=x, y=0.0, z=0.0)
    turn = ros(store, "geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0)
    placed = ros(store, "geometry_msgs/msg/Pose", position=point, orientation=turn)
    return ros(store, "geometry_msgs/msg/PoseStamped", header=header(store, time_ns, "odom"), pose=placed)


def picture(store: Any, time_ns: int, data: bytes) -> Any:
    content = np.frombuffer(data, np.uint8)
    head = header(store, time_ns, "front_optical")
    return ros(store, "sensor_msgs/msg/CompressedImage", header=head, format="jpeg", data=content)


def image_bytes(number: int) -> bytes:
    """Content of the n-th image: no compression makes it small."""
    return np.random.default_rng(number).integers(0, 256, IMAGE_BYTES, dtype=np.uint8).tobytes()


def plan() -> list[tuple[str, int, int]]:
    """Topic, time and number of each message in the order of writing, which is not that of time: images come late."""
    poses = [(POSE, START_NS + n * STEP_NS, n) for n in range(NUM_POSES)]
    images = [(IMAGE, START_NS + n * 5 * STEP_NS + 7, n) for n in range(NUM_IMAGES)]
    return sorted([*poses, *images], key=lambda one: one[1] + (3 * STEP_NS if one[0] == IMAGE else 0))


def ros_entries(store: Any) -> list[Entry]:
    made: dict[str, Callable[[int, int], Any]] = {
        POSE: lambda time_ns, n: pose(store, time_ns, float(n)),
        IMAGE: lambda time_ns, n: picture(store, time_ns, image_bytes(n)),
    }
    return [(topic, time_ns, made[topic](time_ns, n)) for topic, time_ns, n in plan()]


def protobuf_entries() -> list[Entry]:
    made: list[Entry] = []
    for topic, time_ns, n in plan():
        message = PoseInFrame(frame_id="odom") if topic == POSE else CompressedImage(frame_id="front_optical")
        message.timestamp.FromNanoseconds(time_ns)
        if topic == POSE:
            message.pose.position.x = float(n)
        else:
            message.data, message.format = image_bytes(n), "jpeg"
        made.append((topic, time_ns, message))
    return made


def json_entries() -> list[Entry]:
    made: list[Entry] = []
    for topic, time_ns, n in plan():
        stamped = {"timestamp": {"sec": time_ns // 10**9, "nsec": time_ns % 10**9}, "frame_id": "odom"}
        if topic == POSE:
            content = {**stamped, "pose": {"position": {"x": float(n), "y": 0.0, "z": 0.0}}}
            made.append((topic, time_ns, ("foxglove.PoseInFrame", {"type": "object"}, content)))
        else:
            schema = {"type": "object", "properties": {"data": {"type": "string", "contentEncoding": "base64"}}}
            content = {**stamped, "format": "jpeg", "data": base64.b64encode(image_bytes(n)).decode()}
            made.append((topic, time_ns, ("foxglove.CompressedImage", schema, content)))
    return made


def write_ros1(path: Path, entries: Sequence[Entry], compression: str = "", chunk_bytes: int = 16_384) -> Path:
    """A ROS 1 bag."""
    writer = Writer1(path)
    writer.chunk_threshold = chunk_bytes
    if compression:
        writer.set_compression(Writer1.CompressionFormat[compression])
    with writer:
        topics: dict[str, Any] = {}
        for topic, written_ns, message in entries:
            kind = message.__msgtype__
            topics[topic] = topics.get(topic) or writer.add_connection(topic, kind, typestore=ROS1)
            writer.write(topics[topic], written_ns, ROS1.serialize_ros1(message, kind))
    return path


def write_ros2(folder: Path, entries: Sequence[Entry], storage: str = "sqlite3", compression: str = "") -> Path:
    """A ROS 2 bag: a folder of a database or an MCAP file, and metadata.yaml."""
    writer = Writer2(folder, version=9, storage_plugin=StoragePlugin[storage.upper()])
    if compression:
        writer.set_compression(CompressionMode[compression], CompressionFormat.ZSTD)
    with writer:
        topics: dict[str, Any] = {}
        for topic, written_ns, message in entries:
            kind = message.__msgtype__
            topics[topic] = topics.get(topic) or writer.add_connection(topic, kind, typestore=ROS2)
            writer.write(topics[topic], written_ns, ROS2.serialize_cdr(message, kind))
    return folder


def write_protobuf(path: Path, entries: Sequence[Entry]) -> Path:
    """An MCAP file of protobuf messages."""
    with path.open("wb") as file, ProtobufWriter(file, compression=CompressionType.ZSTD, chunk_size=16_384) as writer:
        for topic, written_ns, message in entries:
            writer.write_message(topic, message, log_time=written_ns, publish_time=written_ns)
    return path


def write_json(path: Path, entries: Sequence[Entry], **options: Any) -> Path:
    """An MCAP file of JSON messages; options as of mcap's writer."""
    with path.open("wb") as file:
        writer = McapWriter(file, **{"chunk_size": 16_384, **options})
        writer.start()
        channels: dict[str, int] = {}
        for topic, written_ns, (name, schema, content) in entries:
            if topic not in channels:
                number = writer.register_schema(name, "jsonschema", json.dumps(schema).encode())
                channels[topic] = writer.register_channel(topic, "json", number)
            data = json.dumps(content).encode()
            writer.add_message(channels[topic], log_time=written_ns, publish_time=written_ns, data=data)
        writer.finish()
    return path


def ros_1(compression: str = "") -> Callable[[Path], Path]:
    return lambda folder: write_ros1(folder / "drive.bag", ros_entries(ROS1), compression)


def ros_2(storage: str, compression: str = "") -> Callable[[Path], Path]:
    return lambda folder: write_ros2(folder / "drive", ros_entries(ROS2), storage, compression)


def foxglove_json(**options: Any) -> Callable[[Path], Path]:
    return lambda folder: write_json(folder / "drive.mcap", json_entries(), **options)


FORMATS: dict[str, Callable[[Path], Path]] = {
    "ros1": ros_1(),
    "ros1-bz2": ros_1("BZ2"),
    "ros1-lz4": ros_1("LZ4"),
    "ros2-sqlite3": ros_2("sqlite3"),
    "ros2-sqlite3-messages": ros_2("sqlite3", "MESSAGE"),
    "ros2-mcap": ros_2("mcap"),
    "ros2-mcap-messages": ros_2("mcap", "MESSAGE"),
    "ros2-mcap-chunks": ros_2("mcap", "STORAGE"),
    "protobuf": lambda folder: write_protobuf(folder / "drive.mcap", protobuf_entries()),
    "json": foxglove_json(compression=CompressionType.LZ4),
    "json-plain": foxglove_json(compression=CompressionType.NONE),
    "json-no-chunks": foxglove_json(use_chunking=False),
    "json-no-index": foxglove_json(index_types=IndexType.NONE, use_statistics=False),
    "json-no-repeats": foxglove_json(repeat_channels=False, repeat_schemas=False),
}
"""Container -> what writes `plan` in it, into a folder."""
