"""Projection heads."""

import pytest
import torch

from models.heads import MLPHead, PixelHead, PointHead, unit
from models.pairing import FeatureMap
from tests.reference.contrast import upsample_loop


def test_point_head_is_linear_and_of_unit_length():
    head = PointHead(96, 64)
    assert sum(p.numel() for p in head.parameters()) == 96 * 64 + 64
    rows = torch.randn(10, 96)
    out = head(rows)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(10))
    linear = rows @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(out, linear / linear.norm(dim=1, keepdim=True))


def test_pixel_head_equals_convolution_upsampling_norm():
    head = PixelHead(7, 5).double()
    cells = torch.randn(2, 7, 3, 4, dtype=torch.float64)
    out = head(FeatureMap(cells, 4, 1.5), (12, 16))
    conv = torch.nn.functional.conv2d(cells, head.linear.weight[:, :, None, None], head.linear.bias)
    for image in range(2):
        pixels = upsample_loop(conv[image], (12, 16), 4, 1.5)
        torch.testing.assert_close(out[image], pixels / pixels.norm(dim=0, keepdim=True))


def test_pixel_head_on_vectors_equals_a_constant_map():
    head = PixelHead(7, 5)
    vector = torch.randn(1, 7)
    out = head(FeatureMap(vector[:, :, None, None].expand(1, 7, 2, 2), 2, 0.5), (4, 4))
    torch.testing.assert_close(out[0, :, 1, 2], head.pooled(vector)[0])


def test_mlp_head():
    head = MLPHead(8, 16, 4)
    out = head(torch.randn(32, 8))
    torch.testing.assert_close(out.norm(dim=1), torch.ones(32))
    out.sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_zero_rows_stay_zero_with_finite_gradient():
    rows = torch.zeros(3, 4, requires_grad=True)
    unit(rows).sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalised_in_float32(dtype: torch.dtype):
    out = unit(torch.randn(5, 64).to(dtype))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=1), torch.ones(5))
