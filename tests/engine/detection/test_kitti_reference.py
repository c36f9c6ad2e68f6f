"""KITTI's metric against the slow form on random scenes. A class without valid objects that is never found has NaN."""

import itertools
import math

import pytest

from engine.detection.judge import judge
from tests.helpers.detection_scenes import scene
from tests.reference.detection_kitti import DIFFICULTIES, LOOSE, STRICT, average, curves

CATEGORIES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist")
CLASSES = ("Car", "Pedestrian", "Cyclist")
VIEWS = (
    ("2D", STRICT, ""),
    ("BEV", STRICT, ""),
    ("3D", STRICT, ""),
    ("BEV", LOOSE, ", loose"),
    ("3D", LOOSE, ", loose"),
)
"""View, limits, end of the metric's name."""


def compare(seed: int, frames_in_scene: int | None = None) -> tuple[list[str], int]:
    """Every figure of one scene: what differs, in words, and how many are neither 0 nor 100."""
    frames = scene(seed, CATEGORIES, CLASSES, frames=frames_in_scene)
    scores = judge("kitti", [truth for truth, _ in frames], [found for _, found in frames])
    wrong, telling = [], 0
    for category, difficulty, (view, least, label) in itertools.product(CLASSES, DIFFICULTIES, VIEWS):
        limit = least[category]
        precision, similarity, num_true = curves(frames, category, difficulty, view, limit)
        absent = num_true == 0 and not any(category in found.classes for _, found in frames)
        expected = {f"{view} AP R{points}{label}": average(precision, points) for points in (11, 40)}
        if view == "2D":
            expected |= {f"AOS R{points}": average(similarity, points) for points in (11, 40)}
        for metric, value in expected.items():
            got = scores.value(category, difficulty, metric)
            telling += 0 < value < 100
            if not (math.isnan(got) if absent else math.isclose(got, value, abs_tol=1e-9)):
                wrong.append(f"seed {seed}, {category} {difficulty} {metric}: {got}, expected {value}")
    return wrong, telling


def test_random_scenes():
    differ, telling = zip(*[compare(seed, 12) for seed in range(8)], strict=True)
    assert not list(itertools.chain(*differ))
    assert sum(telling) > 200


@pytest.mark.slow
def test_many_random_scenes():
    """Small ones, and some with more objects than the curve has points."""
    small = [line for seed in range(1000, 1040) for line in compare(seed)[0]]
    large = [line for seed in range(2000, 2012) for line in compare(seed, 40)[0]]
    assert not small + large
