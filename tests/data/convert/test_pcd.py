"""Point cloud files by pypcd4's writer and by hand: every encoding, and headers that lie; logs of them as `pcd`."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import lzf
import numpy as np
import pytest
from pypcd4 import Encoding, PointCloud
from scipy.spatial.transform import Rotation

from data.convert.base import Skipped
from data.convert.pcd import PcdConverter
from data.convert.pcd_file import read_pcd
from data.geometry import rigid, transform, yaw_rotation
from data.sample import Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError
from tests.helpers.layouts.custom import write_custom
from tests.helpers.street_logs import street_log

NAMES = ("x", "y", "z", "intensity", "ring", "timestamp")
TYPES = (np.float32, np.float32, np.float32, np.uint8, np.uint16, np.float64)
RNG = np.random.default_rng(0)
TABLE = [
    *(RNG.normal(size=40).astype(np.float32) for _ in range(3)),
    np.arange(40, dtype=np.uint8),
    np.arange(40, dtype=np.uint16) % 16,
    1.7e9 + np.arange(40) * 0.0025,
]


# ---- files
@pytest.mark.parametrize(
    "encoding", [Encoding.ASCII, Encoding.BINARY, Encoding.BINARY_COMPRESSED], ids=lambda e: e.value
)
def test_files_of_another_writer(tmp_path: Path, encoding: Encoding) -> None:
    path = tmp_path / "cloud.bin"  # the header says what it is, not the name
    TABLE[0][7] = np.nan
    PointCloud.from_points(TABLE, NAMES, TYPES).save(path, encoding=encoding)
    cloud = read_pcd(path)
    assert tuple(cloud.columns) == NAMES
    assert cloud.T_cloud_sensor is None
    for name, kind, values in zip(NAMES, TYPES, TABLE, strict=True):
        assert cloud.columns[name].dtype == kind
        if encoding is Encoding.ASCII:  # with as many digits as its writer gives
            np.testing.assert_allclose(cloud.columns[name], values, rtol=1e-6)
        else:
            np.testing.assert_array_equal(cloud.columns[name], values)


def header(**entries: str) -> bytes:
    """A header of two points; an entry of "" is left out."""
    usual = {
        **{"VERSION": "0.7", "FIELDS": "x y z", "SIZE": "4 4 4", "TYPE": "F F F", "COUNT": "1 1 1"},
        **{"WIDTH": "2", "HEIGHT": "1", "VIEWPOINT": "0 0 0 1 0 0 0", "POINTS": "2", "DATA": "binary"},
    }
    lines = [f"{key} {value}" for key, value in {**usual, **entries}.items() if value]
    return ("# .PCD v0.7 - Point Cloud Data file format\n" + "\n".join(lines) + "\n").encode()


XYZ = np.array([[1.5, 2.5, -3.5], [4.0, 5.0, 6.0]], "<f4")


def test_padding_and_fields_of_several_numbers_are_passed_over(tmp_path: Path) -> None:
    """As PCL writes aligned points; compressed, each field of several numbers stays together point by point."""
    entries = {
        **{"FIELDS": "x _ y z _ normal label", "SIZE": "4 1 4 4 2 4 2", "TYPE": "F U F F I F U"},
        **{"COUNT": "1 3 1 1 2 3 1", "WIDTH": "20", "POINTS": "20"},
    }
    kind = np.dtype(
        [("x", "<f4"), ("a", "u1", 3), ("y", "<f4"), ("z", "<f4"), ("b", "<i2", 2), ("n", "<f4", 3), ("l", "<u2")]
    )
    points = np.zeros(2, kind)
    points["x"], points["y"], points["z"] = XYZ.T
    points["l"], points["n"], points["a"] = [7, 65535], 9.0, 0xAA
    points = np.repeat(points, 10)  # so that they can be compressed
    plain, packed, bare = (tmp_path / f"{name}.pcd" for name in ("plain", "packed", "bare"))
    plain.write_bytes(header(**entries) + points.tobytes())
    for path, names in ((packed, kind.names), (bare, "xyznl")):  # PCL leaves the padding out, others keep it
        body = b"".join(points[name].tobytes() for name in names)
        small = lzf.compress(body)
        assert small is not None
        path.write_bytes(
            header(**entries, DATA="binary_compressed") + struct.pack("<II", len(small), len(body)) + small
        )
    for path in (plain, packed, bare):
        columns = read_pcd(path).columns
        assert tuple(columns) == ("x", "y", "z", "label")
        np.testing.assert_array_equal(np.stack([columns[axis] for axis in "xyz"], axis=1), np.repeat(XYZ, 10, axis=0))
        np.testing.assert_array_equal(columns["label"], np.repeat([7, 65535], 10))


@pytest.mark.parametrize(
    ("entries", "body", "expected"),
    [
        ({"COUNT": "", "VIEWPOINT": "", "POINTS": "", "VERSION": ".7"}, XYZ.tobytes(), XYZ),
        ({"WIDTH": "1", "HEIGHT": "2"}, XYZ.tobytes() + b"\n", XYZ),
        ({"DATA": "ascii"}, b"1.5  2.5 -3.5\r\n\t4 5 6 \n\n", XYZ),
        ({"DATA": "ascii", "WIDTH": "1", "POINTS": "1"}, b"1.5 2.5 -3.5", XYZ[:1]),
        ({"DATA": "ascii", "WIDTH": "0", "POINTS": "0"}, b"", XYZ[:0]),
        ({"WIDTH": "0", "POINTS": "0"}, b"", XYZ[:0]),
        ({"DATA": "binary_compressed", "WIDTH": "0", "POINTS": "0"}, bytes(8), XYZ[:0]),
    ],
    ids=["short header", "organised", "loose text", "one line", "no text", "nothing", "nothing compressed"],
)
def test_headers_that_say_little_are_enough(tmp_path: Path, entries, body, expected) -> None:
    path = tmp_path / "a.pcd"
    path.write_bytes(header(**entries) + body)
    columns = read_pcd(path).columns
    np.testing.assert_array_equal(np.stack([columns[axis] for axis in "xyz"], axis=1), expected)


def test_whole_numbers_of_text_keep_their_digits(tmp_path: Path) -> None:
    path = tmp_path / "a.pcd"
    fields = {"FIELDS": "x y z t", "SIZE": "4 4 4 8", "TYPE": "F F F U", "COUNT": "1 1 1 1", "DATA": "ascii"}
    path.write_bytes(header(**fields) + b"1 2 nan 1700000000123456789\n1 2 3 18446744073709551615\n")
    columns = read_pcd(path).columns
    np.testing.assert_array_equal(columns["t"], np.array([1700000000123456789, 18446744073709551615], np.uint64))
    assert np.isnan(columns["z"][0])


def test_the_viewpoint_is_a_pose(tmp_path: Path) -> None:
    path = tmp_path / "a.pcd"
    turn = Rotation.from_euler("z", 90, degrees=True)
    x, y, z, w = turn.as_quat()
    path.write_bytes(header(VIEWPOINT=f"10 -20 1.5 {w} {x} {y} {z}") + XYZ.tobytes())
    T = read_pcd(path).T_cloud_sensor
    assert T is not None
    np.testing.assert_allclose(T, rigid(turn.as_matrix(), np.array([10, -20, 1.5])), atol=1e-9)


COMPRESSED = {"DATA": "binary_compressed"}


@pytest.mark.parametrize(
    ("entries", "body", "said"),
    [
        ({"DATA": ""}, b"", "no PCD file: its header has no line DATA"),
        ({"VERSION": "0.7\nCOLOUR red"}, b"", "no PCD file: 'COLOUR' in its header"),
        ({"TYPE": ""}, XYZ.tobytes(), "its header has no TYPE"),
        ({"SIZE": "4 4"}, XYZ.tobytes(), "3 FIELDS, 2 of SIZE, 3 of TYPE, 3 of COUNT"),
        ({"SIZE": "4 4 2"}, XYZ.tobytes(), "'z' has TYPE 'F', SIZE 2, COUNT 1"),
        ({"FIELDS": "x y x"}, XYZ.tobytes(), "has two fields 'x'"),
        ({"WIDTH": "-2"}, XYZ.tobytes(), "WIDTH is '-2', expected whole numbers"),
        ({"POINTS": "3"}, XYZ.tobytes(), "POINTS is 3, WIDTH 2 times HEIGHT 1"),
        ({"DATA": "binaryish"}, XYZ.tobytes(), "DATA is 'binaryish', expected ascii, binary, binary_compressed"),
        ({"VIEWPOINT": "0 0 0"}, XYZ.tobytes(), "VIEWPOINT is '0 0 0', expected x y z qw qx qy qz"),
        ({"VIEWPOINT": "0 0 0 0 0 0 0"}, XYZ.tobytes(), "VIEWPOINT: quaternion [0.0, 0.0, 0.0, 0.0]"),
        ({}, XYZ.tobytes()[:-1], "23 bytes of data, 1 rows of 2 points need 24"),
        ({"WIDTH": "99999999999", "POINTS": "99999999999"}, b"", "99999999999 points of 12 bytes"),
        ({"DATA": "ascii"}, b"1 2 3 4 5", "5 numbers of text, 2 points of 3 need 6"),
        ({"DATA": "ascii"}, b"1 2 3 4 5 six", "z: could not convert string to float"),
        (COMPRESSED, b"\x01", "ends before its compressed data"),
        (COMPRESSED, struct.pack("<II", 8, 25) + bytes(8), "25 bytes when unpacked, 2 points of 12 bytes need 24"),
        (COMPRESSED, struct.pack("<II", 50, 24) + bytes(8), "ends 42 bytes before its compressed data do"),
        (COMPRESSED, struct.pack("<II", 3, 24) + b"\x01ab", "the compressed data give"),
        (
            {**COMPRESSED, "WIDTH": "100", "POINTS": "100"},
            struct.pack("<II", 13, 1200) + bytes(13),
            "1,200 bytes when unpacked, 13 cannot become so many",
        ),
    ],
)
def test_files_that_contradict_themselves_say_where(tmp_path: Path, entries, body, said) -> None:
    path = tmp_path / "a.pcd"
    path.write_bytes(header(**entries) + body)
    with pytest.raises(DamagedError, match=f"a.pcd.*{re.escape(said)}"):
        read_pcd(path)


def test_points_that_are_all_equal_are_read(tmp_path: Path) -> None:
    """Compressed, they take the fewest bytes that there are."""
    small = lzf.compress(bytes(12 * 10_000))
    entries = {**COMPRESSED, "WIDTH": "10000", "POINTS": "10000"}
    (tmp_path / "a.pcd").write_bytes(header(**entries) + struct.pack("<II", len(small), 12 * 10_000) + small)
    assert not read_pcd(tmp_path / "a.pcd").columns["z"].any()


def test_compressed_files_need_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pcd").write_bytes(header(**COMPRESSED) + struct.pack("<II", 3, 24) + b"\x01ab")
    monkeypatch.setitem(sys.modules, "lzf", None)
    with pytest.raises(ShardError, match=r"needs python-neo-lzf .*pip install 'tandem-pretrain\[logs\]'"):
        read_pcd(tmp_path / "a.pcd")


# ---- logs
@pytest.fixture(scope="module")
def truth() -> list[Sample]:
    return list(street_log(("front",), frames=2))


@pytest.fixture
def source(tmp_path: Path, truth: list[Sample]) -> Path:
    write_custom(tmp_path / "fleet", [truth])
    return tmp_path / "fleet"


def rewrite(source: Path, *, viewpoint: str = "", **more: np.ndarray) -> None:
    """The sweeps as .pcd, perhaps with further fields."""
    for path in sorted(source.glob("*/lidar/*.npy")):
        rows = np.load(path)
        columns = {**dict(zip(("x", "y", "z", "intensity"), rows.T, strict=True)), **more}
        values = [np.ascontiguousarray(values[: len(rows)]) for values in columns.values()]
        PointCloud.from_points(values, tuple(columns), [v.dtype for v in values]).save(path.with_suffix(".pcd"))
        if viewpoint:
            data = path.with_suffix(".pcd").read_bytes()
            data = re.sub(rb"VIEWPOINT [^\n]*", b"VIEWPOINT " + viewpoint.encode(), data)
            path.with_suffix(".pcd").write_bytes(data)
        path.unlink()


def read(source: Path, **settings: object) -> list[Sample | Skipped]:
    converter = PcdConverter(source=str(source), **settings)
    (log,) = converter.logs()
    return list(converter.frames(log, 0, converter.num_frames(log)))


def skipped(source: Path, **settings: object) -> str:
    found = read(source, **settings)[0]
    assert isinstance(found, Skipped), found
    return found.detail


def test_logs_of_pcd_files_are_those_of_the_plain_layout(source: Path, truth: list[Sample]) -> None:
    rewrite(source)
    found = read(source)
    assert len(found) == len(truth)
    for want, got in zip(truth, found, strict=True):
        assert isinstance(got, Sample), got
        assert (got.log, got.timestamp_us, got.times_s) == (want.log, want.timestamp_us, None)
        np.testing.assert_array_equal(got.points_lidar, want.points_lidar.astype(np.float32))
        np.testing.assert_allclose(got.intensity, want.intensity, atol=1e-6)
        np.testing.assert_array_equal(got.labels, want.labels)
        np.testing.assert_array_equal(got.cameras[0].image, want.cameras[0].image)


def test_points_without_a_return_are_left_out_with_their_labels(source: Path, truth: list[Sample]) -> None:
    path = sorted(source.glob("*/lidar/*.npy"))[0]
    rows = np.load(path)
    rows[3, 0], rows[5, :3] = np.nan, 0
    np.save(path, rows)
    rewrite(source)
    sample = read(source)[0]
    kept = np.delete(np.arange(len(rows)), [3, 5])
    np.testing.assert_array_equal(sample.points_lidar, rows[kept, :3])
    np.testing.assert_array_equal(sample.labels, truth[0].labels[kept])


def test_the_field_of_the_intensity_is_found_or_named(source: Path, truth: list[Sample]) -> None:
    signal = np.full(100_000, 51.0, np.float32)
    rewrite(source, signal=signal, reflectivity=signal * 2)
    np.testing.assert_allclose(read(source)[0].intensity, 0.4, atol=1e-6)
    np.testing.assert_allclose(read(source, intensity="signal")[0].intensity, 0.2, atol=1e-6)
    np.testing.assert_allclose(read(source, intensity="intensity")[0].intensity, truth[0].intensity, atol=1e-6)
    assert not read(source, intensity="none")[0].intensity.any()
    said = "has no field remission; it has x, y, z, intensity, signal, reflectivity (setting intensity=FIELD"
    assert said in skipped(source, intensity="remission")


def test_a_viewpoint_means_what_the_setting_says(source: Path, truth: list[Sample]) -> None:
    rewrite(source, viewpoint="10 -20 1.5 0.7071067811865476 0 0 0.7071067811865476")
    assert "VIEWPOINT is a sensor at [10.0, -20.0, 1.5], turned or moved: viewpoint=sensor if" in skipped(source)
    raw = truth[0].points_lidar.astype(np.float32)
    np.testing.assert_array_equal(read(source, viewpoint="sensor")[0].points_lidar, raw)
    T = rigid(yaw_rotation(np.pi / 2), np.array([10, -20, 1.5]))
    moved_back = transform(np.linalg.inv(T), raw)
    np.testing.assert_allclose(read(source, viewpoint="cloud")[0].points_lidar, moved_back, atol=1e-4)
    with pytest.raises(ValueError, match="viewpoint"):
        PcdConverter(source=str(source), viewpoint="world")


def test_times_of_points_are_kept_before_the_sweep(source: Path) -> None:
    after = np.linspace(-0.1, 0, 100_000, dtype=np.float32)
    rewrite(source, time=after)
    sample = read(source, keep_times=True)[0]
    np.testing.assert_allclose(sample.times_s, -after[: len(sample.times_s)], atol=1e-6)
    assert read(source)[0].times_s is None


def test_motion_is_taken_out_by_times_and_poses(source: Path, truth: list[Sample]) -> None:
    """Every second point was seen when the camera took its image, 10 ms before the sweep's time."""
    then, now = truth[1].cameras[0], truth[1]
    assert now.timestamp_us - then.timestamp_us == 10_000
    rewrite(source, time=np.where(np.arange(100_000) % 2, -0.01, 0).astype(np.float32))
    plain, straight = (read(source, deskew=deskew)[1] for deskew in (False, True))
    assert isinstance(straight, Sample), straight
    assert straight.times_s is None
    T = np.linalg.inv(now.T_world_ego @ now.T_ego_lidar) @ then.T_world_ego @ now.T_ego_lidar
    assert np.linalg.norm(T[:3, 3]) > 0.03
    np.testing.assert_array_equal(straight.points_lidar[::2], plain.points_lidar[::2])
    np.testing.assert_allclose(straight.points_lidar[1::2], transform(T, plain.points_lidar)[1::2], atol=2e-5)


def test_times_that_are_not_there_are_named(source: Path) -> None:
    rewrite(source)
    said = "has none of the fields t, time, timestamp, time_stamp, offset_time; it has x, y, z, intensity"
    assert f"{said} (setting deskew)" in skipped(source, deskew=True)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (np.zeros(100_000, np.float32), "time is 0.0 everywhere (setting keep_times)"),
        (np.arange(100_000, dtype=np.float32) * 2e-3, "s from the sweep's time (keep_times)"),
        (np.arange(100_000, dtype=np.float32) * 1e-2, "expected seconds (below 10)"),
    ],
    ids=["the same", "too long", "milliseconds"],
)
def test_times_that_say_nothing_are_named(source: Path, times: np.ndarray, said: str) -> None:
    rewrite(source, time=times)
    assert said in skipped(source, keep_times=True)


def test_other_layouts_are_answered_with_what_is_expected(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ShardError, match=r"is no pcd folder: looked for <log>/calibration.json and <log>/lidar/<time"):
        PcdConverter(source=str(tmp_path / "nowhere")).logs()
    with pytest.raises(ShardError, match=r"\.npy: expected <time in microseconds> and one of \.pcd, \.las, \.laz"):
        read(source)
