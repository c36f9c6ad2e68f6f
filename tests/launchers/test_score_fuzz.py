"""Whatever happens to a file of results or labels: `tandem score` gives figures, or one line that names the file.

FUZZ_NUMBER=2000 FUZZ_SEED=7 pytest tests/launchers/test_score_fuzz.py strikes more often.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.detection.formats import argoverse2, waymo
from engine.detection.frames import FoundObjects
from launchers.cli import main as tandem
from tests.engine.detection.test_argoverse2_format import annotations, found
from tests.engine.detection.test_waymo_format import BOX, truth_message
from tests.helpers.mutations import mutate

SEED = int(os.environ.get("FUZZ_SEED", "0"))
NUMBER = int(os.environ.get("FUZZ_NUMBER", "15"))
"""Of each file."""

LABEL = "Car 0.00 0 -1.57 100.00 120.00 300.00 220.00 1.50 1.60 4.00 2.00 1.70 20.00 -1.57"


def _kitti(folder: Path) -> tuple[Path, Path]:
    for name, line in (("label_2", LABEL), ("results", f"{LABEL} 0.9")):
        (folder / name).mkdir()
        (folder / name / "000000.txt").write_text(f"{line}\n{line}\n")
    return folder / "results", folder / "label_2"


def _once(folder: Path) -> tuple[Path, Path]:
    box = [5.0, 0, 0, 4, 2, 1.5, 0.5]
    truth = {"frames": [{"frame_id": "1", "annos": {"names": ["Bus"], "boxes_3d": [box]}}]}
    results = [{"frame_id": "1", "name": ["Car"], "boxes_3d": [box], "score": [0.5]}]
    for name, content in (("truth.json", truth), ("found.json", results)):
        (folder / name).write_text(json.dumps(content))
    return folder / "found.json", folder / "truth.json"


def _waymo(folder: Path, suffix: str = "bin") -> tuple[Path, Path]:
    truth = truth_message(folder / "truth.bin", {"time": 2, "points": 9}, {"time": 4, "points": 3})
    objects = FoundObjects(key="1005_2", boxes=np.array([BOX]), scores=np.array([0.5]), classes=("vehicle",))
    waymo.write_found(folder / f"found.{suffix}", [objects])
    return folder / f"found.{suffix}", truth


def _argoverse2(folder: Path) -> tuple[Path, Path]:
    annotations(folder / "val" / "log-a" / "annotations.feather", [1, 1])
    argoverse2.write_found(folder / "found.feather", [found("log-a/1")])
    return folder / "found.feather", folder / "val"


FILES: dict[str, tuple[str, Callable[[Path], tuple[Path, Path]]]] = {
    "kitti": ("kitti", _kitti),
    "once": ("once", _once),
    "waymo": ("waymo", _waymo),
    "waymo, table": ("waymo", lambda folder: _waymo(folder, "parquet")),
    "argoverse2": ("argoverse2", _argoverse2),
}


@pytest.mark.parametrize("side", ["predictions", "ground truth"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_judged_or_named(
    name: str, side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, write = FILES[name]
    outcomes = set()
    rng = np.random.default_rng([SEED, zlib.crc32(f"{name} {side}".encode())])
    for number in range(NUMBER):
        folder = tmp_path / str(number)
        folder.mkdir()
        sides = write(folder)
        place = sides[0 if side == "predictions" else 1]
        file = next(path for path in ([place] if place.is_file() else sorted(place.rglob("*"))) if path.is_file())
        label, data = mutate(rng, file.name, file.read_bytes(), str(tmp_path / "canary"))
        file.write_bytes(data)
        code = tandem(["score", benchmark, *map(str, sides)])  # any other error is raised
        told = capsys.readouterr()
        outcomes.add(code)
        assert code in {0, 1, 2}, label
        assert (code == 0) == (not told.err), label
        assert code == 0 or str(folder) in told.err or "frame" in told.err, f"{label}: {told.err}"
        shutil.rmtree(folder)
    assert 2 in outcomes, "nothing was damaged"
    assert not (tmp_path / "canary").exists()
