"""The examples of docs/custom_data.md, as a user would copy them: run, prepared, and found to agree."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.calibration.check import CalibrationCheck, check_samples, motion_between
from data.convert.custom.converter import CustomConverter
from data.geometry import rigid
from data.preparing.prepare import PrepareConfig, prepare
from data.sample import Sample
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from launchers.drawing.calibration_pictures import check_set

PROJECT = Path(__file__).parents[3]
PAGE = PROJECT / "docs" / "custom_data.md"
PLAIN = PrepareConfig(superpixels=None)
CAMERA_TO_EGO = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's scripts under their names, and the logs that the first one writes."""
    root = tmp_path_factory.mktemp("page")
    scripts = re.findall(r"<!-- example: (\w+\.py) -->\n```python\n(.*?)```", PAGE.read_text(), re.S)
    assert [name for name, _ in scripts] == ["write_logs.py", "from_source.py", "from_iterator.py"]
    for name, code in scripts:
        (root / name).write_text(code)
    run(root, "write_logs.py", "fleet")
    return root


def run(root: Path, script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", script, *arguments],
        cwd=root,
        env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_writes_what_the_converter_reads(folder):
    converter = CustomConverter(source=str(folder / "fleet"))
    (log,) = converter.logs()
    assert (log, converter.num_frames(log), converter.notes()) == ("drive-0001", 20, ())
    samples = list(converter.frames(log, 0, 20))
    for sample in samples:
        assert isinstance(sample, Sample), sample
        assert sample.cameras[0].jpeg is not None
        moved = sample.cameras[0].T_world_ego[0, 3] - sample.T_world_ego[0, 3]
        assert moved == pytest.approx(8.0 * 0.023, abs=1e-6), "the camera fires 23 ms after the sweep, at 8 m/s"
    assert 0.2 < samples[0].intensity.min() < samples[0].intensity.max() < 0.8


def test_the_calibration_check_tells_right_from_wrong(folder):
    converter = CustomConverter(source=str(folder / "fleet"))
    samples = [sample for sample in converter.frames("drive-0001", 0, 8) if isinstance(sample, Sample)]
    (right,) = check_samples(samples)
    assert right.status == "fits", right.message()
    assert abs(right.shift_px[0]) < 1
    shift = np.zeros((3, 3))
    shift[0, 2] = 7
    wrong = [
        dataclasses.replace(s, cameras=(dataclasses.replace(s.cameras[0], K=s.cameras[0].K + shift),)) for s in samples
    ]
    (verdict,) = check_samples(wrong)
    assert verdict.status == "shift"
    assert verdict.shift_px[0] == pytest.approx(-7, abs=1)


def changed_copy(folder: Path, root: Path, change: Callable[[dict[str, Any]], object]) -> str:
    shutil.copytree(folder / "fleet", root)
    path = root / "drive-0001" / "calibration.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return str(root)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (np.linalg.inv, "the camera's pose is the wrong way round"),
        pytest.param(
            lambda T: T @ rigid(CAMERA_TO_EGO.T, np.zeros(3)),
            "the camera's axes are a vehicle's",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda T: T @ np.diag([1, -1, -1, 1]),
            "the camera's axes are those of computer graphics",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_extrinsics_the_wrong_way_round_end_the_preparation_with_their_cause(folder, tmp_path, change, cause):
    def turn(content: dict[str, Any]) -> None:
        camera = content["cameras"]["front"]
        camera["T_ego_camera"] = change(np.array(camera["T_ego_camera"], dtype=float)).tolist()

    source = changed_copy(folder, tmp_path / "fleet", turn)
    with pytest.raises(ShardError, match=rf"log drive-0001: hardly a point .* likely, {cause}") as caught:
        prepare(CustomConverter(source=source), str(tmp_path / "set"), PLAIN)
    right = str(caught.value).split("; or ")[0]
    assert float(re.search(r"\(([\d,]+) pairs", right)[1].replace(",", "")) > 5000, "as many as the right ones have"
    # Nothing was written, so the folder may be begun with other settings, as the message advises.
    sweeps = CustomConverter(source=source, cameras=("none",))
    assert len(prepare(sweeps, str(tmp_path / "set"), PLAIN).manifest) == 20


def test_a_vehicle_that_drives_backwards_is_refused_unless_it_really_does(folder, tmp_path):
    shutil.copytree(folder / "fleet", tmp_path / "fleet")
    path = tmp_path / "fleet" / "drive-0001" / "poses.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *(line.removesuffix("1,0,0,0") + "0,0,0,1" for line in lines)]) + "\n")
    backwards = r"drive-0001 \(1[79] steps\) the vehicle moves backwards: its heading is turned by 180 degrees"
    converter = CustomConverter(source=str(tmp_path / "fleet"))
    with pytest.raises(ShardError, match=backwards + r".* set drives_forward=false"):
        prepare(converter, str(tmp_path / "set"), PLAIN)
    small = dataclasses.replace(PLAIN, samples_per_shard=8)  # no shard has steps enough: all together do
    with pytest.raises(ShardError, match=backwards):
        prepare(converter, str(tmp_path / "small"), small)
    converter = dataclasses.replace(converter, drives_forward=False)
    manifest = prepare(converter, str(tmp_path / "small"), small).manifest
    (note,) = manifest.notes
    assert re.search(backwards, note)
    verdict = check_set(manifest, SampleReader(manifest), range(12)).verdicts[0]
    assert verdict.status == "heading", verdict.message()
    assert "moves backwards" in verdict.message()
    # A vehicle that really reverses: it was further back, not further ahead, when each image was taken.
    check, reader = CalibrationCheck(), SampleReader(manifest)
    for sample, after in itertools.pairwise(map(reader.read, range(13))):
        (view,) = sample.cameras
        back = rigid(np.eye(3), -2 * (view.T_world_ego - sample.T_world_ego)[:3, 3]) @ view.T_world_ego
        cameras = (dataclasses.replace(view, T_world_ego=back),)
        check.add(dataclasses.replace(sample, cameras=cameras), motion_between(sample, after))
    verdict = check.verdicts()[0]
    assert verdict.status == "fits", verdict.message()
    assert verdict.message().endswith("or it really drove so")


@pytest.mark.slow
def test_folder_source_and_iterator_give_the_same_points_and_poses(folder):
    prepare(CustomConverter(source=str(folder / "fleet")), str(folder / "from_folder"), PrepareConfig())
    assert "points per sample" in run(folder, "from_source.py", "from_source")
    assert run(folder, "from_iterator.py", "from_iterator") == "20 samples\n"
    sets = [load_manifest(str(folder / name)) for name in ("from_folder", "from_source", "from_iterator")]
    assert sets[1].shards == sets[2].shards, "byte for byte"
    assert [manifest.key(7) for manifest in sets] == ["drive-0001_1700000000700000"] * 3
    plain, other = (SampleReader(manifest).read(7) for manifest in sets[:2])
    np.testing.assert_array_equal(plain.points_lidar, other.points_lidar)
    np.testing.assert_allclose(plain.intensity, other.intensity, atol=1e-6)
    view, theirs = plain.cameras[0], other.cameras[0]
    np.testing.assert_allclose(plain.T_cam_lidar(view), other.T_cam_lidar(theirs), atol=1e-6)
