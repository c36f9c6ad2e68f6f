"""ONCE's metric against the slow form on random scenes, with the official overlap and the geometric one."""

import itertools
import math

import pytest

from engine.detection.once import OnceSettings, score_once
from tests.helpers.detection_scenes import scene
from tests.reference.detection_once import CLASSES, RANGES, average_precision

CATEGORIES = ("Car", "Bus", "Truck", "Pedestrian", "Cyclist")
SUBSETS = dict(zip(("overall", "0-30m", "30-50m", "50m-inf"), RANGES, strict=True))
OVERLAPS = {"AP": -1.0, "AP, geometric overlap": 1.0}


def compare(seed: int, frames_in_scene: int | None, settings: OnceSettings, reach: float) -> tuple[list[str], int]:
    """Every figure of one scene: what differs, in words, and how many are neither 0 nor 100."""
    frames = scene(seed, CATEGORIES, CATEGORIES, frames=frames_in_scene)
    scores = score_once(frames, settings)
    wrong, telling = [], 0
    for category, subset, metric in itertools.product(CLASSES, SUBSETS, OVERLAPS):
        value, _ = average_precision(frames, category, SUBSETS[subset], turn=OVERLAPS[metric], reach=reach)
        got = scores.value(category, subset, metric)
        telling += 0 < value < 100
        if not math.isclose(got, value, abs_tol=1e-9):
            wrong.append(f"seed {seed}, {category} {subset} {metric}: {got}, expected {value}")
    return wrong, telling


def differences(seeds: range, frames_in_scene: int | None, *, reach: float = math.inf) -> tuple[list[str], int]:
    settings = OnceSettings(max_distance_m=None if reach == math.inf else reach)
    compared = [compare(seed, frames_in_scene, settings, reach) for seed in seeds]
    return [line for wrong, _ in compared for line in wrong], sum(telling for _, telling in compared)


def test_random_scenes():
    wrong, telling = differences(range(8), 4)
    assert not wrong
    assert telling > 40


def test_centres_far_apart_may_be_left_out():
    wrong, _ = differences(range(50, 53), 3, reach=0.3)
    assert not wrong


def test_another_class_out_of_range_takes_a_partner():
    """A scene in which it matters: 28.6 if objects of other classes had no part in it."""
    wrong, _ = differences(range(1535, 1536), None)
    assert not wrong


@pytest.mark.slow
def test_many_random_scenes():
    """Small ones, and some with more objects than the curve has points."""
    wrong = differences(range(1000, 1080), 3)[0] + differences(range(2000, 2008), 40)[0]
    assert not wrong
