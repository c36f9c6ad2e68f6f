"""SPVCNN: the two ways between its branches against loops, size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.lidar.sparse import SparseTensor, StridedConv3d, sparse_tensor
from models.lidar.spvcnn import SpvcnnConfig, devoxelize, voxel_means
from tests.models.lidar.test_sparse import scene
from tests.reference import towers


def levels(counts: tuple[int, ...], steps: int) -> tuple[SparseTensor, SparseTensor]:
    """A fine tensor and a coarse one of random features, made by strided convolutions."""
    coords, features, num = scene(counts)
    fine = coarse = sparse_tensor(coords, features, num)[0]
    for _ in range(steps):
        coarse = StridedConv3d(3, 3).double()(coarse)
    g = torch.Generator().manual_seed(1)
    values = torch.randn(coarse.features.shape, generator=g, dtype=torch.float64, requires_grad=True)
    return fine, coarse.with_features(values)


@pytest.mark.parametrize("counts", [(60, 0, 35), (1,), (2, 1)])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_interpolation_equals_loops(counts: tuple[int, ...], steps: int) -> None:
    fine, coarse = levels(counts, steps)
    out = devoxelize(coarse, fine.grid)
    expected = towers.devoxelize(coarse.coords, coarse.features, fine.coords, 2**steps)
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, coarse.features, direction),
        torch.autograd.grad(expected, coarse.features, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("steps", [1, 4])
def test_interpolation_between_corners_equals_loops(steps: int) -> None:
    fine, coarse = levels((60, 0, 35), steps)
    out = devoxelize(coarse, fine.grid, "corner")
    expected = towers.devoxelize(coarse.coords, coarse.features, fine.coords, 2**steps, half=0.0)
    torch.testing.assert_close(out, expected, rtol=5e-5, atol=0)  # their divisor has 1e-8 more, of at least 1/4096
    assert (out - devoxelize(coarse, fine.grid)).abs().max() > 0.1


@pytest.mark.parametrize("counts", [(60, 0, 35), (1,)])
@pytest.mark.parametrize("steps", [1, 4])
def test_means_equal_loops(counts: tuple[int, ...], steps: int) -> None:
    fine, coarse = levels(counts, steps)
    out = voxel_means(fine.features, fine.grid, coarse.grid)
    torch.testing.assert_close(out, towers.voxel_means(coarse.coords, fine.features, fine.coords, 2**steps))


def test_gradients() -> None:
    fine, coarse = levels((8, 5), 2)
    x = fine.features.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: devoxelize(coarse.with_features(v), fine.grid), (coarse.features,))
    assert torch.autograd.gradcheck(lambda v: voxel_means(v, fine.grid, coarse.grid), (x,))


def test_constant_features_stay_constant_and_a_grid_reads_itself() -> None:
    fine, coarse = levels((60, 0, 35), 3)
    out = devoxelize(coarse.with_features(torch.full_like(coarse.features, 2.5)), fine.grid)
    torch.testing.assert_close(out, torch.full_like(out, 2.5))
    assert devoxelize(fine, fine.grid) is fine.features


def test_published_size() -> None:
    """21.8 M with four input channels and a linear head for 19 classes (Tang et al. 2020, table 1)."""
    with torch.device("meta"):
        net = SpvcnnConfig(in_channels=4).build()
    count = sum(p.numel() for p in net.parameters()) + sum(p.numel() for p in nn.Linear(96, 19).parameters())
    assert count == 21_778_003
    assert round(count / 1e6, 1) == 21.8
    assert net.num_features == 96


def test_refused_dropout() -> None:
    with pytest.raises(ValueError, match=r"dropout: got 1\.0"):
        SpvcnnConfig(dropout=1.0)


def test_coarse_cells_change_the_features_alone() -> None:
    coords, features, num = scene((60, 35))
    torch.manual_seed(0)
    centre = SpvcnnConfig(preset="spvcnn_tiny", in_channels=3, backend="torch").build().eval()
    corner = SpvcnnConfig(preset="spvcnn_tiny", in_channels=3, backend="torch", coarse_cells="corner").build().eval()
    corner.load_state_dict(centre.state_dict())
    with torch.no_grad():
        assert not torch.allclose(centre(coords, features.float(), num), corner(coords, features.float(), num))
