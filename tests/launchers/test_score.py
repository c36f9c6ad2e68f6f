"""`tandem score`: from official files to a table and a JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine.detection.formats import argoverse2, waymo
from engine.detection.frames import FoundObjects
from engine.detection.kitti_rules import KittiSettings
from engine.detection.nuscenes_rules import CLASS_OF
from launchers.cli import main as tandem
from launchers.evaluation.submission import write_submission
from launchers.finetuning.judged_set import JudgedSet
from launchers.options.score import BENCHMARKS, HEIGHT_RULES, OF_POINTS, parser
from launchers.score import _BENCHMARKS
from tests.engine.detection.test_argoverse2_format import annotations, found
from tests.engine.detection.test_waymo_format import BOX, truth_message
from tests.helpers.layouts.kitti import write_kitti_object
from tests.launchers.test_detections import config, frames_of

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


def test_objects_of_no_judged_class_are_not_judged_0_without_a_word(
    kitti: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = "no found object is of a class that kitti judges (Car, Pedestrian, Cyclist); found were Tram"
    for name, said in (("Tram", True), ("Cyclist", False)):
        for path in kitti[0].iterdir():
            path.write_text(" ".join([name, *path.read_text().split()[1:]]) + "\n")
        assert tandem(["score", "kitti", *map(str, kitti)]) == 0
        assert (words in " ".join(capsys.readouterr().out.split())) == said


def test_listed_frames_alone_are_judged(
    kitti: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "val.txt").write_bytes(b"\xef\xbb\xbf000000\r\n")  # as editors of Windows write it
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"000000\n000001 000000\n", "frame 000000 is listed twice"),
        (b"\xff\xfe0\x000\x00", "is no text in UTF-8"),
        (b"", "there is no frame to judge"),
    ],
    ids=["twice", "utf-16", "empty"],
)
def test_wrong_lists_of_frames_are_named(
    content: bytes, message: str, kitti: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "val.txt").write_bytes(content)
    assert tandem(["score", "kitti", *map(str, kitti), "--frames", str(tmp_path / "val.txt")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kitti", "--split", "val"], "--split is an option of nuscenes, got it with kitti"),
        (["once", "--height-rule", "ports"], "--height-rule is an option of kitti, got it with once"),
        (["kitti", "--max-distance", "5"], "--max-distance is an option of once, got it with kitti"),
        (["kitti", "--worst", "-3"], "got '-3', expected a whole number of 0 or more"),
    ],
    ids=["split", "height rule", "distance", "worst"],
)
def test_options_that_would_change_nothing_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, *rest = words
    with pytest.raises(SystemExit, match="2"):
        tandem(["score", benchmark, "found", "true", *rest])
    assert message in capsys.readouterr().err


def test_options_name_what_there_is() -> None:
    assert set(BENCHMARKS) == {*_BENCHMARKS, *OF_POINTS}
    for rule in HEIGHT_RULES:
        KittiSettings(height_rule=rule)  # type: ignore[arg-type]
    assert parser().parse_args(["kitti", "a", "b"]).height_rule == KittiSettings().height_rule


# ---- nuScenes: the real key frame

REAL = Path(__file__).parents[3] / "shared" / "data" / "nuscenes" / "v1.0-mini"


def _nuscenes_results(path: Path, samples: dict[str, list[dict[str, object]]]) -> Path:
    uses = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    path.write_text(json.dumps({"meta": uses, "results": samples}))
    return path


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the nuScenes frame in ../shared/data/nuscenes")
def test_nuscenes_tables_have_the_development_kits_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Annotations as predictions; scores .9 - .01 times the annotation's number."""
    tables = {
        name: json.loads((REAL / f"{name}.json").read_text())
        for name in ("sample", "sample_annotation", "instance", "category")
    }
    category = {row["token"]: row["name"] for row in tables["category"]}
    kinds = {row["token"]: category[row["category_token"]] for row in tables["instance"]}
    (sample,) = tables["sample"]
    found = [
        {
            **{name: row[name] for name in ("translation", "size", "rotation")},
            "sample_token": sample["token"],
            "velocity": [0.0, 0.0],
            "detection_name": CLASS_OF[kinds[row["instance_token"]]],
            "detection_score": 0.9 - 0.01 * number,
            "attribute_name": "",
        }
        for number, row in enumerate(tables["sample_annotation"])
        if kinds[row["instance_token"]] in CLASS_OF
    ]
    results = _nuscenes_results(tmp_path / "results.json", {sample["token"]: found})
    assert tandem(["score", "nuscenes", str(results), str(REAL), "--worst", "0"]) == 0
    text = capsys.readouterr().out
    assert "mAP: 0.4901" in text
    assert "NDS: 0.3895" in text
    assert tandem(["score", "nuscenes", str(results), str(REAL), "--split", "mini_train"]) == 0  # scene-0061 is in it
    assert tandem(["score", "nuscenes", str(results), str(REAL), "--split", "val"]) == 2
    assert "no scene of split val" in capsys.readouterr().err
    assert tandem(["score", "nuscenes", str(results), str(REAL), "--split", "vla"]) == 2
    assert "no split 'vla'" in capsys.readouterr().err


def test_waymo_and_its_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = truth_message(tmp_path / "truth.bin", {"time": 2, "points": 9}, {"time": 4, "points": 3})
    found = FoundObjects(key="1005_2", boxes=np.array([BOX]), scores=np.array([0.5]), classes=("vehicle",))
    waymo.write_found(tmp_path / "found.bin", [found])
    (tmp_path / "frames.txt").write_text("1005_2")
    paths = [str(tmp_path / "found.bin"), str(truth)]
    assert tandem(["score", "waymo", *paths]) == 0
    assert "mAP LEVEL_2: 0.1667" in capsys.readouterr().out  # one of two, a class of three
    assert tandem(["score", "waymo", *paths, "--frames", str(tmp_path / "frames.txt")]) == 0
    assert "mAP LEVEL_2: 0.3333" in capsys.readouterr().out


def test_argoverse2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations(tmp_path / "val" / "log-a" / "annotations.feather", [1, 1])
    argoverse2.write_found(tmp_path / "found.feather", [found("log-a/1")])
    assert tandem(["score", "argoverse2", str(tmp_path / "found.feather"), str(tmp_path / "val")]) == 0
    text = capsys.readouterr().out
    assert "no ROI" in text
    assert "mAP: 0.0382" in text  # a class of 26, false ones at full recall


def test_files_of_another_kind_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no results")
    for benchmark in ("nuscenes", "waymo", "once", "argoverse2"):
        assert tandem(["score", benchmark, str(tmp_path / "file"), str(tmp_path / "file")]) in {1, 2}
        assert str(tmp_path) in capsys.readouterr().err


def test_where_the_figures_are_to_go_is_looked_at_first(
    kitti: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for out, message in ((tmp_path, "is a folder; expected a file, "), (tmp_path / "file" / "x", "cannot be made")):
        assert tandem(["score", "kitti", *map(str, kitti), "--out", str(out)]) == 2
        told = capsys.readouterr()
        assert message in told.err
        assert not told.out  # nothing was judged


@pytest.mark.parametrize(
    ("benchmark", "classes", "figure"),
    [
        ("once", ("car", "pedestrian", "cyclist"), ("Pedestrian", "overall", "AP")),
        ("waymo", ("pedestrian", "cyclist"), ("pedestrian", "LEVEL_2", "AP")),
    ],
)
def test_a_prepared_set_is_ground_truth_where_the_files_have_their_boxes(
    benchmark: str,
    classes: tuple[str, ...],
    figure: tuple[str, str, str],
    street_set: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All that is there is found and written in the benchmark's files: perfect."""
    judged = JudgedSet.of(config(street_set))
    frames = frames_of(judged, classes)
    place = write_submission(tmp_path / "found", benchmark, frames, judged.manifest, classes)
    out = tmp_path / "scores.json"
    words = ["score", benchmark, str(place), street_set, "--split", "val", "--out", str(out)]
    assert tandem(words) == 0, capsys.readouterr().err
    rows = {(row["category"], row["subset"], row["metric"]): row for row in json.loads(out.read_text())["rows"]}
    assert rows[figure]["num_true"] > 0
    assert rows[figure]["value"] > 0.99 * (100 if rows[figure]["unit"] == "%" else 1)
    assert tandem([*words[:4], "--split", "tets"]) == 2
    assert "--split: got 'tets', expected one of train, val" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("nowhere\n")
    assert tandem([*words[:4], "--frames", str(tmp_path / "list.txt")]) == 2
    assert f"frame nowhere is not in {street_set}" in capsys.readouterr().err


def test_kittis_labels_and_the_set_made_of_them_judge_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, shards, results = tmp_path / "raw", tmp_path / "shards", tmp_path / "results"
    write_kitti_object(raw, image_size=(192, 320))
    labels = raw / "training" / "label_2"
    assert tandem(["prepare", "kitti-object", str(raw), str(shards), "--no-superpixels", "--workers=1"]) == 0
    results.mkdir()
    for file in labels.glob("*.txt"):
        lines = [line for line in file.read_text().splitlines() if not line.startswith("DontCare")]
        (results / file.name).write_text("".join(f"{line} 0.{9 - n % 9}\n" for n, line in enumerate(lines)))
    tables = []
    for truth in (labels, shards):
        out = tmp_path / "scores.json"
        assert tandem(["score", "kitti", str(results), str(truth), "--out", str(out)]) == 0, capsys.readouterr().err
        tables.append(
            {(row["category"], row["subset"], row["metric"]): row for row in json.loads(out.read_text())["rows"]}
        )
    assert sum(row["num_true"] for row in tables[0].values()) > 0
    for name, row in tables[0].items():
        assert tables[1][name]["num_true"] == row["num_true"], name
        assert tables[1][name]["value"] == pytest.approx(row["value"], abs=1e-6), name
