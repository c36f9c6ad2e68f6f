"""Which way a vehicle drives by its poses: right ones pass, each wrong reading of them is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.calibration.heading import Heading, rolled_quaternion, troubles, turned
from data.geometry import rigid, yaw_rotation
from data.sample import Sample

STEP_S = 0.1


def drive(speed_mps: float, turn_rad_s: float, yaw: float = 0.3) -> list[np.ndarray]:
    """Poses of a vehicle that drives forward on a circle, ten a second."""
    poses, position = [], np.array([20.0, -7.0, 1.0])
    for _ in range(40):
        poses.append(rigid(yaw_rotation(yaw), position.copy()))
        position += speed_mps * STEP_S * np.array([np.cos(yaw), np.sin(yaw), 0.0])
        yaw += turn_rad_s * STEP_S
    return poses


def heading_of(poses: list[np.ndarray]) -> Heading:
    heading = Heading()
    for number, T in enumerate(poses):
        heading.add(
            Sample(
                key=str(number),
                log="drive",
                timestamp_us=round(number * STEP_S * 1e6),
                points_lidar=np.zeros((1, 3), np.float32),
                intensity=np.zeros(1, np.float32),
                T_ego_lidar=np.eye(4),
                T_world_ego=T,
                cameras=(),
            )
        )
    return heading


@pytest.mark.parametrize("turn_rad_s", [0.0, 0.5])
def test_a_vehicle_that_drives_forward_is_right(turn_rad_s):
    heading = heading_of(drive(8.0, turn_rad_s))
    assert heading.steps == 39
    assert heading.trouble() is None


@pytest.mark.parametrize("speed_mps", [0.0, 0.5, 1.4])
def test_a_slow_or_carried_sensor_says_nothing(speed_mps):
    assert heading_of([turned(T, T[:3, :3] @ yaw_rotation(np.pi)) for T in drive(speed_mps, 0.0)]).trouble() is None


def test_a_sensor_that_moves_any_way_says_nothing():
    rng = np.random.default_rng(0)
    poses = [turned(T, Rotation.random(random_state=rng).as_matrix()) for T in drive(8.0, 0.0)]
    assert heading_of(poses).trouble() is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda T: turned(T, T[:3, :3] @ yaw_rotation(np.pi)), "moves backwards: its heading is turned by 180 degrees"),
        (lambda T: turned(T, T[:3, :3] @ yaw_rotation(np.pi / 2)), "to its right: its heading is turned by 90 degrees"),
        (np.linalg.inv, "the poses are the wrong way round"),
        (lambda T: turned(T, T[:3, :3].T), "the rotations are the wrong way round"),
        (lambda T: rolled_quaternion(T, 1), "written scalar first (w x y z) and read scalar last"),
        (lambda T: rolled_quaternion(T, -1), "written scalar last (x y z w) and read scalar first"),
    ],
)
def test_each_wrong_reading_is_named(wrong: Callable[[np.ndarray], np.ndarray], said: str):
    trouble = heading_of([wrong(T) for T in drive(8.0, 0.4)]).trouble()
    assert trouble is not None
    assert said in trouble


def test_one_reversed_log_among_many_is_named():
    right, reversed_ = drive(8.0, 0.1), [turned(T, T[:3, :3] @ yaw_rotation(np.pi)) for T in drive(8.0, 0.1)]
    headings = {f"drive-{number}": heading_of(reversed_ if number == 7 else right) for number in range(10)}
    (trouble,) = troubles(headings)
    assert trouble.startswith("by the poses of drive-7 (39 steps) the vehicle moves backwards: its heading is turned")
    headings |= dict.fromkeys(("drive-a", "drive-b", "drive-c"), headings["drive-7"])
    assert "the poses of drive-7, drive-a, drive-b and 1 more (156 steps)" in troubles(headings)[0]
    # Logs of too few steps are judged together.
    short = {f"drive-{number}": heading_of(reversed_[:8]) for number in range(2)}
    assert troubles({"drive-0": short["drive-0"]}) == ()
    assert "drive-0, drive-1 (14 steps)" in troubles(short)[0]


def test_records_of_shards_add_up():
    poses = [np.linalg.inv(T) for T in drive(8.0, 0.4)]
    parts = [heading_of(poses[:20]).record, heading_of(poses[19:]).record]
    assert Heading.is_record(parts[0])
    assert not Heading.is_record(parts[0][:-1])
    together, whole = Heading.of_records(parts), heading_of(poses)
    assert together.steps == whole.steps == 39
    np.testing.assert_allclose(together.sums, whole.sums)
    assert together.trouble() == whole.trouble()
