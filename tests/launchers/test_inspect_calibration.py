"""`tandem inspect --calibration`: figures, words and pictures; warnings where they belong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.calibration.check import CalibrationCheck, CalibrationVerdict
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from launchers.drawing.calibration_pictures import CalibrationReport, calibration_view, check_set
from launchers.inspect import main
from tests.helpers.samples import write_toy_set

FITS = CalibrationVerdict(
    camera="front",
    status="fits",
    num_samples=40,
    num_edges=(900, 300),
    score=1.3,
    best_score=1.31,
    background=0.7,
    shift_px=(0.2, -0.4),
    shift_error_px=(0.1, 0.3),
    tolerance_px=(2.0, 3.0),
    sure=0.0,
)
SHIFT = dataclasses.replace(FITS, camera="left", status="shift", score=0.8, shift_px=(-6.2, 1.0), sure=1.0)
TIME = dataclasses.replace(FITS, camera="rear", status="time", time_offset_ms=-43.0, time_sure=1.0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("sets") / "toy", num_logs=2, frames_per_log=2)


def test_the_verb_prints_verdicts_and_draws(shards, tmp_path, capsys):
    assert main([shards, "--calibration", "3", "--num", "1", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "calibration in words" in shown
    assert "front: not told" in shown, "random images fit nowhere"
    (picture,) = tmp_path.glob("*.calibration.png")
    assert cv2.imread(str(picture)).shape[1] >= 480
    assert "calibration" in (tmp_path / "inspect.html").read_text()


def test_given_samples_are_the_ones_that_are_judged(shards, capsys):
    assert main([shards, "--calibration", "--sample", "1"]) == 0
    assert "borders in 1 samples" in capsys.readouterr().out


def test_damaged_samples_are_named_once(shards, tmp_path, capsys):
    root = Path(write_toy_set(tmp_path / "broken", num_logs=1, frames_per_log=2))
    tar = next(root.glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[2000] ^= 255
    tar.write_bytes(content)
    assert main([str(root), "--calibration", "2", "--sample", "0"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("checksum") + shown.count("broken (") <= 2
    assert "samples that training would skip" in shown


def test_warnings_say_what_and_how_much():
    report = CalibrationReport(check=CalibrationCheck(), verdicts=(FITS, SHIFT, TIME), damaged=())
    figures, words = report.tables()
    assert [row[1] for row in figures.rows] == ["fits", "shift", "time"]
    assert [row[-1] for row in figures.rows] == ["unknown", "unknown", "-43"]
    fits, shift, late = (row[0] for row in words.rows)
    assert fits.startswith("front: fits within 2.0 px in u, 3.0 px in v")
    assert shift.startswith("WARNING left: points would fit better 6.2 px further left and 1.0 px down")
    assert late.startswith("WARNING rear: images seem to be taken 43 ms earlier than stated")


def test_a_better_shift_is_drawn_beside_the_calibration(shards):
    manifest = load_manifest(shards)
    reader = SampleReader(manifest)
    report = check_set(manifest, reader, [0, 1])
    sample = reader.read(0)
    plain = calibration_view(sample, report)
    shifted = dataclasses.replace(
        report, verdicts=tuple(dataclasses.replace(SHIFT, camera=v.camera) for v in report.verdicts)
    )
    moved = calibration_view(sample, shifted)
    assert moved.shape[0] > plain.shape[0]
    blind = dataclasses.replace(sample, cameras=())
    assert calibration_view(blind, report) is None
    assert np.ptp(plain) > 100
