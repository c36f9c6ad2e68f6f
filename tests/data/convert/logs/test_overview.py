"""`tandem inspect RECORDING`: rates, gaps, clocks and frames of a generated drive, and the first YAML of its topics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data.convert.logs.base import LogSettings
from data.convert.logs.first_settings import first_text, guess
from data.convert.logs.open import open_recording
from data.convert.logs.overview import Edge, Overview, look_over
from data.convert.logs.topic_names import camera_name
from data.convert.logs.topics_file import check_topics, read_topics
from data.storage.shard import ShardError
from launchers.drawing.recording_tables import recording_doubts, recording_tables, tree_lines
from tests.helpers.log_files import (
    ROS1,
    ROS2,
    START_NS,
    Entry,
    pose,
    protobuf_entries,
    write_protobuf,
    write_ros1,
    write_ros2,
)
from tests.helpers.vehicle_log import (
    FRONT,
    FRONT_INFO,
    GAP_S,
    LATE_S,
    NUM_SWEEPS,
    ODOMETRY,
    POINTS,
    RATE_HZ,
    REAR,
    REAR_INFO,
    TF,
    TF_STATIC,
    cloud,
    image,
    transforms,
    vehicle_entries,
)

WRITERS: dict[str, Callable[[Path], Path]] = {
    "ros1": lambda folder: write_ros1(folder / "drive.bag", vehicle_entries(ROS1)),
    "ros2-sqlite3": lambda folder: write_ros2(folder / "drive", vehicle_entries(ROS2)),
    "ros2-mcap": lambda folder: write_ros2(folder / "drive", vehicle_entries(ROS2), "mcap"),
}


def look(path: Path) -> Overview:
    with open_recording(path) as recording:
        return look_over(recording)


def drive(folder: Path, more: list[Entry], *, odometry_too: bool = True) -> Overview:
    entries = sorted([*vehicle_entries(ROS2, odometry_too=odometry_too), *more], key=lambda entry: entry[1])
    return look(write_ros2(folder / "drive", entries, "mcap"))


@pytest.mark.parametrize("name", list(WRITERS))
def test_facts_of_topics(name: str, tmp_path: Path) -> None:
    overview = look(WRITERS[name](tmp_path))
    points = overview.topics[POINTS]
    duration = (NUM_SWEEPS - 1) / RATE_HZ + GAP_S - 1 / RATE_HZ
    assert overview.duration_s == pytest.approx(duration + 3e-6, abs=1e-9)
    assert points.topic.count == NUM_SWEEPS
    assert points.rate_hz == pytest.approx((NUM_SWEEPS - 1) / duration)
    assert points.gap_s == pytest.approx(GAP_S)
    assert points.gap_at_s == pytest.approx((NUM_SWEEPS // 2 - 1) / RATE_HZ, abs=1e-5)
    assert points.offset_s == pytest.approx(-1e-6, abs=1e-9)
    assert 1200 < (points.num_bytes or 0) < 1400  # 100 points of 12 bytes
    assert points.frame == "lidar"
    assert overview.topics[REAR].offset_s == pytest.approx(LATE_S - 3e-6, abs=1e-9)
    assert (overview.topics[ODOMETRY].frame, overview.topics[ODOMETRY].child) == ("odom", "base_link")
    assert (overview.topics[FRONT_INFO].rate_hz, overview.topics[FRONT_INFO].topic.count) == (None, 1)
    assert overview.edges == {
        "lidar": Edge(parent="base_link", child="lidar", topic=TF_STATIC, moves=False),
        "front": Edge(parent="base_link", child="front", topic=TF_STATIC, moves=False),
        "base_link": Edge(parent="odom", child="base_link", topic=ODOMETRY, moves=True),
    }


def test_the_first_settings_name_every_sensor(tmp_path: Path) -> None:
    path = WRITERS["ros1"](tmp_path)
    overview = look(path)
    first = guess(overview)
    expected = LogSettings(
        lidars=(POINTS,),
        cameras={"camera_front": FRONT, "camera_rear": REAR},
        camera_infos={"camera_front": FRONT_INFO, "camera_rear": REAR_INFO},  # by namespace; by frame
        transforms=(TF_STATIC,),
        odometry=ODOMETRY,
        ego_frame="base_link",
        world_frame="",
    )
    assert first.settings == expected
    file = tmp_path / "topics.yaml"
    file.write_text(first_text(first, str(path)))
    assert read_topics(file) == expected
    with open_recording(path) as recording:
        check_topics(expected, recording.topics, file)


def test_without_odometry_transforms_say_how_the_vehicle_moves(tmp_path: Path) -> None:
    first = guess(drive(tmp_path, [], odometry_too=False))
    assert first.settings is not None
    assert (first.settings.odometry, first.settings.world_frame, first.settings.ego_frame) == ("", "odom", "base_link")
    assert first.settings.transforms == (TF, TF_STATIC)


def test_what_else_a_topic_could_be_is_noted(tmp_path: Path) -> None:
    more = [
        ("/lidar/filtered", START_NS, cloud(ROS2, START_NS, "lidar", 10)),
        ("/side/points", START_NS, cloud(ROS2, START_NS, "side", 50)),
        ("/camera/front/image_raw", START_NS, image(ROS2, START_NS, "front")),
        ("/camera/front/depth/image", START_NS, image(ROS2, START_NS, "front")),
    ]
    first = guess(drive(tmp_path, more))
    assert first.settings is not None
    assert first.settings.lidars == (POINTS, "/side/points")
    assert first.settings.cameras == {"camera_front": FRONT, "camera_rear": REAR}
    assert first.left_out == {
        "lidars": ("not /lidar/filtered: it has the frame of /lidar/points ('lidar') and fewer bytes",),
        "cameras": ("not /camera/front/depth/image: by its name (depth) no picture",),
    }
    merged = "the first one's sweeps are the samples; the others are merged into them"
    also = "camera_front: also /camera/front/image_raw (sensor_msgs/msg/Image)"
    assert first.notes == {"lidars": (merged,), "cameras": (also,)}
    assert first.remarks()["lidars"] == (*first.left_out["lidars"], merged)
    with pytest.raises(ShardError, match=r"has 3 LiDAR topics \(/lidar/filtered, /lidar/points, /side/points\)"):
        first.without_choice(tmp_path)


def test_what_was_made_of_a_sensors_data_is_no_sensor(tmp_path: Path) -> None:
    """By name, by what images say that they are, by a frame that has a calibrated camera already."""
    depth = image(ROS2, START_NS, "rear")
    depth.encoding = "16UC1"
    more = [
        ("/lidar/classes", START_NS, cloud(ROS2, START_NS, "lidar", 1000)),
        ("/camera/front/superpixels", START_NS, image(ROS2, START_NS, "front")),
        ("/detector/labelMasks", START_NS, image(ROS2, START_NS, "other")),
        ("/range", START_NS, depth),
        ("/detector/shown", START_NS, image(ROS2, START_NS, "front")),
        ("/depthai/image_raw", START_NS, image(ROS2, START_NS, "oak")),  # a camera's maker
    ]
    first = guess(drive(tmp_path, more))
    assert first.settings is not None
    assert first.settings.lidars == (POINTS,)
    assert first.settings.cameras == {"camera_front": FRONT, "camera_rear": REAR, "depthai": "/depthai/image_raw"}
    assert {field: sorted(said) for field, said in first.left_out.items()} == {
        "cameras": [
            "not /camera/front/superpixels: by its name (superpixels) no picture",
            "not /detector/labelMasks: by its name (label) no picture",
            f"not /detector/shown: it has the frame of {FRONT} ('front') and no calibration of its own",
            "not /range: its messages are depth images (16UC1), no pictures of a camera",
        ],
        "lidars": ["not /lidar/classes: by its name (classes) made of a sensor's points"],
    }
    assert first.choices == {}
    assert first.without_choice(tmp_path) == first.settings


def test_poses_that_do_not_say_of_what_give_way_to_transforms_that_move_the_vehicle(tmp_path: Path) -> None:
    aim = [("/aim", START_NS, pose(ROS2, START_NS, 1.0))]
    first = guess(drive(tmp_path, aim, odometry_too=False))
    assert first.settings is not None
    assert (first.settings.odometry, first.settings.world_frame) == ("", "odom")
    why = "not /aim: geometry_msgs/msg/PoseStamped, and transforms move the vehicle"
    assert first.left_out["odometry"] == (why,)


def test_doubts_are_said(tmp_path: Path) -> None:
    more = [
        ("/other/image", START_NS, image(ROS2, START_NS, "other")),
        (TF_STATIC, START_NS + 5, transforms(ROS2, START_NS, ("mast", "lidar", 1.0))),
    ]
    overview = drive(tmp_path, more)
    doubts = recording_doubts(overview, guess(overview))
    assert doubts == [
        "camera_infos: other: no topic of its calibration was found",
        *(f"{topic} is silent for 3 s, from 2.4 s on" for topic in (FRONT, REAR)),
        f"{REAR} is stamped 12.5 s before it was written: of another clock, or written late",
        *(f"{topic} is silent for 3 s, from 2.4 s on" for topic in (POINTS, ODOMETRY)),
        f"frame lidar has two parents, base_link and mast ({TF_STATIC}): leave one topic out of the settings",
        f"no transform leads from frame 'rear' of {REAR} to 'base_link' (ego_frame)",
        "no transform leads from frame 'other' of /other/image to 'base_link' (ego_frame)",
    ]


def test_a_recording_without_a_lidar_has_no_settings(tmp_path: Path) -> None:
    overview = look(write_protobuf(tmp_path / "drive.mcap", protobuf_entries()))
    first = guess(overview)
    assert first.settings is None
    with pytest.raises(ShardError, match="has 0 LiDAR topics, expected one: tandem inspect"):
        first.without_choice(tmp_path)
    assert "no LiDAR: no topic has messages of a type of point clouds that is read" in recording_doubts(overview, first)


def test_tables_show_topics_and_frames(tmp_path: Path) -> None:
    path = WRITERS["ros2-mcap"](tmp_path)
    overview = look(path)
    tables = {table.title: table for table in recording_tables(overview, guess(overview), [path / "drive.mcap"])}
    assert list(tables) == ["recording", "topics", "frames", "cameras", "look at"]
    topics = {row[0]: row for row in tables["topics"].rows}
    assert topics[POINTS][1:6] == ("LiDAR", "sensor_msgs/msg/PointCloud2 (cdr)", "50", "6.282 Hz", "3 s")
    assert topics[REAR][7:] == ("-12,500.0 ms", "rear")
    assert topics["/goal"][1:4] == ("", "std_msgs/msg/String (cdr)", "1")
    assert [row[0] for row in tables["frames"].rows] == [
        "odom",
        f"  base_link  (moves, {ODOMETRY})",
        f"    front  (stands still, {TF_STATIC})",
        f"    lidar  (stands still, {TF_STATIC})",
    ]


def test_a_tree_with_a_loop_ends() -> None:
    edges = {child: Edge(parent=parent, child=child, topic="/tf", moves=False) for parent, child in ("ab", "bc", "ca")}
    assert len(tree_lines(edges)) == 4
    overview = Overview(topics={}, start_ns=None, duration_s=0.0, edges=edges, other_parents=(), problems=())
    assert overview.root("a") == "b"


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("/front/image_raw/compressed", "front"),
        ("/front/camera_info", "front"),
        ("/camera/left/image_rect_color", "camera_left"),
        ("/CAM_FRONT", "CAM_FRONT"),
        ("/CAM_FRONT/image_rect_compressed", "CAM_FRONT"),
        ("/image", "camera"),
    ],
    ids=["compressed", "info", "nested", "bare", "nuscenes", "only"],
)
def test_names_of_cameras(topic: str, name: str) -> None:
    assert camera_name(topic) == name
