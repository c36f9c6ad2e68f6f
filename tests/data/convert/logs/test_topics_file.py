"""The YAML of topics: written, read back, and topics that a recording lacks answered with the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.convert.logs.base import LogSettings, Topic
from data.convert.logs.kinds import kind_of
from data.convert.logs.topics_file import check_topics, read_topics, topics_text
from data.storage.shard import ShardError

SETTINGS = LogSettings(
    lidars=("/top/points", "/side points: left"),
    cameras={"front": "/front/image", "no": "/no/image # 2"},
    camera_infos={"front": "/front/camera_info"},
    transforms=("/tf", "/tf_static"),
    odometry="",
    ego_frame="base_link",
    world_frame="odom",
)
TYPES = {
    "/top/points": "sensor_msgs/msg/PointCloud2",
    "/front/image": "sensor_msgs/msg/Image",
    "/front/camera_info": "sensor_msgs/msg/CameraInfo",
    "/tf": "tf2_msgs/msg/TFMessage",
    "/odom": "nav_msgs/msg/Odometry",
}
TOPICS = {
    name: Topic(name=name, kind=kind_of(kind), type=kind, encoding="cdr", count=1, first_ns=0, last_ns=0)
    for name, kind in TYPES.items()
}


def write(folder: Path, text: str) -> Path:
    path = folder / "topics.yaml"
    path.write_text(text)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    text = topics_text(SETTINGS, ["of drive.bag"], {"lidars": ["the first: 2 GB"], "odometry": ["none: # found"]})
    assert text.startswith("# of drive.bag\n\n# the first: 2 GB\nlidars:\n  - /top/points\n")
    assert "\n# none: # found\nodometry: ''\n" in text
    assert read_topics(write(tmp_path, text)) == SETTINGS
    bare = LogSettings(lidars=("/a",))
    assert read_topics(write(tmp_path, topics_text(bare))) == bare


def test_topics_that_are_there_pass() -> None:
    settings = LogSettings(
        lidars=("/top/points",),
        cameras={"front": "/front/image"},
        camera_infos={"front": "/front/camera_info"},
        transforms=("/tf",),
        odometry="/odom",
    )
    check_topics(settings, TOPICS, "topics.yaml")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (LogSettings(lidars=("/top/point",)), "lidars: the recording has no topic '/top/point'; .*mean '/top/points'"),
        (LogSettings(lidars=("/odom",)), "lidars: '/odom' has messages of nav_msgs/msg/Odometry, which is no lidar"),
        (
            LogSettings(lidars=("/top/points",), cameras={"front": "/front/images"}),
            "cameras: the recording has no topic '/front/images'; topics of camera: /front/image; did you mean",
        ),
        (LogSettings(lidars=("/top/points",), odometry="/odometry"), "odometry: .*; did you mean '/odom'"),
    ],
    ids=["lidar", "kind", "camera", "odometry"],
)
def test_topics_that_are_not_are_answered_with_the_nearest(settings: LogSettings, said: str) -> None:
    with pytest.raises(ShardError, match=said):
        check_topics(settings, TOPICS, "topics.yaml")
