"""Deformable convolution against loops, and against the ordinary one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.image.deformable import DeformableConv2d


def _value(plane: Tensor, y: float, x: float) -> float:
    """Bilinear, 0 outside of the map."""
    height, width = plane.shape
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * float(plane[row, column])
    return total


def _loop(conv: DeformableConv2d, x: Tensor) -> Tensor:
    images, _, height, width = x.shape
    moves = conv.offset(x).detach()
    out = torch.zeros(images, conv.out_channels, height, width, dtype=x.dtype)
    for image in range(images):
        for i in range(height):
            for j in range(width):
                for tap in range(9):
                    at_x = j + tap % 3 - 1 + float(moves[image, tap, i, j])
                    at_y = i + tap // 3 - 1 + float(moves[image, 9 + tap, i, j])
                    weight = 1 / (1 + math.exp(-float(moves[image, 18 + tap, i, j])))
                    read = torch.tensor([_value(plane, at_y, at_x) for plane in x[image]], dtype=x.dtype)
                    out[image, :, i, j] += weight * conv.weight[:, :, tap // 3, tap % 3].detach() @ read
    return out if conv.bias is None else out + conv.bias.detach()[None, :, None, None]


@pytest.mark.parametrize("size", [(4, 5), (1, 1), (1, 3)], ids=str)
def test_it_equals_the_loop(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = DeformableConv2d(2, 3).double()
    torch.nn.init.normal_(conv.offset.weight)  # taps move by some cells, also out of the map
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    torch.testing.assert_close(conv(x), _loop(conv, x))


def test_it_begins_as_half_of_the_ordinary_one_and_learns_to_move() -> None:
    torch.manual_seed(0)
    conv, x = DeformableConv2d(2, 3, bias=False), torch.randn(1, 2, 6, 7)
    torch.testing.assert_close(2 * conv(x), F.conv2d(x, conv.weight, padding=1))
    conv(x).square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in conv.parameters())
    torch.nn.init.constant_(conv.offset.bias[:9], 1.0)  # type: ignore[index]
    moved = F.pad(x, (0, 1))[..., 1:]
    torch.testing.assert_close(2 * conv(x)[..., 1:-1], F.conv2d(moved, conv.weight, padding=1)[..., 1:-1])
