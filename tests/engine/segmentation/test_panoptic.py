"""Panoptic quality against sets of points, the official script's own example and scenes made by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.scores import MEAN, JudgeError, Scores
from engine.segmentation.frames import SegmentedFrame, SegmentNames
from engine.segmentation.judge import BENCHMARKS, check_names, judge
from engine.segmentation.panoptic import PanopticRules, count_segments, panoptic_counts, score_panoptic
from tests.reference.panoptic import panoptic_by_sets

NAMES = SegmentNames(classes=("road", "grass", "car", "person"), things=("car", "person"))
ANY_SIZE = PanopticRules(title="test", min_points=1)


def frame(
    true_class: list[int], true_object: list[int], found_class: list[int], found_object: list[int], key: str = "a"
) -> SegmentedFrame:
    objects = max(found_object, default=-1) + 1
    return SegmentedFrame(
        key=key,
        true_class=np.array(true_class, np.int64),
        true_object=np.array(true_object, np.int64),
        found_class=np.array(found_class, np.int64),
        found_object=np.array(found_object, np.int64),
        object_class=np.zeros(objects, np.int64),
        object_score=np.ones(objects),
    )


def scored(*frames: SegmentedFrame, names: SegmentNames = NAMES, rules: PanopticRules = ANY_SIZE) -> Scores:
    return score_panoptic({part.key: panoptic_counts(part, names, rules) for part in frames}, names, rules)


def random_frame(rng: np.random.Generator, key: str, num_points: int) -> SegmentedFrame:
    """Found points are the true ones with mistakes, so that some segments match and some nearly do."""
    true_class, true_object = rng.integers(-1, 4, num_points), rng.integers(-1, 3, num_points)
    wrong = rng.random(num_points) < rng.uniform(0, 0.6)
    found_class = np.where(wrong, rng.integers(-1, 4, num_points), np.maximum(true_class, 0))
    found_object = np.where(wrong, rng.integers(-1, 3, num_points), (true_object + 1) % 3)
    return frame(*(part.tolist() for part in (true_class, true_object, found_class, found_object)), key)


@pytest.mark.parametrize("seed", range(12))
def test_random_scenes_are_judged_as_by_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rules = dataclasses.replace(ANY_SIZE, min_points=int(rng.choice([1, 3, 8])))
    frames = [random_frame(rng, f"{number}", int(rng.integers(0, 60))) for number in range(4)]
    scores = scored(*frames, rules=rules)

    def merged(classes: np.ndarray, objects: np.ndarray) -> np.ndarray:
        return np.where(classes >= 2, objects, -1)

    expected = panoptic_by_sets(
        [
            (
                part.true_class.tolist(),
                merged(part.true_class, part.objects("test")).tolist(),
                part.found_class.tolist(),
                merged(part.found_class, part.found_object).tolist(),
            )
            for part in frames
        ],
        num_classes=4,
        min_points=rules.min_points,
    )
    for metric, values in expected.items():
        found = [scores.value(name, "", metric) for name in NAMES.classes]
        assert found == pytest.approx([100 * value for value in values])
        assert scores.value(MEAN, "", metric) == pytest.approx(100 * np.mean(values))
    dagger = np.mean([*expected["IoU"][:2], *expected["PQ"][2:]])
    assert scores.headline["PQ dagger"] == pytest.approx(100 * dagger)
    assert scores.value("things", "", "PQ") == pytest.approx(100 * np.mean(expected["PQ"][2:]))


def test_the_example_of_the_official_script() -> None:
    """Grass and sky of 50 points, a fifth of each taken for the other; a dog taken for a person; 2 of 3 persons."""
    true_class = [0] * 50 + [1] * 50 + [3] * 50 + [2] * 300
    true_id = [0] * 100 + [22] * 50 + [33] * 150 + [42] * 50 + [11] * 100
    found_class = [0] * 40 + [1] * 10 + [1] * 40 + [0] * 10 + [2] * 350
    found_id = [0] * 100 + [35] * 50 + [8] * 200 + [95] * 100
    counts = count_segments(
        *(np.array(values, np.int64) for values in (true_class, true_id, found_class, found_id)),
        num_classes=4,
        min_points=1,
        key="a",
    )
    names = SegmentNames(classes=("grass", "sky", "person", "dog"), things=("person", "dog"))
    scores = score_panoptic({"a": counts}, names, ANY_SIZE)
    expected = {"PQ": 0.479167, "SQ": 0.552083, "RQ": 0.666667, "IoU": 0.547619}
    assert {name: round(scores.value(MEAN, "", name) / 100, 6) for name in expected} == expected


def test_half_of_the_union_is_no_match() -> None:
    scores = scored(frame([2] * 3, [0] * 3, [2, 2, 0], [0, 0, -1]), frame([2] * 2, [0] * 2, [2, 0], [0, -1], key="b"))
    assert scores.value("car", "", "RQ") == pytest.approx(100 * 1 / (1 + 0.5 + 0.5))
    assert scores.value("car", "", "SQ") == pytest.approx(100 * 2 / 3)


def test_small_segments_count_where_they_match_alone() -> None:
    rules = dataclasses.replace(ANY_SIZE, min_points=3)
    right = scored(frame([2] * 2, [0] * 2, [2] * 2, [0] * 2), rules=rules)
    assert right.value("car", "", "PQ") == 100
    apart = frame([2, 2, 0, 0, 0, 0], [0, 0, -1, -1, -1, -1], [0, 0, 2, 2, 0, 0], [-1, -1, 0, 0, -1, -1])
    nothing = scored(apart, rules=rules)
    assert nothing.value("car", "", "RQ") == 0
    counts = panoptic_counts(apart, NAMES, rules)
    assert (counts.missed[2], counts.false[2]) == (0, 0)


def test_unlabelled_points_take_no_part() -> None:
    with_them = frame([2] * 4 + [-1] * 6, [0] * 4 + [5] * 6, [2] * 10, [0] * 10)
    scores = scored(with_them)
    assert scores.value("car", "", "PQ") == 100
    assert scores.value("car", "", "IoU") == 100


def test_points_where_nothing_was_found_are_missed_and_no_segment() -> None:
    scores = scored(frame([0] * 4, [-1] * 4, [0] * 3 + [-1], [-1] * 4))
    assert scores.value("road", "", "IoU") == 75
    assert scores.value("road", "", "SQ") == 75


def test_stuff_is_one_segment_whatever_its_objects() -> None:
    scores = scored(frame([0] * 4, [1, 1, 2, 2], [0] * 4, [0, 1, 0, 1]))
    assert scores.value("road", "", "PQ") == 100


def test_things_without_an_object_are_one_segment_of_their_class() -> None:
    scores = scored(frame([2, 2, 3], [-1, -1, -1], [2, 2, 3], [-1, -1, -1]))
    assert (scores.value("car", "", "PQ"), scores.value("person", "", "PQ")) == (100, 100)


@pytest.mark.parametrize("points", [0, 1])
def test_next_to_nothing(points: int) -> None:
    scores = scored(frame([0] * points, [-1] * points, [0] * points, [-1] * points))
    assert scores.value("road", "", "PQ") == 100 * points
    assert "grass, car, person" in scores.notes[0]


def test_the_errors_of_a_frame_name_its_segments() -> None:
    counts = panoptic_counts(frame([2, 2, 3], [0, 0, 1], [2, 2, 0], [0, 0, -1]), NAMES, ANY_SIZE)
    assert (counts.errors.missed.tolist(), counts.errors.false.tolist()) == ([1], [0])
    assert counts.errors.right.tolist() == [1]


def test_objects_that_nobody_told_apart_are_asked_for() -> None:
    bare = dataclasses.replace(frame([2], [0], [2], [0]), true_object=None)
    with pytest.raises(JudgeError, match="nobody has told the objects"):
        BENCHMARKS["panoptic_nuscenes"].keep(bare, NAMES)
    with pytest.raises(JudgeError, match="things"):
        check_names("panoptic_semantickitti", SegmentNames(classes=NAMES.classes))
    with pytest.raises(JudgeError, match="no labelled frame"):
        judge("semantic", {}, NAMES)


@pytest.mark.parametrize(("dataset", "count"), [("semantickitti", 4), ("nuscenes", 2)])
def test_absent_classes_count_as_the_set_has_it(dataset: str, count: int) -> None:
    names = dataclasses.replace(NAMES, dataset=dataset)
    one = frame([0, 0, 0, 1, 1], [-1] * 5, [0, 0, 1, 1, 1], [-1] * 5)
    other = frame([0, 1], [-1] * 2, [1, 0], [-1] * 2, key="b")
    benchmark = BENCHMARKS["semantic"]
    scores = judge("semantic", {part.key: benchmark.keep(part, names) for part in (one, other)}, names)
    road, grass = 2 / 5, 2 / 5
    assert scores.value("road", "", "IoU") == pytest.approx(100 * road)
    assert scores.headline["mIoU"] == pytest.approx(100 * (road + grass) / count)
    assert scores.headline["accuracy"] == pytest.approx(100 * 4 / 7)
    assert "car, person" in scores.notes[0]
