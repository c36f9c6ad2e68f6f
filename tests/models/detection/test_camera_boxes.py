"""Boxes in a camera's terms and back: tilted and mirrored cameras, turned, mirrored and scaled clouds."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from common.boxes.image import observation_angles
from data.sample import Cameras
from models.detection.camera_boxes import Optics, from_camera, to_camera
from tests.reference.detection_targets import seen_from

# x right, y down, z forward, of a camera that looks along +x, 0.5 m above the sensor.
LOOKING_AHEAD = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0.5], [1, 0, 0, 0.2], [0, 0, 0, 1]])
K = torch.tensor([[240.0, 0, 100.5], [0, 230, 47.5], [0, 0, 1]])


def tilted(pitch: float, roll: float) -> Tensor:
    c, s = math.cos(pitch), math.sin(pitch)
    down = torch.tensor([[1, 0, 0, 0], [0, c, s, 0], [0, -s, c, 0], [0, 0, 0, 1]])
    c, s = math.cos(roll), math.sin(roll)
    aside = torch.tensor([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return aside @ down @ LOOKING_AHEAD


def mirrored(K: Tensor, width: int = 192) -> Tensor:
    """As the loader mirrors an image: u becomes width - 1 - u."""
    return torch.tensor([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ K


def augmented(T: Tensor) -> Tensor:
    """Of points that were turned by 30 degrees, mirrored along y, made larger and moved."""
    c, s, scale = math.cos(math.pi / 6), math.sin(math.pi / 6), 1.2
    T_aug = torch.tensor(
        [[scale * c, -scale * s, 0, 1], [-scale * s, -scale * c, 0, -2], [0, 0, scale, 0.3], [0, 0, 0, 1]]
    )
    return T @ torch.linalg.inv(T_aug)


def cameras(T: Tensor, K: Tensor) -> Cameras:
    return Cameras(
        sample=torch.zeros(1, dtype=torch.long),
        K=K[None],
        T_cam_points=T[None],
        affine=torch.eye(3)[None, :2],
        min_depth_m=torch.ones(1),
    )


def boxes(num: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([4.0, -8, -2, 1, 1, 1, -3.1]), torch.tensor([40.0, 8, 1, 6, 3, 3, 3.1])
    return low + (high - low) * torch.rand(num, 7, generator=generator), torch.randn(num, 2, generator=generator)


def turn(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    "T",
    [LOOKING_AHEAD, tilted(0.1, 0.0), tilted(-0.3, 0.2), augmented(tilted(0.05, 0.02))],
    ids=["level", "down", "up and aside", "augmented"],
)
def test_there_and_back(T: Tensor, mirror: bool) -> None:
    rows, velocities = boxes()
    optics = Optics.of(cameras(T, mirrored(K) if mirror else K)).at(torch.zeros(len(rows), dtype=torch.long))
    assert (optics.K[:, 0, 0] > 0).all()
    seen = to_camera(rows, velocities, optics)
    back, moving = from_camera(seen, optics)
    ahead = seen.depths_m > 1
    assert ahead.sum() > 30
    rows, velocities, back, moving = rows[ahead], velocities[ahead], back[ahead], moving[ahead]
    torch.testing.assert_close(back[:, :6], rows[:, :6].double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(turn(back[:, 6]), turn(rows[:, 6].double()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moving, velocities.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mirror", [False, True])
def test_against_following_points(mirror: bool) -> None:
    T, own = augmented(tilted(0.0, 0.0)), mirrored(K) if mirror else K
    rows, velocities = boxes(10)
    optics = Optics.of(cameras(T, own)).at(torch.zeros(len(rows), dtype=torch.long))
    seen = to_camera(rows, velocities, optics)
    for number, row in enumerate(rows.tolist()):
        pixel, depth, size, angle = seen_from(row, own.tolist(), T.tolist())
        torch.testing.assert_close(seen.centers_px[number], torch.tensor(pixel).double(), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(seen.sizes_m[number], torch.tensor(size).double(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(turn(seen.angles[number]), turn(torch.tensor(angle).double()), rtol=1e-4, atol=1e-4)
        assert float(seen.depths_m[number]) == pytest.approx(depth, rel=1e-4)


def test_a_mirrored_image_is_the_image_of_the_mirrored_world() -> None:
    """The same network must be right for both, so what it has to say may not depend on which of the two it is."""
    rows, velocities = boxes()
    row = torch.zeros(len(rows), dtype=torch.long)
    seen = to_camera(rows, velocities, Optics.of(cameras(LOOKING_AHEAD, mirrored(K))).at(row))
    world = rows * torch.tensor([1.0, -1, 1, 1, 1, 1, -1])
    moved = velocities * torch.tensor([1.0, -1])
    principal = torch.tensor([[240.0, 0, 191 - 100.5], [0, 230, 47.5], [0, 0, 1]])
    other = to_camera(world, moved, Optics.of(cameras(LOOKING_AHEAD, principal)).at(row))
    for field in dataclasses.fields(seen):
        torch.testing.assert_close(getattr(seen, field.name), getattr(other, field.name))


def test_angles_are_kittis() -> None:
    rows, velocities = boxes()
    optics = Optics.of(cameras(LOOKING_AHEAD, K)).at(torch.zeros(len(rows), dtype=torch.long))
    wanted = observation_angles(rows.double(), LOOKING_AHEAD.double())
    torch.testing.assert_close(turn(to_camera(rows, velocities, optics).angles), turn(wanted))
    away = torch.tensor([[20.0, 0, 0, 4, 2, 1.5, 0.0]])
    assert float(to_camera(away, velocities[:1], optics.at(torch.tensor([0]))).angles) == pytest.approx(-math.pi / 2)


def test_unknown_velocities_stay_unknown_and_nothing_is_raised_straight_down() -> None:
    rows, velocities = boxes(3)
    down = torch.tensor([[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, -1, 5], [0, 0, 0, 1]])
    for T in (LOOKING_AHEAD, down):
        optics = Optics.of(cameras(T, K)).at(torch.zeros(3, dtype=torch.long))
        back, moving = from_camera(to_camera(rows, torch.full_like(velocities, torch.nan), optics), optics)
        assert moving.isnan().all()
        assert bool(back.isfinite().all()) == (T is LOOKING_AHEAD)
    none = Optics.of(cameras(LOOKING_AHEAD, K)).at(torch.zeros(0, dtype=torch.long))
    assert from_camera(to_camera(rows[:0], velocities[:0], none), none)[0].shape == (0, 7)
