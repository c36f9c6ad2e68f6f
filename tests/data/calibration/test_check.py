"""Calibration check: borders where the scene has them; injected shifts and times are found, right ones are let be."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from data.calibration.check import CalibrationCheck, CalibrationVerdict, check_samples, motion_between, projected_edges
from data.calibration.depth_edges import depth_edges, edge_strength
from data.geometry import project, rigid, transform, yaw_rotation
from data.sample import Sample
from data.street.config import StreetCameraConfig, StreetConfig, StreetLidarConfig
from data.street.log import LogRenderer
from data.street.motion import ego_pose
from tests.helpers.samples import make_sample

WORLD = StreetConfig(
    num_logs=3,
    frames_per_log=3,
    view_range_m=50.0,
    lidar=StreetLidarConfig(beams=24, azimuths=720),
    cameras=StreetCameraConfig(
        names=("front", "right"),
        image_size=(160, 320),
        yaws_deg=(0.0, -60.0),
        mounts_m=((1.1, 0.0, 1.65), (0.9, -0.35, 1.62)),
        time_offsets_s=(0.0, 0.02),
    ),
)


@pytest.fixture(scope="module")
def renderers() -> list[LogRenderer]:
    return [LogRenderer(WORLD, log) for log in range(WORLD.num_logs)]


@pytest.fixture(scope="module")
def logs(renderers: list[LogRenderer]) -> list[list[Sample]]:
    frames = range(WORLD.frames_per_log)
    return [[r.sample(WORLD.log_name(n), frame) for frame in frames] for n, r in enumerate(renderers)]


def displaced(sample: Sample, shift_px: tuple[float, float], yaw_deg: float = 0.0) -> Sample:
    """As if the calibration were wrong by so much."""
    shift = np.zeros((3, 3))
    shift[:2, 2] = shift_px
    turn = rigid(yaw_rotation(np.deg2rad(yaw_deg)), np.zeros(3))
    cameras = tuple(
        dataclasses.replace(camera, K=camera.K + shift, T_cam_ego=camera.T_cam_ego @ turn) for camera in sample.cameras
    )
    return dataclasses.replace(sample, cameras=cameras)


def verdicts_of(logs: list[list[Sample]], *change: object) -> dict[str, CalibrationVerdict]:
    found = check_samples(displaced(s, *change) for s in itertools.chain.from_iterable(logs))  # type: ignore[arg-type]
    return {verdict.camera: verdict for verdict in found}


# ---- parts
def test_borders_of_a_box_before_a_wall():
    """A board 2 m wide at 8 m, a wall at 20 m: borders at the board's sides and top, nowhere else."""
    azimuth, elevation = np.meshgrid(np.deg2rad(np.arange(-30, 30, 0.4)), np.deg2rad(np.arange(-3, 12, 1.0)))
    flat = np.stack([np.ones(azimuth.size), np.tan(azimuth.ravel()), np.zeros(azimuth.size)], axis=1)
    flat[:, 2] = np.tan(elevation.ravel()) * np.hypot(flat[:, 0], flat[:, 1])
    board = (np.abs(flat[:, 1] * 8) < 1) & (flat[:, 2] * 8 < 0.9)
    points = flat * np.where(board, 8.0, 20.0)[:, None]
    edges = depth_edges(points)
    on_board = edges.points_lidar / edges.points_lidar[:, :1] * 8.0
    sides, tops = on_board[~edges.top], on_board[edges.top]
    step = 8 * np.deg2rad(0.4)
    assert len(sides) == 2 * len(np.unique(elevation[board.reshape(azimuth.shape)]))
    np.testing.assert_allclose(np.abs(sides[:, 1]), 1, atol=step / 2 + 0.01)
    np.testing.assert_allclose(tops[:, 2], 0.9, atol=8 * np.deg2rad(0.5) + 0.02)
    assert len(tops) >= 0.9 * 2 / step
    np.testing.assert_allclose(np.linalg.norm(edges.points_lidar, axis=1), 8, rtol=0.02)
    np.testing.assert_allclose(edges.gaps_rad[~edges.top], np.deg2rad(0.4), rtol=0.01)


def test_flat_ground_has_no_borders():
    azimuth, elevation = np.meshgrid(np.deg2rad(np.arange(-60, 60, 0.4)), np.deg2rad(np.arange(-20, -2, 0.8)))
    ranges = 1.8 / -np.sin(elevation.ravel())
    level = np.cos(elevation.ravel())
    directions = [level * np.cos(azimuth.ravel()), level * np.sin(azimuth.ravel()), np.sin(elevation.ravel())]
    edges = depth_edges(np.stack(directions, axis=1) * ranges[:, None])
    assert len(edges.top) == 0
    assert len(depth_edges(np.zeros((5, 3))).top) == 0, "too few points"


def test_edge_strength_tells_directions_apart():
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, 40:] = 180
    across_u, across_v = edge_strength(image)
    strong = np.flatnonzero(across_u[30] == across_u[30].max())
    assert strong.mean() == 39.5
    assert across_u[30].max() > 3
    assert across_v[10:-10, 10:-10].max() == 0
    np.testing.assert_allclose(edge_strength(image.transpose(1, 0, 2).copy())[1].T, across_u, atol=1e-5)


@pytest.mark.slow
def test_projected_borders_are_those_that_the_camera_sees(logs):
    sample = logs[0][0]
    for camera in sample.cameras:
        stated_uv, edges = projected_edges(sample, camera, margin_px=5.0)
        uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), edges.points_lidar))
        np.testing.assert_allclose(uv, stated_uv)
        assert (depth > 1).all()
        assert len(uv) > 20


# ---- verdicts
@pytest.mark.slow
def test_right_calibrations_are_let_be(logs):
    for verdict in verdicts_of(logs, (0.0, 0.0)).values():
        assert verdict.status in ("fits", "undecided"), verdict.message()
        assert abs(verdict.shift_px[0]) < 1, verdict
        assert verdict.score > 1.4 * verdict.background


@pytest.mark.slow
@pytest.mark.parametrize("shift", [(8.0, 0.0), (-8.0, 0.0), (6.0, 6.0)])
def test_shifts_are_found(logs, shift):
    for name, verdict in verdicts_of(logs, shift).items():
        assert verdict.status == "shift", verdict.message()
        assert verdict.shift_px[0] == pytest.approx(-shift[0], abs=1.0), name
        assert abs(verdict.shift_px[1] + shift[1]) < verdict.tolerance_px[1], name
        assert verdict.best_score > verdict.score
        assert f"further {'left' if shift[0] > 0 else 'right'}" in verdict.message()


@pytest.mark.slow
def test_a_rotation_is_a_shift(logs):
    focal = logs[0][0].cameras[0].K[0, 0]
    for verdict in verdicts_of(logs, (0.0, 0.0), 1.5).values():
        assert verdict.status == "shift", verdict.message()
        # The camera is taken to be turned right: points are drawn too far left.
        assert abs(verdict.shift_px[0]) == pytest.approx(focal * np.deg2rad(1.5), abs=1.5)


@pytest.mark.slow
def test_wrong_image_times_are_found_while_driving(renderers, logs):
    """Poses of the images 60 ms too late: side cameras see it, and it is told from a shift."""
    check, right = CalibrationCheck(), CalibrationCheck()
    for renderer, frames in zip(renderers, logs, strict=True):
        motion = motion_between(frames[0], frames[1])
        assert motion is not None
        for frame, sample in enumerate(frames):
            right.add(sample, motion)
            late = []
            for camera, offset in zip(sample.cameras, WORLD.cameras.time_offsets_s, strict=True):
                time_s = frame / WORLD.frame_rate_hz + offset + 0.06
                pose = ego_pose(renderer.world.street, renderer.world.drive, time_s)
                late.append(dataclasses.replace(camera, T_world_ego=pose))
            check.add(dataclasses.replace(sample, cameras=tuple(late)), motion)
    side = {verdict.camera: verdict for verdict in check.verdicts()}["right"]
    assert side.status == "time", side.message()
    assert side.time_offset_ms == pytest.approx(-60, abs=8)
    assert "earlier than stated" in side.message()
    for verdict in right.verdicts():
        assert verdict.status in ("fits", "undecided"), verdict.message()
        assert abs(verdict.time_offset_ms or 0) < 8


@pytest.mark.slow
def test_too_little_is_undecided(logs):
    rng = np.random.default_rng(0)
    (verdict, *_) = check_samples([make_sample(rng, num_points=30)])
    assert verdict.status == "undecided"
    assert "not told" in verdict.message()
    blind = [dataclasses.replace(c, image=np.full_like(c.image, 90)) for c in logs[0][0].cameras]
    for grey in check_samples([dataclasses.replace(logs[0][0], cameras=tuple(blind))]):
        assert (grey.status, grey.score) == ("undecided", 0.0)


@pytest.mark.slow
def test_the_same_samples_give_the_same_verdict(logs):
    first, second = (check_samples(logs[0]) for _ in range(2))
    assert first == second


@pytest.mark.slow
def test_motion_between_samples(logs):
    first, second, _ = logs[0]
    motion = motion_between(first, second)
    assert motion is not None
    step = np.linalg.inv(first.T_world_ego) @ second.T_world_ego
    np.testing.assert_allclose(motion.over(0.5), step, atol=1e-9)
    assert motion_between(second, first) is None
    assert motion_between(first, second, longest_s=0.4) is None
