"""Figures of a random scene as the official tools gave them on 2026-11-30.

Waymo's: the detection op of waymo-open-dataset 1.6.7 (TensorFlow 2.13.1), in single precision. Argoverse 2's: the
functions `accumulate` and `compute_average_precision` of av2 0.3.6 on the same objects under its names of the classes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.detection.frames import FoundObjects, TrueObjects
from engine.detection.judge import judge

FILE = Path(__file__).parents[2] / "golden" / "detection_official.json"
AV2_NAMES = {"vehicle": "REGULAR_VEHICLE", "pedestrian": "PEDESTRIAN", "cyclist": "BICYCLIST"}


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(FILE.read_text())
    return values


def frames_of(
    official: dict[str, Any], names: dict[str, str] | None = None
) -> tuple[list[TrueObjects], list[FoundObjects]]:
    def named(classes: list[str]) -> tuple[str, ...]:
        return tuple(names[name] if names else name for name in classes)

    truth = [
        TrueObjects(
            key=frame["key"],
            boxes=np.array(frame["true"], dtype=float).reshape(-1, 7),
            categories=named(frame["categories"]),
            num_lidar_points=np.array(frame["points"], dtype=np.int64),
            difficulties=np.array(frame["levels"], dtype=np.int64),
        )
        for frame in official["frames"]
    ]
    found = [
        FoundObjects(
            key=frame["key"],
            boxes=np.array(frame["found"], dtype=float).reshape(-1, 7),
            scores=np.array(frame["scores"], dtype=float),
            classes=named(frame["classes"]),
        )
        for frame in official["frames"]
    ]
    return truth, found


def test_waymo(official: dict[str, Any]):
    scores = judge("waymo", *frames_of(official))
    for category, subset, ap, aph in official["waymo"]:
        assert scores.value(category, subset, "AP") == pytest.approx(ap, abs=1e-6), (category, subset)
        assert scores.value(category, subset, "APH") == pytest.approx(aph, abs=1e-6), (category, subset)
    assert sum(0 < ap < 1 for _, _, ap, _ in official["waymo"]) >= 8


def test_argoverse2(official: dict[str, Any]):
    scores = judge("argoverse2", *frames_of(official, AV2_NAMES))
    for category, values in official["argoverse2"].items():
        got = [scores.value(category, "", metric) for metric in ("AP", "ATE", "ASE", "AOE", "CDS")]
        assert got == pytest.approx(values, abs=1e-9), category
