"""Recordings of robots and vehicles (ROS bags, MCAP): what any of them holds, whatever library reads it.

Three steps, each a module of its own and known to the others by these types alone: a `Recording` gives messages as they
were written; `decode` makes sweeps, pictures, calibrations and poses of them; the converter pairs those by time.

Times are nanoseconds of the recording's own clock since 1970. Poses map from the child frame to the parent frame,
metres, right-handed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Int, Int64, UInt8

Kind = Literal["lidar", "camera", "camera_info", "transforms", "odometry", "other"]


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One stream of messages.

    Attributes:
        name: of the topic, e.g. "/lidar_top/points".
        kind: what it is for, by its type.
        type: of its messages, in ROS 2's spelling ("sensor_msgs/msg/PointCloud2") or a schema's full name
            ("foxglove.PointCloud").
        encoding: of their bytes: "ros1", "cdr", "protobuf", "json".
        count: messages, as the index says or as were read.
        first_ns, last_ns: when the first and the last were written; None without any.
    """

    name: str
    kind: Kind
    type: str
    encoding: str
    count: int
    first_ns: int | None
    last_ns: int | None


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message.

    Attributes:
        topic: its topic's name.
        written_ns: when the recorder wrote it.
        content: object with the fields of the message's type as attributes, numeric arrays as numpy arrays or bytes.
    """

    topic: str
    written_ns: int
    content: Any


class Recording(ABC):
    """A recording that is open for reading; a context manager.

    Attributes:
        problems: what could not be read, in words, filled while reading: cut files, damaged chunks, unknown types. What
            is read twice is listed once.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []

    def report(self, problem: str) -> None:
        """Add a problem, unless it is known."""
        if problem not in self.problems:
            self.problems.append(problem)

    @property
    @abstractmethod
    def topics(self) -> Mapping[str, Topic]:
        """By name."""

    @abstractmethod
    def messages(
        self, topics: Sequence[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[Message]:
        """Messages of some topics by the time of writing, from `start_ns` to before `stop_ns`, lazily.

        A damaged part is a problem, and reading goes on behind it as far as the format allows.

        Raises:
            ShardError: no such topic, or nothing here can read its messages.
        """

    def times(self, topic: str) -> Int64[np.ndarray, " N"]:
        """When each message of a topic was written, ascending; from the index where the recording has one.

        Raises:
            ShardError: as `messages`.
        """
        return np.sort(np.array([message.written_ns for message in self.messages([topic])], dtype=np.int64))

    @abstractmethod
    def close(self) -> None:
        """Let go of the files."""

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True, eq=False)
class Cloud:
    """A sweep of one LiDAR, without the points that are no measurement.

    Attributes:
        stamp_ns: of the header.
        frame: of the points.
        points: metres.
        intensity: as the driver has it, unscaled; None where it gives none.
        time_ns: when each point was measured, relative to `stamp_ns`; None where the driver does not say.
        ring: number of each point's laser; None where the driver does not say.
        left_out: points that were no measurement: a number that is not finite, or the sensor's own place.
    """

    stamp_ns: int
    frame: str
    points: Float32[np.ndarray, "N 3"]
    intensity: Float32[np.ndarray, " N"] | None
    time_ns: Int[np.ndarray, " N"] | None
    ring: Int[np.ndarray, " N"] | None
    left_out: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An image of one camera, either as it was compressed or decoded.

    Attributes:
        stamp_ns: of the header.
        frame: optical frame: x right, y down, z forward.
        jpeg: as recorded; None for anything but baseline JPEG.
        rgb: decoded; None where `jpeg` is there.
    """

    stamp_ns: int
    frame: str
    jpeg: bytes | None = None
    rgb: UInt8[np.ndarray, "H W 3"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraInfo:
    """A camera's calibration.

    Attributes:
        stamp_ns: of the header.
        frame: optical frame.
        K: intrinsics, pixels; (0, 0) is the centre of the top-left pixel.
        image_size: height, width that K is for, binning and region of interest taken into account.
        model: "pinhole" or "fisheye", see `data.convert.custom.formats.LogCamera`.
        distortion: of the model; None where there is none.
        T_cam_frame: from `frame` to the camera that the images are of: rectified ones are of a turned camera. None: it
            is `frame`.
    """

    stamp_ns: int
    frame: str
    K: Float[np.ndarray, "3 3"]
    image_size: tuple[int, int]
    model: Literal["pinhole", "fisheye"]
    distortion: Float[np.ndarray, " n"] | None
    T_cam_frame: Float[np.ndarray, "4 4"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Transform:
    """Where a child frame is in its parent.

    Attributes:
        stamp_ns: when; None for one that holds always.
        parent, child: names of frames, without a leading "/".
        T_parent_child: child to parent.
    """

    stamp_ns: int | None
    parent: str
    child: str
    T_parent_child: Float[np.ndarray, "4 4"]


Decoded = Cloud | Picture | CameraInfo | Transform


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Which topics of a recording are what: the YAML that `tandem inspect BAG` writes.

    Attributes:
        lidars: topic of each LiDAR; the first one's frames are the sweeps.
        cameras: camera's name in the set -> topic of its images.
        camera_infos: camera's name -> topic of its calibration.
        transforms: topics of transforms, static and moving.
        odometry: topic of the vehicle's pose; "" where `transforms` have it.
        ego_frame: frame of the vehicle, e.g. "base_link".
        world_frame: frame that stands still, e.g. "odom"; "" where the vehicle does.
    """

    lidars: tuple[str, ...]
    cameras: Mapping[str, str] = field(default_factory=dict)
    camera_infos: Mapping[str, str] = field(default_factory=dict)
    transforms: tuple[str, ...] = ()
    odometry: str = ""
    ego_frame: str = "base_link"
    world_frame: str = ""
