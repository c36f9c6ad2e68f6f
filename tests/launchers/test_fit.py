"""`tandem fit`: numbers of scanners that are known, what is told of each difference, runs whose set is gone."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.schema import PretrainConfig
from data.batch_spec import VoxelConfig
from data.loading.loader import DataConfig
from data.sample import Sample
from data.storage.manifest import SetInfo, load_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.storage.shard_writer import join_manifest, write_shard
from launchers.cli import main as tandem
from launchers.fitting.compare import Difference, compared
from launchers.fitting.sensors import Sensors, from_json, measured, to_json
from launchers.runs.files import SENSORS_FILE
from launchers.training.train import load_run, resolved_yaml
from tests.helpers.samples import make_camera

GRID = VoxelConfig(kind="cartesian", size=(0.5, 0.5, 0.5))


def scanner(
    *, lines: int = 16, height: float = 1.8, lowest: float = -20.0, highest: float = -4.0, every: float = 0.5
) -> np.ndarray:
    """Points of a spinning scanner on a plane: each of its lines meets the ground in a circle."""
    elevation = np.radians(np.linspace(lowest, highest, lines))
    azimuth = np.radians(np.arange(-180 + every / 2, 180, every))
    rho = height / np.tan(-elevation)
    grid = np.stack(np.broadcast_arrays(rho[:, None], azimuth[None]), axis=-1).reshape(-1, 2)
    z = np.full(len(grid), -height)
    return np.stack([grid[:, 0] * np.cos(grid[:, 1]), grid[:, 0] * np.sin(grid[:, 1]), z], axis=1).astype(np.float32)


def write_set(
    folder: Path,
    points: np.ndarray,
    *,
    intensity: float = 0.2,
    image_size: tuple[int, int] = (48, 96),
    cameras: int = 1,
    apart_us: int = 100_000,
) -> str:
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            key=f"log-{number}",
            log="log",
            timestamp_us=10**6 + apart_us * number,
            points_lidar=points,
            intensity=np.full(len(points), intensity, dtype=np.float32),
            T_ego_lidar=np.eye(4),
            T_world_ego=np.eye(4),
            cameras=tuple(make_camera(rng, f"camera_{c}", image_size=image_size, depth=False) for c in range(cameras)),
        )
        for number in range(3)
    ]
    folder.mkdir(parents=True)
    names = tuple(f"camera_{number}" for number in range(cameras))
    info = SetInfo(set_name=folder.name, camera_names=names, logs=("log",), splits=("train",))
    join_manifest(str(folder), info, [write_shard(folder / "shard-000000.tar", samples)])
    return str(folder)


def sensors(folder: Path, points: np.ndarray, grid: VoxelConfig = GRID, **changes: object) -> Sensors:
    root = write_set(folder, points, **changes)  # type: ignore[arg-type]
    manifest = load_manifest(root)
    return measured(manifest, SampleReader(manifest), manifest.indices(), grid)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Sensors:
    return sensors(tmp_path_factory.mktemp("plain") / "plain", scanner())


def run_config(tmp_path: Path, *overrides: str) -> PretrainConfig:
    return load_run("slidr_street", [f"data.shards={tmp_path}/none", *overrides])


def of(found: list[Difference], name: str) -> Difference:
    return next(one for one in found if one.name.startswith(name))


# ---- what is measured


def test_a_scanner_of_known_build_is_measured_as_it_was_built(plain: Sensors) -> None:
    assert plain.points == 16 * 720
    assert plain.lines == 16
    assert (plain.lowest_deg, plain.highest_deg) == (pytest.approx(-20, abs=0.01), pytest.approx(-4, abs=0.01))
    assert plain.width_deg == 360
    assert plain.ground_m == pytest.approx(-1.8)
    assert plain.range_m == pytest.approx(1.8 / math.tan(math.radians(4)), abs=0.01)
    circles = 1.8 / np.tan(np.radians(np.linspace(20, 4, 16)))
    assert plain.rings[:3] == tuple(720.0 * ((circles >= low) & (circles < low + 5)).sum() for low in (0, 5, 10))
    assert sum(plain.rings) == plain.points
    assert plain.intensities[4] == 1.0  # 0.2 begins the fifth bin
    assert plain.rate_hz == pytest.approx(10)
    assert plain.num_sweeps == 3
    (camera,) = plain.cameras
    assert (camera.image_size, camera.focal_px, camera.width_deg) == ((48, 96), 48.0, pytest.approx(90))


def test_points_beyond_the_limits_are_counted_and_make_no_voxels(plain: Sensors, tmp_path: Path) -> None:
    grid = dataclasses.replace(GRID, range_min=(-10.0, -10.0, -3.0), range_max=(10.0, 10.0, 1.0))
    cut = sensors(tmp_path / "cut", scanner(), grid)
    cells = {tuple(cell) for cell in np.floor(scanner() / 0.5).astype(int)}
    assert plain.voxels == len(cells)
    assert plain.points_per_voxel == pytest.approx(11520 / len(cells))
    inside = (np.abs(scanner()[:, :2]) < 10).all(axis=1)
    assert cut.outside == pytest.approx(1 - inside.mean())
    assert cut.voxels < plain.voxels


def test_it_is_kept_as_text_and_read_back(plain: Sensors, tmp_path: Path) -> None:
    file = tmp_path / SENSORS_FILE
    file.write_text(to_json(plain, GRID))
    assert from_json(file) == plain
    file.write_text('{"sensors": {"points": 3}}')
    with pytest.raises(ShardError, match=r"sensors.json is not what `tandem fit` keeps"):
        from_json(file)


# ---- what is told


def test_a_set_fits_itself(plain: Sensors, tmp_path: Path) -> None:
    assert [one for one in compared(plain, plain, run_config(tmp_path)) if one.beyond] == []


@pytest.mark.parametrize(
    ("change", "name", "advice"),
    [
        (lambda: (scanner(lines=8), {}), "lines above each other", "keep_share=[0.5,1]: it thins sweeps of plain"),
        (
            lambda: (scanner(lines=32), {}),
            "points a sweep",
            "train on other with data.augment.points.keep_share=[0.5,1]",
        ),
        (lambda: (scanner(height=2.6), {}), "height of the ground", "data.augment.points.translate_m=[0,0,0.8]"),
        (lambda: (scanner(lowest=-12.0), {}), "vertical field of view", "data.voxel.range_min"),
        (lambda: (scanner()[5760:], {}), "density by range", "data.augment.points.scale_range"),
        (lambda: (scanner(highest=-2.0), {}), "range of 99 % of points", "that end at 26 m"),
        (lambda: (scanner()[scanner()[:, 0] > 0], {}), "horizontal field of view", "max_rotation_rad"),
        (lambda: (scanner(), {"intensity": 0.9}), "intensity", "intensity_max in calibration.json"),
        (lambda: (scanner(every=0.1), {}), "points in a voxel", "data.voxel.size="),
        (lambda: (scanner(), {"apart_us": 500_000}), "samples a second", "distance between frames"),
        (lambda: (scanner(), {"cameras": 0}), "cameras", "methods of points alone"),
    ],
    ids=["lines", "points", "ground", "elevation", "rings", "range", "width", "intensity", "fill", "rate", "cameras"],
)
def test_each_difference_is_told_with_a_setting(
    change: Callable[[], tuple[np.ndarray, dict[str, object]]],
    name: str,
    advice: str,
    plain: Sensors,
    tmp_path: Path,
) -> None:
    points, changes = change()
    found = of(compared(plain, sensors(tmp_path / "other", points, **changes), run_config(tmp_path)), name)
    assert found.beyond, found
    assert any(advice in text for text in found.advice), found.advice


def test_a_longer_lens_is_told_with_the_size_that_evens_it(plain: Sensors, tmp_path: Path) -> None:
    (camera,) = plain.cameras
    longer = dataclasses.replace(camera, focal_px=2 * camera.focal_px)
    other = dataclasses.replace(plain, set_name="other", cameras=(longer,))
    found = of(compared(plain, other, run_config(tmp_path, "data.image_size=[128,256]")), "focal length")
    assert (found.trained, found.other, found.differs) == ("128 px", "256 px", "x 2.00")
    assert "data.image_size=[64,128]" in found.advice[0]


def test_what_the_network_is_not_fed_is_no_difference(plain: Sensors, tmp_path: Path) -> None:
    bright = dataclasses.replace(plain, intensities=plain.intensities[::-1])
    config = run_config(tmp_path, "data.voxel.features=occupancy")
    assert not of(compared(plain, bright, config), "intensity").beyond
    assert of(compared(plain, bright, run_config(tmp_path)), "intensity").beyond


def test_a_field_that_the_weights_need_is_named(plain: Sensors, tmp_path: Path) -> None:
    overrides = ("data.voxel.features=xyz_intensity_time", "method.backbone.in_channels=5")
    found = of(compared(plain, plain, run_config(tmp_path, *overrides)), "times_s")
    assert (found.beyond, found.differs) == (True, "missing")
    timed = dataclasses.replace(plain, fields=("times_s",))
    assert not of(compared(plain, timed, run_config(tmp_path, *overrides)), "times_s").beyond


def test_advised_settings_are_settings() -> None:
    """Names in the advice's texts, looked up in the config."""
    source = (Path(__file__).parents[2] / "launchers" / "fitting" / "compare.py").read_text()
    names = {name.rstrip(".") for name in re.findall(r"\bdata(?:\.[a-z_]+)+", source)}
    names -= {name for name in names if name.startswith("data.views")}  # a module
    assert len(names) >= 10
    for name in names:
        value: object = DataConfig(shards="x")
        for part in name.removeprefix("data.").split("."):
            value = getattr(value, part)


# ---- the verb


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shards = write_set(tmp_path / "trained", scanner())
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(resolved_yaml(load_run("slidr_street", [f"data.shards={shards}"])))
    return folder


def test_tables_pictures_and_what_is_kept(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_set(tmp_path / "other", scanner(lines=8))
    assert tandem(["fit", str(run), other, "--out", str(tmp_path / "look")]) == 0
    out = capsys.readouterr().out
    assert "medians over 3 and 3 sweeps" in out
    assert "DIFFERS  lines above each other" in out
    assert "what would help" in out
    text = (tmp_path / "look" / "fit.html").read_text()
    assert "lines above each other" in text
    assert (tmp_path / "look" / "fit.png").stat().st_size > 1000
    kept = (run / SENSORS_FILE).read_text()
    shutil.rmtree(tmp_path / "trained")
    assert tandem(["fit", str(run), other, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trained"] == json.loads(kept)["sensors"]
    assert found["other"]["lines"] == 8


def test_a_set_that_is_gone_and_was_not_kept(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tmp_path / "trained")
    assert tandem(["fit", str(run)]) == 1
    assert "start the command where the run was started" in capsys.readouterr().err


def test_mistakes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["fit", str(tmp_path), str(tmp_path)]) == 2
    assert "is no run's folder" in capsys.readouterr().err
    assert tandem(["fit", str(run), str(tmp_path / "trained"), "--split", "test"]) == 1
    assert "split 'test' is not in the set" in capsys.readouterr().err
    (run / "config.yaml").write_text("data: [")
    assert tandem(["fit", str(run), str(tmp_path / "trained")]) == 2
