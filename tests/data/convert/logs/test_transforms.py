"""Transforms, poses and odometry of every type, and a tree that answers or says what is missing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.convert.logs.base import Message, Transform
from data.convert.logs.transform_tree import TransformTree
from data.convert.logs.transforms import read_transforms
from data.geometry import rigid, yaw_rotation
from data.storage.damage import DamagedError
from tests.helpers.log_messages import STAMP_NS, from_json, header, made, protobuf, recorded, ros1, topic

MOVE = [1.0, -2.0, 3.0]
TURN = Rotation.from_euler("zyx", [0.5, -0.2, 0.1])
X, Y, Z, W = TURN.as_quat().tolist()
EXPECTED = rigid(TURN.as_matrix(), np.array(MOVE))
PLACE = {"x": MOVE[0], "y": MOVE[1], "z": MOVE[2]}
SPIN = {"x": X, "y": Y, "z": Z, "w": W}
JSON_STAMP = {"sec": STAMP_NS // 10**9, "nsec": STAMP_NS % 10**9}
NO_COVARIANCE = np.zeros(36)


def ros_pose() -> object:
    return made(
        "geometry_msgs/msg/Pose",
        position=made("geometry_msgs/msg/Point", **PLACE),
        orientation=made("geometry_msgs/msg/Quaternion", **SPIN),
    )


def ros_transform(parent: str, child: str) -> object:
    transform = made(
        "geometry_msgs/msg/Transform",
        translation=made("geometry_msgs/msg/Vector3", **PLACE),
        rotation=made("geometry_msgs/msg/Quaternion", **SPIN),
    )
    kind = "geometry_msgs/msg/TransformStamped"
    return made(kind, header=header(parent), child_frame_id=child, transform=transform)


def with_covariance() -> object:
    return made("geometry_msgs/msg/PoseWithCovariance", pose=ros_pose(), covariance=NO_COVARIANCE)


def odometry(child: str) -> object:
    zero = made("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
    twist = made("geometry_msgs/msg/Twist", linear=zero, angular=zero)
    return made(
        "nav_msgs/msg/Odometry",
        header=header("odom"),
        child_frame_id=child,
        pose=with_covariance(),
        twist=made("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=NO_COVARIANCE),
    )


def foxglove_transform() -> object:
    from foxglove_schemas_protobuf.FrameTransform_pb2 import FrameTransform

    message = FrameTransform(parent_frame_id="odom", child_frame_id="base_link")
    message.timestamp.FromNanoseconds(STAMP_NS)
    for part, values in ((message.translation, PLACE), (message.rotation, SPIN)):
        for axis, value in values.items():
            setattr(part, axis, value)
    return message


def foxglove_list() -> object:
    from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms

    return FrameTransforms(transforms=[foxglove_transform()])


ROS1_FIELDS = {
    "header": {
        "seq": 0,
        "stamp": {"sec": STAMP_NS // 10**9, "nanosec": STAMP_NS % 10**9},
        "frame_id": "/odom",
    },
    "pose": {"position": PLACE, "orientation": SPIN},
}
MESSAGES = {
    "TFMessage": lambda: recorded(made("tf2_msgs/msg/TFMessage", transforms=[ros_transform("odom", "base_link")])),
    "TransformStamped": lambda: recorded(ros_transform("odom", "base_link")),
    "Odometry": lambda: recorded(odometry("base_link")),
    "Odometry without a child": lambda: recorded(odometry("")),
    "PoseStamped": lambda: recorded(made("geometry_msgs/msg/PoseStamped", header=header("odom"), pose=ros_pose())),
    "PoseWithCovarianceStamped": lambda: recorded(
        made("geometry_msgs/msg/PoseWithCovarianceStamped", header=header("odom"), pose=with_covariance())
    ),
    "PoseStamped of ROS 1": lambda: ros1("geometry_msgs/msg/PoseStamped", ROS1_FIELDS),
    "foxglove.FrameTransform": lambda: protobuf(foxglove_transform()),
    "foxglove.FrameTransforms": lambda: protobuf(foxglove_list()),
    "foxglove.FrameTransform in JSON": lambda: from_json(
        "foxglove.FrameTransform",
        {
            **{"timestamp": JSON_STAMP, "parent_frame_id": "odom", "child_frame_id": "base_link"},
            **{"translation": PLACE, "rotation": SPIN},
        },
    ),
    "foxglove.PoseInFrame in JSON": lambda: from_json(
        "foxglove.PoseInFrame",
        {"timestamp": JSON_STAMP, "frame_id": "odom", "pose": {"position": PLACE, "orientation": SPIN}},
    ),
}


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_each_type(name: str) -> None:
    (transform,) = read_transforms(*MESSAGES[name](), ego_frame="base_link")
    assert (transform.stamp_ns, transform.parent, transform.child) == (STAMP_NS, "odom", "base_link")
    np.testing.assert_allclose(transform.T_parent_child, EXPECTED, atol=1e-12)


def test_static_transforms_have_no_time() -> None:
    two = [ros_transform("/base_link", "lidar"), ros_transform("base_link", "/camera")]
    transforms = read_transforms(*recorded(made("tf2_msgs/msg/TFMessage", transforms=two), "/robot1/tf_static"))
    assert [(t.stamp_ns, t.parent, t.child) for t in transforms] == [
        (None, "base_link", "lidar"),
        (None, "base_link", "camera"),
    ]


def test_unusable_messages_are_named() -> None:
    at = from_json("foxglove.FrameTransform", {"timestamp": JSON_STAMP, "parent_frame_id": "a", "child_frame_id": ""})
    at[1].content.translation, at[1].content.rotation = at[1].content.timestamp, at[1].content.timestamp
    with pytest.raises(DamagedError, match="from frame '' to 'a', expected two names"):
        read_transforms(*at)
    at[1].content.child_frame_id = "b"
    with pytest.raises(DamagedError, match="a -> b, orientation: no field w; it has sec, nsec"):
        read_transforms(*at)
    zeros = made("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=0.0)
    pose = made("geometry_msgs/msg/Pose", position=made("geometry_msgs/msg/Point", **PLACE), orientation=zeros)
    with pytest.raises(DamagedError, match=r"odom -> base_link: quaternion \[0\.0, 0\.0, 0\.0, 0\.0\]"):
        read_transforms(*recorded(made("geometry_msgs/msg/PoseStamped", header=header("odom"), pose=pose)))
    with pytest.raises(DamagedError, match=r"/imu holds sensor_msgs/msg/Imu, expected transforms or poses"):
        read_transforms(topic("sensor_msgs/msg/Imu", "/imu"), Message(topic="/imu", written_ns=0, content=None))


# ---- the tree
def at(parent: str, child: str, stamp_ns: int | None, yaw: float = 0.0, x: float = 0.0) -> Transform:
    T = rigid(yaw_rotation(yaw), np.array([x, 0.0, 0.0]))
    return Transform(stamp_ns=stamp_ns, parent=parent, child=child, T_parent_child=T)


SECOND = 1_000_000_000
DRIVE = [at("odom", "base_link", STAMP_NS + step * SECOND // 2, yaw=0.2 * step, x=4.0 * step) for step in range(4)]
MOUNTS = [at("base_link", "lidar", None, yaw=np.pi / 2, x=1.0), at("lidar", "camera", None, x=-0.5)]


def test_static_and_moving_transforms_together() -> None:
    tree = TransformTree([*reversed(DRIVE), *MOUNTS, *MOUNTS, DRIVE[1]])
    assert tree.frames == ("base_link", "camera", "lidar", "odom")
    assert tree.notes == []
    assert (tree.parent_of("camera"), tree.parent_of("odom")) == ("lidar", None)
    np.testing.assert_allclose(tree.T("base_link", "camera", 0), rigid(yaw_rotation(np.pi / 2), np.array([1, -0.5, 0])))
    quarter = STAMP_NS + SECOND // 4
    ego = rigid(yaw_rotation(0.1), np.array([2.0, 0, 0]))  # half-way: linear, and half of the turn
    mount = tree.T("base_link", "camera", 0)
    np.testing.assert_allclose(tree.T("odom", "base_link", quarter), ego, atol=1e-9)
    np.testing.assert_allclose(tree.T("odom", "camera", quarter), ego @ mount, atol=1e-9)
    np.testing.assert_allclose(tree.T("camera", "odom", quarter), np.linalg.inv(ego @ mount), atol=1e-9)
    np.testing.assert_allclose(tree.T("lidar", "lidar", quarter), np.eye(4), atol=1e-12)
    assert tree.is_static("camera", "base_link")
    assert not tree.is_static("camera", "odom")
    assert tree.times_of("base_link") == (STAMP_NS, STAMP_NS + 3 * SECOND // 2)
    assert tree.times_of("lidar") is None


def test_a_transform_that_is_sent_again_and_again_holds_always() -> None:
    again = [at("base_link", "lidar", STAMP_NS + step, x=1.0) for step in range(3)]
    tree = TransformTree([*DRIVE, *again])
    np.testing.assert_allclose(tree.T("base_link", "lidar", 0), again[0].T_parent_child)
    assert tree.notes == ["base_link -> lidar is the same in 3 transforms: taken to hold always"]


def test_different_transforms_of_one_time_count_as_missing() -> None:
    tree = TransformTree([*DRIVE, at("odom", "base_link", DRIVE[1].stamp_ns, x=77.0)], max_gap_ms=900.0)
    assert "odom -> base_link has different transforms at 1 times, which are left out" in tree.notes[0]
    with pytest.raises(DamagedError, match=r"neighbours are 1000 ms apart, allowed are 900 ms; different transforms"):
        tree.T("odom", "base_link", STAMP_NS + SECOND // 4)


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        (
            [*DRIVE, at("map", "base_link", STAMP_NS)],
            "frame base_link has 2 parents, map, odom: leave out the topics of all but one",
        ),
        (
            [at("a", "b", None), at("b", "c", None), at("c", "a", None)],
            "frames go round in a circle: b -> c -> a -> b",
        ),
        ([at("a", "a", None)], "frames go round in a circle: a -> a"),
        ([*DRIVE, at("odom", "base_link", None, x=1)], "frame base_link has 1 transforms from odom that hold always"),
        ([at("a", "b", None, x=1), at("a", "b", None, x=2)], "frame b has 2 different transforms from a that hold"),
    ],
    ids=["two parents", "a loop", "itself", "static and moving", "two static ones"],
)
def test_trees_that_contradict_themselves_are_refused(transforms: list[Transform], said: str) -> None:
    with pytest.raises(DamagedError) as error:
        TransformTree(transforms)
    assert (error.value.reason, said in error.value.detail) == ("meta-broken", True), error.value.detail


@pytest.mark.parametrize(
    ("target", "source", "time_ns", "said"),
    [
        (
            "odom",
            "radar",
            STAMP_NS,
            "no transform has the frame 'radar'; there are base_link, camera, left, lidar, odom",
        ),
        ("odom", "left", STAMP_NS, "no transforms lead from left to odom: left hangs from right, odom from odom"),
        ("odom", "camera", STAMP_NS - 1_000_000, "odom -> base_link: no ego pose at"),
        ("camera", "odom", STAMP_NS + 2 * SECOND, "poses reach from"),
        ("odom", "base_link", STAMP_NS + SECOND // 4, "neighbours are 500 ms apart, allowed are 400 ms"),
    ],
)
def test_what_the_tree_cannot_answer_is_named(target: str, source: str, time_ns: int, said: str) -> None:
    tree = TransformTree([*DRIVE, *MOUNTS, at("right", "left", None)], max_gap_ms=400.0)
    with pytest.raises(DamagedError) as error:
        tree.T(target, source, time_ns)
    assert (error.value.reason, said in error.value.detail) == ("calibration-missing", True), error.value.detail
