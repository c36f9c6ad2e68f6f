"""nuScenes: against the frames that were written in its layout, against the development kit, and on a real frame."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.convert.base import Skipped
from data.convert.box_labels import points_in_box
from data.convert.nuscenes import tables as nuscenes_tables
from data.convert.nuscenes.converter import NuscenesConverter
from data.convert.nuscenes.names import ATTRIBUTES, BOX_CATEGORIES, CAMERAS, CATEGORIES, CLASSES, MINI, OFFICIAL, SLIDR
from data.geometry import project, transform, visible
from data.sample import IGNORE_LABEL, CameraView, Sample
from data.storage.encode import count_pairs
from data.storage.shard import ShardError
from tests.helpers.layouts import nuscenes as written
from tests.helpers.layouts.nuscenes import NuscenesLayout, token, world_boxes, write_nuscenes
from tests.helpers.street_logs import CLASS_NAMES

GOLDEN = Path(__file__).parents[2] / "golden" / "nuscenes_devkit.json"
REAL = Path(__file__).parents[3].parent / "shared" / "data" / "nuscenes"
LAYOUT = NuscenesLayout()
SCENES = LAYOUT.scenes

CLASS_OF_STREET = {
    "road": "driveable_surface",
    "parking": "other_flat",
    "sidewalk": "sidewalk",
    "terrain": "terrain",
    "building": "manmade",
    "fence": "barrier",
    "vegetation": "vegetation",
    "pole": "traffic_cone",
    "car": "car",
    "truck": "truck",
    "bus": "bus",
    "pedestrian": "pedestrian",
    "cyclist": "bicycle",
}
"""The others are raw categories of no class."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: tests that change files take a `copy`."""
    root = tmp_path_factory.mktemp("nuscenes")
    write_nuscenes(root)
    return root


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def frames_of(converter: NuscenesConverter, *scenes: str) -> list[Sample | Skipped]:
    return [item for log in scenes or converter.logs() for item in converter.frames(log, 0, converter.num_frames(log))]


def truths(scene: str, *, keys: bool = True) -> list[Sample]:
    return [sample for frame, sample in enumerate(LAYOUT.truth(scene)) if LAYOUT.key(frame) or not keys]


def expected_labels(names: np.ndarray) -> np.ndarray:
    """Street labels to nuScenes' classes, one by one."""
    classes = list(CLASSES)
    wanted = [CLASS_OF_STREET.get(CLASS_NAMES[label]) for label in names]
    return np.array([IGNORE_LABEL if name is None else classes.index(name) for name in wanted])


# ---- the frames
def test_key_frames_are_what_was_written(source: Path) -> None:
    converter = NuscenesConverter(source=str(source))
    assert converter.logs() == SCENES
    assert converter.camera_names() == CAMERAS
    assert [converter.num_frames(log) for log in SCENES] == [3, 3]
    rows = json.loads((source / "v1.0-mini" / "sample.json").read_text())
    tokens = {row["timestamp"]: row["token"] for row in rows}
    for scene in SCENES:
        for sample, truth in zip(frames_of(converter, scene), truths(scene), strict=True):
            assert isinstance(sample, Sample)
            assert (sample.key, sample.log) == (f"{scene}_{truth.timestamp_us}", scene)
            assert sample.timestamp_us == truth.timestamp_us
            assert sample.token == tokens[sample.timestamp_us]
            np.testing.assert_array_equal(sample.points_lidar, truth.points_lidar.astype(np.float32))
            np.testing.assert_allclose(sample.intensity, truth.intensity, atol=0.5 / 255 + 1e-6)
            assert float(sample.intensity.max()) > 0.5
            np.testing.assert_allclose(sample.T_ego_lidar, truth.T_ego_lidar, atol=1e-12)
            np.testing.assert_allclose(sample.T_world_ego, truth.T_world_ego, rtol=0, atol=1e-9)


def test_cameras_keep_their_own_time_and_pose(source: Path) -> None:
    for sample, truth in zip(
        frames_of(NuscenesConverter(source=str(source)), SCENES[1]), truths(SCENES[1]), strict=True
    ):
        theirs = {camera.name: camera for camera in truth.cameras}
        assert tuple(camera.name for camera in sample.cameras) == CAMERAS
        assert len({camera.timestamp_us for camera in sample.cameras}) == 6
        for camera in sample.cameras:
            true = theirs[camera.name]
            assert camera.timestamp_us == true.timestamp_us
            np.testing.assert_allclose(camera.T_world_ego, true.T_world_ego, rtol=0, atol=1e-9)
            uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
            true_uv, true_depth = project(true.K, transform(truth.T_cam_lidar(true), truth.points_lidar))
            near = true_depth > 1
            assert near.sum() > 300
            np.testing.assert_allclose(depth, true_depth, atol=1e-5)
            np.testing.assert_allclose(uv[near], true_uv[near], atol=1e-2)
            assert np.abs(camera.image.astype(float) - true.image).mean() < 5, "RGB"
            files = list(source.glob(f"samples/{camera.name}/*__{camera.timestamp_us}.jpg"))
            assert camera.jpeg in [file.read_bytes() for file in files]


def test_labels_and_objects(source: Path) -> None:
    for sample, truth in zip(
        frames_of(NuscenesConverter(source=str(source))), truths(SCENES[0]) + truths(SCENES[1]), strict=True
    ):
        np.testing.assert_array_equal(sample.labels, expected_labels(truth.labels))
        assert {IGNORE_LABEL} < set(sample.labels.tolist())
        np.testing.assert_array_equal(sample.instances > 0, truth.instances > 0)
        # One number an object, whatever its category.
        pairs = set(zip(sample.instances.tolist(), truth.instances.tolist(), strict=True))
        assert len(pairs) == len(set(truth.instances.tolist()))


def test_panoptic_alone_gives_labels_too(copy: Path) -> None:
    both = frames_of(NuscenesConverter(source=str(copy)), SCENES[0])
    shutil.rmtree(copy / "lidarseg")
    alone = frames_of(NuscenesConverter(source=str(copy)), SCENES[0])
    for one, other in zip(both, alone, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
    shutil.rmtree(copy / "panoptic")
    converter = NuscenesConverter(source=str(copy))
    assert all(sample.labels is None and sample.instances is None for sample in frames_of(converter))
    assert "points have no labels" in " ".join(converter.notes())
    assert "labels" not in " ".join(dataclasses.replace(converter, labels="off").notes())
    with pytest.raises(ShardError, match=r"for lidarseg/v1.0-mini or panoptic/v1.0-mini \(labels=required\) in"):
        frames_of(NuscenesConverter(source=str(copy), labels="required"))


def test_boxes(source: Path) -> None:
    seen: set[int] = set()
    for sample, truth in zip(
        frames_of(NuscenesConverter(source=str(source)), SCENES[0]), truths(SCENES[0]), strict=True
    ):
        boxes, true = sample.boxes, truth.boxes
        np.testing.assert_allclose(boxes.centers_m, true.centers_m, atol=1e-6)
        np.testing.assert_allclose(boxes.sizes_m, true.sizes_m, atol=1e-9)
        turn = boxes.yaws - true.yaws
        np.testing.assert_allclose(
            np.stack([np.cos(turn), np.sin(turn)]), [[1] * len(turn), [0] * len(turn)], atol=1e-6
        )
        np.testing.assert_array_equal(boxes.classes, expected_labels(true.classes))
        names = [None if at < 0 else ATTRIBUTES[at] for at in boxes.attributes]
        world = world_boxes(truth)
        assert names == [box["attribute"] for box in world]
        # Counted in boxes that stand upright in the world; here they stand upright on the LiDAR's tilted floor.
        inside = [
            int(points_in_box(sample.points_lidar, center, size, float(yaw)).sum())
            for center, size, yaw in zip(boxes.centers_m, boxes.sizes_m, boxes.yaws, strict=True)
        ]
        assert boxes.num_points.tolist() == [box["num_points"] for box in world]
        assert boxes.num_radar_points.tolist() == [box["track"] % 5 for box in world]
        kinds = [written.STREET_CATEGORY[box["class"]] for box in world]
        assert [BOX_CATEGORIES[number] for number in boxes.categories] == kinds
        assert np.abs(np.array(inside) - boxes.num_points).max() <= 0.05 * boxes.num_points.max()
        tracks = dict(zip(true.track_ids.tolist(), boxes.track_ids.tolist(), strict=True))
        assert len(set(tracks.values())) == len(tracks)
        seen |= {(a, b) for a, b in tracks.items()}
    assert len(seen) == len({ours for _, ours in seen}) == len({theirs for theirs, _ in seen}), (
        "an id stays with its object"
    )


@pytest.mark.parametrize("rate_hz", [4.0, 1.6, 1.0])
def test_velocities_by_neighbouring_annotations(tmp_path: Path, rate_hz: float) -> None:
    """Slow and obvious, in the world; at 1 Hz of the LiDAR annotations lie 2 s apart: too far."""
    layout = NuscenesLayout(scenes=SCENES[:1], rate_hz=rate_hz, image_size=(8, 16))
    write_nuscenes(tmp_path, layout, lidarseg=False, panoptic=False)
    keys = [frame for number, frame in enumerate(layout.truth(SCENES[0])) if layout.key(number)]
    where = [{box["track"]: box["center"] for box in world_boxes(frame)} for frame in keys]
    times = [frame.timestamp_us * 1e-6 for frame in keys]
    known = 0
    for number, sample in enumerate(frames_of(NuscenesConverter(source=str(tmp_path), cameras=("none",)))):
        turn = (sample.T_world_ego @ sample.T_ego_lidar)[:3, :3]
        for track, velocity in zip(keys[number].boxes.track_ids.tolist(), sample.boxes.velocities_mps, strict=True):
            having = [other for other in range(len(keys)) if track in where[other]]
            before = max((other for other in having if other < number), default=number)
            after = min((other for other in having if other > number), default=number)
            limit = 3.0 if before < number < after else 1.5
            expected = np.full(3, np.nan)
            if before < after and times[after] - times[before] <= limit:
                expected = turn.T @ (where[after][track] - where[before][track]) / (times[after] - times[before])
                known += 1
            np.testing.assert_allclose(velocity, expected[:2], atol=1e-6)
    assert (known > 20) == (rate_hz > 1)


def test_all_sweeps(source: Path) -> None:
    converter = NuscenesConverter(source=str(source), sweeps=True)
    scene = SCENES[0]
    assert converter.num_frames(scene) == 5
    samples, frames = frames_of(converter, scene), truths(scene, keys=False)
    images = {
        name: [
            c
            for n, f in enumerate(frames)
            for c in f.cameras
            if c.name == name and (n, name) not in LAYOUT.without_image
        ]
        for name in CAMERAS
    }
    # The frames without an image of their own: the nearest is a quarter of a second away.
    assert [item.reason if isinstance(item, Skipped) else None for item in samples] == [
        None,
        "member-missing",
        None,
        "member-missing",
        None,
    ]
    wide = frames_of(dataclasses.replace(converter, max_camera_gap_s=1.0), scene)
    for number, (sample, truth) in enumerate(zip(wide, frames, strict=True)):
        np.testing.assert_array_equal(sample.points_lidar, truth.points_lidar.astype(np.float32))
        assert (sample.labels is None) == (sample.boxes is None) == (sample.instances is None) == (number % 2 == 1)
        for camera in sample.cameras:
            nearest = min(images[camera.name], key=lambda view: abs(view.timestamp_us - truth.timestamp_us))
            assert camera.timestamp_us == nearest.timestamp_us
            np.testing.assert_allclose(camera.T_world_ego, nearest.T_world_ego, rtol=0, atol=1e-9)
    late = next(camera for camera in wide[3].cameras if camera.name == "CAM_FRONT")
    assert late.timestamp_us in (frames[2].timestamp_us - 10_000, frames[4].timestamp_us - 10_000)


@pytest.mark.parametrize("num_sweeps", [2, 3, 10])
def test_clouds_of_several_sweeps(source: Path, num_sweeps: int) -> None:
    """Point by point through the world, with the poses that were written."""
    frames = LAYOUT.truth(SCENES[0])
    plain = frames_of(NuscenesConverter(source=str(source), cameras=("none",)), SCENES[0])
    converter = NuscenesConverter(source=str(source), cameras=("none",), num_sweeps=num_sweeps)
    samples = frames_of(converter, SCENES[0])
    assert [sample.key for sample in samples] == [sample.key for sample in plain]
    for number, sample, alone in zip((0, 2, 4), samples, plain, strict=True):
        now, parts, times = frames[number], [], []
        for frame in range(number, max(number - num_sweeps, -1), -1):
            then = frames[frame]
            world = transform(then.T_world_ego @ then.T_ego_lidar, then.points_lidar.astype(np.float64))
            parts.append(transform(np.linalg.inv(now.T_world_ego @ now.T_ego_lidar), world))
            times += [(now.timestamp_us - then.timestamp_us) / 1e6] * len(world)
        np.testing.assert_allclose(sample.points_lidar, np.concatenate(parts), atol=2e-5)
        np.testing.assert_allclose(sample.times_s, times, atol=1e-6)
        assert len(set(times)) == min(num_sweeps, number + 1), "a scene begins with fewer"
        assert sample.times_s.dtype == np.float32
        own = len(alone.points_lidar)
        np.testing.assert_array_equal(sample.points_lidar[:own], alone.points_lidar)
        np.testing.assert_array_equal(sample.labels[:own], alone.labels)
        np.testing.assert_array_equal(sample.instances[:own], alone.instances)
        assert set(sample.labels[own:].tolist()) <= {IGNORE_LABEL}
        assert not sample.instances[own:].any()
        assert sample.intensity.shape == sample.labels.shape == sample.instances.shape == sample.times_s.shape
        np.testing.assert_array_equal(sample.boxes.num_points, alone.boxes.num_points)
    assert f"clouds of {num_sweeps} sweeps" in " ".join(converter.notes())


def test_sweeps_between_key_frames_have_clouds_of_several_too(source: Path) -> None:
    converter = NuscenesConverter(source=str(source), cameras=("CAM_FRONT_LEFT",), num_sweeps=2, sweeps=True)
    samples = frames_of(converter, SCENES[0])
    lengths = [len(frame.points_lidar) for frame in LAYOUT.truth(SCENES[0])]
    assert [len(sample.points_lidar) for sample in samples] == [lengths[0], *np.add(lengths[1:], lengths[:-1]).tolist()]
    assert samples[1].labels is None


def test_the_vehicle_itself_is_left_out_of_clouds_of_several_sweeps(copy: Path) -> None:
    """Within 1 m in x and in y of the scanner, of each sweep in its own frame."""
    for frame in (0, 1):
        time_us = LAYOUT.truth(SCENES[0])[frame].timestamp_us
        (path,) = copy.glob(f"*/LIDAR_TOP/*__{time_us}.pcd.bin")
        records = np.fromfile(path, "<f4").reshape(-1, 5)
        records[:4, :2] = [[0.5, 0.9], [-0.99, -0.99], [0.2, 1.5], [-1.2, 0.3]]
        records.tofile(path)
    options = {"source": str(copy), "cameras": ("none",), "sweeps": True}
    alone = frames_of(NuscenesConverter(**options), SCENES[0])
    both = frames_of(NuscenesConverter(**options, num_sweeps=2), SCENES[0])
    assert len(alone[0].points_lidar) - len(both[0].points_lidar) == 2
    np.testing.assert_array_equal(both[0].labels, alone[0].labels[2:])
    np.testing.assert_allclose(both[0].points_lidar[:2, :2], [[1.5, -0.2], [0.3, 1.2]], atol=1e-6)
    assert len(both[1].points_lidar) == len(alone[0].points_lidar) + len(alone[1].points_lidar) - 4


def test_an_earlier_sweep_that_is_lost_costs_the_frame(copy: Path) -> None:
    time_us = LAYOUT.truth(SCENES[0])[1].timestamp_us
    next(copy.glob(f"sweeps/LIDAR_TOP/*__{time_us}.pcd.bin")).unlink()
    items = frames_of(NuscenesConverter(source=str(copy), cameras=("none",), num_sweeps=2), SCENES[0])
    assert [isinstance(item, Sample) for item in items] == [True, False, True]
    assert items[1].reason == "member-missing"
    with pytest.raises(ValueError, match="num_sweeps"):
        NuscenesConverter(source=str(copy), num_sweeps=0)
    shutil.rmtree(copy / "sweeps")
    with pytest.raises(ShardError, match="sweeps/LIDAR_TOP"):
        NuscenesConverter(source=str(copy), num_sweeps=2).logs()


def test_some_cameras_or_none(source: Path) -> None:
    pair = ("CAM_BACK", "CAM_FRONT")
    converter = NuscenesConverter(source=str(source), cameras=pair)
    assert converter.camera_names() == pair
    assert [camera.name for camera in next(converter.frames(SCENES[0], 0, 1)).cameras] == list(pair)
    bare = NuscenesConverter(source=str(source), cameras=("none",))
    assert next(bare.frames(SCENES[0], 0, 1)).cameras == ()
    some = "expected some of CAM_FRONT, CAM_FRONT_RIGHT"
    for wrong, message in (
        (("CAM_TOP",), some),
        (("CAM_BACK", "CAM_BACK"), "expected no entry twice"),
        (("none", "CAM_BACK"), some),
    ):
        with pytest.raises(ValueError, match=message):
            NuscenesConverter(source=str(source), cameras=wrong)


def test_stretches_are_parts_of_the_whole(source: Path) -> None:
    converter = NuscenesConverter(source=str(source))
    whole = [sample.key for sample in frames_of(converter, SCENES[1])]
    parts = [sample.key for start, stop in ((0, 1), (1, 3)) for sample in converter.frames(SCENES[1], start, stop)]
    assert parts == whole


def test_key_frames_without_a_sweep_are_told(copy: Path) -> None:
    change_table(
        copy, "sample_data", lambda rows: rows.pop(next(n for n, r in enumerate(rows) if "LIDAR" in r["filename"]))
    )
    converter = NuscenesConverter(source=str(copy))
    assert [converter.num_frames(log) for log in SCENES] == [2, 3]
    assert "1 key frames have no sweep" in " ".join(converter.notes())


def test_a_workers_copy_reads_no_table(copy: Path) -> None:
    converter = NuscenesConverter(source=str(copy))
    first = frames_of(converter)
    converter.notes()
    bytes_of_it = pickle.dumps(converter)
    assert len(bytes_of_it) < 20_000
    shutil.rmtree(copy / "v1.0-mini")
    again = frames_of(pickle.loads(bytes_of_it))
    assert [sample.key for sample in again] == [sample.key for sample in first]
    np.testing.assert_array_equal(again[4].boxes.centers_m, first[4].boxes.centers_m)


def test_the_test_set_has_no_boxes(tmp_path: Path) -> None:
    layout = NuscenesLayout(scenes=("scene-0077",), image_size=(8, 16))
    write_nuscenes(tmp_path, layout, version="v1.0-test", lidarseg=False, panoptic=False, annotations=False)
    converter = NuscenesConverter(source=str(tmp_path))
    assert converter.split_of("scene-0077") == "test"
    assert all(sample.boxes is None and sample.labels is None for sample in frames_of(converter))
    assert "samples have no boxes" in " ".join(converter.notes())


# ---- the development kit
def test_the_development_kit_says_the_same(source: Path) -> None:
    kit = json.loads(GOLDEN.read_text())
    samples = frames_of(NuscenesConverter(source=str(source)))
    assert [sample.key for sample in samples] == list(kit), "make tests/golden/nuscenes_devkit.json again"
    for sample in samples:
        theirs = kit[sample.key]
        assert theirs["num_points"] == len(sample.points_lidar)
        counts = np.bincount(sample.labels, minlength=256)
        assert [counts[IGNORE_LABEL], *counts[:16]] == theirs["labels"]
        _compare_boxes(sample, theirs["boxes"])
        for camera in sample.cameras:
            _compare_projection(sample, camera, theirs["cameras"][camera.name])


def test_the_development_kit_puts_the_same_sweeps_together(source: Path) -> None:
    kit = json.loads(GOLDEN.read_text())
    for sample in frames_of(NuscenesConverter(source=str(source), cameras=("none",), num_sweeps=3)):
        theirs = kit[sample.key]["sweeps"]
        assert theirs["count"] == len(sample.points_lidar)
        points = np.array(theirs["points"])
        ours = sample.points_lidar[theirs["chosen"]]
        np.testing.assert_allclose(ours, np.stack([points[:, 1], -points[:, 0], points[:, 2]], axis=1), atol=1e-5)
        np.testing.assert_allclose(sample.intensity[theirs["chosen"]] * 255, points[:, 3], atol=1e-3)
        np.testing.assert_allclose(sample.times_s[theirs["chosen"]], theirs["times"], atol=2e-6)


def _compare_boxes(sample: Sample, rows: list[dict]) -> None:
    boxes = sample.boxes
    right_forward = np.array([row["center"] for row in rows])
    ours = np.stack([right_forward[:, 1], -right_forward[:, 0], right_forward[:, 2]], axis=1)
    np.testing.assert_allclose(boxes.centers_m, ours, atol=1e-5)
    np.testing.assert_allclose(boxes.sizes_m[:, [1, 0, 2]], [row["wlh"] for row in rows], atol=1e-5)
    headings = np.array([row["heading"] for row in rows])
    np.testing.assert_allclose(boxes.yaws, np.arctan2(-headings[:, 0], headings[:, 1]), atol=1e-5)
    turn = (sample.T_world_ego @ sample.T_ego_lidar)[:3, :3]
    velocities = np.array([row["velocity_world"] for row in rows], dtype=float)
    np.testing.assert_allclose(boxes.velocities_mps, (velocities @ turn)[:, :2], atol=1e-5)
    names = [None if kind == IGNORE_LABEL else list(CLASSES)[kind] for kind in boxes.classes]
    assert names == [row["class"] for row in rows]
    assert [[ATTRIBUTES[at]] if at >= 0 else [] for at in boxes.attributes] == [row["attributes"] for row in rows]
    assert boxes.num_points.tolist() == [row["num_points"] for row in rows]


def _compare_projection(sample: Sample, camera: CameraView, theirs: dict) -> None:
    uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
    height, width = camera.image_size
    assert [height, width] == theirs["size"]
    with np.errstate(invalid="ignore"):
        inside = (depth > 1) & (uv[:, 0] > 1) & (uv[:, 0] < width - 1) & (uv[:, 1] > 1) & (uv[:, 1] < height - 1)
    # The kit moves its points through the frames in single precision.
    assert abs(int(inside.sum()) - theirs["count"]) <= 1
    ours = np.concatenate([uv, depth[:, None] * 50], axis=1)[inside]
    for pixel, metres in zip(theirs["uv"], theirs["depth"], strict=True):
        assert np.abs(ours - [*pixel, metres * 50]).max(axis=1).min() < 0.05


# ---- splits
@pytest.mark.parametrize(
    ("scenes", "count", "sha256"),
    [
        (OFFICIAL["train"], 700, "80e7f1b38e4973cc7531ab7df4a37a86b98b5140dcaf1c7600df7db553357314"),
        (OFFICIAL["val"], 150, "d93d05f110816360b4e7cd7f413241e3ef0de90d47adc2987becaf4a230d4359"),
        (OFFICIAL["test"], 150, "ceb6c4a825ec001be4ca21870a299e29aed837116c7cbb9cdddcdecb38b09350"),
        (SLIDR["minival"], 100, "ac31bfde925bf15b53f718eebdcf1aed2cf01e1f1c4a14794330145a7df4a683"),
    ],
)
def test_scene_lists_are_the_published_ones(scenes: frozenset[str], count: int, sha256: str) -> None:
    assert len(scenes) == count
    assert hashlib.sha256(("\n".join(sorted(scenes)) + "\n").encode()).hexdigest() == sha256


def test_splits(source: Path, copy: Path) -> None:
    assert {split: len(scenes) for split, scenes in SLIDR.items()} == {
        "train": 600,
        "minival": 100,
        "val": 150,
        "test": 150,
    }
    assert SLIDR["train"] | SLIDR["minival"] == OFFICIAL["train"]
    assert not OFFICIAL["train"] & OFFICIAL["val"] | OFFICIAL["train"] & OFFICIAL["test"]
    assert MINI["mini_train"] - OFFICIAL["train"] == {"scene-0553", "scene-0796"} < OFFICIAL["val"]
    assert MINI["mini_val"] < OFFICIAL["val"]
    mini = NuscenesConverter(source=str(source))
    assert [mini.split_of(log) for log in SCENES] == ["mini_train", "mini_val"]
    slidr = NuscenesConverter(source=str(source), split_scheme="slidr")
    assert [slidr.split_of(log) for log in (*SCENES, "scene-1094")] == ["train", "val", "minival"]
    (copy / "v1.0-mini").rename(copy / "v1.0-trainval")
    official = NuscenesConverter(source=str(copy))
    assert [official.split_of(log) for log in (*SCENES, "scene-1094", "scene-0077")] == [
        "train",
        "val",
        "train",
        "test",
    ]
    scenes = copy / "v1.0-trainval" / "scene.json"
    scenes.write_text(scenes.read_text().replace("scene-0103", "scene-9103"))
    own = NuscenesConverter(source=str(copy), labels="off")
    assert own.split_of("scene-9103") == "other"
    assert "in no official split, so 'other': scene-9103" in own.notes()


def test_classes_are_those_of_the_challenge() -> None:
    """Raw index to class as SLidR's and ScaLR's published tables have it (class 0 is their ignored one)."""
    published = {
        **{
            1: (9,),
            2: (14,),
            3: (15, 16),
            4: (17,),
            5: (18,),
            6: (21,),
            7: (2, 3, 4, 6),
            8: (12,),
            9: (22,),
            10: (23,),
        },
        **{11: (24,), 12: (25,), 13: (26,), 14: (27,), 15: (28,), 16: (30,)},
    }
    found = {
        number: tuple(CATEGORIES.index(name) for name in names) for number, names in enumerate(CLASSES.values(), 1)
    }
    assert found == published
    assert list(CATEGORIES) == written.CATEGORIES


# ---- tables
def test_tables_come_whole_whatever_the_block(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = source / "v1.0-mini"
    expected = [(row["token"], row["translation"]) for row in json.loads((folder / "ego_pose.json").read_text())]
    for size in (64, 997, 1 << 20):
        monkeypatch.setattr(nuscenes_tables, "_BLOCK_BYTES", size)
        assert nuscenes_tables.read_table(folder, "ego_pose", "token", "translation") == expected
    assert nuscenes_tables.read_table(folder, "sample_annotation", "token")


def test_an_empty_table(tmp_path: Path) -> None:
    for text in ("[]", "[\n]\n"):
        (tmp_path / "scene.json").write_text(text)
        assert nuscenes_tables.read_table(tmp_path, "scene", "name") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "scene.json is cut: it ends with b'', expected"),
        ('[{"name": "a"}', "scene.json is cut: it ends with b'', expected"),
        ('[{"name": "a"}, {"na', "scene.json is cut: it ends with b', {\"na', expected"),
        ('{"name": "a"}', "where b'\\[' was expected"),
        ('[{"name": "a"}}]', "scene.json is damaged: Extra data|scene.json is damaged: Expecting"),
        ('[{"name": 1}, 3]', "is cut"),
        ('[3, {"name": 1}]', "a row has no 'int' object is not subscriptable"),
        ('[{"other": 1}]', "a row has no 'name', expected an object with name"),
        ("not json", "is cut"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "scene.json").write_text(text)
    with pytest.raises(ShardError, match=message):
        nuscenes_tables.read_table(tmp_path, "scene", "name")


# ---- wrong sources
def test_wrong_folders_are_told_what_was_looked_for(source: Path, copy: Path, tmp_path: Path) -> None:
    def error(**settings: object) -> str:
        with pytest.raises(ShardError) as caught:
            frames_of(NuscenesConverter(**settings))  # type: ignore[arg-type]
        return str(caught.value)

    inside = error(source=str(source / "v1.0-mini"))
    assert (
        f"{source / 'v1.0-mini'} is no nuScenes folder: looked for v1.0-trainval or v1.0-mini or v1.0-test in" in inside
    )
    assert "found attribute.json, calibrated_sensor.json" in inside
    assert "found no such folder" in error(source=str(tmp_path / "nothing"))
    assert "looked for v1.0-trainval in" in error(source=str(source), version="v1.0-trainval")
    (copy / "v1.0-test").mkdir()
    assert "holds v1.0-mini and v1.0-test; choose one with version=v1.0-mini" in error(source=str(copy))
    assert "looked for scene.json in" in error(source=str(copy), version="v1.0-test")
    (copy / "v1.0-test").rmdir()
    shutil.rmtree(copy / "samples" / "CAM_BACK")
    message = error(source=str(copy))
    assert f"looked for samples/CAM_BACK in {copy / 'samples'}, found CAM_BACK_LEFT/, CAM_BACK_RIGHT/" in message
    assert frames_of(NuscenesConverter(source=str(copy), cameras=("CAM_FRONT",)))
    shutil.rmtree(copy / "sweeps")
    assert "looked for sweeps/LIDAR_TOP in" in error(source=str(copy), cameras=("CAM_FRONT",), sweeps=True)


def change_table(root: Path, table: str, change: Callable[[list[dict]], object]) -> None:
    path = root / "v1.0-mini" / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows, indent=0))


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (
            "sensor",
            lambda rows: rows[1].update(channel="CAM_NOSE"),
            "looked for CAM_FRONT in sensor.json .which names CAM_BACK,",
        ),
        ("scene", lambda rows: rows.clear(), "looked for scenes in scene.json in"),
        ("sample", lambda rows: rows.pop(), "do not fit together: KeyError"),
        ("instance", lambda rows: rows.pop(), "do not fit together: KeyError"),
        ("sample", lambda rows: rows[0].pop("timestamp"), "sample.json: a row has no 'timestamp'"),
        ("calibrated_sensor", lambda rows: rows[2].update(rotation=[0, 0, 0, 0]), "do not fit together: ValueError"),
        ("sample_data", lambda rows: rows[1].update(filename="a" * 300), "is longer than 112 characters"),
        ("sample_annotation", lambda rows: rows[1].update(size=[1]), "do not fit together: ValueError"),
        (
            "category",
            lambda rows: rows[3].update(index=4),
            "category.json' numbers|numbers 'human.pedestrian.child' as 4",
        ),
        ("category", lambda rows: rows[3].pop("index"), "category.json: a row has no 'index'"),
    ],
)
def test_tables_that_do_not_fit_are_an_error(copy: Path, table: str, change: Callable, message: str) -> None:
    change_table(copy, table, change)
    with pytest.raises(ShardError, match=message):
        frames_of(NuscenesConverter(source=str(copy)))


# ---- damaged frames
def first_of(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def label_file(root: Path, kind: str, ending: str) -> Path:
    return root / kind / "v1.0-mini" / f"{token('data', SCENES[0], 0, 'LIDAR_TOP')}_{kind}.{ending}"


def bomb(root: Path) -> None:
    np.savez_compressed(label_file(root, "panoptic", "npz"), data=np.zeros(50_000_000, np.uint16))


def swap_image(root: Path) -> None:
    small = first_of(root, "samples/CAM_BACK/*.jpg")
    from cv2 import imwrite

    imwrite(str(small), np.zeros((10, 12, 3), np.uint8))


def cut_image(root: Path) -> None:
    path = first_of(root, "samples/CAM_BACK/*.jpg")
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda root: first_of(root, "samples/LIDAR_TOP/*").unlink(), "member-missing"),
        (lambda root: first_of(root, "samples/LIDAR_TOP/*").write_bytes(b"1234567"), "array-broken"),
        (lambda root: first_of(root, "samples/CAM_BACK/*").unlink(), "member-missing"),
        (cut_image, "image-broken"),
        (swap_image, "image-size"),
        (lambda root: label_file(root, "lidarseg", "bin").unlink(), "member-missing"),
        (lambda root: label_file(root, "lidarseg", "bin").write_bytes(b"123"), "array-broken"),
        (lambda root: label_file(root, "lidarseg", "bin").write_bytes(b"\xff" * 2531), "array-broken"),
        (lambda root: label_file(root, "panoptic", "npz").write_bytes(b"PK no archive"), "array-broken"),
        (lambda root: np.savez(label_file(root, "panoptic", "npz"), data=np.array([{}])), "array-broken"),
        (lambda root: np.savez(label_file(root, "panoptic", "npz"), other=np.zeros(3)), "array-broken"),
        (bomb, "array-broken"),
        (lambda root: change_table(root, "ego_pose", lambda rows: rows.pop(1)), "calibration-missing"),
        (
            lambda root: change_table(root, "ego_pose", lambda rows: rows[1].update(rotation=[0, 0, 0, 0])),
            "calibration-missing",
        ),
        (
            lambda root: change_table(root, "calibrated_sensor", lambda rows: rows[2].update(camera_intrinsic=[])),
            "calibration-missing",
        ),
        (lambda root: change_table(root, "sample_data", lambda rows: rows.pop(2)), "member-missing"),
        (
            lambda root: change_table(root, "sample_data", lambda rows: rows[1].update(filename="../a")),
            "member-missing",
        ),
    ],
)
def test_damaged_frames_are_named(copy: Path, damage: Callable[[Path], object], reason: str) -> None:
    damage(copy)
    items = frames_of(NuscenesConverter(source=str(copy)), *SCENES)
    assert isinstance(items[0], Skipped), "the first key frame"
    assert (items[0].reason, items[0].key) == (reason, f"{SCENES[0]}_3600000000")
    assert isinstance(items[3], Sample), "another scene"


# ---- a real frame
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real nuScenes frame in {REAL}")
def test_on_a_real_frame() -> None:
    converter = NuscenesConverter(source=str(REAL))
    (log,) = converter.logs()
    assert (log, converter.split_of(log)) == ("scene-0061", "mini_train")
    (sample,) = frames_of(converter)
    assert isinstance(sample, Sample)
    points = sample.points_lidar
    assert 34_000 < len(points) < 35_500, "32 beams at some 1,084 angles"
    assert 90 < np.abs(points).max() < 110
    assert 0.04 < np.median(sample.intensity) < 0.06
    assert sample.intensity.max() == 1
    ground = np.median(points[(np.abs(points[:, :2]) < 8).all(axis=1) & (points[:, 2] < -1.2), 2])
    assert abs(ground + 1.84) < 0.15, "the LiDAR is mounted at 1.84 m"
    boxes = sample.boxes
    assert len(boxes.classes) == 68
    counts = np.array(
        [points_in_box(points, boxes.centers_m[i], boxes.sizes_m[i], float(boxes.yaws[i])).sum() for i in range(68)]
    )
    # Those that differ do so in the development kit, by the same numbers, as its boxes are not cut anew here.
    assert (counts == boxes.num_points).sum() >= 60
    assert np.abs(counts - boxes.num_points).max() <= 16
    assert 0.6 < count_pairs(sample) / len(points) < 0.7, "six images all around, but not up and down"
    for camera in sample.cameras:
        assert camera.image_size == (900, 1600)
        assert 0 <= sample.timestamp_us - camera.timestamp_us < 50_000
        uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), points))
        seen = visible(uv, depth, camera.image_size)
        assert np.median(uv[seen & (depth < 8), 1]) > 650, "the near ground lies low in the image"
        ground = seen & (depth > 6) & (depth < 30) & (np.abs(points[:, 2] + 1.84) < 0.3)
        height_m = np.median((uv[ground, 1] - camera.K[1, 2]) * depth[ground] / camera.K[1, 1])
        # Within what a camera that looks up or down by 2 degrees makes of it.
        assert abs(height_m - np.linalg.inv(camera.T_cam_ego)[2, 3]) < 0.5, "pixels tell the camera's height"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real nuScenes frame in {REAL}")
def test_real_boxes_turn_with_their_quaternions() -> None:
    """Counted once more in the world, with the annotations' own rotations."""
    (sample,) = frames_of(NuscenesConverter(source=str(REAL), cameras=("none",)))
    points = transform(sample.T_world_ego @ sample.T_ego_lidar, sample.points_lidar)
    rows = json.loads((REAL / "v1.0-mini" / "sample_annotation.json").read_text())
    boxes = sample.boxes
    counts = []
    for number, row in enumerate(rows):
        w, x, y, z = row["rotation"]
        offset = (points - row["translation"]) @ Rotation.from_quat([x, y, z, w]).as_matrix()
        width, length, height = row["size"]
        counts.append(int((np.abs(offset) <= np.array([length, width, height]) / 2).all(axis=1).sum()))
        flat = points_in_box(
            sample.points_lidar, boxes.centers_m[number], boxes.sizes_m[number], float(boxes.yaws[number])
        )
        assert abs(counts[-1] - int(flat.sum())) <= 0.02 * counts[-1] + 1
    assert (np.array(counts) == boxes.num_points).sum() >= 60
