"""Recordings as robots write them, by the libraries' own writers: ROS 1 bags, ROS 2 bags, MCAP with protobuf.

What is recorded is said once, as `Entry`s, and written in each format from them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.FrameTransform_pb2 import FrameTransform
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
from mcap_protobuf.writer import Writer as ProtobufWriter
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Rosbag2Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scipy.spatial.transform import Rotation

from data.sample import Sample

_TF = "geometry_msgs/TransformStamped[] transforms"
_NS = 1_000_000_000
WRITTEN_AFTER_NS = {"cloud": 60_000_000, **dict.fromkeys(("jpeg", "png", "h264", "info"), 25_000_000)}
"""Kind -> how long after its stamp it is written; 2 ms for anything else: a sweep is ready when the turn is over."""
CLOUD_FIELDS = ("x", "y", "z", "intensity")


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One message.

    Attributes:
        topic: its topic.
        kind: "cloud": value is name -> column; "jpeg", "png", "h264": bytes; "info": K, size, distortion model and
            coefficients; "transforms": triples of parent, child, 4x4; "odometry": one such triple.
        stamp_ns: of the header.
        written_ns: when it was written.
        frame: of the header.
        value: see `kind`.
    """

    topic: str
    kind: str
    stamp_ns: int
    written_ns: int
    frame: str
    value: Any

    @staticmethod
    def of(topic: str, kind: str, stamp_ns: int, frame: str, value: Any) -> Entry:
        written_ns = stamp_ns + WRITTEN_AFTER_NS.get(kind, 2_000_000)
        return Entry(topic=topic, kind=kind, stamp_ns=stamp_ns, written_ns=written_ns, frame=frame, value=value)


# ---- what is recorded
def entries_of(
    samples: Sequence[Sample],
    *,
    poses: str = "odometry",
    between_ns: Sequence[int] = (),
    pose_at: Callable[[int], Any] | None = None,
    jpeg: Mapping[tuple[str, str], bytes] | None = None,
    point_times: Mapping[str, Any] | None = None,
) -> list[Entry]:
    """The recording of which a log's samples would be made.

    Args:
        samples: of one log.
        poses: "odometry": of the vehicle at each sweep's and image's time, and static transforms; "transforms": the
            same as transforms from odom to base_link.
        between_ns: further times at which the pose is written.
        pose_at: the pose at these.
        jpeg: (sample's key, camera) -> the image's bytes; else images are PNGs, which lose nothing.
        point_times: sample's key -> seconds of each point from the sweep's stamp.
    """
    first = samples[0]
    start_ns = min(time for time, _ in _poses(samples)) - 20_000_000
    static = [("base_link", "lidar", first.T_ego_lidar)]
    static += [("base_link", f"{view.name}_optical", np.linalg.inv(view.T_cam_ego)) for view in first.cameras]
    entries = [Entry.of("/tf_static", "transforms", start_ns, "", static)]
    more = [(time, pose_at(time)) for time in between_ns] if pose_at else []
    for time_ns, T in [*_poses(samples), *more]:
        moving = ("odom", "base_link", T)
        if poses == "odometry":
            entries.append(Entry.of("/odometry", "odometry", time_ns, "odom", moving))
        else:
            entries.append(Entry.of("/tf", "transforms", time_ns, "", [moving]))
    for sample in samples:
        columns = {name: sample.points_lidar[:, number] for number, name in enumerate("xyz")}
        columns["intensity"] = sample.intensity
        if point_times is not None:
            columns["time"] = np.asarray(point_times[sample.key])
        entries.append(Entry.of("/lidar/points", "cloud", sample.timestamp_us * 1000, "lidar", columns))
        for view in sample.cameras:
            entries += image_entries(sample, view.name, (jpeg or {}).get((sample.key, view.name)))
    return in_order(entries)


def image_entries(sample: Sample, camera: str, jpeg: bytes | None = None) -> list[Entry]:
    """A camera's image and its calibration."""
    view = next(view for view in sample.cameras if view.name == camera)
    assert view.image is not None
    stamp, frame, base = view.timestamp_us * 1000, f"{camera}_optical", f"/{camera}"
    png = cv2.imencode(".png", view.image[..., ::-1])[1].tobytes()
    return [
        Entry.of(f"{base}/image/compressed", "png" if jpeg is None else "jpeg", stamp, frame, jpeg or png),
        Entry.of(f"{base}/camera_info", "info", stamp, frame, (view.K, view.image_size, "plumb_bob", (0.0,) * 5)),
    ]


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """By the time of writing, as a recorder gets them."""
    return sorted(entries, key=lambda entry: entry.written_ns)


def _poses(samples: Sequence[Sample]) -> list[tuple[int, Any]]:
    found = {sample.timestamp_us * 1000: sample.T_world_ego for sample in samples}
    for sample in samples:
        found |= {view.timestamp_us * 1000: view.T_world_ego for view in sample.cameras}
    return sorted(found.items(), key=lambda item: item[0])


# ---- ROS
@functools.cache
def typestore(ros: int) -> Any:
    store = get_typestore(Stores.ROS1_NOETIC if ros == 1 else Stores.ROS2_HUMBLE)
    if ros == 1:
        store.register(get_types_from_msg(_TF, "tf2_msgs/msg/TFMessage"))
    return store


class Ros:
    """Entries as objects of ROS' types."""

    TYPES: ClassVar[dict[str, str]] = {
        "cloud": "sensor_msgs/msg/PointCloud2",
        "jpeg": "sensor_msgs/msg/CompressedImage",
        "png": "sensor_msgs/msg/CompressedImage",
        "h264": "sensor_msgs/msg/CompressedImage",
        "info": "sensor_msgs/msg/CameraInfo",
        "transforms": "tf2_msgs/msg/TFMessage",
        "odometry": "nav_msgs/msg/Odometry",
    }

    def __init__(self, ros: int) -> None:
        self._ros, self.store = ros, typestore(ros)

    def made(self, name: str, /, **fields: Any) -> Any:
        return self.store.types[name](**fields)

    def bytes_of(self, entry: Entry) -> bytes:
        message, name = getattr(self, f"_{entry.kind}")(entry), self.TYPES[entry.kind]
        serialize = self.store.serialize_ros1 if self._ros == 1 else self.store.serialize_cdr
        return bytes(serialize(message, name))

    def _header(self, stamp_ns: int, frame: str) -> Any:
        stamp = self.made("builtin_interfaces/msg/Time", sec=stamp_ns // _NS, nanosec=stamp_ns % _NS)
        more = {"seq": 0} if self._ros == 1 else {}
        return self.made("std_msgs/msg/Header", stamp=stamp, frame_id=frame, **more)

    def _cloud(self, entry: Entry) -> Any:
        rows = packed(entry.value)
        fields = [
            self.made("sensor_msgs/msg/PointField", name=name, offset=4 * number, datatype=7, count=1)
            for number, name in enumerate(entry.value)
        ]
        return self.made(
            self.TYPES["cloud"],
            header=self._header(entry.stamp_ns, entry.frame),
            height=1,
            width=len(rows),
            fields=fields,
            is_bigendian=False,
            point_step=4 * len(fields),
            row_step=rows.nbytes,
            data=np.frombuffer(rows.tobytes(), np.uint8),
            is_dense=True,
        )

    def _jpeg(self, entry: Entry) -> Any:
        return self._image(entry, "jpeg")

    def _png(self, entry: Entry) -> Any:
        return self._image(entry, "png")

    def _h264(self, entry: Entry) -> Any:
        return self._image(entry, "h264")

    def _image(self, entry: Entry, how: str) -> Any:
        header = self._header(entry.stamp_ns, entry.frame)
        return self.made(self.TYPES["jpeg"], header=header, format=how, data=np.frombuffer(entry.value, np.uint8))

    def _info(self, entry: Entry) -> Any:
        K, size, model, distortion = entry.value
        P = np.pad(K, ((0, 0), (0, 1)))
        matrices = {"d": np.array(distortion), "k": K.reshape(-1), "r": np.eye(3).reshape(-1), "p": P.reshape(-1)}
        names = {name.upper() if self._ros == 1 else name: value for name, value in matrices.items()}
        roi = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
        return self.made(
            self.TYPES["info"],
            header=self._header(entry.stamp_ns, entry.frame),
            height=size[0],
            width=size[1],
            distortion_model=model,
            binning_x=0,
            binning_y=0,
            roi=self.made("sensor_msgs/msg/RegionOfInterest", **roi),
            **names,
        )

    def _transforms(self, entry: Entry) -> Any:
        stated = []
        for parent, child, T in entry.value:
            position, quaternion = position_of(T), quaternion_of(T)
            transform = self.made(
                "geometry_msgs/msg/Transform",
                translation=self.made("geometry_msgs/msg/Vector3", **position),
                rotation=self.made("geometry_msgs/msg/Quaternion", **quaternion),
            )
            header = self._header(entry.stamp_ns, parent)
            stated.append(
                self.made(
                    "geometry_msgs/msg/TransformStamped", header=header, child_frame_id=child, transform=transform
                )
            )
        return self.made(self.TYPES["transforms"], transforms=stated)

    def _odometry(self, entry: Entry) -> Any:
        parent, child, T = entry.value
        pose = self.made(
            "geometry_msgs/msg/Pose",
            position=self.made("geometry_msgs/msg/Point", **position_of(T)),
            orientation=self.made("geometry_msgs/msg/Quaternion", **quaternion_of(T)),
        )
        still = self.made("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
        covariance = np.zeros(36)
        twist = self.made("geometry_msgs/msg/Twist", linear=still, angular=still)
        return self.made(
            self.TYPES["odometry"],
            header=self._header(entry.stamp_ns, parent),
            child_frame_id=child,
            pose=self.made("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=covariance),
            twist=self.made("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=covariance),
        )


class Raw(NamedTuple):
    """A message as a recorder of ROS gets it.

    Attributes:
        topic: its topic.
        type: of ROS, such as sensor_msgs/msg/Image.
        written_ns: when it is written.
        data: its bytes.
    """

    topic: str
    type: str
    written_ns: int
    data: bytes


def raw_of(ros: int, entries: Iterable[Entry]) -> Iterator[Raw]:
    """Messages of ROS 1 or 2, one by one."""
    made = Ros(ros)
    for entry in entries:
        yield Raw(entry.topic, made.TYPES[entry.kind], entry.written_ns, made.bytes_of(entry))


def write_ros1(path: Path, entries: Iterable[Entry]) -> Path:
    """A .bag."""
    return write_raw_ros1(path, raw_of(1, entries))


def write_ros2(path: Path, entries: Iterable[Entry], storage: str = "sqlite3") -> Path:
    """A bag's folder, of "sqlite3" or "mcap"."""
    return write_raw_ros2(path, raw_of(2, entries), storage)


def write_raw_ros1(path: Path, messages: Iterable[Raw]) -> Path:
    """A .bag of what `raw_of(1, ...)` gives."""
    with Rosbag1Writer(path) as writer:
        _write_raw(writer, 1, messages)
    return path


def write_raw_ros2(path: Path, messages: Iterable[Raw], storage: str = "sqlite3") -> Path:
    """A bag's folder of what `raw_of(2, ...)` gives."""
    plugin = StoragePlugin.SQLITE3 if storage == "sqlite3" else StoragePlugin.MCAP
    with Rosbag2Writer(path, version=9, storage_plugin=plugin) as writer:
        _write_raw(writer, 2, messages)
    return path


def _write_raw(writer: Any, ros: int, messages: Iterable[Raw]) -> None:
    connections: dict[str, Any] = {}
    for message in messages:
        if message.topic not in connections:
            added = writer.add_connection(message.topic, message.type, typestore=typestore(ros))
            connections[message.topic] = added
        writer.write(connections[message.topic], message.written_ns, message.data)


# ---- MCAP with Foxglove's protobuf
def write_mcap(path: Path, entries: Iterable[Entry], **options: Any) -> Path:
    """An .mcap; odometry, for which Foxglove has no message with a child frame, becomes a transform."""
    with path.open("wb") as file, ProtobufWriter(file, **options) as writer:
        for entry in entries:
            topic = "/tf" if entry.kind == "odometry" else entry.topic
            message = _FOXGLOVE[entry.kind](entry)
            writer.write_message(topic, message, log_time=entry.written_ns, publish_time=entry.stamp_ns)
    return path


def _foxglove_cloud(entry: Entry) -> Any:
    rows = packed(entry.value)
    message = PointCloud(frame_id=entry.frame, point_stride=4 * len(entry.value), data=rows.tobytes())
    message.timestamp.FromNanoseconds(entry.stamp_ns)
    message.pose.orientation.w = 1.0
    for number, name in enumerate(entry.value):
        message.fields.add(name=name, offset=4 * number, type=7)
    return message


def _foxglove_image(entry: Entry) -> Any:
    message = CompressedImage(frame_id=entry.frame, data=entry.value, format=entry.kind)
    message.timestamp.FromNanoseconds(entry.stamp_ns)
    return message


def _foxglove_info(entry: Entry) -> Any:
    K, size, model, distortion = entry.value
    message = CameraCalibration(frame_id=entry.frame, height=size[0], width=size[1], distortion_model=model)
    message.timestamp.FromNanoseconds(entry.stamp_ns)
    message.D.extend(distortion)
    message.K.extend(K.reshape(-1).tolist())
    message.R.extend(np.eye(3).reshape(-1).tolist())
    message.P.extend(np.pad(K, ((0, 0), (0, 1))).reshape(-1).tolist())
    return message


def _foxglove_transforms(entry: Entry) -> Any:
    stated = [entry.value] if entry.kind == "odometry" else entry.value
    message = FrameTransforms()
    for parent, child, T in stated:
        one = FrameTransform(parent_frame_id=parent, child_frame_id=child)
        one.timestamp.FromNanoseconds(entry.stamp_ns)
        for name, value in position_of(T).items():
            setattr(one.translation, name, value)
        for name, value in quaternion_of(T).items():
            setattr(one.rotation, name, value)
        message.transforms.append(one)
    return message


_FOXGLOVE: dict[str, Callable[[Entry], Any]] = {
    "cloud": _foxglove_cloud,
    "jpeg": _foxglove_image,
    "png": _foxglove_image,
    "info": _foxglove_info,
    "transforms": _foxglove_transforms,
    "odometry": _foxglove_transforms,
}

WRITERS: dict[str, Callable[[Path, Sequence[Entry]], Path]] = {
    "ros1": lambda folder, entries: write_ros1(folder / "street.bag", entries),
    "ros2-sqlite3": lambda folder, entries: write_ros2(folder / "street", entries),
    "ros2-mcap": lambda folder, entries: write_ros2(folder / "street", entries, "mcap"),
    "mcap-protobuf": lambda folder, entries: write_mcap(folder / "street.mcap", entries),
}
"""Format -> what writes a recording named "street" into a folder."""


# ---- numbers
def packed(columns: Mapping[str, Any]) -> Any:
    return np.stack([np.asarray(column, dtype="<f4") for column in columns.values()], axis=1)


def position_of(T: Any) -> dict[str, float]:
    return dict(zip("xyz", T[:3, 3].tolist(), strict=True))


def quaternion_of(T: Any) -> dict[str, float]:
    return dict(zip("xyzw", Rotation.from_matrix(T[:3, :3]).as_quat().tolist(), strict=True))


def changed(entry: Entry, **fields: Any) -> Entry:
    return dataclasses.replace(entry, **fields)
