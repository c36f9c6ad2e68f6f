"""Each driver's layout written by hand, and what breaks readers that know one of them only."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data.convert.logs.base import Cloud, Message
from data.convert.logs.clouds import describe_cloud, read_cloud
from data.storage.damage import DamagedError
from tests.helpers.log_messages import (
    STAMP_NS,
    Field,
    from_json,
    header,
    made,
    point_cloud2,
    protobuf,
    recorded,
    topic,
)

XYZ = np.array([[1.5, -2.0, 0.25], [4.0, 5.0, -6.0], [7.5, 8.0, 9.0], [-1.0, 0.0, 2.0]], np.float32)
PLACES = {"x": XYZ[:, 0], "y": XYZ[:, 1], "z": XYZ[:, 2]}
XYZ_FIELDS: list[Field] = [("x", "f4", 0), ("y", "f4", 4), ("z", "f4", 8)]
STAMP_S = STAMP_NS / 1e9

DRIVERS = {
    "velodyne": (
        [*XYZ_FIELDS, ("intensity", "f4", 12), ("ring", "u2", 16), ("time", "f4", 18)],
        22,
        {"intensity": [3, 50, 100, 7], "ring": [0, 1, 15, 3], "time": [-0.1, -0.05, -0.02, 0.0]},
        ([3, 50, 100, 7], [0, 1, 15, 3], [-100_000_000, -50_000_000, -20_000_000, 0], 8),
        "as of Velodyne: intensity from `intensity`, time from `time`: seconds after the stamp, laser from `ring`",
    ),
    "ouster": (
        [
            *XYZ_FIELDS,
            *(("intensity", "f4", 16), ("t", "u4", 20), ("reflectivity", "u2", 24), ("ring", "u2", 26)),
            *(("ambient", "u2", 28), ("range", "u4", 32)),
        ],
        48,
        {
            **{"intensity": [1e4, 2e4, 3e4, 4e4], "t": [0, 200, 10_000, 99_000_000], "reflectivity": [9, 99, 255, 4]},
            **{"ring": [0, 63, 127, 5], "ambient": [1, 2, 3, 4], "range": [9, 9, 9, 9]},
        },
        ([9, 99, 255, 4], [0, 63, 127, 5], [0, 200, 10_000, 99_000_000], 0),
        "as of Ouster: intensity from `reflectivity`, time from `t`: nanoseconds after the stamp, laser from `ring`",
    ),
    "hesai": (
        [*XYZ_FIELDS, ("intensity", "f4", 16), ("timestamp", "f8", 24), ("ring", "u2", 32)],
        48,
        {
            **{"intensity": [1, 2, 3, 4], "ring": [39, 0, 1, 2]},
            "timestamp": [STAMP_S, STAMP_S + 0.03125, STAMP_S + 0.0625, STAMP_S + 0.1],
        },
        ([1, 2, 3, 4], [39, 0, 1, 2], [0, 31_250_000, 62_500_000, 100_000_000], 500),
        "as of Hesai or RoboSense: intensity from `intensity`, time from `timestamp`: seconds of the stamp's clock, "
        "laser from `ring`",
    ),
    "robosense xyzi": (
        [*XYZ_FIELDS, ("intensity", "f4", 16)],
        32,
        {"intensity": [1, 2, 3, 255]},
        ([1, 2, 3, 255], None, None, 0),
        "intensity from `intensity`, no time of points, no number of lasers",
    ),
    "livox": (  # 26 bytes: the last field begins at 18
        [*XYZ_FIELDS, ("intensity", "f4", 12), ("tag", "u1", 16), ("line", "u1", 17), ("timestamp", "f8", 18)],
        26,
        {
            **{"intensity": [10, 20, 30, 40], "tag": [0, 0, 16, 0], "line": [0, 1, 2, 3]},
            "timestamp": [STAMP_NS, STAMP_NS + 25_600, STAMP_NS + 51_200, STAMP_NS + 99_999_744],
        },
        ([10, 20, 30, 40], [0, 1, 2, 3], [0, 25_600, 51_200, 99_999_744], 128),
        "as of Livox: intensity from `intensity`, time from `timestamp`: nanoseconds of the stamp's clock, "
        "laser from `line`",
    ),
    "autoware": (
        [
            *XYZ_FIELDS,
            *(("intensity", "u1", 12), ("return_type", "u1", 13), ("channel", "u2", 14), ("azimuth", "f4", 16)),
            *(("elevation", "f4", 20), ("distance", "f4", 24), ("time_stamp", "u4", 28)),
        ],
        32,
        {"intensity": [1, 2, 3, 4], "channel": [5, 6, 7, 8], "time_stamp": [0, 1000, 2000, 3000]},
        ([1, 2, 3, 4], [5, 6, 7, 8], [0, 1000, 2000, 3000], 0),
        "as of Autoware: intensity from `intensity`, time from `time_stamp`: nanoseconds after the stamp, "
        "laser from `channel`",
    ),
}


@pytest.mark.parametrize("big_endian", [False, True], ids=["little", "big"])
@pytest.mark.parametrize("driver", sorted(DRIVERS))
def test_each_driver(driver: str, big_endian: bool) -> None:
    fields, stride, columns, (intensity, ring, time_ns, slack_ns), words = DRIVERS[driver]
    at = point_cloud2(fields, {**PLACES, **columns}, stride=stride, big_endian=big_endian)
    cloud, layout = describe_cloud(*at)
    assert (cloud.stamp_ns, cloud.frame, cloud.left_out) == (STAMP_NS, "lidar", 0)
    assert cloud.points.dtype == np.float32
    np.testing.assert_array_equal(cloud.points, XYZ)
    assert cloud.intensity is not None
    np.testing.assert_array_equal(cloud.intensity, intensity)
    if ring is None:
        assert cloud.ring is None
        assert cloud.time_ns is None
    else:
        np.testing.assert_array_equal(cloud.ring, ring)
        np.testing.assert_allclose(cloud.time_ns, time_ns, atol=slack_ns)
    assert str(layout) == words
    assert read_cloud(*at, times=False).time_ns is None


def test_organised_clouds_in_padded_rows_lose_what_is_no_measurement() -> None:
    """NaN for no return although `is_dense`, and the sensor's own place."""
    xyz = np.arange(36, dtype=np.float64).reshape(12, 3) + 1
    xyz[2, 1], xyz[5], xyz[7, 0] = np.nan, 0, np.inf
    at = point_cloud2(
        [("x", "f8", 1), ("y", "f8", 9), ("z", "f8", 17), ("intensity", "u2", 25)],
        {"x": xyz[:, 0], "y": xyz[:, 1], "z": xyz[:, 2], "intensity": np.arange(12)},
        stride=27,
        height=3,
        row_padding=5,
        is_dense=True,
    )
    cloud = read_cloud(*at)
    kept = np.delete(np.arange(12), [2, 5, 7])
    np.testing.assert_array_equal(cloud.points, xyz[kept].astype(np.float32))
    np.testing.assert_array_equal(cloud.intensity, kept)
    assert cloud.left_out == 3


def test_other_fields_do_not_matter_whatever_they_are() -> None:
    """Fields of several numbers, of unknown types and beyond what is read, with a count of 0 for x."""
    fields = [*XYZ_FIELDS, ("normal", "f4", 12)]
    topic_, message = point_cloud2(fields, PLACES, stride=16)
    others = message.content.fields
    changed = [dataclasses.replace(others[0], count=0), others[1], others[2], dataclasses.replace(others[3], count=3)]
    changed.append(dataclasses.replace(others[3], name="curvature", datatype=77, offset=999))
    content = dataclasses.replace(message.content, fields=changed)
    cloud = read_cloud(topic_, dataclasses.replace(message, content=content))
    np.testing.assert_array_equal(cloud.points, XYZ)
    assert (cloud.intensity, cloud.time_ns, cloud.ring) == (None, None, None)


def test_a_single_row_needs_no_row_step_and_a_cloud_no_points() -> None:
    np.testing.assert_array_equal(read_cloud(*point_cloud2(XYZ_FIELDS, PLACES, stride=12, row_step=0)).points, XYZ)
    none = {axis: np.empty(0) for axis in "xyz"}
    fields, stride, columns, _, _ = DRIVERS["velodyne"]
    empty = read_cloud(*point_cloud2(fields, {**none, **dict.fromkeys(columns, np.empty(0))}, stride=stride))
    assert empty.points.shape == (0, 3)
    assert empty.time_ns is not None
    assert empty.time_ns.size == 0


def test_a_time_that_is_the_same_everywhere_says_nothing() -> None:
    fields, stride, columns, _, _ = DRIVERS["velodyne"]
    cloud, layout = describe_cloud(*point_cloud2(fields, {**PLACES, **columns, "time": [0.0] * 4}, stride=stride))
    assert cloud.time_ns is None
    assert "no time of points (`time` is 0.0 everywhere)" in str(layout)


def with_time(name: str, kind: str, values: list[float]) -> Cloud:
    return read_cloud(*point_cloud2([*XYZ_FIELDS, (name, kind, 12)], {**PLACES, name: values}, stride=20))


@pytest.mark.parametrize(
    ("name", "kind", "values", "after_ns"),
    [
        ("timestamp", "f8", [STAMP_S * 1e6 - 50_000, STAMP_S * 1e6, STAMP_S * 1e6 + 1, STAMP_S * 1e6 + 50_000], None),
        ("timestamp", "f8", [0.0, 0.01, 0.02, 0.1], [0, 10_000_000, 20_000_000, 100_000_000]),
        ("t", "f4", [0.0, 0.5, 0.25, 0.125], [0, 500_000_000, 250_000_000, 125_000_000]),
        ("time", "u4", [0, 10, 50_000_000, 99_000_000], [0, 10, 50_000_000, 99_000_000]),
        ("time", "i4", [-99_000_000, -5_000_000, -7, 0], [-99_000_000, -5_000_000, -7, 0]),
    ],
    ids=["microseconds of the clock", "seconds f8", "t in seconds", "nanoseconds", "nanoseconds before"],
)
def test_units_follow_from_type_and_size(name: str, kind: str, values: list[float], after_ns: list[int] | None) -> None:
    time_ns = with_time(name, kind, values).time_ns
    assert time_ns is not None
    expected = [-50_000_000, 0, 1000, 50_000_000] if after_ns is None else after_ns
    np.testing.assert_allclose(time_ns, expected, atol=300)  # float64 of microseconds has steps of 250 ns


@pytest.mark.parametrize(
    ("name", "kind", "values", "said"),
    [
        ("timestamp", "f4", [STAMP_S] * 3 + [STAMP_S + 256], "float32 up to 1700000256"),
        (
            "timestamp",
            "f8",
            [STAMP_S - 3600, STAMP_S - 3599.9, STAMP_S - 3599.8, STAMP_S - 3599.7],
            "within 10 s of it",
        ),
        ("timestamp", "f8", [812.0, 812.1, 812.2, 812.3], "up to 812.3, the stamp is 1700000000250000000 ns"),
        ("time", "u4", [0, 10, 50_000, 99_000], "uint32 up to 99000"),
        ("time", "f4", [0.0, 10.0, 50.0, 99.0], "float32 up to 99"),
    ],
    ids=["float32", "another clock", "since the start", "microseconds", "milliseconds"],
)
def test_times_that_fit_no_unit_are_refused(name: str, kind: str, values: list[float], said: str) -> None:
    with pytest.raises(DamagedError) as error:
        with_time(name, kind, values)
    assert error.value.reason == "array-broken"
    assert f"/points at {STAMP_NS} ns: {name} holds" in error.value.detail
    assert said in error.value.detail
    assert "without their times" in error.value.detail


@pytest.mark.parametrize(
    ("fields", "changed", "said"),
    [
        (XYZ_FIELDS[:2], {}, "has no fields x, y, z; it has x, y"),
        (XYZ_FIELDS, {"point_step": 11}, "z reaches to byte 12 of points of 11 bytes"),
        (XYZ_FIELDS, {"width": 5}, "48 bytes of data, 1 rows of 5 points need 60"),
        (XYZ_FIELDS, {"height": 2, "width": 2, "row_step": 12}, "rows of 12 bytes, but 2 points of 12 bytes are 24"),
        (XYZ_FIELDS, {"width": 4_000_000_000}, "1 rows of 4000000000 points"),
        ([*XYZ_FIELDS, ("x", "f4", 0)], {}, "has two fields x"),
        ([("x", "i2", 0), ("y", "f4", 4), ("z", "f4", 8)], {}, "x is int16, whose unit nobody says"),
        ([*XYZ_FIELDS, ("ring", "f4", 8)], {}, "ring holds float32 that are no whole numbers"),
    ],
)
def test_fields_that_do_not_fit_the_data_are_named(fields: list[Field], changed: dict[str, int], said: str) -> None:
    with pytest.raises(DamagedError) as error:
        read_cloud(*point_cloud2(fields, PLACES, stride=12, **changed))
    assert said in error.value.detail


def test_counts_and_types_of_fields_that_are_read_are_checked() -> None:
    topic_, message = point_cloud2(XYZ_FIELDS, PLACES, stride=12)
    for change, said in (({"count": 2}, "x holds 2 numbers a point"), ({"datatype": 9}, "x has the datatype 9")):
        fields = [dataclasses.replace(message.content.fields[0], **change), *message.content.fields[1:]]
        wrong = dataclasses.replace(message, content=dataclasses.replace(message.content, fields=fields))
        with pytest.raises(DamagedError, match=said):
            read_cloud(topic_, wrong)


def test_other_types_are_refused_by_name() -> None:
    message = Message(topic="/scan", written_ns=0, content=None)
    with pytest.raises(DamagedError, match=r"/scan holds sensor_msgs/msg/LaserScan, expected clouds: one of foxglove"):
        read_cloud(topic("sensor_msgs/msg/LaserScan", "/scan"), message)


# ---- Livox' own messages
def livox(timebase: int, **changed: object) -> Cloud:
    points = [
        made(
            "livox_ros_driver2/msg/CustomPoint",
            **{"offset_time": 1000 * row, "x": float(x), "y": float(y), "z": float(z)},
            **{"reflectivity": 10 * row, "tag": 0, "line": row},
        )
        for row, (x, y, z) in enumerate(XYZ)
    ]
    fields = {
        **{"header": header("livox"), "timebase": timebase, "point_num": len(points), "lidar_id": 0},
        **{"rsvd": np.zeros(3, np.uint8), "points": points},
    }
    return read_cloud(*recorded(made("livox_ros_driver2/msg/CustomMsg", **{**fields, **changed}), "/livox"))


@pytest.mark.parametrize(("timebase", "shift"), [(STAMP_NS, 0), (STAMP_NS - 5_000, -5_000), (0, 0)])
def test_livox_messages_count_from_their_time_base(timebase: int, shift: int) -> None:
    cloud = livox(timebase)
    np.testing.assert_array_equal(cloud.points, XYZ)
    np.testing.assert_array_equal(cloud.intensity, [0, 10, 20, 30])
    np.testing.assert_array_equal(cloud.ring, [0, 1, 2, 3])
    np.testing.assert_array_equal(cloud.time_ns, np.array([0, 1000, 2000, 3000]) + shift)


def test_livox_messages_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(DamagedError, match="4 points, point_num is 7"):
        livox(STAMP_NS, point_num=7)
    with pytest.raises(DamagedError, match="with a clock of its own"):
        livox(5_000_000_000_000)


# ---- Foxglove
PACKED = np.zeros(
    4, np.dtype({"names": ["x", "y", "z", "reflectivity"], "formats": ["<f4"] * 3 + ["u1"], "itemsize": 13})
)
for _axis, _values in PLACES.items():
    PACKED[_axis] = _values
PACKED["reflectivity"] = [1, 2, 3, 4]
TURNED = {"position": {"x": 10.0, "y": 0.0, "z": 1.0}, "orientation": {"x": 0.0, "y": 0.0, "z": 1.0, "w": 0.0}}
FIELDS = [("x", 0, 7), ("y", 4, 7), ("z", 8, 7), ("reflectivity", 12, 1)]


def foxglove(encoding: str, turned: bool) -> Cloud:
    if encoding == "json":
        fields = {
            "timestamp": {"sec": STAMP_NS // 10**9, "nsec": STAMP_NS % 10**9},
            "frame_id": "lidar",
            "point_stride": 13,
            "fields": [{"name": name, "offset": offset, "type": kind} for name, offset, kind in FIELDS],
            "data": PACKED.tobytes(),
            **({"pose": TURNED} if turned else {}),
        }
        return read_cloud(*from_json("foxglove.PointCloud", fields))
    from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud

    message = PointCloud(frame_id="lidar", point_stride=13, data=PACKED.tobytes())
    message.timestamp.FromNanoseconds(STAMP_NS)
    for name, offset, kind in FIELDS:
        message.fields.add(name=name, offset=offset, type=kind)
    if turned:
        for part, values in TURNED.items():
            for axis, value in values.items():
                setattr(getattr(message.pose, part), axis, value)
    return read_cloud(*protobuf(message))


@pytest.mark.parametrize("turned", [False, True], ids=["plain", "with a pose"])
@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_foxglove_clouds(encoding: str, turned: bool) -> None:
    cloud = foxglove(encoding, turned)
    np.testing.assert_allclose(cloud.points, XYZ * [-1, -1, 1] + [10, 0, 1] if turned else XYZ, atol=1e-6)
    np.testing.assert_array_equal(cloud.intensity, [1, 2, 3, 4])
    assert (cloud.stamp_ns, cloud.frame, cloud.time_ns, cloud.ring) == (STAMP_NS, "lidar", None, None)


def test_foxglove_clouds_of_another_length_are_refused() -> None:
    fields = {"timestamp": {"sec": 1, "nsec": 0}, "frame_id": "l", "point_stride": 13, "fields": [], "data": bytes(30)}
    with pytest.raises(DamagedError, match="30 bytes of data are no whole points of 13 bytes"):
        read_cloud(*from_json("foxglove.PointCloud", fields))
    topic_, message = from_json("foxglove.PointCloud", fields)
    message.content.data = "no base64!"
    with pytest.raises(DamagedError, match="data is no field of bytes"):
        read_cloud(topic_, message)
