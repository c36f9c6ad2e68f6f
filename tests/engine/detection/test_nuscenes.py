"""nuScenes' metric: values that the official development kit gives, on a few boxes and on random scenes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.detection_nuscenes import largest_difference
from engine.detection.formats.quaternions import yaws_of
from engine.detection.frames import FoundObjects, TrueObjects
from engine.detection.judge import BENCHMARKS, CLASSES, check_classes, judge
from engine.detection.nuscenes import score_nuscenes
from engine.detection.nuscenes_matching import NONE, greedy, near_pairs
from engine.detection.nuscenes_rules import CLASS_OF, CLASS_RANGE_M, NuscenesSettings, inside_any, likely_attribute
from engine.scores import MEAN, JudgeError, Scores
from tests.helpers.nuscenes_scenes import frame_of, scene

GOLDEN = Path(__file__).parents[2] / "golden" / "nuscenes_metric.json"
REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "nuscenes" / "v1.0-mini"
CAR = (4.0, 2.0, 1.5)


def boxes_at(places: list[tuple[float, ...]]) -> np.ndarray:
    """Cars at x and, where they are not 0, y, z and heading."""
    rows = [(*place, 0.0, 0.0, 0.0)[:4] for place in places]
    return np.array([[x, y, z, *CAR, yaw] for x, y, z, yaw in rows], dtype=np.float64).reshape(-1, 7)


def truth(*places: tuple[float, ...], name: str = "vehicle.car", **other) -> TrueObjects:
    count = len(places)
    given = {
        "key": "0",
        "boxes": boxes_at(list(places)),
        "categories": (name,) * count,
        "velocities_mps": np.zeros((count, 2)),
        "attributes": ("",) * count,
        "num_lidar_points": np.full(count, 9),
        "num_radar_points": np.zeros(count, dtype=np.int64),
    }
    return TrueObjects(**(given | other))


def found(*places: tuple[float, ...], scores: tuple[float, ...] | None = None, name: str = "car", **other):
    count = len(places)
    given = {
        "key": "0",
        "boxes": boxes_at(list(places)),
        "scores": np.array(scores or np.linspace(0.9, 0.1, count), dtype=np.float64),
        "classes": (name,) * count,
        "velocities_mps": np.zeros((count, 2)),
        "attributes": ("",) * count,
    }
    return FoundObjects(**(given | other))


def of(scores: Scores, metric: str, name: str = "car") -> float:
    return scores.value(name, "", metric)


def ap(true: TrueObjects, objects: FoundObjects, name: str = "car") -> float:
    return of(score_nuscenes([(true, objects)]), "AP", name)


# ---- against the official tool
@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("number", range(6))
def test_random_scenes_are_judged_as_by_the_development_kit(golden: dict, number: int) -> None:
    recorded = golden[f"scene_{number}"]
    scores = score_nuscenes([frame_of(content) for content in recorded["frames"]])
    assert recorded["mean_ap"] > 0.1
    assert largest_difference(scores, recorded) < 1e-9


def test_the_mean_rows_are_the_headline() -> None:
    scores = score_nuscenes(scene(3, frames=2, num_true=20, num_found=40))
    assert list(scores.headline) == ["NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE"]
    for name, value in scores.headline.items():
        assert of(scores, name, MEAN) == value


# ---- average precision
@pytest.mark.parametrize(
    ("places", "scores", "expected"),
    [
        (((20.0,), (0.0,)), (0.9, 0.8), 0.2),
        (((0.0,), (20.0,)), (0.9, 0.8), 0.9938),
        (((0.0,),), (0.0,), 1.0),
    ],
    ids=["miss then hit", "hit then miss", "a score of 0"],
)
def test_one_object(places, scores, expected: float) -> None:
    # Precision 0, then 1/2: interpolated over recall, less .1, over .9; no envelope.
    assert ap(truth((0.0,)), found(*places, scores=scores)) == pytest.approx(expected, abs=0.02)


def test_precision_rises_linearly_between_a_miss_and_a_hit() -> None:
    """Recall 0 to 1 with precision 0 to .5: the mean of max(r/2 - .1, 0)/.9 over r = .11, ... 1."""
    expected = np.mean(np.maximum(np.arange(11, 101) / 200 - 0.1, 0)) / 0.9
    assert ap(truth((0.0,)), found((20.0,), (0.0,))) == pytest.approx(expected, abs=1e-12)


def test_a_tenth_of_the_objects_gives_nothing() -> None:
    scores = score_nuscenes([(truth(*[(4.0 * n,) for n in range(10)]), found((0.0,)))])
    assert of(scores, "AP") == 0
    assert [of(scores, kind) for kind in ("ATE", "ASE", "AOE", "AVE", "AAE")] == [1] * 5


def test_a_score_of_0_counts_for_precision_and_not_for_errors() -> None:
    scores = score_nuscenes([(truth((0.0,)), found((0.0,), scores=(0.0,)))])
    assert of(scores, "AP") == pytest.approx(1)
    assert of(scores, "ATE") == 1


def test_distances_are_strict() -> None:
    scores = score_nuscenes([(truth((0.0,)), found((0.5, 0.0)))])
    assert [round(of(scores, f"AP {limit} m"), 9) for limit in ("0.5", "1", "2", "4")] == [0, 1, 1, 1]


def test_a_found_object_whose_nearest_one_is_taken_may_take_the_next() -> None:
    pair = truth((0.0,), (1.5,)), found((0.0,), (0.1,))
    scores = score_nuscenes([pair])
    assert of(scores, "AP 1 m") < 0.6
    assert of(scores, "AP 2 m") == pytest.approx(1)


def test_classes_and_frames_are_apart() -> None:
    other = dataclasses.replace(found((0.0,)), classes=("truck",))
    assert ap(truth((0.0,)), other) == 0
    frames = [(truth((0.0,)), found()), (truth(key="1"), found((0.0,), key="1"))]
    assert of(score_nuscenes(frames), "AP") == 0


def test_perfect_cars_alone() -> None:
    scores = score_nuscenes([(truth((0.0,), (9.0,), attributes=("vehicle.parked",) * 2), found((0.0,), (9.0,)))])
    assert scores.headline["mAP"] == pytest.approx(0.1)
    # Nine classes with errors 1; cars have ATE, ASE, AOE, AVE 0 and AAE 1.
    assert scores.headline["mATE"] == pytest.approx(0.9)
    assert scores.headline["mAOE"] == pytest.approx(8 / 9)
    assert scores.headline["NDS"] == pytest.approx((0.5 + 0.1 + 0.1 + 1 / 9 + 1 / 8) / 10)
    assert "barrier" in scores.notes[0]


# ---- errors
@pytest.mark.parametrize(
    ("apart", "expected"),
    [((0.0, 1.0), 0.1417), ((1.0, 0.0), 0.8583)],
    ids=["the better one is exact", "the worse one is exact"],
)
def test_errors_of_better_scores_weigh_more(apart: tuple[float, float], expected: float) -> None:
    true = truth((0.0,), (20.0,))
    scores = score_nuscenes([(true, found((apart[0],), (20.0 + apart[1],)))])
    assert of(scores, "ATE") == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("velocities", "expected"),
    [((math.nan, 0.0), 0.2833), ((math.nan, math.nan), 1.0)],
    ids=["the first is unknown", "all are unknown"],
)
def test_unknown_velocities(velocities: tuple[float, float], expected: float) -> None:
    true = truth((0.0,), (20.0,), velocities_mps=np.array([[v, 0.0] for v in velocities]))
    objects = found((0.0,), (20.0,), velocities_mps=np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert of(score_nuscenes([(true, objects)]), "AVE") == pytest.approx(expected, abs=5e-5)


def test_equal_scores_are_taken_from_the_last() -> None:
    objects = found((0.0,), (0.3,), scores=(0.5, 0.5))
    assert of(score_nuscenes([(truth((0.0,)), objects)]), "ATE") == pytest.approx(0.3)


def test_orientation_of_a_car_and_of_a_barrier() -> None:
    turned = ((0.0, 0.0, 0.0, math.pi),)
    car = score_nuscenes([(truth((0.0,)), found(*turned))])
    assert of(car, "AOE") == pytest.approx(math.pi)
    barrier = score_nuscenes([(truth((0.0,), name="movable_object.barrier"), found(*turned, name="barrier"))])
    assert of(barrier, "AOE", "barrier") == pytest.approx(0, abs=1e-12)
    assert math.isnan(of(barrier, "AVE", "barrier"))
    assert math.isnan(of(barrier, "AOE", "traffic_cone"))


def test_sizes_and_attributes() -> None:
    true = truth((0.0,), attributes=("vehicle.moving",))
    half = boxes_at([(0.0,)])
    half[0, 3:6] /= (2, 1, 1)
    scores = score_nuscenes([(true, found((0.0,), boxes=half, attributes=("vehicle.parked",)))])
    assert (of(scores, "ASE"), of(scores, "AAE")) == (0.5, 1.0)
    nothing = dataclasses.replace(true, boxes=true.boxes * np.array([1, 1, 1, 0, 0, 0, 1]))
    assert of(score_nuscenes([(nothing, found((0.0,), boxes=nothing.boxes))]), "ASE") == 1


# ---- what counts
@pytest.mark.parametrize("name", ["car", "pedestrian", "barrier"])
def test_ranges_are_strict_and_from_the_vehicle(name: str) -> None:
    limit = CLASS_RANGE_M[name]
    origin = np.array([100.0, 0.0, 3.0])
    for place, value in ((100 + limit - 1e-6, 1.0), (100 + limit, 0.0)):
        true = truth((place,), categories=(name,), origin_m=origin)
        assert ap(true, found((place,), name=name), name) == pytest.approx(value)


@pytest.mark.parametrize(("lidar", "radar", "value"), [(0, 0, 0), (0, 1, 1), (1, 0, 1)], ids=["none", "radar", "lidar"])
def test_objects_that_no_sensor_saw_are_dropped(lidar: int, radar: int, value: float) -> None:
    true = truth((0.0,), num_lidar_points=np.array([lidar]), num_radar_points=np.array([radar]))
    assert ap(true, found((0.0,))) == pytest.approx(value)


def test_without_radar_points_it_is_said() -> None:
    scores = score_nuscenes([(truth((0.0,), num_radar_points=None), found((0.0,)))])
    assert any("radar" in note for note in scores.notes)


@pytest.mark.parametrize(("name", "kept"), [("bicycle", 0), ("motorcycle", 0), ("pedestrian", 1)])
def test_cycles_in_racks_do_not_count(name: str, kept: int) -> None:
    """A rack of 4 x 2 m that is turned by a right angle: 1.5 m along y is inside, along x outside."""
    true = truth((0.0, 1.5), (0.0, 0.0, 0.0, math.pi / 2), categories=(name, "static_object.bicycle_rack"))
    scores = score_nuscenes([(true, found((0.0, 1.5), (0.0, -1.5), name=name))])
    assert next(row for row in scores.rows if row.category == name).num_true == kept
    beside = truth((1.5, 0.0), (0.0, 0.0, 0.0, math.pi / 2), categories=(name, "static_object.bicycle_rack"))
    assert ap(beside, found((1.5, 0.0), (0.0, -1.5), name=name), name) == pytest.approx(
        1 if not kept else 0.9938, abs=0.01
    )


def test_a_corner_of_a_box_is_inside() -> None:
    box = np.array([[1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    assert inside_any(np.array([[2.0, 2.0, 2.0], [2.1, 1.0, 1.0]]), box).tolist() == [True, False]
    assert not inside_any(np.zeros((3, 3)), np.zeros((0, 7))).any()


def test_no_box_at_all_is_0() -> None:
    scores = judge("nuscenes", [truth()], [found()])
    assert (scores.headline["mAP"], scores.headline["NDS"]) == (0, 0)
    assert any("nothing was found" in note for note in scores.notes)
    assert [len(frame.missed) for frame in scores.frames] == [0]


@pytest.mark.parametrize(
    ("true", "objects", "message"),
    [
        (truth((0.0,)), found((0.0,), classes=("van",)), "class of a found object is 'van', expected one of barrier"),
        (truth((0.0,)), found((0.0,), attributes=("parked",)), "attribute of a found object is 'parked'"),
        (truth((0.0,), attributes=("parked",)), found(), "attribute of a true object is 'parked'"),
        (truth((0.0,)), found((0.0,), scores=(-0.5,)), "score -0.5; the nuScenes metric takes 0 or more"),
        (truth((0.0,)), found(*[(0.0,)] * 501), "501 found objects, the nuScenes metric takes 500 at most"),
        (truth((0.0,)), found((0.0,), velocities_mps=None), "found objects have no velocities_mps"),
        (truth((0.0,), num_lidar_points=None), found(), "true objects have no num_lidar_points"),
        (truth((0.0,), num_lidar_points=np.array([-1])), found(), "number of points in true object 0 is not known"),
    ],
    ids=["class", "attribute", "true attribute", "score", "too many", "no velocity", "no points", "unknown points"],
)
def test_what_is_refused(true: TrueObjects, objects: FoundObjects, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        judge("nuscenes", [true], [objects])


def test_fewer_classes() -> None:
    settings = NuscenesSettings(classes=("car", "traffic_cone"))
    scores = score_nuscenes([(truth((0.0,)), found((0.0,)))], settings)
    assert scores.headline["mAP"] == pytest.approx(0.5)
    assert scores.benchmark == "nuScenes detection of car, traffic_cone"
    cones = NuscenesSettings(classes=("traffic_cone",))
    scores = score_nuscenes([(truth((0.0,), name="traffic_cone"), found((0.0,), name="traffic_cone"))], cones)
    assert math.isnan(scores.headline["mAVE"])
    assert scores.headline["NDS"] == pytest.approx(1)  # of mAP and the two errors that cones have
    with pytest.raises(ValueError, match="classes: got"):
        NuscenesSettings(classes=("van",))


def test_found_objects_of_other_classes_are_passed_over_where_that_is_asked_for() -> None:
    both = dataclasses.replace(found((0.0,), (5.0,)), classes=("car", "tram"), attributes=("vehicle.moving", ""))
    with pytest.raises(JudgeError, match="class of a found object is 'tram'"):
        score_nuscenes([(truth((0.0,)), both)])
    settings = NuscenesSettings(other_classes=True)
    alone = score_nuscenes([(truth((0.0,)), found((0.0,)))])
    assert settings.is_official
    assert score_nuscenes([(truth((0.0,)), both)], settings).headline == pytest.approx(alone.headline, nan_ok=True)


def test_every_benchmark_names_its_classes_and_refuses_others() -> None:
    assert set(CLASSES) == set(BENCHMARKS) - {"indoor"}, "whose classes are the set's own"
    for benchmark, known in CLASSES.items():
        check_classes(benchmark, ["tram", known[-1]])
        with pytest.raises(
            JudgeError, match=rf"none of the detector's classes \(tram\) is judged by {benchmark}, which"
        ):
            check_classes(benchmark, ["tram"])
    check_classes("kitti", ["cyclist"])
    with pytest.raises(JudgeError, match="judged by nuscenes"):
        check_classes("nuscenes", ["Car"])  # its names are compared as they are


def test_errors_of_a_frame() -> None:
    true = truth((0.0,), (10.0,), (20.0,), num_lidar_points=np.array([5, 0, 5]))
    objects = found((30.0,), (0.1,), (35.0,), scores=(0.95, 0.9, 0.2))
    (frame,) = score_nuscenes([(true, objects)]).frames
    assert (frame.missed.tolist(), frame.false.tolist(), frame.right.tolist()) == ([2], [0], [1])


# ---- matching
def test_rounds_are_the_same_as_one_after_another() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 5, 40):
        true_group, found_group = rng.integers(0, 3, size), rng.integers(0, 3, 2 * size)
        true_xy, found_xy = rng.integers(0, 5, (size, 2)) / 2, rng.integers(0, 5, (2 * size, 2)) / 2
        turn = rng.permutation(2 * size)
        near = near_pairs(true_group, true_xy, found_group, found_xy, turn, 1.2)
        expected, taken = np.full(2 * size, NONE), set()
        for row in np.argsort(turn):
            left = [k for k in range(size) if true_group[k] == found_group[row] and k not in taken]
            distances = [float(np.hypot(*(true_xy[k] - found_xy[row]))) for k in left]
            if left and min(distances) < 1.2:
                expected[row] = left[int(np.argmin(distances))]
                taken.add(expected[row])
        assert greedy(near, size, 2 * size).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("name", "speed", "attribute"),
    [
        ("car", 0.0, "vehicle.parked"),
        ("bus", 0.1, "vehicle.stopped"),
        ("truck", 0.2, "vehicle.moving"),
        ("bicycle", 5.0, "cycle.with_rider"),
        ("motorcycle", 0.0, "cycle.without_rider"),
        ("pedestrian", 0.0, "pedestrian.standing"),
        ("barrier", 3.0, ""),
    ],
)
def test_likely_attributes(name: str, speed: float, attribute: str) -> None:
    assert likely_attribute(name, speed) == attribute


# ---- the real key frame
@pytest.fixture(scope="module")
def key_frame() -> TrueObjects:
    if not REAL.exists():
        pytest.skip(f"no real frames in {REAL}")
    names = ("sample", "sample_annotation", "instance", "category", "attribute", "sample_data", "ego_pose")
    tables = {name: {r["token"]: r for r in json.loads((REAL / f"{name}.json").read_text())} for name in names}
    (sample,) = tables["sample"].values()
    (sweep,) = (r for r in tables["sample_data"].values() if "LIDAR_TOP" in r["filename"] and r["is_key_frame"])
    rows = list(tables["sample_annotation"].values())
    kinds = [tables["category"][tables["instance"][row["instance_token"]]["category_token"]]["name"] for row in rows]
    stated = [[tables["attribute"][token]["name"] for token in row["attribute_tokens"]] for row in rows]
    sizes = np.array([row["size"] for row in rows])[:, [1, 0, 2]]
    yaws = yaws_of(np.array([row["rotation"] for row in rows], dtype=np.float64))
    return TrueObjects(
        key=sample["token"],
        boxes=np.column_stack([[row["translation"] for row in rows], sizes, yaws]),
        categories=tuple(kinds),
        origin_m=np.array(tables["ego_pose"][sweep["ego_pose_token"]]["translation"], dtype=np.float64),
        velocities_mps=np.full((len(rows), 2), np.nan),  # there is one sample
        attributes=tuple(names[0] if names else "" for names in stated),
        num_lidar_points=np.array([row["num_lidar_pts"] for row in rows]),
        num_radar_points=np.array([row["num_radar_pts"] for row in rows]),
    )


@pytest.mark.parametrize(
    ("shift_m", "expected"),
    [
        (0.0, (0.4901, 0.3895, 0.5, 0.5, 0.5556, 1, 1)),
        (0.7, (0.3634, 0.2901, 0.8541, 0.5055, 0.5569, 1, 1)),
    ],
    ids=["as annotated", "0.7 m off"],
)
def test_the_annotations_of_a_real_frame(key_frame: TrueObjects, shift_m: float, expected: tuple[float, ...]) -> None:
    """Values of the development kit."""
    assert key_frame.attributes is not None
    named = [row for row, name in enumerate(key_frame.categories) if name in CLASS_OF]
    objects = FoundObjects(
        key=key_frame.key,
        boxes=key_frame.boxes[named] + np.array([shift_m, 0, 0, 0, 0, 0, 0]),
        scores=0.9 - 0.01 * np.array(named),
        classes=tuple(CLASS_OF[key_frame.categories[row]] for row in named),
        velocities_mps=np.zeros((len(named), 2)),
        attributes=("",) * len(named),
    )
    scores = score_nuscenes([(key_frame, objects)])
    values = [scores.headline[name] for name in ("mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE")]
    assert values == pytest.approx(expected, abs=5e-5)
    assert sum(row.num_true for row in scores.rows if row.metric == "AP" and row.category != MEAN) == 33
