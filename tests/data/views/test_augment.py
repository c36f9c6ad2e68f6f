from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data.batch_spec import BatchSpec, VoxelConfig
from data.geometry import project, transform
from data.order import SampleDraws
from data.sample import Sample
from data.storage.reader import SampleError
from data.views.augment import (
    NO_AUGMENTATION,
    AugmentConfig,
    ImageAugmentConfig,
    PixelTransform,
    PointAugmentConfig,
    draw_at_most,
    draw_cloud_transform,
    draw_cuboid,
    draw_pixel_transform,
    draw_thinning,
)
from data.views.making import make_view
from data.views.view import View, ViewConfig
from tests.helpers.samples import make_sample

IMAGE_SIZE = (40, 70)
WANTS = BatchSpec(superpixels=True)
CONFIG = ViewConfig(
    image_size=IMAGE_SIZE,
    augment=AugmentConfig(min_pairs=10, points=PointAugmentConfig(scale_range=(0.9, 1.1))),
)


def coded_sample(seed: int) -> Sample:
    """Each image's red and green tell a pixel's own column and row; each point's intensity its own number."""
    sample = make_sample(np.random.default_rng(seed), num_points=2000, image_size=(80, 120))
    rows, columns = np.mgrid[:80, :120]
    image = np.stack((2 * columns, 2 * rows, 0 * rows), axis=2).astype(np.uint8)
    return dataclasses.replace(
        sample,
        cameras=tuple(dataclasses.replace(camera, image=image) for camera in sample.cameras),
        intensity=np.arange(2000, dtype=np.float32),
    )


@pytest.mark.parametrize("seed", range(12))
def test_pairs_stay_valid_under_all_augmentations(seed: int) -> None:
    sample = coded_sample(seed)
    view = make_view(sample, CONFIG, WANTS, SampleDraws(0, 0, seed))
    assert view.T_aug_lidar is not None
    assert view.images is not None
    assert view.superpixels is not None
    for number, camera in enumerate(sample.cameras):
        mine = view.pairs.camera == number
        assert mine.sum() > 10
        points, uv = view.points[view.pairs.point[mine]], view.pairs.uv[mine]
        # Back to the recorded cloud: the very points, in place.
        recorded = transform(np.linalg.inv(view.T_aug_lidar), points)
        original = sample.points_lidar[view.intensity[view.pairs.point[mine]].astype(int)]
        np.testing.assert_allclose(recorded, original, atol=1e-4)
        # Projected with the recorded calibration, then moved with the image.
        stored_uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), original))
        assert (depth > 1).all()
        np.testing.assert_allclose(view.cameras.transforms[number].uv(stored_uv), uv, atol=1e-3)
        # What the pixels themselves say about where they come from.
        u, v = np.floor(uv + 0.5).astype(int).T
        seen = view.images[number][v, u]
        grown = np.array(view.cameras.transforms[number].out_size) / np.array(
            (view.cameras.transforms[number].height, view.cameras.transforms[number].width)
        )
        tolerance_px = 0.5 / grown.min() + 1.0
        assert np.abs(seen[:, 0] / 2 - stored_uv[:, 0]).max() <= tolerance_px
        assert np.abs(seen[:, 1] / 2 - stored_uv[:, 1]).max() <= tolerance_px
        # Superpixels: the augmented map at the pair, and the recorded map around its recorded pixel.
        np.testing.assert_array_equal(view.superpixels.of_pair[mine], view.superpixels.of_pixel[number][v, u])
        near = [
            np.clip(np.rint(stored_uv).astype(int) + offset, 0, (119, 79))
            for offset in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1))
        ]
        around = np.stack([camera.superpixels[place[:, 1], place[:, 0]] for place in near])
        assert (around == view.superpixels.of_pair[mine]).any(axis=0).all()


def test_no_augmentation_leaves_everything_as_it_was() -> None:
    sample = coded_sample(1)
    config = ViewConfig(image_size=(80, 120), augment=NO_AUGMENTATION)
    view = make_view(sample, config, WANTS, SampleDraws(0, 0, 0))
    np.testing.assert_array_equal(view.points, sample.points_lidar)
    for number, camera in enumerate(sample.cameras):
        np.testing.assert_array_equal(view.images[number], camera.image)
        np.testing.assert_array_equal(view.superpixels.of_pixel[number], camera.superpixels)
        assert view.superpixels.num[number] == camera.superpixels.max() + 1


def test_views_repeat_by_their_numbers_and_differ_between_them() -> None:
    sample = coded_sample(0)

    def points(*numbers: int) -> bytes:
        return make_view(sample, CONFIG, WANTS, SampleDraws(*numbers)).points.tobytes()

    assert points(1, 2, 3) == points(1, 2, 3)
    assert len({points(0, 0, 0), points(1, 0, 0), points(0, 1, 0), points(0, 0, 1), points(0, 0, 0, 1)}) == 5


def test_cloud_transform_rotates_flips_and_scales_as_asked() -> None:
    def linear(config: PointAugmentConfig, seed: int) -> np.ndarray:
        return draw_cloud_transform(np.random.default_rng(seed), config)[:3, :3]

    for seed in range(20):
        rotation = linear(PointAugmentConfig(flip=False), seed)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        assert rotation[2].tolist() == [0, 0, 1]
        factor = linear(PointAugmentConfig(flip=False, scale_range=(0.5, 0.7)), seed)
        assert 0.5 <= np.cbrt(np.linalg.det(factor)) <= 0.7
        assert linear(PointAugmentConfig(enabled=False), seed).tolist() == np.eye(3).tolist()
    flips = {tuple(np.diag(linear(PointAugmentConfig(rotate=False), seed))) for seed in range(40)}
    assert flips == {(x, y, 1.0) for x in (-1.0, 1.0) for y in (-1.0, 1.0)}
    angles = [np.arctan2(*linear(PointAugmentConfig(flip=False), seed)[1::-1, 0]) for seed in range(200)]
    assert np.histogram(angles, bins=4, range=(-np.pi, np.pi))[0].min() > 25


def test_translation_comes_before_rotation_and_the_angle_may_be_limited() -> None:
    still = PointAugmentConfig(flip=False, rotate=False, translate_m=(15.0, 5.0, 0.0))
    turned = PointAugmentConfig(flip=False, max_rotation_rad=0.3, translate_m=(15.0, 5.0, 0.0))
    moves, angles = [], []
    for seed in range(300):
        T = draw_cloud_transform(np.random.default_rng(seed), turned)
        moves.append(T[:3, :3].T @ T[:3, 3])  # p' = R (p + t)
        angles.append(np.arctan2(T[1, 0], T[0, 0]))
        assert draw_cloud_transform(np.random.default_rng(seed), still)[:3, :3].tolist() == np.eye(3).tolist()
    low, high = np.min(moves, axis=0), np.max(moves, axis=0)
    assert (np.abs(moves) <= np.array((15, 5, 1e-12))).all()
    assert (low[:2] < (-14, -4.6)).all()
    assert (high[:2] > (14, 4.6)).all()
    assert -0.3 <= min(angles) < -0.28 < 0.28 < max(angles) <= 0.3
    # Not asked for, it changes no random number of what was there before.
    plain = draw_cloud_transform(np.random.default_rng(0), PointAugmentConfig())
    moved = draw_cloud_transform(np.random.default_rng(0), PointAugmentConfig(translate_m=(1.0, 1.0, 1.0)))
    np.testing.assert_array_equal(plain[:3, :3], moved[:3, :3])


def test_noise_moves_points_a_little_and_no_pixel() -> None:
    sample = coded_sample(0)
    still = PointAugmentConfig(rotate=False, flip=False, drop_max_side=0.0)

    def view(jitter_m: float) -> View:
        points = dataclasses.replace(still, jitter_m=jitter_m)
        config = dataclasses.replace(CONFIG, augment=AugmentConfig(min_pairs=10, points=points))
        return make_view(sample, config, WANTS, SampleDraws())

    noisy = view(0.05)
    np.testing.assert_array_equal(view(0.0).points, sample.points_lidar)
    assert (noisy.points - sample.points_lidar).std(axis=0) == pytest.approx([0.05] * 3, rel=0.05)
    uv, _ = project(sample.cameras[0].K, transform(sample.T_cam_lidar(sample.cameras[0]), sample.points_lidar))
    mine = noisy.pairs.camera == 0
    np.testing.assert_allclose(
        noisy.cameras.transforms[0].uv(uv[noisy.pairs.point[mine]]), noisy.pairs.uv[mine], atol=1e-3
    )


def test_thinning_keeps_a_uniform_share() -> None:
    config = PointAugmentConfig(keep_share=(0.3, 0.8))
    shares = [draw_thinning(np.random.default_rng(seed), 1000, config).mean() for seed in range(200)]
    assert 0.3 <= min(shares) < 0.33
    assert 0.77 < max(shares) <= 0.8
    kept = np.mean([draw_thinning(np.random.default_rng(seed), 50, config) for seed in range(800)], axis=0)
    assert kept == pytest.approx(np.full(50, 0.55), abs=0.1)  # no point is preferred
    assert draw_thinning(np.random.default_rng(0), 1, PointAugmentConfig(keep_share=(0.01, 0.02))).tolist() == [True]
    assert draw_thinning(np.random.default_rng(0), 9, PointAugmentConfig(enabled=False, keep_share=(0.1, 0.2))).all()
    assert len(draw_thinning(np.random.default_rng(0), 0, config)) == 0


def test_at_most_so_many_points_stay_without_augmentation_too() -> None:
    assert draw_at_most(np.random.default_rng(0), 7, None).all()
    assert draw_at_most(np.random.default_rng(0), 7, 7).all()
    kept = np.stack([draw_at_most(np.random.default_rng(seed), 50, 20) for seed in range(800)])
    assert (kept.sum(axis=1) == 20).all()
    assert kept.mean(axis=0) == pytest.approx(np.full(50, 0.4), abs=0.1)  # no point is preferred
    sample, config = coded_sample(0), dataclasses.replace(CONFIG, augment=NO_AUGMENTATION)
    every = make_view(sample, config, WANTS, SampleDraws(0, 0, 0))
    few = make_view(sample, dataclasses.replace(config, max_points=300), WANTS, SampleDraws(0, 0, 0))
    assert (len(every.points), len(few.points)) == (2000, 300)
    assert few.points.tolist() == every.points[few.recorded].tolist()
    again = make_view(sample, dataclasses.replace(config, max_points=300), WANTS, SampleDraws(0, 1, 0))
    assert few.recorded.tolist() != again.recorded.tolist()


def test_the_matrix_of_an_image_does_what_uv_does() -> None:
    uv = np.random.default_rng(0).uniform(0, 90, (20, 2))
    for moved in (
        PixelTransform(0, 0, 80, 120, (80, 120)),
        PixelTransform(7, 11, 33, 50, (40, 70)),
        PixelTransform(7, 11, 60, 90, (40, 70), mirrored=True),
    ):
        homogeneous = np.concatenate((uv, np.ones((20, 1))), axis=1)
        np.testing.assert_allclose((homogeneous @ moved.affine.T)[:, :2], moved.uv(uv), atol=1e-9)
    assert PixelTransform(0, 0, 80, 120, (80, 120)).affine.tolist() == np.eye(3).tolist()


def test_the_cuboid_holds_its_centre_and_has_the_stated_size() -> None:
    points = np.random.default_rng(0).uniform(-10, 10, (5000, 3)).astype(np.float32)
    shares = []
    for seed in range(50):
        dropped = draw_cuboid(np.random.default_rng(seed), points, PointAugmentConfig())
        assert dropped.any()
        inside = points[dropped]
        extent = inside.max(axis=0) - inside.min(axis=0)
        assert (extent <= 0.2 * 20.01).all()
        # No other point lies within what was cut out.
        assert ((points >= inside.min(axis=0)) & (points <= inside.max(axis=0))).all(axis=1).sum() == dropped.sum()
        shares.append(extent.max() / 20)
    assert max(shares) > 0.15
    assert not draw_cuboid(np.random.default_rng(0), points, PointAugmentConfig(drop_max_side=0.0)).any()


def test_a_cuboid_is_kept_where_pairs_would_run_short() -> None:
    sample = coded_sample(2)
    few = dataclasses.replace(CONFIG, augment=AugmentConfig(min_pairs=1))
    enough = dataclasses.replace(CONFIG, augment=AugmentConfig(min_pairs=10_000))
    drops = kept = 0
    for number in range(30):
        drops += len(make_view(sample, few, WANTS, SampleDraws(0, 0, number)).points) < 2000
        view = make_view(sample, enough, WANTS, SampleDraws(0, 0, number))
        # A cuboid outside all images may still go; the pairs of before the crop are all there.
        missing = np.setdiff1d(np.arange(2000), view.intensity.astype(int))
        kept += len(missing) == 0
        for camera in sample.cameras:
            uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar[missing]))
            inside = (depth > 1) & (uv >= 1).all(axis=1) & (uv[:, 0] <= 118) & (uv[:, 1] <= 78)
            assert not inside.any()
    assert drops > 20
    assert kept > 5


def test_crops_keep_enough_pairs_and_obey_area_and_aspect() -> None:
    rng = np.random.default_rng(0)
    uv = rng.uniform((0, 0), (319, 159), (400, 2))
    crops = set()
    for seed in range(100):
        moved = draw_pixel_transform(
            np.random.default_rng(seed), uv, (160, 320), (64, 96), AugmentConfig(min_pairs=200)
        )
        kept = int(moved.inside(moved.uv(uv)).sum())
        assert kept >= 200
        assert 0 <= moved.top <= 160 - moved.height
        assert 0 <= moved.left <= 320 - moved.width
        if (moved.height, moved.width) != (160, 320):
            assert 0.29 <= moved.height * moved.width / (160 * 320) <= 1
            assert 14 / 9 - 0.03 <= moved.width / moved.height <= 17 / 9 + 0.03
        crops.add((moved.top, moved.left, moved.height, moved.width))
    assert len(crops) > 60


def test_the_whole_image_where_no_crop_keeps_enough() -> None:
    # All pairs in two far corners: no crop of at most 0.9 of the area holds three quarters of them.
    uv = np.array([[2.0, 2.0]] * 50 + [[317.0, 157.0]] * 50)
    config = AugmentConfig(image=ImageAugmentConfig(area_range=(0.3, 0.9)))
    for seed in range(10):
        moved = draw_pixel_transform(np.random.default_rng(seed), uv, (160, 320), (64, 96), config)
        assert (moved.top, moved.left, moved.height, moved.width) == (0, 0, 160, 320)


def test_mirror_and_resize_by_hand() -> None:
    moved = PixelTransform(2, 4, 4, 8, (8, 16), mirrored=True)
    # Centre of the crop's top-left pixel: half a stored pixel from the corner, so 0.5 in the grown image.
    np.testing.assert_allclose(moved.uv(np.array([[4.0, 2.0], [11.0, 5.0]])), [[14.5, 0.5], [0.5, 6.5]])
    stored = np.arange(100).reshape(10, 10)
    plain = PixelTransform(2, 1, 2, 3, (4, 6)).nearest(stored)
    np.testing.assert_array_equal(plain, np.kron(stored[2:4, 1:4], np.ones((2, 2), int)))
    np.testing.assert_array_equal(PixelTransform(2, 1, 2, 3, (4, 6), mirrored=True).nearest(stored), plain[:, ::-1])


def test_camera_choice_is_drawn_and_kept_in_order() -> None:
    sample = coded_sample(0)
    config = dataclasses.replace(CONFIG, cameras_per_sample=1)
    views = [make_view(sample, config, WANTS, SampleDraws(0, epoch, 0)) for epoch in range(20)]
    assert {len(view.cameras.transforms) for view in views} == {1}
    assert len({view.images[0].tobytes() for view in views}) > 1
    assert all(set(view.pairs.camera.tolist()) == {0} for view in views)


def test_range_limits_drop_points_and_renumber_pairs() -> None:
    sample = coded_sample(3)
    voxel = VoxelConfig(kind="cartesian", size=(1.0,) * 3, range_min=(-20.0, -20.0, -3.0), range_max=(20.0, 20.0, 3.0))
    view = make_view(
        sample, dataclasses.replace(CONFIG, voxel=voxel, augment=NO_AUGMENTATION), WANTS, SampleDraws(0, 0, 0)
    )
    assert 0 < len(view.points) < 2000
    assert (np.abs(view.points[:, :2]) <= 20).all()
    assert (np.diff(view.pairs.point[view.pairs.camera == 0]) > 0).all()
    assert view.pairs.point.max() < len(view.points)


def test_samples_without_pairs_or_superpixels_are_refused() -> None:
    sample = coded_sample(0)
    behind = dataclasses.replace(
        sample, cameras=sample.cameras[:1], points_lidar=-np.abs(sample.points_lidar).astype(np.float32)
    )
    with pytest.raises(SampleError, match=r"in s\.tar: zero-pairs"):
        make_view(behind, CONFIG, WANTS, SampleDraws(0, 0, 0), shard="s.tar")
    bare = dataclasses.replace(
        sample, cameras=tuple(dataclasses.replace(camera, superpixels=None) for camera in sample.cameras)
    )
    with pytest.raises(SampleError, match="superpixels-missing"):
        make_view(bare, CONFIG, WANTS, SampleDraws(0, 0, 0))
    view = make_view(bare, CONFIG, BatchSpec(), SampleDraws())
    assert view.superpixels is None


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (PointAugmentConfig, {"scale_range": (0.0, 1.0)}, "scale_range: got"),
        (PointAugmentConfig, {"drop_max_side": 1.5}, "drop_max_side: got 1.5"),
        (PointAugmentConfig, {"keep_share": (0.0, 1.0)}, "keep_share: got"),
        (PointAugmentConfig, {"keep_share": (0.5, 1.5)}, "keep_share: got"),
        (PointAugmentConfig, {"max_rotation_rad": 4.0}, "max_rotation_rad: got 4"),
        (PointAugmentConfig, {"translate_m": (1.0, -1.0, 0.0)}, "translate_m: got"),
        (PointAugmentConfig, {"jitter_m": float("nan")}, "jitter_m: got nan"),
        (ImageAugmentConfig, {"area_range": (0.5, 1.5)}, "area_range: got"),
        (ImageAugmentConfig, {"aspect_range": (2.0, 1.0)}, "aspect_range: got"),
        (ImageAugmentConfig, {"min_pairs_share": 0.0}, "min_pairs_share: got"),
        (ImageAugmentConfig, {"crop_attempts": 0}, "crop_attempts: got"),
        (AugmentConfig, {"min_pairs": 0}, "min_pairs: got 0"),
        (ViewConfig, {"image_size": (0, 5)}, "image_size: got"),
        (ViewConfig, {"cameras_per_sample": 0}, "cameras_per_sample: got 0"),
    ],
)
def test_refuses_bad_settings(config: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)
