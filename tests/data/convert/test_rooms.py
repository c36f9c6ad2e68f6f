"""ScanNet (frames and whole scans) and S3DIS: on generated trees in the official layouts, and on real scans."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.convert.base import Converter, Skipped
from data.convert.rgbd import T_CAM_LIDAR
from data.convert.s3dis import CLASS_NAMES as ROOM_CLASSES
from data.convert.s3dis import S3disConverter, one_a_cell
from data.convert.scannet.classes import CLASS_NAMES, EVALUATED, VAL_ROOMS, evaluated_classes, split_of
from data.convert.scannet.converter import ScanNetConverter, on_depth_grid
from data.geometry import project, transform
from data.sample import IGNORE_LABEL, Sample
from data.storage.encode import CodecConfig, encode_sample
from data.storage.shard import ShardError
from tests.helpers.layouts.s3dis import line, some_object, write_room
from tests.helpers.layouts.scannet import NYU40_OF_STREET, write_frames, write_mesh, write_scan
from tests.helpers.street_logs import street_log

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "scannet" / "scannet_train_instance_data"
needs_scans = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real ScanNet scans in {REAL}")
SCAN = "scene0011_00"


@pytest.fixture(scope="module")
def truth() -> tuple[Sample, ...]:
    return street_log(("front",), frames=3, image_size=(96, 160))


def all_of(converter: Converter, log: str) -> list[Sample | Skipped]:
    return list(converter.frames(log, 0, converter.num_frames(log)))


def samples(converter: Converter, log: str) -> list[Sample]:
    found = all_of(converter, log)
    assert all(isinstance(item, Sample) for item in found), found
    return [item for item in found if isinstance(item, Sample)]


# ---- ScanNet frames
@pytest.mark.parametrize("labels", ["label-filt", "label"])
def test_frames_become_points_poses_and_labels(tmp_path, truth, labels):
    write_frames(tmp_path, SCAN, truth, (0, 20, 40), labels=labels)
    converter = ScanNetConverter(source=str(tmp_path), every_pixel=1, max_depth_m=60.0)
    assert converter.logs() == (SCAN,)
    assert converter.camera_names() == ("color",)
    for want, got, number in zip(truth, samples(converter, SCAN), (0, 20, 40), strict=True):
        camera, view = want.cameras[0], got.cameras[0]
        depth, classes = camera.depth_m[::2, ::2], camera.labels[::2, ::2]
        assert (got.key, got.timestamp_us) == (f"{SCAN}_{number:06d}", number * 33_333)
        assert view.image_size == depth.shape
        known = (depth > 0) & (depth <= 60.0)
        # By hand: each pixel of the depth image, through the intrinsics of the colour image, to the world.
        v, u = np.nonzero(known)
        rays = np.stack([2 * u, 2 * v, np.ones_like(u)], axis=1) @ np.linalg.inv(camera.K).T
        T_world_cam = camera.T_world_ego @ np.linalg.inv(camera.T_cam_ego)
        world = transform(T_world_cam, rays * depth[known][:, None])
        mine = transform(got.T_world_ego @ got.T_ego_lidar, got.points_lidar)
        np.testing.assert_allclose(mine, world, atol=3e-3)
        nyu40 = np.where(classes == IGNORE_LABEL, 0, np.array(NYU40_OF_STREET)[np.minimum(classes, 23)])
        np.testing.assert_array_equal(view.labels, evaluated_classes(nyu40))
        np.testing.assert_array_equal(got.labels, view.labels[known])
        np.testing.assert_array_equal(got.colors, view.image[known])
        np.testing.assert_allclose(view.depth_m[known], depth[known], atol=6e-4)
        uv, _ = project(view.K, transform(got.T_cam_lidar(view), got.points_lidar))
        np.testing.assert_allclose(uv, np.stack([u, v], axis=1), atol=0.01)
        np.testing.assert_array_equal(view.T_cam_ego, T_CAM_LIDAR)
        encode_sample(got, CodecConfig())


def test_colour_lies_on_the_depth_cameras_pixels():
    """A bright dot: through either camera's intrinsics it is seen in the same direction."""
    K_color = np.array([[1170.0, 0, 647.75], [0, 1168.0, 483.75], [0, 0, 1]])
    K_depth = np.array([[571.0, 0, 319.5], [0, 570.0, 239.5], [0, 0, 1]])
    direction = np.array([[0.21, -0.13, 1.0]])
    (at,), _ = project(K_color, direction)
    image = np.zeros((968, 1296, 3), np.uint8)
    cv2.circle(image, np.round(at * 256).astype(int).tolist(), 9 * 256, (255, 255, 255), -1, cv2.LINE_AA, 8)
    weight = on_depth_grid(image, K_color, K_depth, (480, 640))[..., 0].astype(float)
    v, u = np.mgrid[0:480, 0:640]
    (want,), _ = project(K_depth, direction)
    np.testing.assert_allclose([(u * weight).sum() / weight.sum(), (v * weight).sum() / weight.sum()], want, atol=0.05)


def test_frames_are_taken_some_numbers_apart(tmp_path, truth):
    write_frames(tmp_path, SCAN, truth, (3, 9, 25), labels="")
    for every, count in ((1, 3), (6, 3), (7, 2), (20, 2), (30, 1)):
        converter = ScanNetConverter(source=str(tmp_path), every_frame=every)
        assert converter.num_frames(SCAN) == count
    sample = samples(ScanNetConverter(source=str(tmp_path)), SCAN)[1]
    assert sample.key.endswith("_000025")
    assert sample.labels is None
    assert sample.points_lidar[:, 0].max() <= 10
    assert f"1 of 1 scans have no labels, the first: {SCAN}" in ScanNetConverter(source=str(tmp_path)).notes()


@pytest.mark.parametrize(
    ("file", "content", "reason", "text"),
    [
        ("pose/0.txt", "-inf -inf -inf -inf\n" * 4, "calibration-singular", "no pose, the set's tracking was lost"),
        ("pose/0.txt", "1 0 0 0\n" * 4, "calibration-singular", "pose/0.txt"),
        ("pose/0.txt", "1 0 0 0\n", "calibration-missing", "1 lines of 4 numbers, expected 4"),
        ("pose/0.txt", None, "calibration-missing", "pose/0.txt"),
        ("color/0.jpg", None, "member-missing", "color/0.jpg"),
        ("color/0.jpg", "no image", "image-broken", "color/0.jpg"),
        ("depth/0.png", None, "member-missing", "depth/0.png"),
        ("label-filt/0.png", None, "member-missing", "label-filt/0.png"),
        ("intrinsic/intrinsic_depth.txt", None, "calibration-missing", "intrinsic_depth.txt"),
        ("intrinsic/intrinsic_color.txt", "0 0 0 0\n" * 4, "calibration-singular", "intrinsic_color.txt"),
    ],
)
def test_damaged_frames_are_named(tmp_path, truth, file, content, reason, text):
    write_frames(tmp_path, SCAN, truth[:2], (0, 20), labels="label-filt")
    path = tmp_path / "scans" / SCAN / file
    path.unlink() if content is None else path.write_text(content)
    first = all_of(ScanNetConverter(source=str(tmp_path)), SCAN)[0]
    assert isinstance(first, Skipped)
    assert (first.reason, first.key) == (reason, f"{SCAN}_000000")
    assert text in first.detail


def test_wrong_scannet_folders_say_what_was_looked_for(tmp_path, truth):
    with pytest.raises(
        ShardError, match=r"is no ScanNet folder: looked for scene<room>_<visit>/.* found no such folder"
    ):
        ScanNetConverter(source=str(tmp_path / "nowhere")).logs()
    with pytest.raises(ShardError, match="found an empty folder"):
        ScanNetConverter(source=str(tmp_path)).logs()
    write_frames(tmp_path, SCAN, truth[:1], (0,), labels="label-filt")
    (tmp_path / "scannetv2-labels.combined.tsv").write_text("id\tnyu\n1\t2\n")
    with pytest.raises(ShardError, match="expected columns id and nyu40id of whole numbers"):
        all_of(ScanNetConverter(source=str(tmp_path)), SCAN)
    (tmp_path / "scannetv2-labels.combined.tsv").unlink()
    with pytest.raises(ShardError, match=r"looked for scannetv2-labels\.combined\.tsv"):
        all_of(ScanNetConverter(source=str(tmp_path)), SCAN)
    shutil.rmtree(tmp_path / "scans" / SCAN / "depth")
    with pytest.raises(ShardError, match=r"looked for depth/ \(export the scan's \.sens .* found color/, intrinsic/"):
        ScanNetConverter(source=str(tmp_path)).logs()
    with pytest.raises(ValueError, match="every_frame: got 0"):
        ScanNetConverter(source=str(tmp_path), every_frame=0)


def test_splits_and_classes_are_the_official_ones():
    assert len(CLASS_NAMES) == 20
    assert sorted(EVALUATED) == [*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39]
    assert len(VAL_ROOMS) == 142
    assert [split_of(f"scene{room}") for room in ("0011_01", "0000_00", "0706_00", "0707_00", "0704_01")] == [
        "val",
        "train",
        "train",
        "test",
        "val",
    ]
    got = evaluated_classes(np.array([0, 1, 13, 39, 40, 41, -1]))
    assert got.tolist() == [255, 0, 255, 19, 255, 255, 255]


# ---- ScanNet meshes
def test_meshes_become_aligned_samples(tmp_path):
    written = write_mesh(tmp_path, "scene0704_00", np.random.default_rng(0))
    converter = ScanNetConverter(source=str(tmp_path), meshes=True)
    assert (converter.logs(), converter.camera_names()) == (("scene0704_00",), ())
    (sample,) = samples(converter, "scene0704_00")
    np.testing.assert_allclose(sample.points_lidar, transform(written["turn"], written["points"]), atol=1e-5)
    np.testing.assert_array_equal(sample.colors, written["colours"])
    np.testing.assert_array_equal(sample.labels, evaluated_classes(written["nyu40"]))
    assert np.unique(sample.instances, return_counts=True)[1].tolist() == [400, 150, 50]
    assert sample.boxes.classes.tolist() == [4, IGNORE_LABEL]
    assert [converter.box_categories[n] for n in sample.boxes.categories] == ["chair", "bag"]
    for number, box in enumerate(np.column_stack([sample.boxes.centers_m, sample.boxes.sizes_m]), start=1):
        inside = sample.points_lidar[sample.instances == number]
        np.testing.assert_allclose(box[:3] - box[3:] / 2, inside.min(axis=0), atol=1e-5)
        np.testing.assert_allclose(box[:3] + box[3:] / 2, inside.max(axis=0), atol=1e-5)
    encode_sample(sample, CodecConfig())


def test_a_mesh_of_the_test_scans_is_unlabelled_and_stays_as_it_is(tmp_path):
    written = write_mesh(tmp_path, "scene0707_00", np.random.default_rng(0), labelled=False)
    converter = ScanNetConverter(source=str(tmp_path), meshes=True)
    (sample,) = samples(converter, "scene0707_00")
    np.testing.assert_array_equal(sample.points_lidar, written["points"])
    assert sample.labels is sample.instances is sample.boxes is None
    with pytest.raises(ShardError, match=r"looked for scene<room>_<visit>/scene<room>_<visit>_vh_clean_2.ply"):
        ScanNetConverter(source=str(tmp_path / "nowhere"), meshes=True).logs()


@pytest.mark.parametrize(
    ("file", "change", "reason", "text"),
    [
        ("_vh_clean_2.ply", lambda data: data[:-4000], "array-broken", "fewer than its 600 vertices take"),
        ("_vh_clean_2.ply", lambda data: data.replace(b"binary", b"ascii"), "array-broken", "binary_little_endian"),
        ("_vh_clean_2.ply", lambda data: data.replace(b"uchar green", b"uchar grass"), "array-broken", "green"),
        ("_vh_clean_2.ply", lambda data: data.replace(b"float x", b"real x"), "array-broken", "properties"),
        (
            "_vh_clean_2.ply",
            lambda data: data.replace(b"vertex 600", b"vertex ten"),
            "array-broken",
            "its ten vertices",
        ),
        ("_vh_clean_2.ply", lambda data: data.replace(b"element vertex", b"element corner"), "array-broken", "vertex"),
        ("_vh_clean_2.ply", lambda _: b"", "array-broken", "expected a PLY file"),
        ("_vh_clean_2.labels.ply", lambda data: data.replace(b"600", b"599"), "array-broken", "labels are 599"),
        (".txt", None, "calibration-missing", ".txt"),
        (".txt", lambda data: data.replace(b"-0.250000", b""), "calibration-missing", "axisAlignment"),
        (".txt", lambda data: data.replace(b"-1.000000", b"5"), "calibration-singular", "axisAlignment"),
        ("_vh_clean_2.0.010000.segs.json", None, "member-missing", "segs.json"),
        ("_vh_clean_2.0.010000.segs.json", lambda data: data.replace(b"[7,", b"[", 1), "array-broken", "599"),
        ("_vh_clean_2.0.010000.segs.json", lambda data: data.replace(b"[7,", b"[-7,", 1), "meta-broken", "from 0 on"),
        (".aggregation.json", lambda data: data.replace(b"segGroups", b"groups"), "meta-broken", "has no segGroups"),
        (".aggregation.json", lambda _: b'{"segGroups": 3}', "meta-broken", "no list of objects"),
    ],
    ids=range(16),
)
def test_damaged_meshes_are_named(tmp_path, file, change, reason, text):
    write_mesh(tmp_path, "scene0704_00", np.random.default_rng(0))
    path = tmp_path / "scans" / "scene0704_00" / f"scene0704_00{file}"
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    (skipped,) = all_of(ScanNetConverter(source=str(tmp_path), meshes=True), "scene0704_00")
    assert isinstance(skipped, Skipped)
    assert skipped.reason == reason
    assert text in skipped.detail


# ---- ScanNet scans
@pytest.mark.parametrize("suffix", ["", "_all"])
def test_scans_become_samples_without_cameras(tmp_path, suffix):
    tables = write_scan(tmp_path, "scene0704_00", np.random.default_rng(0), suffix=suffix)
    converter = ScanNetConverter(source=str(tmp_path))
    assert (converter.logs(), converter.camera_names()) == (("scene0704_00",), ())
    assert converter.split_of("scene0704_00") == "val"
    (sample,) = samples(converter, "scene0704_00")
    np.testing.assert_array_equal(sample.points_lidar, tables[f"vert{suffix}"][:, :3])
    red, green, blue = tables[f"vert{suffix}"][:, 3:].T.astype(float)
    np.testing.assert_allclose(sample.intensity, (0.299 * red + 0.587 * green + 0.114 * blue) / 255, atol=1e-6)
    np.testing.assert_array_equal(sample.colors, tables[f"vert{suffix}"][:, 3:])
    assert np.unique(sample.labels).tolist() == [1, 4, 255]
    np.testing.assert_array_equal(sample.instances, tables[f"ins_label{suffix}"])
    assert sample.boxes.classes.tolist() == [4, IGNORE_LABEL]
    assert converter.box_categories[sample.boxes.categories[0]] == "chair"
    encode_sample(sample, CodecConfig())


@pytest.mark.parametrize(
    ("kind", "table", "text"),
    [
        ("vert", np.zeros((3, 5), np.float32), "expected rows of x y z r g b"),
        ("sem_label", np.zeros(3, np.uint32), "3 sem_label for 600 vertices"),
        ("ins_label", np.full(600, -1), "objects from -1 to -1"),
        ("ins_label", np.array(["a"] * 600), "expected numbers"),
        ("bbox", np.zeros((2, 6)), "expected finite rows of centre, extents, NYU40 id"),
        ("bbox_idx", np.zeros(3), "3 bbox_idx for 2 boxes"),
    ],
)
def test_damaged_scans_are_named(tmp_path, kind, table, text):
    write_scan(tmp_path, SCAN, np.random.default_rng(0))
    np.save(tmp_path / f"{SCAN}_{kind}.npy", table)
    (skip,) = all_of(ScanNetConverter(source=str(tmp_path)), SCAN)
    assert isinstance(skip, Skipped)
    assert skip.reason == "array-broken"
    assert text in skip.detail


@needs_scans
def test_real_scans():
    converter = ScanNetConverter(source=str(REAL))
    assert converter.logs() == ("scene0000_00", "scene0000_01", "scene0000_02")
    for log, count in zip(converter.logs(), (81369, 80583, 86001), strict=True):
        assert converter.split_of(log) == "train"
        (sample,) = samples(converter, log)
        assert len(sample.points_lidar) == count
        assert 0 <= sample.intensity.min() < 0.1 < 0.9 < sample.intensity.max() <= 1
        counts = np.bincount(sample.labels, minlength=256)
        named = {name: counts[index] / count for index, name in enumerate(CLASS_NAMES)}
        assert named["wall"] > 0.1
        assert named["floor"] > 0.1
        assert named["bathtub"] < named["bed"]
        floor = sample.points_lidar[sample.labels == CLASS_NAMES.index("floor"), 2]
        assert abs(np.median(floor)) < 0.1, "z is up and the floor at 0"
        boxes = sample.boxes
        for row, track in enumerate(boxes.track_ids.tolist()):
            mine = sample.instances == track
            assert (sample.labels[mine] == boxes.classes[row]).mean() > 0.99
            low, high = sample.points_lidar[mine].min(axis=0), sample.points_lidar[mine].max(axis=0)
            np.testing.assert_allclose(boxes.centers_m[row], (low + high) / 2, atol=1e-5)
            np.testing.assert_allclose(boxes.sizes_m[row], high - low, atol=1e-5)
        encode_sample(sample, CodecConfig())


# ---- S3DIS
@pytest.fixture
def objects() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "floor_1": some_object(rng, (10, -4, 0.0), (14, -1, 0.01), 300),
        "chair_1": some_object(rng, (11, -3, 0.0), (11.5, -2.5, 0.9), 100),
        "chair_2": some_object(rng, (12, -3, 0.0), (12.5, -2.5, 0.9), 80),
        "stairs_1": some_object(rng, (13, -2, 0.0), (13.5, -1.5, 0.9), 60),
    }


def test_rooms_become_samples(tmp_path, objects):
    write_room(tmp_path, 5, "office_1", objects)
    write_room(tmp_path, 1, "hallway_2", {"wall_1": objects["floor_1"]})
    converter = S3disConverter(source=str(tmp_path), grid_m=0.0)
    assert {log: converter.split_of(log) for log in converter.logs()} == {
        "Area_1_hallway_2": "train",
        "Area_5_office_1": "val",
    }
    assert "only areas 1, 5 of 1 to 6" in converter.notes()
    (sample,) = samples(converter, "Area_5_office_1")
    rows = np.concatenate([objects[name] for name in sorted(objects)])
    world = transform(sample.T_world_ego @ sample.T_ego_lidar, sample.points_lidar)
    np.testing.assert_allclose(world, rows[:, :3], atol=1e-6)
    np.testing.assert_allclose(sample.intensity, rows[:, 3:] @ [0.299, 0.587, 0.114] / 255, atol=1e-6)
    np.testing.assert_array_equal(sample.colors, rows[:, 3:])
    low, high = sample.points_lidar.min(axis=0), sample.points_lidar.max(axis=0)
    np.testing.assert_allclose([low[0] + high[0], low[1] + high[1], low[2]], 0, atol=1e-6)
    names = [ROOM_CLASSES[label] for label in sample.labels]
    assert names == ["chair"] * 180 + ["floor"] * 300 + ["clutter"] * 60
    assert np.unique(sample.instances, return_counts=True)[1].tolist() == [100, 80, 300, 60]
    encode_sample(sample, CodecConfig())


def test_one_point_a_cell_is_kept(tmp_path, objects):
    points = objects["floor_1"][:, :3]
    kept = one_a_cell(points, 0.25)
    cells = [tuple(cell) for cell in np.floor((points - points.min(axis=0)) / 0.25).astype(int).tolist()]
    assert kept.tolist() == [n for n, cell in enumerate(cells) if cell not in cells[:n]]
    write_room(tmp_path, 2, "office_1", objects)
    fine, coarse = (S3disConverter(source=str(tmp_path), grid_m=grid) for grid in (0.001, 0.3))
    few, many = (len(samples(converter, "Area_2_office_1")[0].points_lidar) for converter in (coarse, fine))
    assert few < many / 2


def test_the_sets_damaged_lines_are_left_out(tmp_path, objects):
    folder = write_room(tmp_path, 5, "hallway_6", objects)
    text = (folder / "floor_1.txt").read_text().splitlines(keepends=True)
    text[7] = text[7].replace(" ", " \x10", 1)[:-4] + "\n"
    (folder / "floor_1.txt").write_text("".join(text))
    (folder / "beam_1.txt").write_text("")
    converter = S3disConverter(source=str(tmp_path), grid_m=0.0)
    (sample,) = samples(converter, "Area_5_hallway_6")
    assert len(sample.points_lidar) == sum(map(len, objects.values())) - 1
    (folder / "chair_2.txt").write_text("1 2 3\n" * 11 + line(objects["chair_1"][0]))
    (skip,) = all_of(converter, "Area_5_hallway_6")
    assert isinstance(skip, Skipped)
    assert (skip.reason, "chair_2.txt: 11 lines are not six numbers" in skip.detail) == ("array-broken", True)


def test_wrong_s3dis_folders_say_what_was_looked_for(tmp_path, objects):
    with pytest.raises(ShardError, match=r"is no S3DIS folder: looked for Area_<1 to 6>/<room>/Annotations/"):
        S3disConverter(source=str(tmp_path)).logs()
    folder = write_room(tmp_path, 3, "lounge_1", objects)
    (folder / "spaceship_1.txt").write_text("1 2 3 4 5 6\n")
    with pytest.raises(ShardError, match=r"spaceship_1\.txt: expected <class>_<number>\.txt with a class of ceiling"):
        all_of(S3disConverter(source=str(tmp_path)), "Area_3_lounge_1")
    with pytest.raises(ValueError, match=r"val_areas: got \(7,\), expected some of 1, 2, 3, 4, 5, 6"):
        S3disConverter(source=str(tmp_path), val_areas=(7,))
    with pytest.raises(ValueError, match="grid_m: got -1"):
        S3disConverter(source=str(tmp_path), grid_m=-1.0)
