"""SemanticPOSS, generated in the official layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.convert.base import Skipped
from data.convert.kitti.semanticposs import CLASS_WORDS, IGNORED_WORDS, SemanticPossConverter
from data.convert.kitti.sequences import class_table
from data.sample import IGNORE_LABEL, Sample
from data.storage.shard import ShardError
from tests.helpers.layouts.semanticposs import WORDS, write_semanticposs
from tests.helpers.street_logs import CLASS_NAMES


def items_of(root: Path, log: str = "00") -> list[Sample | Skipped]:
    converter = SemanticPossConverter(source=str(root))
    return list(converter.frames(log, 0, converter.num_frames(log)))


def test_points_intensity_labels_and_poses(tmp_path: Path) -> None:
    truth = write_semanticposs(tmp_path, ("00", "02"))
    converter = SemanticPossConverter(source=str(tmp_path))
    assert converter.logs() == ("00", "02")
    assert converter.camera_names() == ()
    assert converter.notes() == ("no times.txt: 10 Hz assumed (00, 02)",)
    for log, samples in truth.items():
        first = samples[0].T_world_ego @ samples[0].T_ego_lidar
        for sample, true in zip(items_of(tmp_path, log), samples, strict=True):
            assert isinstance(sample, Sample)
            np.testing.assert_array_equal(sample.points_lidar, true.points_lidar)
            np.testing.assert_allclose(sample.intensity, true.intensity, atol=1e-6)
            np.testing.assert_array_equal(sample.instances, true.instances)
            assert sample.labels is not None
            assert true.labels is not None
            names = [converter.class_names[label] for label in sample.labels]
            assert names == [WORDS[CLASS_NAMES[label]][1] for label in true.labels]
            pose = np.linalg.inv(first) @ true.T_world_ego @ true.T_ego_lidar
            np.testing.assert_allclose(sample.T_world_ego @ sample.T_ego_lidar, pose, atol=1e-9)
            assert sample.cameras == ()
            assert sample.timestamp_us == 100_000 * int(sample.key[-6:])


def test_intensities_beyond_the_scale_are_clipped(tmp_path: Path) -> None:
    write_semanticposs(tmp_path)
    path = tmp_path / "dataset" / "sequences" / "00" / "velodyne" / "000000.bin"
    points = np.fromfile(path, "<f4").reshape(-1, 4)
    points[:3, 3] = (255.0, 300.0, -1.0)
    points.tofile(path)
    sample, *_ = items_of(tmp_path)
    assert isinstance(sample, Sample)
    assert sample.intensity[:3].tolist() == [1.0, 1.0, 0.0]


def test_splits_of_the_set_and_of_others(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / "dataset" / "sequences" / f"{number:02d}" / "velodyne").mkdir(parents=True)
    own = SemanticPossConverter(source=str(tmp_path))
    assert [log for log in own.logs() if own.split_of(log) == "val"] == ["02"]
    segcontrast = SemanticPossConverter(source=str(tmp_path), val_sequences=(4, 5))
    assert [segcontrast.split_of(log) for log in segcontrast.logs()] == ["train"] * 4 + ["val"] * 2
    with pytest.raises(ValueError, match=r"val_sequences: got .*8.*, expected some of 0, 1, 2, 3, 4, 5"):
        SemanticPossConverter(source=str(tmp_path), val_sequences=(8,))


def test_poses_and_labels_may_be_absent(tmp_path: Path) -> None:
    write_semanticposs(tmp_path, posed=False)
    folder = tmp_path / "dataset" / "sequences" / "00"
    for path in (folder / "labels").iterdir():
        path.unlink()
    samples = items_of(tmp_path)
    assert all(isinstance(s, Sample) and s.labels is None and (s.T_world_ego == np.eye(4)).all() for s in samples)
    notes = SemanticPossConverter(source=str(tmp_path)).notes()
    assert "no poses: ego poses are identity (00)" in notes
    assert "no labels (00)" in notes


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("velodyne/000001.bin", b"12345", "array-broken"),
        ("labels/000001.label", b"1234", "array-broken"),
        ("labels/000001.label", None, "array-broken"),
    ],
)
def test_damaged_frames_are_named(tmp_path: Path, file: str, content: bytes | None, reason: str) -> None:
    truth = write_semanticposs(tmp_path)
    path = tmp_path / "dataset" / "sequences" / "00" / file
    if content is None:  # SemanticKITTI's road
        content = np.full(len(truth["00"][1].points_lidar), 40, "<u4").tobytes()
    path.write_bytes(content)
    good, bad, _ = items_of(tmp_path)
    assert isinstance(good, Sample)
    assert isinstance(bad, Skipped)
    assert (bad.reason, bad.key) == (reason, "00_000001")


def test_a_calibration_without_tr_names_every_frame(tmp_path: Path) -> None:
    write_semanticposs(tmp_path)
    (tmp_path / "dataset" / "sequences" / "00" / "calib.txt").write_text("P0: 1 2 3\n")
    items = items_of(tmp_path)
    assert [item.reason for item in items if isinstance(item, Skipped)] == ["calibration-missing"] * 3


def test_a_wrong_source_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no SemanticPOSS folder: looked for NN/velodyne.*found an empty folder"):
        SemanticPossConverter(source=str(tmp_path)).logs()
    (tmp_path / "dataset" / "sequences" / "08" / "velodyne").mkdir(parents=True)  # SemanticKITTI has as many
    with pytest.raises(ShardError, match=r"NN from 00 to 05 in .*sequences, found 08/"):
        SemanticPossConverter(source=str(tmp_path)).logs()


def test_the_benchmarks_class_map() -> None:
    words = [word for group in CLASS_WORDS.values() for word in group] + list(IGNORED_WORDS)
    assert len(words) == len(set(words)) == 23
    assert sorted(words) == list(range(23))
    table = class_table(CLASS_WORDS, IGNORED_WORDS)
    assert [int(table[word]) for word in (4, 5, 6, 10, 12, 21, 22)] == [0, 0, 1, 5, 5, 11, 12]
    assert table[0] == table[18] == IGNORE_LABEL
    assert table[23] == -1
