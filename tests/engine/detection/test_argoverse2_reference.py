"""Argoverse 2's metric against the slow form on random scenes."""

import math

import pytest

from engine.detection.judge import judge
from tests.engine.detection.renamed import renamed
from tests.helpers.detection_scenes import scene
from tests.reference.detection_argoverse2 import figures

CLASSES = ("Car", "Pedestrian", "Cyclist")
NAMES = {"Car": "REGULAR_VEHICLE", "Pedestrian": "PEDESTRIAN", "Cyclist": "BICYCLE"}


def differences(seeds: range, frames: int | None = None) -> tuple[list[str], int]:
    """What differs, in words, and how many APs are neither 0 nor 1."""
    wrong, telling = [], 0
    for seed in seeds:
        pairs = renamed(scene(seed, CLASSES, CLASSES, frames=frames), NAMES)
        scores = judge("argoverse2", [true for true, _ in pairs], [found for _, found in pairs])
        for category in NAMES.values():
            for metric, value in figures(pairs, category).items():
                got = scores.value(category, "", metric)
                telling += metric == "AP" and 0 < value < 1
                if not math.isclose(got, value, abs_tol=1e-6):
                    wrong.append(f"seed {seed}, {category} {metric}: {got}, expected {value}")
    return wrong, telling


def test_random_scenes() -> None:
    wrong, telling = differences(range(20))
    assert not wrong
    assert telling > 20


@pytest.mark.slow
def test_many_random_scenes() -> None:
    wrong = [*differences(range(100, 400))[0], *differences(range(10), frames=30)[0]]
    assert not wrong
