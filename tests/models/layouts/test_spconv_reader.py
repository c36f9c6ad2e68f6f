"""spconv's layers as functions: which cell of a kernel meets which neighbour."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

from models.layouts.spconv_reader import batch_norm, dense, inverse, spconv_library, strided, submanifold, voxels

pytest.importorskip("spconv")

CELLS = list(itertools.product(range(3), repeat=3))


def impulse(place: tuple[int, int, int], size: tuple[int, int, int] = (3, 3, 3)) -> torch.Tensor:
    kernel = torch.zeros(1, *size, 1)
    kernel[0, place[0], place[1], place[2], 0] = 1
    return kernel


def one(*cells: tuple[int, int, int], shape: tuple[int, int, int] = (6, 8, 10)) -> object:
    indices = torch.tensor([(0, *cell) for cell in cells], dtype=torch.int32)
    features = torch.arange(1.0, len(cells) + 1)[:, None]
    return voxels(features, indices, shape, 1)


@pytest.mark.parametrize("place", CELLS, ids=str)
def test_a_submanifold_kernel_reads_the_neighbour_at_its_own_place(place: tuple[int, int, int]) -> None:
    neighbour = tuple(3 + step - 1 for step in place)
    x = one((3, 3, 3), *([neighbour] if neighbour != (3, 3, 3) else []))  # type: ignore[arg-type]
    out = submanifold(x, impulse(place), bias=torch.tensor([0.5]))
    assert out.features[0].item() == (1.5 if neighbour == (3, 3, 3) else 2.5)


@pytest.mark.parametrize("place", list(itertools.product(range(2), repeat=3)), ids=str)
def test_strided_and_inverse_kernels_number_the_children_alike(place: tuple[int, int, int]) -> None:
    child = (4 + place[0], 2 + place[1], 6 + place[2])
    down = strided(one(child), impulse(place, (2, 2, 2)), stride=(2, 2, 2), padding=(0, 0, 0), key="down")
    assert down.indices.tolist() == [[0, 2, 1, 3]]
    assert down.features.item() == 1
    back = inverse(down, impulse(place, (2, 2, 2)), key="down")
    assert back.indices.tolist() == [[0, *child]]
    assert back.features.item() == 1
    other = (1 - place[0], place[1], place[2])
    assert inverse(down, impulse(other, (2, 2, 2)), key="down").features.item() == 0


def test_a_strided_kernel_is_that_of_a_dense_convolution() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = torch.rand(1, 2, 6, 8, 10, generator=generator)
    kernel = torch.rand(3, 3, 1, 2, 2, generator=generator)
    cells = torch.cartesian_prod(torch.arange(1), torch.arange(6), torch.arange(8), torch.arange(10)).int()
    x = voxels(grid.flatten(2)[0].T, cells, (6, 8, 10), 1)
    out = dense(strided(x, kernel, stride=(2, 1, 2), padding=(1, 0, 0)))
    expected = torch.nn.functional.conv3d(grid, kernel.permute(0, 4, 1, 2, 3), stride=(2, 1, 2), padding=(1, 0, 0))
    torch.testing.assert_close(out, expected)


def test_batch_norm_states_its_eps() -> None:
    state = {
        "n.running_mean": torch.tensor([1.0]),
        "n.running_var": torch.tensor([3.0]),
        "n.weight": torch.tensor([2.0]),
        "n.bias": torch.tensor([0.5]),
    }
    assert batch_norm(torch.tensor([[5.0]]), state, "n", eps=1.0).item() == pytest.approx(4.5)


def test_without_spconv_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    monkeypatch.setitem(sys.modules, "spconv", None)
    with pytest.raises(ValueError, match=r"pip install spconv==2\.3\.8"):
        spconv_library()
