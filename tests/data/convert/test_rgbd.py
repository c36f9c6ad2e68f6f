"""RGB-D converters: on small trees in the official layouts, and on real frames where they are there."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

from data.convert.base import Converter, Skipped
from data.convert.box_labels import points_in_box
from data.convert.set_help import HELP
from data.convert.sets import SETTINGS
from data.convert.seven_scenes import SevenScenesConverter
from data.convert.sunrgbd import CLASS_NAMES, SunRgbdConverter
from data.geometry import project, transform, visible
from data.sample import IGNORE_LABEL, Sample
from data.storage.damage import DamagedError
from data.storage.decode import DecodeSpec, decode_sample
from data.storage.encode import CodecConfig, count_pairs, encode_sample
from data.storage.shard import ShardError
from data.views.pairs import point_pixel_pairs
from tests.helpers.samples import make_sample

REAL = Path(__file__).parents[3].parent / "shared" / "data"
needs_scenes = pytest.mark.skipif(not (REAL / "7scenes").is_dir(), reason=f"no real 7-Scenes frames in {REAL}")
needs_sun = pytest.mark.skipif(not (REAL / "sunrgbd").is_dir(), reason=f"no real SUN RGB-D frames in {REAL}")
POSE = np.array([[0.0, -1, 0, 1.5], [1, 0, 0, -2.0], [0, 0, 1, 0.25], [0, 0, 0, 1]])  # camera to world


def only_sample(converter: Converter, log: str, number: int = 0) -> Sample:
    (found,) = converter.frames(log, number, number + 1)
    assert isinstance(found, Sample), found
    return found


def write_scene(root: Path, frames: int = 2) -> np.ndarray:
    """A scene of one sequence; depth falls from 3 to 2 metres from left to right, with a hole and an invalid pixel."""
    folder = root / "kitchen" / "seq-03"
    folder.mkdir(parents=True)
    (root / "kitchen" / "TrainSplit.txt").write_text("sequence1\n")
    (root / "kitchen" / "TestSplit.txt").write_text("sequence3\n")
    depth = np.tile(np.linspace(3000, 2000, 64).astype(np.uint16), (48, 1))
    depth[10, 20], depth[12, 24] = 0, 65535
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24] = 255
    for number in range(frames):
        cv2.imwrite(str(folder / f"frame-{number:06d}.color.png"), image)
        cv2.imwrite(str(folder / f"frame-{number:06d}.depth.png"), depth)
        np.savetxt(folder / f"frame-{number:06d}.pose.txt", POSE)
    return depth


def test_a_focal_length_of_another_size_is_refused(tmp_path):
    write_scene(tmp_path)
    items = list(SevenScenesConverter(source=str(tmp_path)).frames("kitchen_seq-03", 0, 2))
    assert [item.reason for item in items] == ["image-size"] * 2
    assert "is 48x64, a focal length of 585 px is that of another size" in items[0].detail


@needs_scenes
def test_points_nearer_than_a_metre_make_pairs(tmp_path):
    """Each of the points comes from a pixel; without its border of one pixel all are pairs, also after storing."""
    converter = SevenScenesConverter(source=str(REAL / "7scenes"))
    log = converter.logs()[0]
    samples = [item for item in converter.frames(log, 0, 12) if isinstance(item, Sample)]
    near = [float((sample.points_lidar[:, 0] < 1).mean()) for sample in samples]
    nearest = samples[int(np.argmax(near))]
    assert max(near) > 0.02
    stored = decode_sample(nearest.key, encode_sample(nearest, CodecConfig()), DecodeSpec())
    for sample in (nearest, stored):
        pairs = point_pixel_pairs(sample)
        assert len(pairs) == count_pairs(sample) > 0.98 * len(sample.points_lidar)
        assert (sample.points_lidar[pairs.point, 0] < 1).any()
    assert b"min_depth_m" in encode_sample(nearest, CodecConfig())["meta.json"]


def test_outdoor_cameras_keep_their_bytes_and_their_metre():
    sample = make_sample(np.random.default_rng(0))
    meta = encode_sample(sample, CodecConfig())["meta.json"]
    assert b"min_depth_m" not in meta
    assert decode_sample(sample.key, encode_sample(sample, CodecConfig()), DecodeSpec()).cameras[0].min_depth_m == 1.0
    broken = {**encode_sample(sample, CodecConfig())}
    broken["meta.json"] = meta.replace(b'"timestamp_us": 1010000', b'"min_depth_m": "x", "timestamp_us": 1010000')
    with pytest.raises(DamagedError, match="min_depth_m is 'x'"):
        decode_sample(sample.key, broken, DecodeSpec())


def test_seven_scenes_lifts_each_pixel_to_its_depth(tmp_path):
    depth = write_scene(tmp_path)
    converter = SevenScenesConverter(source=str(tmp_path), focal_px=60.0)
    assert converter.logs() == ("kitchen_seq-03",)
    assert (converter.split_of("kitchen_seq-03"), converter.num_frames("kitchen_seq-03")) == ("val", 2)
    sample = only_sample(converter, "kitchen_seq-03", 1)
    assert (sample.timestamp_us, len(sample.points_lidar)) == (33_333, 32 * 24 - 2)
    # By hand: pixel (u=40, v=30) at its depth, in the camera, in the world.
    z = depth[30, 40] / 1000
    at = np.array([(40 - 32) / 60 * z, (30 - 24) / 60 * z, z])
    world = POSE[:3, :3] @ at + POSE[:3, 3]
    mine = transform(sample.T_world_ego @ sample.T_ego_lidar, sample.points_lidar)
    nearest = np.linalg.norm(mine - world, axis=1).argmin()
    np.testing.assert_allclose(mine[nearest], world, atol=1e-5)
    assert sample.points_lidar[nearest][0] == pytest.approx(z)  # x is forward
    assert sample.intensity[nearest] == 0  # lower half of the image is black
    uv, seen = project(sample.cameras[0].K, transform(sample.T_cam_lidar(sample.cameras[0]), sample.points_lidar))
    np.testing.assert_allclose(uv, np.round(uv / 2) * 2, atol=1e-3)  # every second pixel, exactly
    np.testing.assert_allclose(uv[nearest], [40, 30], atol=1e-4)
    pixels = uv.round().astype(int)
    np.testing.assert_allclose(seen, depth[pixels[:, 1], pixels[:, 0]] / 1000, atol=1e-4)
    assert sample.cameras[0].image is not None
    np.testing.assert_array_equal(sample.colors, sample.cameras[0].image[pixels[:, 1], pixels[:, 0]])
    encode_sample(sample, CodecConfig())


def test_seven_scenes_names_what_is_wrong(tmp_path):
    with pytest.raises(ShardError, match=r"expected <scene>/seq-NN/frame-NNNNNN\.depth\.png"):
        SevenScenesConverter(source=str(tmp_path)).logs()
    write_scene(tmp_path, frames=4)
    folder = tmp_path / "kitchen" / "seq-03"
    (folder / "frame-000000.pose.txt").write_text("1 2 3")
    (folder / "frame-000001.pose.txt").unlink()
    cv2.imwrite(str(folder / "frame-000002.depth.png"), np.zeros((48, 64), np.uint8))
    (folder / "frame-000003.color.png").unlink()
    found = list(SevenScenesConverter(source=str(tmp_path), focal_px=60.0).frames("kitchen_seq-03", 0, 4))
    assert [f.reason for f in found if isinstance(f, Skipped)] == [
        "calibration-missing",
        "calibration-missing",
        "image-broken",
        "member-missing",
    ]


def write_sun(root: Path) -> np.ndarray:
    """One frame: level camera, 50 points in front, a chair around the first ten."""
    for name in ("image", "depth", "calib", "label"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    upright = np.concatenate([rng.uniform([-1, 2, -0.5], [1, 4, 0.5], (50, 3)), rng.uniform(0, 1, (50, 3))], axis=1)
    upright[:10, :3] = np.array([3.0, 5.0, 0.0]) + rng.uniform(-0.2, 0.2, (10, 3))
    scipy.io.savemat(root / "depth" / "000007.mat", {"instance": upright.astype(np.float32)})
    cv2.imwrite(str(root / "image" / "000007.jpg"), np.full((96, 128, 3), 90, np.uint8))
    (root / "calib" / "000007.txt").write_text("1 0 0 0 1 0 0 0 1\n100 0 0 0 110 0 64 48 1\n")
    (root / "label" / "000007.txt").write_text(
        "chair 0 0 1 1 3 5 0 0.25 0.5 0.3 0.6 0.8\nlamp 0 0 1 1 0 3 0 0.1 0.1 0.1 1 0\n"
    )
    return upright


def test_sun_rgbd_levels_points_boxes_and_camera(tmp_path):
    upright = write_sun(tmp_path)
    converter = SunRgbdConverter(source=str(tmp_path), every_point=1)
    assert (converter.logs(), converter.split_of("000007"), converter.split_of("006000")) == (
        ("000007",),
        "val",
        "train",
    )
    sample = only_sample(converter, "000007")
    x, y, z = upright[:, :3].T
    np.testing.assert_allclose(sample.points_lidar, np.stack([y, -x, z], axis=1), atol=1e-6)
    np.testing.assert_allclose(sample.intensity, upright[:, 3:] @ [0.299, 0.587, 0.114], atol=1e-6)
    np.testing.assert_array_equal(sample.colors, np.rint(upright[:, 3:] * 255))
    # Upright x is right, y forward, z up: u grows with x, v falls with z.
    uv, depth = project(sample.cameras[0].K, transform(sample.T_cam_lidar(sample.cameras[0]), sample.points_lidar))
    np.testing.assert_allclose(uv, np.stack([64 + 100 * x / y, 48 - 110 * z / y], axis=1), atol=1e-4)
    np.testing.assert_allclose(depth, y, atol=1e-6)
    assert sample.boxes is not None
    assert sample.labels is not None
    np.testing.assert_allclose(sample.boxes.sizes_m[0], [1.0, 0.5, 0.6])
    heading = sample.boxes.yaws[0]  # upright (0.6, 0.8) is our (0.8, -0.6)
    np.testing.assert_allclose([np.cos(heading), np.sin(heading)], [0.8, -0.6], atol=1e-12)
    assert sample.boxes.classes.tolist() == [CLASS_NAMES.index("chair"), IGNORE_LABEL]
    assert (sample.labels[:10] == CLASS_NAMES.index("chair")).all()
    encode_sample(sample, CodecConfig())


def test_sun_rgbd_names_what_is_wrong(tmp_path):
    with pytest.raises(ShardError, match=r"expected depth/NNNNNN\.mat"):
        SunRgbdConverter(source=str(tmp_path)).logs()
    write_sun(tmp_path)
    reasons = []
    for name, content in (("calib", "1 0 0\n"), ("label", "chair 1 2\n"), ("depth", "not a matrix")):
        (path,) = (tmp_path / name).iterdir()
        whole = path.read_bytes()
        path.write_text(content)
        (found,) = SunRgbdConverter(source=str(tmp_path)).frames("000007", 0, 1)
        reasons.append(found.reason if isinstance(found, Skipped) else "none")
        path.write_bytes(whole)
    assert reasons == ["calibration-missing", "meta-broken", "array-broken"]


def test_every_set_says_what_it_expects():
    assert set(HELP) == set(SETTINGS)


@needs_scenes
def test_real_seven_scenes_frames_agree_in_the_world():
    converter = SevenScenesConverter(source=str(REAL / "7scenes"), every_pixel=4)
    (log,) = converter.logs()
    assert converter.num_frames(log) == 100
    one, two = only_sample(converter, log, 0), only_sample(converter, log, 1)
    assert one.intensity.min() >= 0
    assert one.intensity.max() <= 1
    # The second frame's points, through the world into the first camera, lie on the first frame's depth.
    camera = one.cameras[0]
    T = camera.T_cam_ego @ np.linalg.inv(camera.T_world_ego) @ two.T_world_ego
    uv, depth = project(camera.K, transform(T, two.points_lidar))
    inside = visible(uv, depth, camera.image_size, min_depth_m=0.3)
    assert camera.depth_m is not None
    pixels = uv[inside].round().astype(int)
    measured = camera.depth_m[pixels[:, 1], pixels[:, 0]]
    off = np.abs(measured - depth[inside])[measured > 0]
    assert inside.mean() > 0.5
    assert np.median(off) < 0.05


@needs_sun
def test_real_sun_rgbd_points_have_the_colours_of_their_pixels():
    converter = SunRgbdConverter(source=str(REAL / "sunrgbd" / "sunrgbd_trainval"))
    for log in converter.logs():
        sample = only_sample(converter, log)
        camera = sample.cameras[0]
        assert camera.image is not None
        assert sample.boxes is not None
        uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
        inside = visible(uv, depth, camera.image_size)
        assert inside.mean() > 0.9
        pixels = uv[inside].round().astype(int)
        grey = camera.image[pixels[:, 1], pixels[:, 0]] @ [0.299, 0.587, 0.114] / 255
        assert np.corrcoef(grey, sample.intensity[inside])[0, 1] > 0.95
        known = np.flatnonzero(sample.boxes.classes != IGNORE_LABEL)
        inside_boxes = [
            points_in_box(
                sample.points_lidar, sample.boxes.centers_m[i], sample.boxes.sizes_m[i], sample.boxes.yaws[i]
            ).sum()
            for i in known
        ]
        assert min(inside_boxes) > 100
        # The floor is level and below the camera.
        assert -2.0 < np.percentile(sample.points_lidar[:, 2], 1) < -0.5
