"""Overlaps against known values, shapely, and what must not change them."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from common.boxes import overlap
from common.boxes.overlap import axis_aligned_bev_iou, bev_corners, bev_intersection, bev_iou, iou_3d, iou_3d_of_pairs
from tests.reference import boxes as reference

F64 = torch.float64
UNIT = (0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0)
CAR = (10.0, -5.0, 1.0, 4.0, 2.0, 1.5, 0.0)


def box(*values: float) -> Tensor:
    return torch.tensor([values], dtype=F64)


def random_boxes(num: int, seed: int, spread: float = 6.0) -> Tensor:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num, 3)) * (spread, spread, 1)
    sizes = np.exp(rng.normal(size=(num, 3)) * 0.6) * (3, 1.5, 1.5)
    yaws = rng.uniform(-7, 7, (num, 1))
    yaws[::5] = np.pi / 2 * rng.integers(-2, 3, yaws[::5].shape)
    return torch.from_numpy(np.concatenate([centers, sizes, yaws], axis=1))


def along(values: tuple[float, ...], yaw: float, forward: float, left: float = 0.0) -> Tensor:
    """The box turned, and moved along its heading and to its left."""
    x, y, z, length, width, height, _ = values
    c, s = math.cos(yaw), math.sin(yaw)
    return box(x + forward * c - left * s, y + forward * s + left * c, z, length, width, height, yaw)


# ---- known values
def test_corners_run_counter_clockwise_from_the_left_front():
    straight = bev_corners(box(1.0, 2.0, 0.0, 4.0, 2.0, 1.0, 0.0))[0]
    assert straight.tolist() == [[3, 3], [-1, 3], [-1, 1], [3, 1]]
    turned = bev_corners(box(1.0, 2.0, 0.0, 4.0, 2.0, 1.0, math.pi / 2))[0]
    torch.testing.assert_close(turned, torch.tensor([[0, 4], [0, 0], [2, 0], [2, 4]], dtype=F64))


def test_square_turned_by_45_degrees_shares_an_octagon():
    area = 8 * (math.sqrt(2) - 1)
    turned = box(*UNIT[:6], math.pi / 4)
    assert bev_intersection(box(*UNIT), turned).item() == pytest.approx(area, abs=1e-14)
    assert bev_iou(box(*UNIT), turned).item() == pytest.approx(1 / math.sqrt(2), abs=1e-14)
    assert iou_3d(box(*UNIT), turned).item() == pytest.approx(1 / math.sqrt(2), abs=1e-14)


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 135, 180, 200, -45])
def test_car_moved_along_its_heading(degrees: int):
    yaw = math.radians(degrees)
    moved = along(CAR, yaw, 1.0)
    assert bev_iou(along(CAR, yaw, 0), moved).item() == pytest.approx(0.6, abs=1e-13)
    assert bev_iou(along(CAR, yaw, 0), along(CAR, yaw, 0, left=1.0)).item() == pytest.approx(1 / 3, abs=1e-13)
    higher = moved.clone()
    higher[:, 2] += 0.5
    assert iou_3d(along(CAR, yaw, 0), higher).item() == pytest.approx(6 / (24 - 6), abs=1e-13)


def test_same_box_has_an_iou_of_exactly_one_whichever_end_is_its_front():
    boxes = random_boxes(200, 0)
    assert (iou_3d_of_pairs(boxes, boxes) - 1).abs().max() < 1e-14
    turned = boxes + torch.tensor([0, 0, 0, 0, 0, 0, math.pi], dtype=F64)
    torch.testing.assert_close(iou_3d_of_pairs(boxes, turned), torch.ones(200, dtype=F64), rtol=0, atol=1e-13)
    assert bev_iou(box(*CAR), box(*CAR)).item() == 1.0
    assert bev_iou(box(*CAR).float(), box(*CAR).float()).item() == 1.0


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["double", "single"])
def test_against_shapely(dtype: torch.dtype):
    near, other = random_boxes(60, 1, spread=3.0), random_boxes(50, 2, spread=3.0)
    flat = np.array([[reference.iou_bev(a, b) for b in other.numpy()] for a in near.numpy()])
    solid = np.array([[reference.iou_3d(a, b) for b in other.numpy()] for a in near.numpy()])
    assert 300 < (flat > 0).sum() < flat.size
    tolerance = 1e-9 if dtype is F64 else 1e-4
    a, b = near.to(dtype), other.to(dtype)
    assert bev_iou(a, b).dtype is dtype
    assert np.abs(bev_iou(a, b).numpy() - flat).max() < tolerance
    assert np.abs(iou_3d(a, b).numpy() - solid).max() < tolerance
    areas = near[:, None, 3:5].prod(2).minimum(other[None, :, 3:5].prod(2)).numpy()
    shared = flat / (1 + flat) * (near[:, 3:5].prod(1)[:, None] + other[:, 3:5].prod(1)).numpy()
    assert (np.abs(bev_intersection(a, b).numpy() - shared) / areas).max() < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("distance_m", [0.0, 70.0, 1e5], ids=["origin", "70m", "100km"])
def test_many_pairs_against_shapely(distance_m: float):
    a, b = random_boxes(20_000, 3, spread=1.5), random_boxes(20_000, 4, spread=1.5)
    b[::7, 6] = a[::7, 6] + 1e-9  # nearly parallel
    b[::11, :2] = a[::11, :2]
    expected = np.array([reference.iou_3d(x, y) for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    a[:, 0] += distance_m
    b[:, 0] += distance_m
    assert np.abs(iou_3d_of_pairs(a, b).numpy() - expected).max() < max(1e-9, distance_m * 1e-13)
    if distance_m < 100:
        assert np.abs(iou_3d_of_pairs(a.float(), b.float()).numpy() - expected).max() < 1e-4


# ---- what must not change an overlap
@pytest.mark.parametrize("of_boxes", [bev_intersection, bev_iou, iou_3d], ids=lambda f: f.__name__)
def test_neither_order_nor_a_rigid_motion_nor_half_a_turn_changes_it(of_boxes):
    a, b = random_boxes(70, 5), random_boxes(60, 6)
    expected = of_boxes(a, b)
    torch.testing.assert_close(of_boxes(b, a).T, expected, rtol=0, atol=1e-12)
    angle, shift = 0.83, torch.tensor([12.0, -31.0, 4.0], dtype=F64)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=F64)
    moved = []
    for boxes in (a, b):
        xyz = torch.cat([boxes[:, :2] @ turn.T, boxes[:, 2:3]], dim=1) + shift
        moved.append(torch.cat([xyz, boxes[:, 3:6], boxes[:, 6:] + angle], dim=1))
    torch.testing.assert_close(of_boxes(*moved), expected, rtol=0, atol=1e-11)
    half_turn = torch.tensor([0, 0, 0, 0, 0, 0, math.pi], dtype=F64)
    torch.testing.assert_close(of_boxes(a + half_turn, b - half_turn), expected, rtol=0, atol=1e-11)
    quarter = a[:, [0, 1, 2, 4, 3, 5, 6]] + half_turn / 2
    torch.testing.assert_close(of_boxes(quarter, b), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("pairs", [1, 7], ids=["one", "seven"])
def test_nor_how_many_pairs_are_done_at_a_time(pairs: int, monkeypatch: pytest.MonkeyPatch):
    a, b = random_boxes(13, 7), random_boxes(11, 8)
    expected = iou_3d(a, b)
    monkeypatch.setattr(overlap, "_PAIRS_AT_A_TIME", pairs)
    monkeypatch.setattr(overlap, "_DISTANCES_AT_A_TIME", pairs)
    assert torch.equal(iou_3d(a, b), expected)


# ---- boxes at the limits
def test_touching_boxes_share_nothing():
    beside = [along(CAR, 0.0, 4.0), along(CAR, 0.0, 0.0, left=-2.0), along(CAR, 0.0, 4.0, left=2.0)]
    for other in beside:
        assert bev_iou(box(*CAR), other).item() == 0.0
    above = box(*CAR)
    above[:, 2] += 1.5
    assert (bev_iou(box(*CAR), above).item(), iou_3d(box(*CAR), above).item()) == (1.0, 0.0)
    edge = math.sqrt(2)
    corner_on_edge = box(1 + edge, 0, 0, 2, 2, 2, math.pi / 4)
    assert bev_intersection(box(*UNIT), corner_on_edge).item() == pytest.approx(0, abs=1e-15)


def test_box_within_a_huge_one():
    huge = box(3e5, 0, 0, 1e6, 1e6, 1e6, 0.3)
    assert bev_intersection(box(*CAR), huge).item() == pytest.approx(8, abs=1e-9)
    assert bev_intersection(huge.float(), box(*CAR).float()).item() == pytest.approx(8, rel=1e-6)
    assert iou_3d(box(*CAR), huge).item() == pytest.approx(12e-18, rel=1e-6)
    too_large = box(0, 0, 0, 1e200, 1e200, 1, 0)
    assert bev_iou(too_large, torch.cat([too_large, box(*CAR)])).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[(3, 0.0), (4, 0.0), (5, 0.0), (3, -4.0)],
        *[(0, math.nan), (3, math.nan), (6, math.nan)],
        *[(1, math.inf), (3, math.inf), (6, math.inf)],
    ],
)
def test_what_is_no_box_overlaps_nothing(column: int, value: float):
    odd = box(*CAR)
    odd[0, column] = value
    both = torch.cat([odd, box(*CAR)])
    expected = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=F64)
    assert torch.equal(iou_3d(both, both), expected)
    assert torch.equal(iou_3d_of_pairs(odd, box(*CAR)), torch.zeros(1, dtype=F64))
    if column != 5:  # the height is not looked at in the ground plane
        assert torch.equal(bev_iou(both, both), expected)
        assert torch.equal(axis_aligned_bev_iou(both, both), expected)


def test_height_and_z_do_not_matter_in_the_ground_plane():
    odd = box(*CAR)
    odd[0, [2, 5]] = math.nan
    assert bev_iou(odd, box(*CAR)).item() == 1.0
    assert iou_3d(odd, box(*CAR)).item() == 0.0


def test_no_boxes():
    none, some = torch.zeros((0, 7)), torch.rand(3, 7)
    for of_boxes in (bev_intersection, bev_iou, iou_3d, axis_aligned_bev_iou):
        assert of_boxes(none, some).shape == (0, 3)
        assert of_boxes(some, none).shape == (3, 0)
    assert iou_3d_of_pairs(none, none).shape == (0,)


# ---- anchors
def test_axis_aligned_overlap_swaps_beyond_45_degrees():
    car = along(CAR, 0.0, 0.0)
    for degrees, iou in [
        (0, 1.0),
        (44, 1.0),
        (45, 1.0),
        (46, 1 / 3),
        (90, 1 / 3),
        (135, 1.0),
        (136, 1.0),
        (-90, 1 / 3),
    ]:
        turned = along(CAR, math.radians(degrees), 0.0)
        assert axis_aligned_bev_iou(car, turned).item() == pytest.approx(iou), degrees
