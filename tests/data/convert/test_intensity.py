"""Intensities of another scale are refused by every LiDAR set, with their distribution and the likely scale."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import data.convert.intensity
from data.convert.base import Skipped
from data.convert.custom.converter import CustomConverter
from data.convert.intensity import check_intensity, scaled_intensity
from data.convert.kitti.kitti_object import KittiObjectConverter
from data.convert.kitti.semantickitti import SemanticKittiConverter
from data.convert.sets import SETTINGS
from data.convert.waymo.labels import scale_intensity
from data.preparing.prepare import PrepareConfig, prepare
from data.storage.damage import DamagedError
from data.storage.shard import ShardError
from tests.data.convert.test_custom import edit_calibration
from tests.data.convert.test_kitti import write_object
from tests.helpers.fuzz_sources import OWN_SETTINGS
from tests.helpers.fuzz_targets import SOURCES, _items
from tests.helpers.layouts import custom, semantickitti
from tests.helpers.street_logs import street_log

LIDAR = sorted(set(SOURCES) - {"7scenes", "nyu", "sunrgbd", "scannet", "scannet meshes", "s3dis"})
RNG = np.random.default_rng(0)
TYPICAL = RNG.beta(1, 4, 2000).astype(np.float32)
"""0 to 1, most of it dark, as a sweep's reflectances are."""


def refused(raw: np.ndarray, maximum: float) -> str:
    with pytest.raises(DamagedError) as error:
        check_intensity(raw, float(maximum), "sweep.bin", "set intensity_max")
    assert error.value.reason == "intensity-range"
    assert error.value.detail.startswith("sweep.bin: ")
    return error.value.detail


@pytest.mark.parametrize(("scale", "maximum"), [(1, 1), (255, 255), (100, 100), (65535, 65535), (255, 200), (30, 100)])
def test_the_right_scale_passes(scale: float, maximum: float) -> None:
    values = scaled_intensity(TYPICAL * np.float32(scale), float(maximum), "sweep.bin")
    np.testing.assert_array_equal(values, np.clip(TYPICAL * np.float32(scale) / np.float32(maximum), 0, 1))
    assert values.dtype == np.float32


@pytest.mark.parametrize(
    ("raw", "maximum", "words"),
    [
        (
            np.rint(TYPICAL * 255),
            1,
            r"9\d% are out of 0 to 1 \(least, .*look like values of 0 to 255; set intensity_max",
        ),
        (256 + TYPICAL * 5344, 255, r"100% are out of 0 to 255 \(least, .*: 25\d\.\d+, .*\d\); set"),
        (TYPICAL * 65535, 1, r"100% are out of 0 to 1 .*look like values of 0 to 65535; set"),
        (np.zeros(2000), 1, r"every intensity is 0; set intensity_max"),
        (-TYPICAL, 1, r"100% are out of 0 to 1"),
        (np.append(TYPICAL, 1.3e38), 1, r"an intensity of 1\.3e\+38, expected 0 to 1"),
        (np.append(TYPICAL, -1.3e38), 1, r"an intensity of -1\.3e\+38"),
    ],
)
def test_another_scale_is_named(raw: np.ndarray, maximum: float, words: str) -> None:
    detail = refused(raw.astype(np.float32), maximum)
    assert re.search(words, detail), detail


def test_what_cannot_be_judged() -> None:
    check_intensity(np.zeros(0), 1.0, "sweep.bin")
    check_intensity(np.zeros(20), 1.0, "sweep.bin")  # too few
    check_intensity(np.array([7, 255] * 99, dtype=np.uint8), 255.0, "sweep.bin")
    with pytest.raises(DamagedError, match="points-not-finite"):
        scaled_intensity(np.append(TYPICAL, np.inf), 1.0, "sweep.bin")
    with pytest.raises(DamagedError, match="files that the set publishes hold 0 to 255; prepare converted ones"):
        check_intensity(TYPICAL * 65535, 255.0, "sweep.bin")
    check_intensity(TYPICAL, 255.0, "sweep.bin")  # a sweep may be dark
    # Waymo has no upper limit: reflectors give thousands, bytes are noticed.
    assert scale_intensity(np.append(TYPICAL, 7e4), "frame").max() == 1
    with pytest.raises(DamagedError, match="0 to 255"):
        scale_intensity(TYPICAL * 255, "frame")


def test_the_set_is_refused_with_the_cause(tmp_path: Path) -> None:
    root = write_object(tmp_path / "raw", frames=(0, 1, 2))
    for path in root.rglob("*.bin"):
        sweep = np.fromfile(path, "<f4").reshape(-1, 4)
        sweep[:, 3] = RNG.integers(0, 256, len(sweep))
        sweep.tofile(path)
    converter = KittiObjectConverter(source=str(root))
    with pytest.raises(ShardError, match="intensity-range: 3"):
        prepare(converter, str(tmp_path / "set"), PrepareConfig(superpixels=None))
    (first, *_) = _items(converter)
    assert isinstance(first, Skipped)
    assert "look like values of 0 to 255; the files that the set publishes hold 0 to 1;" in first.detail


def test_one_flipped_bit_is_counted(tmp_path: Path) -> None:
    root = write_object(tmp_path, frames=(0, 1))
    path = min(root.rglob("*.bin"))
    sweep = np.fromfile(path, "<f4").reshape(-1, 4)
    sweep[7, 3:].view("<u4")[:] ^= 1 << 30  # 0.25 becomes 8.5e37
    sweep.tofile(path)
    manifest = prepare(KittiObjectConverter(source=str(root)), str(tmp_path / "set"), PrepareConfig()).manifest
    assert manifest.skipped == {"intensity-range": ("000000",)}


def test_bytes_in_semantickitti(tmp_path: Path) -> None:
    semantickitti.write_semantickitti(tmp_path, frames=1)
    path = min(tmp_path.rglob("*.bin"))
    sweep = np.fromfile(path, "<f4").reshape(-1, 4) * np.float32([1, 1, 1, 255])
    sweep.tofile(path)
    (item, *_) = _items(SemanticKittiConverter(source=str(tmp_path)))
    assert isinstance(item, Skipped)
    assert item.reason == "intensity-range"


def test_a_sensor_without_intensity_says_so(tmp_path: Path) -> None:
    custom.write_custom(tmp_path, [street_log(("front",), frames=1, azimuths=90)])
    log = next(path.parent for path in tmp_path.rglob("calibration.json"))
    for path in (log / "lidar").iterdir():
        sweep = np.load(path) if path.suffix == ".npy" else np.fromfile(path, "<f4").reshape(-1, 4)
        sweep[:, 3] = 0
        np.save(path, sweep) if path.suffix == ".npy" else sweep.tofile(path)
    (item,) = _items(CustomConverter(source=str(tmp_path)))
    assert isinstance(item, Skipped)
    assert "every intensity is 0; intensity_max of calibration.json is" in item.detail
    edit_calibration(tmp_path, log.name, lambda content: content.update(intensity_max=None))
    converter = CustomConverter(source=str(tmp_path))
    (sample,) = _items(converter)
    assert not isinstance(sample, Skipped)
    assert (sample.intensity.dtype, float(sample.intensity.max())) == (np.float32, 0.0)
    assert any("intensity_max is null, every intensity is 0" in note for note in converter.notes())


@pytest.mark.slow
@pytest.mark.parametrize("name", LIDAR)
def test_every_lidar_set_looks(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    SOURCES[name](tmp_path)
    monkeypatch.setattr(data.convert.intensity, "MOST_CLIPPED", -1.0)
    monkeypatch.setattr(data.convert.intensity, "FEW_POINTS", 0)
    items = list(_items(SETTINGS[name.split()[0]](source=str(tmp_path), **OWN_SETTINGS.get(name, {}))))
    assert {item.reason for item in items if isinstance(item, Skipped)} == {"intensity-range"}
    assert all(isinstance(item, Skipped) for item in items)
