"""Waymo's metric against the slow form on random scenes."""

import math

import pytest

from engine.detection.judge import judge
from tests.engine.detection.renamed import renamed
from tests.helpers.detection_scenes import scene
from tests.reference.detection_waymo import RANGES, figures

CLASSES = ("Car", "Pedestrian", "Cyclist")


def differences(seeds: range, frames: int | None = None) -> tuple[list[str], int]:
    """What differs, in words, and how many values are neither 0 nor 1."""
    wrong, telling = [], 0
    for seed in seeds:
        pairs = renamed(scene(seed, CLASSES, CLASSES, frames=frames), {"Car": "Vehicle"})
        scores = judge("waymo", [true for true, _ in pairs], [found for _, found in pairs])
        for category in ("vehicle", "pedestrian", "cyclist"):
            for subset, level, span in ((f"LEVEL_{n}{span}", n, span) for n in (1, 2) for span in RANGES):
                for metric, value in zip(("AP", "APH"), figures(pairs, category, level, span), strict=True):
                    got = scores.value(category, subset, metric)
                    telling += 0 < value < 1
                    if not math.isclose(got, value, abs_tol=1e-6):
                        wrong.append(f"seed {seed}, {category} {subset} {metric}: {got}, expected {value}")
    return wrong, telling


def test_random_scenes() -> None:
    wrong, telling = differences(range(8))
    assert not wrong
    assert telling > 40


@pytest.mark.slow
def test_many_random_scenes() -> None:
    wrong = [*differences(range(100, 180))[0], *differences(range(10), frames=20)[0]]
    assert not wrong
