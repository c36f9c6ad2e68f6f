"""A vehicle's recording: a LiDAR, two cameras, transforms, odometry, and what goes wrong in such recordings."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.helpers.log_files import ROS1, START_NS, Entry, header, ros

SECOND_NS = 10**9
NUM_SWEEPS = 50
RATE_HZ = 10
GAP_S = 3.0
"""After half of the sweeps."""
LATE_S = -12.5
"""Stamp of the rear camera less the time of writing."""

POINTS, ODOMETRY, TF, TF_STATIC = "/lidar/points", "/odom", "/tf", "/tf_static"
FRONT, REAR = "/camera/front/image_raw/compressed", "/camera/rear/image_raw"
FRONT_INFO, REAR_INFO = "/camera/front/camera_info", "/calibration/back"


def point(store: Any, x: float) -> Any:
    return ros(store, "geometry_msgs/msg/Point", x=x, y=0.0, z=0.0)


def turn(store: Any) -> Any:
    return ros(store, "geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0)


def cloud(store: Any, time_ns: int, frame: str, num_points: int = 100) -> Any:
    xyz = np.random.default_rng(time_ns % 1000).normal(size=(num_points, 3)).astype(np.float32)
    fields = [
        ros(store, "sensor_msgs/msg/PointField", name=name, offset=4 * n, datatype=7, count=1)
        for n, name in enumerate("xyz")
    ]
    return ros(
        store,
        "sensor_msgs/msg/PointCloud2",
        header=header(store, time_ns, frame),
        height=1,
        width=num_points,
        fields=fields,
        is_bigendian=False,
        point_step=12,
        row_step=12 * num_points,
        data=xyz.reshape(-1).view(np.uint8),
        is_dense=True,
    )


def compressed(store: Any, time_ns: int, frame: str) -> Any:
    data = np.frombuffer(b"\xff\xd8 no picture", np.uint8)
    return ros(store, "sensor_msgs/msg/CompressedImage", header=header(store, time_ns, frame), format="jpeg", data=data)


def image(store: Any, time_ns: int, frame: str) -> Any:
    size = {"height": 2, "width": 4, "encoding": "mono8", "is_bigendian": 0, "step": 4, "data": np.zeros(8, np.uint8)}
    return ros(store, "sensor_msgs/msg/Image", header=header(store, time_ns, frame), **size)


def info(store: Any, time_ns: int, frame: str) -> Any:
    region = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
    letters = "DKRP" if store is ROS1 else "dkrp"
    numbers = [np.zeros(5), np.array([4.0, 0, 2, 0, 4, 1, 0, 0, 1]), np.eye(3).reshape(-1), np.zeros(12)]
    return ros(
        store,
        "sensor_msgs/msg/CameraInfo",
        header=header(store, time_ns, frame),
        height=2,
        width=4,
        distortion_model="plumb_bob",
        binning_x=0,
        binning_y=0,
        roi=ros(store, "sensor_msgs/msg/RegionOfInterest", **region),
        **dict(zip(letters, numbers, strict=True)),
    )


def transforms(store: Any, time_ns: int, *pairs: tuple[str, str, float]) -> Any:
    stated = []
    for parent, child, x in pairs:
        moved = ros(store, "geometry_msgs/msg/Vector3", x=x, y=0.0, z=0.0)
        placed = ros(store, "geometry_msgs/msg/Transform", translation=moved, rotation=turn(store))
        head = header(store, time_ns, parent)
        stated.append(
            ros(store, "geometry_msgs/msg/TransformStamped", header=head, child_frame_id=child, transform=placed)
        )
    return ros(store, "tf2_msgs/msg/TFMessage", transforms=stated)


def odometry(store: Any, time_ns: int, x: float) -> Any:
    zero = ros(store, "geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
    placed = ros(store, "geometry_msgs/msg/Pose", position=point(store, x), orientation=turn(store))
    speed = ros(store, "geometry_msgs/msg/Twist", linear=zero, angular=zero)
    return ros(
        store,
        "nav_msgs/msg/Odometry",
        header=header(store, time_ns, "odom"),
        child_frame_id="base_link",
        pose=ros(store, "geometry_msgs/msg/PoseWithCovariance", pose=placed, covariance=np.zeros(36)),
        twist=ros(store, "geometry_msgs/msg/TwistWithCovariance", twist=speed, covariance=np.zeros(36)),
    )


def times_ns() -> list[int]:
    """Of sweeps, with one gap."""
    gap = int((GAP_S - 1 / RATE_HZ) * SECOND_NS)
    return [START_NS + n * SECOND_NS // RATE_HZ + (gap if n >= NUM_SWEEPS // 2 else 0) for n in range(NUM_SWEEPS)]


def vehicle_entries(store: Any, *, odometry_too: bool = True) -> list[Entry]:
    """The recording; without odometry, /tf says that the vehicle moves."""
    entries: list[Entry] = [
        (TF_STATIC, START_NS, transforms(store, START_NS, ("base_link", "lidar", 1.0), ("base_link", "front", 2.0))),
        ("/goal", START_NS, text(store)),
    ]
    for n, time_ns in enumerate(times_ns()):
        entries.append((POINTS, time_ns + 1000, cloud(store, time_ns, "lidar")))
        entries.append((FRONT, time_ns + 2000, compressed(store, time_ns, "front")))
        entries.append((REAR, time_ns + 3000, image(store, time_ns + int(LATE_S * SECOND_NS), "rear")))
        if n == 0:
            entries.append((FRONT_INFO, time_ns + 2000, info(store, time_ns, "front")))
            entries.append((REAR_INFO, time_ns + 3000, info(store, time_ns, "rear")))
        if odometry_too:
            entries.append((ODOMETRY, time_ns, odometry(store, time_ns, float(n))))
        else:
            entries.append((TF, time_ns, transforms(store, time_ns, ("odom", "base_link", float(n)))))
    return sorted(entries, key=lambda entry: entry[1])


def text(store: Any) -> Any:
    """A message of no sensor."""
    return ros(store, "std_msgs/msg/String", data="park")
