"""Boxes in the image: corners by hand, cut behind the camera, clipped to the image."""

import math

import numpy as np
import pytest
import torch

from common.boxes.image import box_corners, image_boxes, observation_angles
from tests.common.boxes.test_overlap import box, random_boxes

# The camera looks along the LiDAR's x.
T_CAM_LIDAR = torch.tensor([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
K = torch.tensor([[100, 0, 50], [0, 100, 40], [0, 0, 1]], dtype=torch.float64)
SIZE = (81, 101)


def test_corners_of_bottom_then_top():
    corners = box_corners(box(0, 0, 1, 4, 2, 6, 0))[0]
    assert corners[0].tolist() == [2, 1, -2]
    assert corners[4].tolist() == [2, 1, 4]
    assert corners[6].tolist() == [-2, -1, 4]


def test_nearest_face_gives_the_bounds():
    """A face of 2 x 2 m at a depth of 8 m, in the middle."""
    assert image_boxes(box(10, 0, 0, 4, 2, 2, 0), K, T_CAM_LIDAR, SIZE)[0].tolist() == [37.5, 27.5, 62.5, 52.5]


def test_clipped_to_the_image():
    left = image_boxes(box(10, 4.5, 0, 4, 2, 2, 0), K, T_CAM_LIDAR, SIZE)[0]
    assert left[0] == 0
    assert left[2].item() == pytest.approx(50 - 100 * 3.5 / 12)
    assert image_boxes(box(3, 0, 0, 4, 20, 20, 0), K, T_CAM_LIDAR, SIZE)[0].tolist() == [0, 0, 100, 80]


def test_part_behind_the_camera_is_cut():
    """A wall on the left from 6 m behind the camera to 4 m before it: its far end bounds it on the right."""
    wall = image_boxes(box(-1, 1.5, 0, 10, 1, 0.5, 0), K, T_CAM_LIDAR, SIZE)[0]
    assert wall.tolist() == [0, 0, 25, 80]


def test_unseen_is_not_a_number():
    behind, beside, above = box(-10, 0, 0, 4, 2, 2, 0), box(10, 30, 0, 4, 2, 2, 0), box(10, 0, 30, 4, 2, 2, 0)
    broken = box(10, 0, math.nan, 4, 2, 2, 0)
    assert image_boxes(torch.cat([behind, beside, above, broken]), K, T_CAM_LIDAR, SIZE).isnan().all()
    assert image_boxes(torch.zeros((0, 7), dtype=torch.float64), K, T_CAM_LIDAR, SIZE).shape == (0, 4)


def test_against_points_of_the_surface():
    """Bounds of many points of each box in front of the camera."""
    boxes = random_boxes(40, 3, spread=3.0)
    wide = (2001, 4001)
    K_wide = torch.tensor([[100, 0, 2000], [0, 100, 1000], [0, 0, 1]], dtype=torch.float64)
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 41)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    found = image_boxes(boxes, K_wide, T_CAM_LIDAR, wide).numpy()
    compared = 0
    for one, bounds in zip(boxes.numpy(), found, strict=True):
        x, y, z = (grid * one[3:6]).T
        c, s = math.cos(one[6]), math.sin(one[6])
        points = np.stack([x * c - y * s, x * s + y * c, z], axis=1) + one[:3]
        in_front = points[points[:, 0] >= 0.01]
        if len(in_front) == 0:
            assert np.isnan(bounds).all()
        elif len(in_front) == len(points):
            u = 2000 - 100 * points[:, 1] / points[:, 0]
            v = 1000 - 100 * points[:, 2] / points[:, 0]
            seen = np.clip([u.min(), v.min(), u.max(), v.max()], 0, [4000, 2000, 4000, 2000])
            assert np.abs(seen - bounds).max() < 1e-6
            compared += 1
    assert compared > 5


@pytest.mark.parametrize(
    ("yaw", "alpha"), [(0.0, -math.pi / 2), (math.pi / 2, math.pi), (-math.pi / 2, 0.0), (math.pi, math.pi / 2)]
)
def test_observation_angle_ahead(yaw: float, alpha: float):
    found = observation_angles(box(10, 0, 0, 4, 2, 2, yaw), T_CAM_LIDAR).item()
    assert math.cos(found - alpha) == pytest.approx(1)


def test_observation_angle_is_the_same_along_the_ray():
    """A car that drives away along the ray looks the same wherever it is."""
    cars = torch.cat([box(10 * math.cos(a), 10 * math.sin(a), 0, 4, 2, 2, a) for a in (-0.6, 0.0, 0.7)])
    found = observation_angles(cars, T_CAM_LIDAR)
    torch.testing.assert_close(found, torch.full((3,), -math.pi / 2, dtype=torch.float64))
