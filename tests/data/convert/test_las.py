"""Tiles of surveys by laspy's writer: blocks, origins, labels, and files that cannot be used; sweeps in such files."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import laspy
import numpy as np
import pytest

from data.convert import las as las_module
from data.convert import las_head
from data.convert.base import Skipped
from data.convert.las import LasConverter
from data.convert.las_file import read_las
from data.convert.pcd import PcdConverter
from data.sample import IGNORE_LABEL, Sample
from data.storage.shard import ShardError
from tests.helpers.layouts.custom import write_custom
from tests.helpers.layouts.point_files import EASTING, NORTHING, survey
from tests.helpers.layouts.point_files import write_tile as write
from tests.helpers.street_logs import street_log


def read(converter: LasConverter) -> dict[str, Sample]:
    found = [item for log in converter.logs() for item in converter.frames(log, 0, converter.num_frames(log))]
    assert all(isinstance(item, Sample) for item in found), found
    return {item.key: item for item in found}


@pytest.mark.parametrize(
    ("ending", "point_format", "version"),
    [(".las", 6, "1.4"), (".laz", 6, "1.4"), (".las", 1, "1.2"), (".LAZ", 3, "1.3")],
)
def test_blocks_hold_the_points_of_the_file(tmp_path: Path, ending: str, point_format: int, version: str) -> None:
    columns = survey()
    if point_format < 6:  # five bits
        columns["classification"] = np.minimum(columns["classification"], 31)
    write(tmp_path / "area 1" / f"tile.07{ending}", columns, point_format=point_format, version=version)
    converter = LasConverter(source=str(tmp_path), min_points=1)
    assert converter.logs() == ("tile_07",)
    assert (converter.camera_names(), converter.class_names) == ((), ())
    samples = read(converter)
    column, row = int(EASTING // 50), int(NORTHING // 50)
    assert list(samples) == [f"tile_07_{column + c}_{row + r}" for c in (0, 1) for r in (0, 1)]
    total = 0
    for number, sample in enumerate(samples.values()):
        left, low = EASTING + 50 * (number // 2), NORTHING + 50 * (number % 2)
        inside = (columns["x"] // 50 == left // 50) & (columns["y"] // 50 == low // 50)
        total += inside.sum()
        np.testing.assert_allclose(sample.T_world_ego[:2, 3], [left + 25, low + 25])
        world = sample.points_lidar.astype(np.float64) + sample.T_world_ego[:3, 3]
        np.testing.assert_allclose(world, np.stack([columns[a][inside] for a in "xyz"], axis=1), atol=1e-4)
        np.testing.assert_allclose(sample.T_world_ego[2, 3], np.quantile(columns["z"][inside], 0.01), atol=1e-6)
        np.testing.assert_allclose(sample.intensity, columns["intensity"][inside] / 65535, atol=1e-6)
        assert sample.timestamp_us == round(columns["gps_time"][inside].min() * 1e6)
        assert (sample.labels, sample.cameras) == (None, ())
    assert total == len(columns["x"])


def test_any_part_of_the_blocks_is_the_same_as_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in chunks, in several passes, and by other processes."""
    write(tmp_path / "tile.laz", survey())
    converter = LasConverter(source=str(tmp_path / "tile.laz"), block_m=25.0, min_points=1)
    whole = list(read(converter).values())
    assert len(whole) == 16
    monkeypatch.setattr("data.convert.las_file._CHUNK_POINTS", 700)
    monkeypatch.setattr(las_module, "_HELD_POINTS", 600)
    parts = [item for start in range(0, 16, 5) for item in converter.frames("tile", start, min(start + 5, 16))]
    assert [part.key for part in parts] == [sample.key for sample in whole]
    for part, sample in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(part.points_lidar, sample.points_lidar)
        np.testing.assert_array_equal(part.intensity, sample.intensity)


def test_slivers_noise_and_withheld_points_are_left_out(tmp_path: Path) -> None:
    columns = survey()
    columns["x"][:5] = EASTING + 120  # a block of five points
    columns["classification"][5:15] = 7
    columns["classification"][15:25] = 18
    withheld = np.zeros(4000, bool)
    withheld[25:30] = True
    write(tmp_path / "tile.las", {**columns, "withheld": withheld})
    samples = read(LasConverter(source=str(tmp_path), min_points=10))
    assert len(samples) == 4
    assert sum(len(sample.points_lidar) for sample in samples.values()) == 4000 - 30


def test_classifications_are_labels_if_asked(tmp_path: Path) -> None:
    columns = survey()
    write(tmp_path / "tile.las", columns)
    converter = LasConverter(source=str(tmp_path), block_m=100.0, labels=True)
    assert converter.class_names[:5] == ("ground", "low_vegetation", "medium_vegetation", "high_vegetation", "building")
    (sample,) = read(converter).values()
    names = {1: None, 2: "ground", 5: "high_vegetation", 6: "building", 17: "bridge_deck", 64: None}
    expected = [
        IGNORE_LABEL if names[code] is None else converter.class_names.index(names[code])
        for code in columns["classification"]
    ]
    np.testing.assert_array_equal(sample.labels, expected)
    own = LasConverter(source=str(tmp_path), block_m=100.0, labels=True, codes=(64, 2))
    assert own.class_names == ("code_64", "ground")
    (sample,) = read(own).values()
    codes = columns["classification"]
    np.testing.assert_array_equal(sample.labels, np.select([codes == 64, codes == 2], [0, 1], IGNORE_LABEL))


def test_one_point_a_cell_and_no_intensity(tmp_path: Path) -> None:
    columns = survey()
    write(tmp_path / "tile.las", {**columns, "intensity": np.zeros(4000, np.uint16)})
    converter = LasConverter(source=str(tmp_path), block_m=100.0, grid_m=10.0, intensity_max=0.0)
    (sample,) = read(converter).values()
    cells = np.stack([columns[axis] for axis in "xyz"], axis=1)
    cells = np.floor((cells - cells.min(axis=0)) / 10.0)
    assert len(sample.points_lidar) == len(np.unique(cells, axis=0))
    assert not sample.intensity.any()
    assert converter.notes() == (
        "blocks of 100 m, no cameras, and no poses of a vehicle",
        "one point a cell of 10 m",
        "intensity_max is 0, every intensity is 0",
    )
    (skipped,) = LasConverter(source=str(tmp_path), block_m=100.0).frames("tile", 0, 1)
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "intensity-range"
    assert "0 where the files have no intensity" in skipped.detail


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
@pytest.mark.parametrize("ending", [".las", ".laz"])
def test_damaged_files_cost_themselves(tmp_path: Path, ending: str, damage: str) -> None:
    write(tmp_path / f"good{ending}", survey())
    bad = tmp_path / f"bad{ending}"
    write(bad, survey())
    data = bad.read_bytes()
    bad.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"no survey" * 100}[damage])
    converter = LasConverter(source=str(tmp_path), min_points=1)
    assert [converter.num_frames(log) for log in converter.logs()] == [1, 4]
    (skipped,) = converter.frames("bad", 0, 1)
    assert isinstance(skipped, Skipped)
    assert (skipped.reason, f"bad{ending}" in skipped.detail) == ("array-broken", True), skipped.detail
    assert len(list(converter.frames("good", 0, 4))) == 4


def test_sources_without_tiles_and_wrong_settings_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ShardError, match=r"is no LAS folder: looked for \*\.las or \*\.laz, at any depth"):
        LasConverter(source=str(tmp_path)).logs()
    write(tmp_path / "a.las", survey(100))
    with pytest.raises(ShardError, match="val_logs names 'b', which is not in"):
        LasConverter(source=str(tmp_path), val_logs=("b",)).logs()
    converter = LasConverter(source=str(tmp_path), val_logs=("a",), block_m=37.0)
    assert (converter.logs(), converter.split_of("a")) == (("a",), "val")
    write(tmp_path / "more" / "a.laz", survey(100))
    with pytest.raises(ShardError, match="log a is there twice"):
        LasConverter(source=str(tmp_path)).logs()
    for wrong in ({"block_m": 0.0}, {"codes": (2, 2)}, {"codes": (256,)}, {"grid_m": -1.0}, {"cameras": ("front",)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LasConverter(source=str(tmp_path), **wrong)
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(ShardError, match=r"LAS files need laspy .*pip install 'tandem-pretrain\[logs\]'"):
        converter.num_frames("a")


def test_degrees_are_not_cut_into_metres(tmp_path: Path) -> None:
    """A block of half the Earth is a sample; of a country in millimetres there is no end of blocks."""
    columns = survey(3000)
    spread = np.arange(3000) * 500.0
    write(tmp_path / "a.las", {**columns, "x": EASTING + spread, "y": NORTHING + spread})
    converter = LasConverter(source=str(tmp_path), block_m=1.0)
    assert converter.num_frames("a") == 0  # one point a block, all slivers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(las_module, "_MOST_BLOCKS", 2000)
        las_module._count_blocks.cache_clear()
        (skipped,) = converter.frames("a", 0, 1)
    assert isinstance(skipped, Skipped)
    assert "has over 2000 blocks of 1 m: is it in metres?" in skipped.detail
    las_module._count_blocks.cache_clear()


def test_a_damaged_scale_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.las", survey(100))
    data = bytearray((tmp_path / "a.las").read_bytes())
    for number, scale in ((131, 1e300), (139, 1e9)):  # of x and y in the header
        data[number : number + 8] = np.float64(scale).tobytes()
        (tmp_path / "a.las").write_bytes(data)
        (skipped,) = LasConverter(source=str(tmp_path)).frames("a", 0, 1)
        assert isinstance(skipped, Skipped)
        assert (skipped.reason, "coordinates beyond 1e+08 m" in skipped.detail) == ("points-range", True)


@pytest.mark.parametrize("ending", [".las", ".laz"])
def test_sweeps_may_be_such_files(tmp_path: Path, ending: str) -> None:
    truth = list(street_log(("front",), frames=1))
    write_custom(tmp_path, [truth])
    (path,) = tmp_path.glob("*/lidar/*.npy")
    rows = np.load(path)
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales = [0.001] * 3
    data = laspy.LasData(header)
    data.x, data.y, data.z = rows[:, :3].T.astype(np.float64)
    data.intensity = np.round(rows[:, 3]).astype(np.uint16)
    data.write(path.with_suffix(ending))
    path.unlink()
    (sample,) = PcdConverter(source=str(tmp_path)).frames(truth[0].log, 0, 1)
    assert isinstance(sample, Sample), sample
    np.testing.assert_allclose(sample.points_lidar, truth[0].points_lidar, atol=6e-4)
    np.testing.assert_allclose(sample.intensity, truth[0].intensity, atol=2.1e-3)
    np.testing.assert_array_equal(sample.labels, truth[0].labels)
    assert len(sample.cameras) == 1


# ---- sizes that a file states
POINTS_AT, RECORDS_AT, POINT_BYTES_AT, COUNT_AT = 96, 100, 105, 247
"""Places in the header of version 1.4."""
FIRST_CHUNK = 469 + 8
"""Where the one chunk of a .laz of `survey` begins."""


@pytest.mark.parametrize(
    ("ending", "place", "kind", "value", "said"),
    [
        (".las", 0, "<4s", b"LAZF", "is no LAS file: it begins with b'LAZF'"),
        (".las", POINTS_AT, "<I", 999_999, "points from byte 999,999 on, the file has 120,375"),
        (".las", RECORDS_AT, "<I", 7, "7 records in 0 bytes before its points"),
        (".las", COUNT_AT, "<Q", 4001, "4,001 points of 30 bytes, there are 120,000 bytes of them"),
        (".laz", POINT_BYTES_AT, "<H", 31, "points of 31 bytes in its header, 30 where it says how it is packed"),
        (".laz", 375 + 2, "<5s", b"nobod", "does not say how (record 22204 is missing)"),
        (".laz", 469, "<q", 120_000_000, "its table of chunks is at byte 120,000,000 of"),
        (".laz", FIRST_CHUNK + 30 + 4 + 4, "<I", 99_999, "states layers of"),
        (".laz", FIRST_CHUNK + 30, "<I", 3999, "4,000 points, its chunks hold 3,999 in"),
        (".laz", COUNT_AT, "<Q", 4001, "4,001 points, its chunks hold 4,000 in"),
    ],
)
def test_a_file_that_states_more_than_it_holds_is_named(
    tmp_path: Path, ending: str, place: int, kind: str, value: bytes | int, said: str
) -> None:
    """Before a library takes memory for it; the values here are ones that cost nothing anywhere."""
    path = tmp_path / f"a{ending}"
    write(path, survey())
    data = bytearray(path.read_bytes())
    struct.pack_into(kind, data, place, value)
    path.write_bytes(data)
    (skipped,) = LasConverter(source=str(path)).frames("a", 0, 1)
    assert isinstance(skipped, Skipped)
    assert (skipped.reason, said in skipped.detail) == ("array-broken", True), skipped.detail


def test_points_of_next_to_no_bytes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.laz", survey(100))
    monkeypatch.setattr(las_head, "_MOST_POINTS", 0)
    (skipped,) = LasConverter(source=str(tmp_path)).frames("a", 0, 1)
    assert isinstance(skipped, Skipped)
    assert "100 points, its chunks hold 100 in" in skipped.detail


def test_points_that_are_all_equal_are_read(tmp_path: Path) -> None:
    """They take the fewest bytes that there are."""
    columns = {name: np.full_like(column, column[0]) for name, column in survey(100_000).items()}
    write(tmp_path / "a.laz", columns)
    assert (tmp_path / "a.laz").stat().st_size < 3000
    assert len(read_las(tmp_path / "a.laz")["x"]) == 100_000


def test_a_table_of_more_chunks_than_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.laz"
    write(path, survey(100))
    data = bytearray(path.read_bytes())
    (table_at,) = struct.unpack_from("<q", data, 469)
    struct.pack_into("<I", data, table_at + 4, 300)
    path.write_bytes(data)
    (skipped,) = LasConverter(source=str(path)).frames("a", 0, 1)
    assert isinstance(skipped, Skipped)
    assert f"300 chunks in {table_at - FIRST_CHUNK:,} bytes" in skipped.detail


@pytest.mark.parametrize("point_format", [1, 3, 6, 7, 8])
def test_packed_files_of_many_chunks_and_of_bytes_of_ones_own_are_read(tmp_path: Path, point_format: int) -> None:
    columns = {**survey(120_000), "classification": np.ones(120_000, np.uint8)}  # chunks have 50,000
    path = tmp_path / "a.laz"
    header = laspy.LasHeader(point_format=point_format, version="1.4")
    header.offsets, header.scales = [EASTING, NORTHING, 0], [0.001] * 3
    header.add_extra_dim(laspy.ExtraBytesParams(name="amplitude", type=np.float64))
    data = laspy.LasData(header)
    for name in ("x", "y", "z", "intensity"):
        setattr(data, name, columns[name])
    data.write(path)
    np.testing.assert_array_equal(read_las(path)["intensity"], columns["intensity"])


def test_a_panic_of_the_library_costs_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):  # the name that Rust's have
        pass

    def panic(*_: object, **__: object) -> object:
        raise PanicException("index out of bounds")

    write(tmp_path / "a.laz", survey(100))
    monkeypatch.setattr(laspy, "open", panic)
    (skipped,) = LasConverter(source=str(tmp_path)).frames("a", 0, 1)
    assert isinstance(skipped, Skipped)
    assert "lazrs gave up: index out of bounds" in skipped.detail
