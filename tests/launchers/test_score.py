"""`tandem score`: from official files to a table and a JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine.detection.kitti_rules import KittiSettings
from launchers.cli import main as tandem
from launchers.options.score import BENCHMARKS, HEIGHT_RULES, parser
from launchers.score import _BENCHMARKS

LABEL = "Car 0.00 0 -1.57 100.00 120.00 300.00 220.00 1.50 1.60 4.00 2.00 1.70 {z} -1.57"


@pytest.fixture
def kitti(tmp_path: Path) -> tuple[Path, Path]:
    """Two frames of a car each; in the second, one that is not there is found."""
    labels, results = tmp_path / "label_2", tmp_path / "results"
    labels.mkdir()
    results.mkdir()
    for number, found_z in enumerate((20.0, 40.0)):
        (labels / f"{number:06d}.txt").write_text(LABEL.format(z=20.0) + "\n")
        (results / f"{number:06d}.txt").write_text(LABEL.format(z=found_z) + f" 0.{9 - number}\n")
    return results, labels


def test_the_table_has_figures_and_numbers_of_objects(
    kitti: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "scores.json"
    assert tandem(["score", "kitti", *map(str, kitti), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "KITTI object, rules of the development kit" in text
    line = next(line for line in text.splitlines() if "3D AP R11" in line)
    assert line.count("9.09") == 3  # precision 1 at recall 0, of 11
    assert "3D AP R40, moderate: 0.00 %" in text
    assert "note: R40 of fewer than 41 objects" in text
    assert "frame 000001: 1 missed, 0 false" in text  # .8 is below the score of best F1

    written = json.loads(out.read_text())
    row = next(row for row in written["rows"] if (row["category"], row["metric"]) == ("Car", "3D AP R11"))
    assert row == {
        "category": "Car",
        "subset": "easy",
        "metric": "3D AP R11",
        "value": pytest.approx(100 / 11),
        "unit": "%",
        "num_true": 2,
    }
    assert next(row["value"] for row in written["rows"] if row["category"] == "Cyclist") is None  # nowhere
    curve = next(c for c in written["curves"] if c["metric"] == "3D AP")
    assert (len(curve["recall"]), curve["precision"][0], curve["scores"][:2]) == (41, 1.0, [0.9, None])
    assert written["frames"][1] == {"key": "000001", "missed": [0], "false": [], "right": []}


def test_listed_frames_alone_are_judged(
    kitti: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "val.txt").write_text("000000\n")
    assert tandem(["score", "kitti", *map(str, kitti), "--frames", str(tmp_path / "val.txt")]) == 0
    assert "│ Car        │ objects" in (text := capsys.readouterr().out)
    assert "000001" not in text


def test_variants_are_named(kitti: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["score", "kitti", *map(str, kitti), "--height-rule", "ports"]) == 0
    assert "rules of the ports" in capsys.readouterr().out


def test_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = [5.0, 0, 0, 4, 2, 1.5, np.pi / 4]
    truth = {"frames": [{"frame_id": "1", "annos": {"names": ["Bus"], "boxes_3d": [box]}}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    found = [{"frame_id": "1", "name": ["Car"], "boxes_3d": [box], "score": [0.5]}]
    (tmp_path / "found.json").write_text(json.dumps(found))
    paths = [str(tmp_path / name) for name in ("found.json", "truth.json")]
    assert tandem(["score", "once", *paths, "--max-distance", "5"]) == 0
    text = capsys.readouterr().out
    assert "AP, overall: 33.33 %" in text
    assert "centres within 5 m" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("remove", "frame 000001 has no predictions: "),
        ("cut", "000001.txt, line 1: 7 numbers behind the class, expected 15"),
        ("rename", "000001.txt, line 1: unknown class 'Cra'"),
        ("nowhere", "nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_named(
    change: str, message: str, kitti: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results, labels = kitti
    file = results / "000001.txt"
    if change == "remove":
        file.unlink()
    elif change == "nowhere":
        results = results.parent / "nowhere"
    else:
        text = file.read_text()
        file.write_text(" ".join(text.split()[:8]) if change == "cut" else text.replace("Car", "Cra"))
    assert tandem(["score", "kitti", str(results), str(labels)]) == 2
    assert message in capsys.readouterr().err


def test_options_name_what_there_is() -> None:
    assert set(BENCHMARKS) == set(_BENCHMARKS)
    for rule in HEIGHT_RULES:
        KittiSettings(height_rule=rule)  # type: ignore[arg-type]
    assert parser().parse_args(["kitti", "a", "b"]).height_rule == KittiSettings().height_rule
