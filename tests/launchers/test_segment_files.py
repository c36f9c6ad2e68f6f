"""Files of panoptic benchmarks: what is written is what was found, and is judged as it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs.load import ArgumentError
from data.convert.kitti.semantickitti import CLASS_WORDS
from data.convert.nuscenes.names import CATEGORIES, CLASSES
from data.loading.segment_frames import PointTruth
from data.views.truth import FrameTruth
from engine.segmentation.frames import SegmentedFrame, SegmentNames
from engine.segmentation.panoptic import NUSCENES, SEMANTICKITTI, panoptic_counts, score_panoptic
from launchers.cli import main as tandem
from launchers.evaluation.segment_files import (
    KITTI_NAMES,
    NUSCENES_NAMES,
    SegmentFiles,
    files_of,
    nuscenes_numbers,
    score_kitti_files,
    score_nuscenes_files,
)
from launchers.evaluation.segments import FoundSegments

POINTS = 3000


def truth(key: str, *, token: str | None = None, gathered: bool = False) -> PointTruth:
    frame = FrameTruth(
        index=0, key=key, log="08", timestamp_us=0, boxes=None, cameras=(), T_ego_lidar=np.eye(4),
        T_world_ego=np.eye(4), token=token,
    )  # fmt: skip
    return PointTruth(frame=frame, num_points=POINTS, labels=None, instances=None, gathered=gathered)


def found(names: SegmentNames, seed: int) -> FoundSegments:
    """Runs of points of one class, in seven objects that may have several classes."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(rng.integers(0, len(names.classes), POINTS // 100), 100)
    objects = np.where(names.is_thing[classes], rng.integers(0, 7, POINTS // 100).repeat(100), -1)
    return FoundSegments(
        found_class=classes, found_object=objects, object_class=np.zeros(7, np.int64), object_score=np.ones(7)
    )


def truth_of(names: SegmentNames, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As what is found, but that a fifth of the points is of the next class, and a tenth unlabelled."""
    rng, one = np.random.default_rng(100 + seed), found(names, seed)
    classes = np.where(rng.random(POINTS) < 0.2, (one.found_class + 1) % len(names.classes), one.found_class)
    classes[rng.random(POINTS) < 0.1] = -1
    return classes, np.where(names.is_thing[classes] & (classes >= 0), one.found_object + 1, 0)


def expected(names: SegmentNames, key: str, seed: int) -> SegmentedFrame:
    classes, objects = truth_of(names, seed)
    return SegmentedFrame(
        key=key, true_class=classes, true_object=np.where(objects > 0, objects, -1), **vars(found(names, seed))
    )


def test_semantickitti(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"08_000000": 0, "08_000007": 1}
    writer = files_of(
        "panoptic_semantickitti", tmp_path / "found", KITTI_NAMES, split="val", tables=None, pretrained=False
    )
    labels = tmp_path / "true" / "dataset" / "sequences" / "08" / "labels"
    labels.mkdir(parents=True)
    words = np.array([choices[0] for choices in CLASS_WORDS.values()] + [99])
    for key, seed in keys.items():
        writer.write(truth(key), found(KITTI_NAMES, seed))
        classes, objects = truth_of(KITTI_NAMES, seed)
        (labels / f"{key[3:]}.label").write_bytes((words[classes] | (objects << 16)).astype("<u4").tobytes())
    writer.finish()
    kept = {
        key: panoptic_counts(expected(KITTI_NAMES, key, seed), KITTI_NAMES, SEMANTICKITTI) for key, seed in keys.items()
    }
    want = score_panoptic(kept, KITTI_NAMES, SEMANTICKITTI)
    assert 20 < want.headline["PQ"] < 90
    assert score_kitti_files(tmp_path / "found", tmp_path / "true").headline == pytest.approx(want.headline)
    assert score_kitti_files(tmp_path / "found", tmp_path / "true", ["08_000007"]).frames[0].key == "08_000007"
    arguments = ["score", "panoptic_semantickitti", str(tmp_path / "found"), str(tmp_path / "true")]
    assert tandem([*arguments, "--out", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["headline"] == pytest.approx(want.headline)
    assert "PQ dagger" in capsys.readouterr().out
    (labels / "000009.label").write_bytes(b"\0" * 8)
    assert tandem(arguments) == 2
    assert "each frame needs a file" in capsys.readouterr().err


def test_words_tell_stuff_apart_as_in_the_official_script(tmp_path: Path) -> None:
    """Road and its markings, the one class in two words, of 60 and 40 points; one word in the predictions."""
    for side, labels in (("labels", [40] * 60 + [60] * 40), ("predictions", [40] * 100)):
        folder = tmp_path / "sequences" / "08" / side
        folder.mkdir(parents=True)
        (folder / "000000.label").write_bytes(np.array(labels, dtype="<u4").tobytes())
    merged, by_word = (score_kitti_files(tmp_path, tmp_path, by_word=by_word) for by_word in (False, True))
    assert merged.value("road", "", "PQ") == 100
    assert by_word.value("road", "", "SQ") == pytest.approx(60)
    assert by_word.value("road", "", "RQ") == 100, "forty points are fewer than fifty"
    assert merged.value("road", "", "IoU") == by_word.value("road", "", "IoU") == 100


def nuscenes_tables(folder: Path) -> Path:
    rows = [("sweep", True, "samples/LIDAR_TOP/a.bin"), ("image", True, "samples/CAM_FRONT/a.jpg")]
    rows += [("between", False, "sweeps/LIDAR_TOP/b.bin")]
    folder.mkdir()
    columns = ("token", "is_key_frame", "filename")
    table = [{**dict(zip(columns, row, strict=True)), "sample_token": "sample"} for row in rows]
    (folder / "sample_data.json").write_text(json.dumps(table))
    return folder


def nuscenes_files(folder: Path, tables: Path | None) -> SegmentFiles:
    return files_of("panoptic_nuscenes", folder, NUSCENES_NAMES, split="val", tables=tables, pretrained=True)


def test_nuscenes(tmp_path: Path) -> None:
    writer = nuscenes_files(tmp_path / "found", nuscenes_tables(tmp_path / "tables"))
    writer.write(truth("frame", token="sample"), found(NUSCENES_NAMES, 0))
    writer.write(truth("between"), found(NUSCENES_NAMES, 1))
    writer.finish()
    meta = json.loads((tmp_path / "found" / "val" / "submission.json").read_text())["meta"]
    assert meta["task"] == "segmentation"
    assert [name for name, used in meta.items() if used is True] == ["use_lidar", "use_external"]
    folder = tmp_path / "found" / "panoptic" / "val"
    assert [path.name for path in folder.iterdir()] == ["sweep_panoptic.npz"]
    written = np.load(folder / "sweep_panoptic.npz")["data"]
    assert (written.dtype, written.min() >= 1000) == (np.uint16, True)
    classes, objects = truth_of(NUSCENES_NAMES, 0)
    of_class = np.array([CATEGORIES.index(CLASSES[name][0]) for name in NUSCENES_NAMES.classes] + [0])
    (tmp_path / "true").mkdir()
    np.savez(tmp_path / "true" / "sweep_panoptic.npz", data=(of_class[classes] * 1000 + objects).astype(np.uint16))
    kept = {"sweep": panoptic_counts(expected(NUSCENES_NAMES, "sweep", 0), NUSCENES_NAMES, NUSCENES)}
    want = score_panoptic(kept, NUSCENES_NAMES, NUSCENES)
    assert score_nuscenes_files(folder, tmp_path / "true").headline == pytest.approx(want.headline)


def test_the_largest_objects_have_numbers() -> None:
    objects = np.append(np.arange(1100), np.full(5, 1050))
    many = FoundSegments(
        found_class=np.full(len(objects), 3),
        found_object=objects,
        object_class=np.full(1100, 3),
        object_score=np.ones(1100),
    )
    numbers = nuscenes_numbers(many, NUSCENES_NAMES)
    assert numbers.min() == 4000
    assert numbers.max() == 4999
    assert set(numbers[objects == 1050]) == {4001}


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    options = {"split": "val", "tables": None, "pretrained": False}
    with pytest.raises(ArgumentError, match="no files of semantic can be written"):
        files_of("semantic", tmp_path, KITTI_NAMES, **options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="has no class 'tram'"):
        files_of("panoptic_semantickitti", tmp_path, SegmentNames(classes=("car", "tram")), **options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="--tables"):
        nuscenes_files(tmp_path, None)
    writer = nuscenes_files(tmp_path, nuscenes_tables(tmp_path / "tables"))
    with pytest.raises(ArgumentError, match="not in the tables"):
        writer.write(truth("frame", token="another"), found(NUSCENES_NAMES, 0))
    with pytest.raises(ArgumentError, match="num_sweeps=1"):
        writer.write(truth("frame", token="sample", gathered=True), found(NUSCENES_NAMES, 0))
    with pytest.raises(ArgumentError, match="no labels in"):
        score_kitti_files(tmp_path, tmp_path)
    with pytest.raises(ArgumentError, match=r"no \*_panoptic\.npz in"):
        score_nuscenes_files(tmp_path, tmp_path)
