"""SPVCNN: the two ways between its branches against loops, structure, degenerate batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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


def cloud(counts: tuple[int, ...] = (120, 80)) -> tuple[Tensor, Tensor, int]:
    coords, features, num = scene(counts, channels=4)
    return coords, features.float(), num


def test_published_size() -> None:
    """21.8 M with four input channels and a linear head for 19 classes (Tang et al. 2020, table 1)."""
    with torch.device("meta"):
        net = SpvcnnConfig(in_channels=4).build()
    count = sum(p.numel() for p in net.parameters()) + sum(p.numel() for p in nn.Linear(96, 19).parameters())
    assert count == 21_778_003
    assert round(count / 1e6, 1) == 21.8
    assert net.num_features == 96


def tiny(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    return SpvcnnConfig(preset="spvcnn_tiny", in_channels=4, **settings).build()  # type: ignore[arg-type]


def test_every_parameter_learns_and_rows_follow_the_input() -> None:
    net = tiny()
    coords, features, num = cloud()
    out = net(coords, features, num)
    assert out.shape == (200, net.num_features)
    out.mul(torch.randn(200, 1)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    shuffle = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(coords, features, num)[shuffle], net(coords[shuffle], features[shuffle], num))


def test_samples_do_not_see_each_other() -> None:
    net = tiny().eval()
    coords, features, num = cloud()
    mine = coords[:, 0] == 1
    with torch.no_grad():
        alone = net(coords[mine] - torch.tensor([1, 0, 0, 0]), features[mine], 1)
        torch.testing.assert_close(net(coords, features, num)[mine], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("counts", [(1,), (0, 1), (0,), (3, 0)])
def test_batches_with_hardly_any_voxel_train(counts: tuple[int, ...]) -> None:
    net = tiny()
    out = net(*cloud(counts))
    out.sum().backward()
    assert out.shape == (sum(counts), net.num_features)
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_bf16_autocast_stays_close() -> None:
    net = tiny(dropout=0.0)
    coords, features, num = cloud()
    exact = net(coords, features, num)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(coords, features, num)
    assert (out.float() - exact).norm() < 0.1 * exact.norm()
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("preset", "spvnas", "preset is 'spvnas'"),
        ("dropout", 1.0, "dropout is 1.0"),
        ("in_channels", 0, "in_channels is 0"),
        ("bn_momentum", 0.0, "bn_momentum is 0.0"),
    ],
)
def test_refused_settings(name: str, value: object, message: str) -> None:
    config = SpvcnnConfig()
    object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=message):
        config.__post_init__()


def test_duplicate_voxels_are_refused() -> None:
    with pytest.raises(ValueError, match="more than once"):
        tiny()(torch.zeros(2, 4, dtype=torch.int32), torch.ones(2, 4), 1)
