"""Types of messages: one spelling for each, and what a topic is for by the type of its messages."""

from __future__ import annotations

import re

from data.convert.logs.base import Kind

_ROS_KINDS: dict[str, Kind] = {
    "sensor_msgs/msg/PointCloud2": "lidar",
    "livox_ros_driver/msg/CustomMsg": "lidar",
    "livox_ros_driver2/msg/CustomMsg": "lidar",
    "livox_interfaces/msg/CustomMsg": "lidar",
    "sensor_msgs/msg/Image": "camera",
    "sensor_msgs/msg/CompressedImage": "camera",
    "sensor_msgs/msg/CameraInfo": "camera_info",
    "tf2_msgs/msg/TFMessage": "transforms",
    "tf/msg/tfMessage": "transforms",
    "geometry_msgs/msg/TransformStamped": "transforms",
    "nav_msgs/msg/Odometry": "odometry",
    "geometry_msgs/msg/PoseStamped": "odometry",
    "geometry_msgs/msg/PoseWithCovarianceStamped": "odometry",
}

_FOXGLOVE_KINDS: dict[str, Kind] = {
    "PointCloud": "lidar",
    "RawImage": "camera",
    "CompressedImage": "camera",
    "CompressedVideo": "camera",
    "CameraCalibration": "camera_info",
    "FrameTransform": "transforms",
    "FrameTransforms": "transforms",
    "PoseInFrame": "odometry",
}
"""Name without its package: "foxglove.PointCloud", or "foxglove_msgs/msg/PointCloud" where ROS carries it."""

_ROS_NAME = re.compile(r"([A-Za-z]\w*)/(?:msg/)?([A-Za-z]\w*)", re.ASCII)


def ros_type(name: str) -> str | None:
    """ROS 2's spelling of the name of a ROS type, of either ROS; None for what is no such name."""
    found = _ROS_NAME.fullmatch(name)
    return f"{found[1]}/msg/{found[2]}" if found else None


def kind_of(type_name: str) -> Kind:
    """What topics of a type, in the spelling of `Topic.type`, are for."""
    package, _, name = type_name.replace("/msg/", ".").rpartition(".")
    if package in ("foxglove", "foxglove_msgs"):
        return _FOXGLOVE_KINDS.get(name, "other")
    return _ROS_KINDS.get(type_name, "other")
