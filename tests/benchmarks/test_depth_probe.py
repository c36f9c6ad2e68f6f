"""What the probe of depth states is what it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.depth_probe import CELL_PX, Pixels, Places, effective_rank, ridge
from data.sample import Cameras
from engine.downstream.depth import START_DEPTH_M
from tests.helpers.toy_dense import toy_images


def pixels(seed: int, count: int, noise: float) -> Pixels:
    generator = torch.Generator().manual_seed(seed)
    features = 5 + 3 * torch.randn(count, 6, generator=generator)
    weights = torch.tensor([[1.0, 0, 0], [0.5, 2, 0], [0, -1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    targets = features @ weights + noise * torch.randn(count, 3, generator=generator)
    return Pixels(features, targets, torch.zeros(count, dtype=torch.int64))


def test_ridge_explains_what_is_linear_and_nothing_of_noise() -> None:
    found = ridge(pixels(0, 4000, 1.0), pixels(1, 1000, 1.0), pixels(2, 4000, 1.0))
    # Signal variances of 9 * 1.25 and 9 * 5 beside noise of 1; the third target is noise alone.
    assert found[0] == pytest.approx(11.25 / 12.25, abs=0.01)
    assert found[1] == pytest.approx(45 / 46, abs=0.01)
    assert abs(found[2]) < 0.01


def test_places_are_means_of_cameras_cells() -> None:
    batch = toy_images([0, 1], truth="depth")  # two samples of two images, 16 x 24 pixels
    sample = torch.tensor([0, 0, 1, 1])
    cameras = Cameras(
        sample=sample,
        K=torch.eye(3).repeat(4, 1, 1),
        T_cam_points=torch.eye(4).repeat(4, 1, 1),
        affine=torch.eye(3)[:2].repeat(4, 1, 1),
        min_depth_m=torch.ones(4),
    )
    batch = dataclasses.replace(batch, cameras=cameras)
    depth = batch.image_depth_m
    assert depth is not None
    maps = Places(iter([batch])).maps(batch)
    for image, v, u in ((0, 3, 5), (1, 10, 20), (3, 15, 0)):
        row, column = v // CELL_PX * CELL_PX, u // CELL_PX * CELL_PX
        both = depth[[image % 2, image % 2 + 2], row : row + CELL_PX, column : column + CELL_PX]
        expected = np.log(both[both > 0].double().numpy() / START_DEPTH_M).mean()
        assert float(maps[image, v, u]) == pytest.approx(expected, abs=1e-5)


def test_effective_rank_counts_directions() -> None:
    rows = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    assert effective_rank(rows) == pytest.approx(4, abs=0.02)
    assert effective_rank(rows @ torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))) == pytest.approx(2, abs=0.02)
    assert effective_rank(rows[:, :1] @ torch.ones(1, 4)) == pytest.approx(1, abs=1e-6)
