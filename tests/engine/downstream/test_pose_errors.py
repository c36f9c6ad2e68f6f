"""Registration metrics on poses whose errors are known, against one-sample formulas, and on nothing."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from engine.downstream.pose_errors import pose_errors, recall_curve, summarise


def poses(rotation: Rotation, translation: np.ndarray) -> Tensor:
    T = np.tile(np.eye(4), (len(translation), 1, 1))
    T[:, :3, :3], T[:, :3, 3] = rotation.as_matrix(), translation
    return torch.from_numpy(T)


def random_poses(num: int, seed: int) -> Tensor:
    return poses(Rotation.random(num, rng=seed), np.random.default_rng(seed).standard_normal((num, 3)) * 5)


def test_errors_of_known_perturbations():
    true = random_poses(4, 0)
    turns = Rotation.from_euler("xyz", [[0, 0, 0], [3, 0, 0], [-170, 0, 0], [1e-5, 0, 0]], degrees=True)
    shift = np.array([[0, 0, 0], [3, 4, 0], [0, 0, -1], [0, 0, 0.0]])
    errors = pose_errors(true @ torch.linalg.inv(poses(turns, shift)), true)  # residual = the perturbation
    torch.testing.assert_close(errors.rte_m, torch.tensor([0, 5, 1, 0.0]).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(errors.rre_deg, torch.tensor([0, 3, 170, 1e-5]).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(errors.rre_euler_deg, torch.tensor([0, 3, 170, 1e-5]).double(), atol=1e-9, rtol=0)


def test_errors_equal_one_sample_formulas():
    estimated, true = random_poses(50, 1), random_poses(50, 2)
    errors = pose_errors(estimated.float(), true)
    for i in range(50):
        residual = np.linalg.inv(estimated[i].float().double().numpy()) @ true[i].numpy()
        rotation = Rotation.from_matrix(residual[:3, :3])
        assert errors.rte_m[i] == pytest.approx(np.linalg.norm(residual[:3, 3]))
        assert errors.rte_m[i] == pytest.approx(float((estimated[i, :3, 3] - true[i, :3, 3]).norm()), abs=1e-5)
        assert errors.rre_deg[i] == pytest.approx(math.degrees(rotation.magnitude()), abs=1e-4)
        assert errors.rre_euler_deg[i] == pytest.approx(np.abs(rotation.as_euler("xzy", degrees=True)).sum())
    assert (errors.rre_euler_deg >= errors.rre_deg - 1e-6).all()


def test_half_turns_and_locked_angles_are_finite():
    turns = Rotation.from_euler("xzy", [[180, 0, 0], [0, 90, 0], [20, 90, 30], [0, -90, 0]], degrees=True)
    errors = pose_errors(poses(turns, np.zeros((4, 3))), torch.eye(4).expand(4, 4, 4))
    assert torch.isfinite(errors.rre_euler_deg).all()
    torch.testing.assert_close(errors.rre_deg[[0, 1, 3]], torch.tensor([180.0, 90, 90]).double())


def test_missing_poses_are_never_registered():
    true = random_poses(4, 3)
    estimated = true.clone()
    estimated[1] = torch.nan
    estimated[2, 0, 3] += 3.0
    errors = pose_errors(estimated, true, torch.tensor([True, False, True, True]))
    assert errors.rte_m[1] == errors.rre_deg[1] == errors.rre_euler_deg[1] == math.inf
    summary = summarise(errors)
    assert summary["found"] == 75
    assert summary["recall"] == summary["recall_euler"] == 50
    assert summary["rte"] == pytest.approx(1.0)
    assert summary["rte_registered"] == pytest.approx(0.0, abs=1e-9)
    assert recall_curve(errors.rte_m, [0.5, 5.0, 1e9]).tolist() == [0.5, 0.75, 0.75]


def test_the_two_rotation_errors_draw_the_line_differently():
    turn = Rotation.from_euler("xzy", [[3, 3, 0]], degrees=True)  # 4.2 degrees geodesic, 6 as a sum
    summary = summarise(pose_errors(poses(turn, np.zeros((1, 3))).transpose(1, 2), torch.eye(4)[None]))
    assert summary["recall"] == 100
    assert summary["recall_euler"] == 0
    assert math.isnan(summary["rte_registered"])


def test_recall_curve_is_the_share_below():
    errors = torch.tensor([0.0, 0.2, 0.5, 0.5, 3.0])
    assert recall_curve(errors, [0.1, 0.5, 0.6, 4.0]).tolist() == pytest.approx([0.2, 0.4, 0.8, 1.0])


def test_nothing():
    none = pose_errors(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4))
    assert all(math.isnan(value) for value in summarise(none).values())
    assert recall_curve(none.rte_m, [1.0]).isnan().all()


def test_refused_input():
    true = random_poses(2, 4)
    mirrored = true.clone()
    mirrored[1, :3, 0] *= -1
    with pytest.raises(ValueError, match="T_estimated of sample 1 is no rigid transform"):
        pose_errors(mirrored, true)
    with pytest.raises(ValueError, match="T_true of sample 0"):
        pose_errors(true, true * torch.nan)
    with pytest.raises(ValueError, match="must ascend"):
        recall_curve(torch.zeros(2), [1.0, 0.5])
    with pytest.raises(ValueError, match="an error is NaN"):
        recall_curve(torch.tensor([torch.nan]), [1.0])
