"""EPnP: exact on clean data, against a step-by-step reference and OpenCV, gradients, degenerate samples."""

import itertools
import math
from collections.abc import Callable

import cv2
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from models.pose.epnp import Pose, epnp
from tests.reference.epnp import epnp_loop

K = torch.tensor([[700.0, 0.0, 600.0], [0.0, 710.0, 180.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def project(points: Tensor, R: Tensor, t: Tensor) -> Tensor:
    seen = (points @ R.mT + t[:, None]) @ K.T
    return seen[..., :2] / seen[..., 2:]


def scene(samples: int, num: int, noise_px: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points that fill a KITTI-like image at 5 to 50 m, their pixels, and the pose that they are seen from."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(samples, num, 2, generator=generator).double() * torch.tensor([1200.0, 360.0])
    depth = torch.rand(samples, num, 1, generator=generator).double() * 45 + 5
    rays = torch.cat([pixels, torch.ones_like(depth)], dim=2) @ torch.linalg.inv(K).T
    R = torch.from_numpy(Rotation.random(samples, rng=seed).as_matrix())
    t = torch.randn(samples, 3, generator=generator).double() * 5
    points = (rays * depth - t[:, None]) @ R
    return points, pixels + noise_px * torch.randn(samples, num, 2, generator=generator).double(), R, t


def solve(points: Tensor, pixels: Tensor, weights: Tensor | None = None) -> Pose:
    return epnp(points, pixels, K.to(points.dtype).expand(len(points), 3, 3), weights)


def angles_deg(a: Tensor, b: Tensor) -> Tensor:
    return torch.rad2deg(2 * torch.asin(((a - b).flatten(1).norm(dim=1) / math.sqrt(8)).clamp(max=1)))


@pytest.mark.parametrize("num", [6, 7, 200])
def test_exact_on_clean_correspondences(num: int):
    points, pixels, R, t = scene(16, num)
    weights = torch.rand(16, num, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    pose = solve(points, pixels, weights)
    assert pose.valid.all()
    torch.testing.assert_close(pose.rotation, R, atol=1e-8, rtol=0)
    torch.testing.assert_close(pose.translation_m, t, atol=1e-7, rtol=0)
    assert (pose.error_px < 1e-6).all()


def test_float32_and_autocast_lose_only_the_rounding_of_the_input():
    points, pixels, R, t = scene(16, 50)
    with torch.autocast("cpu", torch.bfloat16):
        pose = solve(points.float(), pixels.float())
    assert pose.rotation.dtype == pose.translation_m.dtype == torch.float32
    assert angles_deg(pose.rotation.double(), R).max() < 1e-3
    assert (pose.translation_m - t).norm(dim=1).max() < 1e-3


@pytest.mark.parametrize("num", [6, 20])
def test_noisy_answers_equal_the_reference(num: int):
    points, pixels, _, _ = scene(8, num, noise_px=2.0, seed=num)
    weights = torch.rand(8, num, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.2
    pose = solve(points, pixels, weights)
    for i in range(8):
        R, t, error = epnp_loop(points[i].numpy(), pixels[i].numpy(), K.numpy(), weights[i].numpy())
        torch.testing.assert_close(pose.rotation[i], torch.from_numpy(R), atol=1e-7, rtol=0)
        torch.testing.assert_close(pose.translation_m[i], torch.from_numpy(t), atol=1e-6, rtol=0)
        assert pose.error_px[i] == pytest.approx(error)


@pytest.mark.parametrize(("num", "noise_px"), [(6, 2.0), (20, 0.5), (100, 5.0)])
def test_no_less_accurate_than_opencv(num: int, noise_px: float):
    points, pixels, R, t = scene(64, num, noise_px)
    ours = solve(points, pixels)
    theirs_R, theirs_t = torch.empty_like(R), torch.empty_like(t)
    for i in range(64):
        _, vector, shift = cv2.solvePnP(points[i].numpy(), pixels[i].numpy(), K.numpy(), None, flags=cv2.SOLVEPNP_EPNP)
        theirs_R[i], theirs_t[i] = torch.from_numpy(cv2.Rodrigues(vector)[0]), torch.from_numpy(shift[:, 0])
    for share in (0.5, 0.9):
        assert angles_deg(ours.rotation, R).quantile(share) < 1.05 * angles_deg(theirs_R, R).quantile(share)
        ours_m, theirs_m = (ours.translation_m - t).norm(dim=1), (theirs_t - t).norm(dim=1)
        assert ours_m.quantile(share) < 1.05 * theirs_m.quantile(share)
    assert angles_deg(ours.rotation, theirs_R).median() < angles_deg(theirs_R, R).median()


def test_invariances():
    points, pixels, _, _ = scene(4, 30, noise_px=1.0)
    pose = solve(points, pixels)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    scaled = torch.full((4, 30), 1e-3, dtype=torch.float64)
    for other in (solve(points[:, order], pixels[:, order]), solve(points, pixels, scaled)):
        torch.testing.assert_close(other.rotation, pose.rotation, atol=1e-8, rtol=0)
        torch.testing.assert_close(other.translation_m, pose.translation_m, atol=1e-7, rtol=0)
    turn = torch.from_numpy(Rotation.from_euler("xyz", [0.4, -1.0, 2.0]).as_matrix())
    moved = solve(points @ turn.T + 3.0, pixels)  # the same scene in another frame
    torch.testing.assert_close(moved.rotation @ turn, pose.rotation, atol=1e-8, rtol=0)
    shift = torch.full((3, 1), 3.0, dtype=torch.float64)
    torch.testing.assert_close((moved.rotation @ shift).squeeze(2) + moved.translation_m, pose.translation_m)


def test_correspondences_that_do_not_count():
    points, pixels, _, _ = scene(1, 20, noise_px=1.0)
    wanted = solve(points[:, :12], pixels[:, :12])
    weights = torch.ones(1, 20, dtype=torch.float64)
    weights[:, 12:15] = 0
    points[:, 12:15] = 1e6
    points[:, 15] = torch.nan
    pixels[:, 16] = torch.inf
    weights[:, 17:] = torch.tensor([torch.nan, torch.inf, 0])
    got = solve(points, pixels, weights)
    torch.testing.assert_close(got.rotation, wanted.rotation)
    torch.testing.assert_close(got.translation_m, wanted.translation_m)


def check_gradient(f: Callable[[Tensor], Pose], x: Tensor, step: float) -> None:
    """Derivatives of the pose by central differences, all steps in one batch (gradcheck would take one at a time)."""

    def flat(pose: Pose) -> Tensor:
        return torch.cat([pose.rotation.flatten(1), pose.translation_m], dim=1)

    steps = step * torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    numeric = ((flat(f(x + steps)) - flat(f(x - steps))) / (2 * step)).T
    exact = torch.autograd.functional.jacobian(lambda x: flat(f(x))[0], x).flatten(1)
    torch.testing.assert_close(exact, numeric, atol=1e-6 * float(numeric.abs().max()), rtol=1e-4)


@pytest.mark.parametrize(("num", "noise_px", "seed"), [(6, 10.0, 0), (9, 1.0, 1), (12, 3.0, 2)])
def test_gradient_of_pixels_and_weights_by_finite_differences(num: int, noise_px: float, seed: int):
    points, pixels, _, _ = scene(1, num, noise_px, seed)
    weights = torch.rand(1, num, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5
    check_gradient(lambda x: solve(points.expand(len(x), -1, -1), x, weights.expand(len(x), -1)), pixels, 1e-3)
    check_gradient(lambda x: solve(points.expand(len(x), -1, -1), pixels.expand(len(x), -1, -1), x), weights, 1e-4)


@pytest.mark.parametrize("shape", ["cube", "octahedron"])
@pytest.mark.parametrize("noise_px", [0.0, 1.0])
def test_equal_variances_have_a_gradient(shape: str, noise_px: float):
    # Principal axes, singular values and some eigenvalues coincide here: plain automatic gradients are NaN.
    cube = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    points = (cube if shape == "cube" else torch.cat([torch.eye(3), -torch.eye(3)]).double())[None]
    R = torch.from_numpy(Rotation.from_euler("xyz", [[0.3, -0.8, 0.5]]).as_matrix())
    pixels = project(points, R, torch.tensor([[0.5, -0.3, 6.0]], dtype=torch.float64))
    pixels = pixels + noise_px * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).double()
    if noise_px:
        check_gradient(lambda x: solve(points.expand(len(x), -1, -1), x), pixels, 1e-3)
    else:
        solve(points, pixels.requires_grad_()).rotation.square().sum().backward()
        assert pixels.grad is not None
        assert torch.isfinite(pixels.grad).all()


def test_on_clean_data_the_gradient_follows_the_true_pose():
    points, _, R, t = scene(3, 10)
    motion = torch.tensor([0.01, -0.02, 0.03, 0.1, 0.2, -0.3], dtype=torch.float64)

    def moved(s: Tensor) -> tuple[Tensor, Tensor]:
        x, y, z = (s * motion[:3]).unbind()
        zero = torch.zeros_like(x)
        turn = torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3))
        return turn @ R, t + s * motion[3:]

    def by_pixels(s: Tensor) -> tuple[Tensor, Tensor]:
        pose = solve(points, project(points, *moved(s)))
        return pose.rotation, pose.translation_m

    def by_points(s: Tensor) -> tuple[Tensor, Tensor]:
        new_R, new_t = moved(s)  # points for which the fixed pixels are seen from the moved pose
        camera = points @ R.mT + t[:, None]
        pose = solve((camera - new_t[:, None]) @ new_R, project(points, R, t))
        return pose.rotation, pose.translation_m

    start = torch.zeros((), dtype=torch.float64)
    wanted = torch.autograd.functional.jacobian(moved, start)
    for way in (by_pixels, by_points):
        got = torch.autograd.functional.jacobian(way, start)
        torch.testing.assert_close(got[0], wanted[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(got[1], wanted[1].expand(3, 3), atol=1e-5, rtol=0)


def degenerate(name: str) -> tuple[Tensor, Tensor, Tensor]:
    points, pixels, R, t = scene(1, 40)
    weights = torch.ones(1, 40, dtype=torch.float64)
    if name == "plane":
        points = points.clone()
        points[..., 2] = 0.3 * points[..., 0] - 2
        pixels = project(points, R, t + torch.tensor([0.0, 0.0, 100.0]))
    elif name == "line":
        points = torch.linspace(-1, 1, 40).double()[None, :, None] * torch.tensor([1.0, 2.0, 0.5])
    elif name == "one point":
        points = points[:, :1].expand(1, 40, 3)
    elif name.endswith("points"):
        weights[:, int(name[0]) :] = 0
    elif name.endswith("distinct"):
        index = torch.arange(40) % int(name[0])
        points, pixels = points[:, index], pixels[:, index]
    elif name == "one pixel":
        pixels = torch.full((1, 40, 2), 300.0, dtype=torch.float64)
    elif name == "not finite":
        points = points * torch.nan
    return points, pixels, weights


NAMES = ["plane", "line", "one point", "0 points", "5 points", "4 distinct", "5 distinct", "one pixel", "not finite"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_samples_are_marked_and_leave_the_others_alone(name: str, dtype: torch.dtype):
    points, pixels, weights = degenerate(name)
    good_points, good_pixels, _, _ = scene(1, 40, noise_px=1.0)
    inputs = [
        torch.cat([bad, good]).to(dtype).requires_grad_()
        for bad, good in ((points, good_points), (pixels, good_pixels), (weights, torch.ones_like(weights)))
    ]
    pose = solve(*inputs)
    if dtype is torch.float64 or name not in {"4 distinct", "5 distinct", "one pixel"}:  # float32 pixels are noise
        assert pose.valid.tolist() == [False, True]
        assert torch.equal(pose.rotation[0], torch.eye(3, dtype=dtype))
        assert (pose.translation_m[0] == 0).all()
        assert pose.error_px[0] == torch.inf
    (pose.rotation.sum() + pose.translation_m.sum()).backward()
    alone = solve(good_points.to(dtype), good_pixels.to(dtype))
    torch.testing.assert_close(pose.rotation[1:], alone.rotation)
    for x in inputs:
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert pose.valid[0] or (x.grad[0] == 0).all()
        assert (x.grad[1] != 0).any()


@pytest.mark.parametrize("seed", range(5))
def test_nonsense_gives_finite_numbers(seed: int):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(32, 12, 3, generator=generator, dtype=torch.float64) * 20
    pixels = (torch.rand(32, 12, 2, generator=generator, dtype=torch.float64) * 1000).requires_grad_()
    pose = solve(points, pixels)
    (pose.rotation.sum() + pose.translation_m.sum()).backward()
    assert torch.isfinite(pose.rotation).all()
    assert torch.isfinite(pose.translation_m).all()
    assert pixels.grad is not None
    assert torch.isfinite(pixels.grad).all()
    unit = torch.eye(3, dtype=torch.float64).expand(32, 3, 3)
    torch.testing.assert_close(pose.rotation @ pose.rotation.mT, unit)
    assert (torch.linalg.det(pose.rotation) > 0).all()


def test_empty_and_refused_input():
    assert solve(torch.zeros(0, 5, 3), torch.zeros(0, 5, 2)).valid.shape == (0,)
    assert not solve(torch.zeros(2, 0, 3), torch.zeros(2, 0, 2)).valid.any()
    points, pixels, _, _ = scene(1, 6)
    with pytest.raises(ValueError, match=r"weights go down to -0\.5"):
        solve(points, pixels, torch.full((1, 6), -0.5, dtype=torch.float64))
