"""The street world: determinism, calibration, labels against boxes, class frequencies, refused settings."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from data.geometry import project, transform, visible
from data.sample import Sample
from data.street.classes import CLASS_NAMES, THINGS, Label
from data.street.config import StreetCameraConfig, StreetConfig, StreetLidarConfig
from data.street.lidar import Sweep
from data.street.log import LogRenderer, generate_log

CONFIG = StreetConfig(num_logs=100, frames_per_log=3)


@pytest.fixture(scope="module")
def logs() -> list[list[Sample]]:
    return [list(generate_log(CONFIG, index)) for index in (3, 8)]


def _small(**changes: object) -> StreetConfig:
    return dataclasses.replace(
        StreetConfig(
            num_logs=10,
            frames_per_log=2,
            lidar=StreetLidarConfig(beams=16, azimuths=180),
            cameras=StreetCameraConfig(image_size=(40, 80)),
        ),
        **changes,
    )


def _digest(sample: Sample) -> str:
    assert sample.boxes is not None
    assert sample.labels is not None
    assert sample.instances is not None
    arrays = [sample.points_lidar, sample.intensity, sample.labels, sample.instances, sample.T_world_ego]
    boxes = [getattr(sample.boxes, field.name) for field in dataclasses.fields(sample.boxes)]
    arrays += [column for column in boxes if isinstance(column, np.ndarray)]
    for view in sample.cameras:
        assert view.image is not None
        assert view.depth_m is not None
        arrays += [view.image, view.depth_m, view.K, view.T_cam_ego, view.T_world_ego]
    h = hashlib.sha256()
    for array in arrays:
        h.update(str((array.dtype, array.shape)).encode())
        h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()


def test_same_bytes_again_and_in_another_process():
    config = _small()
    here = [_digest(sample) for sample in generate_log(config, 4)]
    assert here == [_digest(sample) for sample in generate_log(config, 4)]
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from tests.data.street.test_log import _digest, _small, generate_log\n"
        "print(*[_digest(s) for s in generate_log(_small(), 4)])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == here


def test_frames_do_not_depend_on_the_frames_before():
    config = _small()
    name = config.log_name(4)
    last = LogRenderer(config, 4).sample(name, 1)
    assert _digest(last) == _digest(list(generate_log(config, 4))[1])


def test_logs_and_seeds_differ():
    digests = {
        _digest(next(generate_log(_small(seed=seed), index))) for seed, index in ((0, 0), (0, 1), (1, 0), (1, 1))
    }
    assert len(digests) == 4


def test_samples_are_complete(logs):
    for log in logs:
        for sample in log:
            n = len(sample.points_lidar)
            assert n > 0.6 * CONFIG.lidar.beams * CONFIG.lidar.azimuths
            assert sample.points_lidar.dtype == np.float32
            assert len(sample.intensity) == len(sample.labels) == len(sample.instances) == n
            assert sample.intensity.min() >= 0
            assert sample.intensity.max() <= 1
            assert sample.labels.max() < len(CLASS_NAMES)
            reach = np.linalg.norm(sample.points_lidar, axis=1)
            assert reach.max() <= CONFIG.lidar.max_range_m
            for view in sample.cameras:
                assert view.image.shape == (*view.image_size, 3)
                assert view.depth_m.shape == view.image_size
                assert view.image.std() > 10
    keys = [sample.key for log in logs for sample in log]
    assert len(set(keys)) == len(keys)
    assert all("." not in key for key in keys)


def test_cameras_are_stamped_and_posed_at_their_own_time(logs):
    first, second = logs[0][:2]
    speed = np.linalg.norm(second.T_world_ego[:3, 3] - first.T_world_ego[:3, 3]) * CONFIG.frame_rate_hz
    assert speed > 2
    for view, offset in zip(first.cameras, CONFIG.cameras.time_offsets_s, strict=True):
        assert view.timestamp_us - first.timestamp_us == round(offset * 1e6)
        moved = np.linalg.norm(view.T_world_ego[:3, 3] - first.T_world_ego[:3, 3])
        assert moved == pytest.approx(abs(offset) * speed, rel=0.2, abs=0.02)


def _depth_errors(config: StreetConfig, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each camera: rendered depth minus projected LiDAR depth of static points, and the latter."""
    sample = next(generate_log(config, index))
    static = sample.instances == 0
    found = []
    for view in sample.cameras:
        uv, depth = project(view.K, transform(sample.T_cam_lidar(view), sample.points_lidar[static]))
        seen = visible(uv, depth, view.image_size)
        u, v = np.round(uv[seen]).astype(int).T
        found.append((view.depth_m[v, u] - depth[seen], depth[seen]))
    return found


@pytest.mark.parametrize(("motion", "density"), [("none", 1.0), ("none", 0.0), ("compensated", 0.0)])
def test_lidar_lies_on_the_rendered_depth(motion, density):
    config = _small(
        frames_per_log=1,
        density=density,
        lidar=StreetLidarConfig(sweep_motion=motion, range_noise_m=0.0),
        cameras=StreetCameraConfig(image_size=(160, 320)),
    )
    for error, depth in _depth_errors(config, 1):
        assert len(error) > 500
        assert np.median(np.abs(error)) < 0.06
        tolerance = 0.05 + 0.03 * depth
        # Seen from another place some points are hidden; none but those at edges float in front of what is seen.
        assert np.mean(error > tolerance) < 0.03
        assert np.mean(error < -tolerance) < (0.1 if density == 0 else 0.3)


def test_a_wrong_calibration_would_be_noticed(logs):
    """The tolerance of the test above is tight enough: half a degree of yaw breaks it."""
    sample = logs[0][0]
    view = sample.cameras[1]
    angle = np.deg2rad(0.5)
    turn = np.eye(4)
    turn[0, 0] = turn[2, 2] = np.cos(angle)
    turn[0, 2], turn[2, 0] = np.sin(angle), -np.sin(angle)
    shares = []
    for T in (sample.T_cam_lidar(view), turn @ sample.T_cam_lidar(view)):
        uv, depth = project(view.K, transform(T, sample.points_lidar))
        seen = visible(uv, depth, view.image_size) & np.isin(sample.labels, [Label.BUILDING, Label.POLE, Label.SIGN])
        u, v = np.round(uv[seen]).astype(int).T
        shares.append(np.mean(np.abs(view.depth_m[v, u] - depth[seen]) < 0.1 + 0.005 * depth[seen]))
    assert shares[0] > shares[1] + 0.1


def _inside(sample: Sample, i: int, shrink_m: float) -> np.ndarray:
    boxes = sample.boxes
    offset = sample.points_lidar - boxes.centers_m[i]
    c, s = np.cos(boxes.yaws[i]), np.sin(boxes.yaws[i])
    local = np.stack([c * offset[:, 0] + s * offset[:, 1], -s * offset[:, 0] + c * offset[:, 1], offset[:, 2]], axis=1)
    return (np.abs(local) < boxes.sizes_m[i] / 2 - shrink_m).all(axis=1)


def test_image_boxes_are_those_of_the_camera_that_looks_ahead(logs):
    assert {sample.boxes.camera for log in logs for sample in log} == {"front"}
    aside = {"names": ("left",), "yaws_deg": (60.0,), "mounts_m": ((0.0, 0.0, 1.0),), "time_offsets_s": (0.0,)}
    assert StreetCameraConfig(**aside).boxes_camera == 0
    assert StreetCameraConfig(names=(), yaws_deg=(), mounts_m=(), time_offsets_s=()).boxes_camera is None
    sample = logs[0][0]
    (front,) = (camera for camera in sample.cameras if camera.name == "front")
    centers = transform(sample.T_cam_lidar(front), sample.boxes.centers_m)
    seen = ~np.isnan(sample.boxes.image_boxes_px[:, 0])
    assert seen.sum() > 3
    # What it shows is in front of it, and what lies well inside its image is shown.
    assert (centers[seen, 2] > -sample.boxes.sizes_m[seen].max()).all()
    pixels, depth = project(front.K, centers)
    assert seen[visible(pixels, depth, front.image_size, min_depth_m=1.0)].all()


def test_boxes_hold_their_points_and_no_others(logs):
    inside_right, inside_all, held, owned_all = 0, 0, 0, 0
    for log in logs:
        for sample in log:
            boxes = sample.boxes
            assert set(boxes.track_ids) == set(sample.instances[sample.instances > 0])
            assert np.isin(sample.labels[sample.instances > 0], THINGS).all()
            assert (sample.instances[np.isin(sample.labels, THINGS)] > 0).all()
            for i, track in enumerate(boxes.track_ids):
                owned = sample.instances == track
                assert (sample.labels[owned] == boxes.classes[i]).all()
                inside = _inside(sample, i, 0.12)
                inside_all += inside.sum()
                inside_right += (inside & owned).sum()
                held += (owned & _inside(sample, i, -0.15)).sum()
                owned_all += owned.sum()
    assert inside_right > 0.97 * inside_all
    assert held > 0.99 * owned_all


def test_velocities_agree_with_displacements(logs):
    config = dataclasses.replace(CONFIG, frame_rate_hz=20.0, frames_per_log=2)
    before, after = generate_log(config, 3)
    T_a, T_b = (sample.T_world_ego @ sample.T_ego_lidar for sample in (before, after))
    common = sorted(set(before.boxes.track_ids) & set(after.boxes.track_ids))
    moving = 0
    for track in common:
        i, j = (int(np.flatnonzero(sample.boxes.track_ids == track)[0]) for sample in (before, after))
        start = transform(T_a, before.boxes.centers_m[i : i + 1])[0]
        end = transform(T_b, after.boxes.centers_m[j : j + 1])[0]
        velocity = T_a[:3, :3] @ np.append(before.boxes.velocities_mps[i], 0.0)
        np.testing.assert_allclose((end - start)[:2] * 20, velocity[:2], atol=0.05 + 0.02 * np.linalg.norm(velocity))
        np.testing.assert_allclose(before.boxes.sizes_m[i], after.boxes.sizes_m[j])
        moving += np.linalg.norm(velocity) > 0.5
    assert moving >= 3


def test_ground_is_where_it_belongs(logs):
    for log in logs:
        for sample in log:
            T = sample.T_world_ego @ sample.T_ego_lidar
            z = transform(T, sample.points_lidar)[:, 2]
            ground = sample.labels <= Label.TERRAIN
            assert np.percentile(z[ground], 1) > -0.06
            assert np.percentile(z[ground], 99) < 0.2
            assert abs(np.median(z[sample.labels == Label.ROAD])) < 0.01
            assert np.median(z[sample.labels == Label.BUILDING]) > 0.8


def test_motion_during_the_sweep_moves_points_and_can_be_undone():
    def sweep(motion: str) -> Sample:
        lidar = StreetLidarConfig(sweep_motion=motion, range_noise_m=0.0, dropout=0.0)
        return next(generate_log(_small(lidar=lidar, density=0.0), 5))

    frozen, raw, compensated = (sweep(motion) for motion in ("none", "raw", "compensated"))
    # The ground and walls are the same surfaces: compensated points lie on them, raw ones are off by the ego's motion.
    for sample in (frozen, compensated):
        z = transform(sample.T_world_ego @ sample.T_ego_lidar, sample.points_lidar)[:, 2]
        assert np.abs(z[sample.labels == Label.ROAD]).max() < 0.002
    assert len(raw.points_lidar) == len(compensated.points_lidar)
    shift = np.linalg.norm(raw.points_lidar - compensated.points_lidar, axis=1)
    azimuth = np.abs(np.arctan2(raw.points_lidar[:, 1], raw.points_lidar[:, 0]))
    assert shift[azimuth < 0.1].max() < 0.1 * shift.max()
    assert 0.1 < shift.max() < 1.5


@pytest.fixture(scope="module")
def sweeps() -> list[Sweep]:
    """First and last sweep of eight worlds."""
    config = StreetConfig(num_logs=1000)
    renderers = [LogRenderer(config, index) for index in range(100, 108)]
    return [renderer.sweep(frame) for renderer in renderers for frame in (0, 5)]


def test_intensity_does_not_tell_the_ground_apart(sweeps):
    """The ground classes' typical intensities differ more between worlds than between classes."""
    medians = np.full((len(sweeps), 4), np.nan)
    for i, sweep in enumerate(sweeps):
        for label in range(4):
            medians[i, label] = np.median(sweep.intensity[sweep.labels == label])
    assert np.nanstd(np.nanmean(medians, axis=0)) < 0.6 * np.nanmean(np.nanstd(medians, axis=0))


def test_every_class_is_frequent(sweeps):
    counts = np.array([np.bincount(sweep.labels, minlength=len(CLASS_NAMES)) for sweep in sweeps])
    share = counts.sum(axis=0) / counts.sum()
    presence = (counts >= 5).mean(axis=0)
    for name, s, p in zip(CLASS_NAMES, share, presence, strict=True):
        assert s >= 0.003, f"{name}: {100 * s:.2f} % of points"
        assert p >= 0.8, f"{name}: in {100 * p:.0f} % of frames"


def test_density_empties_the_street():
    sample = next(generate_log(_small(density=0.0), 0))
    assert not np.isin(sample.labels, THINGS).any()
    assert len(sample.boxes.yaws) == 0
    assert (sample.labels == Label.ROAD).any()


def test_split_rule():
    config = StreetConfig(num_logs=60)
    splits = [config.split_of_index(index) for index in range(60)]
    assert splits.count("val") == 12
    assert "val" in splits[:5]
    assert set(StreetConfig(num_logs=4, val_share=0.0).split_of_index(i) for i in range(4)) == {"train"}


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: StreetConfig(num_logs=0), "num_logs"),
        (lambda: StreetConfig(frame_rate_hz=0.0), "frame_rate_hz"),
        (lambda: StreetConfig(val_share=1.5), "val_share"),
        (lambda: StreetConfig(density=-1.0), "density"),
        (lambda: StreetLidarConfig(beams=0), "beams"),
        (lambda: StreetLidarConfig(elevation_max_deg=-30.0), "elevation_max_deg"),
        (lambda: StreetLidarConfig(dropout=1.0), "dropout"),
        (lambda: StreetCameraConfig(image_size=(0, 320)), "image_size"),
        (lambda: StreetCameraConfig(yaws_deg=(0.0,)), "yaws_deg"),
        (lambda: StreetCameraConfig(names=("a", "a", "b")), "names"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        make()


def test_unknown_log_is_refused():
    with pytest.raises(ValueError, match="log_index"):
        generate_log(StreetConfig(num_logs=3), 3)
