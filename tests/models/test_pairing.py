"""Means over segments and reading at pixels, against loops."""

import pytest
import torch
import torch.nn.functional as F

from models.pairing import (
    FeatureMap,
    read_pixels,
    resample_cells,
    segment_mean,
    upsample_to_pixels,
)
from tests.reference.contrast import bilinear_at, segment_mean_loop, upsample_loop


def test_segment_mean_equals_loop():
    torch.manual_seed(0)
    features = torch.randn(60, 5, dtype=torch.float64)
    index = torch.randint(-1, 7, (60,))
    index[index == 3] = -1  # an empty segment
    means, counts = segment_mean(features, index, 7)
    wanted, wanted_counts = segment_mean_loop(features, index, 7)
    torch.testing.assert_close(means, wanted)
    assert counts.tolist() == wanted_counts.tolist()
    assert counts[3] == 0
    assert (means[3] == 0).all()


def test_segment_mean_gradient():
    features = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 0, 2, -1, 2, 2, 3, 3, 0])
    assert torch.autograd.gradcheck(lambda x: segment_mean(x, index, 5)[0], (features,))


def test_segment_mean_counts_beyond_half_precision():
    # 256 + 1 is 256 in bfloat16: counting there would stop at 256 rows.
    means, counts = segment_mean(torch.ones(3000, 1, dtype=torch.bfloat16), torch.zeros(3000, dtype=torch.long), 1)
    assert counts.item() == 3000
    assert means.item() == 1.0


def test_segment_mean_of_no_rows():
    means, counts = segment_mean(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 3)
    assert means.shape == (3, 4)
    assert counts.sum() == 0


@pytest.mark.parametrize(("stride", "origin"), [(4, 1.5), (4, 0.0), (8, 7.0)])
def test_upsampling_equals_loop(stride: int, origin: float):
    torch.manual_seed(1)
    cells = torch.randn(3, 3, 5, dtype=torch.float64)
    size = (3 * stride, 5 * stride)
    got = upsample_to_pixels(FeatureMap(cells[None], stride, origin), size)[0]
    torch.testing.assert_close(got, upsample_loop(cells, size, stride, origin))


def test_upsampling_equals_interpolate_where_both_are_defined():
    cells = torch.randn(2, 3, 4, 6)
    got = upsample_to_pixels(FeatureMap(cells, 4, 1.5), (16, 24))
    torch.testing.assert_close(got, F.interpolate(cells, scale_factor=4, mode="bilinear", align_corners=False))


def test_a_ramp_of_pixel_coordinates_keeps_its_place():
    # A map whose value is the pixel under each cell's centre must give each pixel its own coordinate.
    stride, origin = 8, 3.5
    centres = origin + stride * torch.arange(6.0)
    ramp = centres.expand(1, 1, 6, 6)
    columns = upsample_to_pixels(FeatureMap(ramp, stride, origin), (48, 48))[0, 0, 0]
    inside = (columns >= centres[0]) & (columns <= centres[-1])
    pixels = torch.arange(48.0)
    torch.testing.assert_close(columns[4:44], pixels[4:44])
    assert inside.all()


def test_resample_to_the_same_grid_is_the_same_map():
    cells = torch.randn(1, 2, 3, 3)
    assert resample_cells(cells, (3, 3), scale=1.0, offset=0.0) is cells


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_read_pixels(mode: str):
    torch.manual_seed(2)
    cells = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    image = torch.randint(0, 2, (40,))
    uv = torch.rand(40, 2) * torch.tensor([26.0, 18.0]) - 1  # also outside
    got = read_pixels(FeatureMap(cells, 4, 1.5), image, uv, mode=mode)
    for row, i, (u, v) in zip(got, image.tolist(), uv.tolist(), strict=True):
        if mode == "nearest":
            x = min(max(round((u - 1.5) / 4), 0), 5)
            y = min(max(round((v - 1.5) / 4), 0), 3)
            wanted = cells[i, :, y, x]
        else:
            wanted = bilinear_at(cells[i], u, v, 4, 1.5)
        torch.testing.assert_close(row, wanted, atol=1e-6, rtol=1e-6)


def test_reading_integer_pixels_equals_upsampling():
    cells = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    whole = upsample_to_pixels(FeatureMap(cells, 4, 0.0), (12, 16))
    v, u = torch.meshgrid(torch.arange(12), torch.arange(16), indexing="ij")
    uv = torch.stack([u.flatten(), v.flatten()], dim=1).double()
    rows = read_pixels(FeatureMap(cells, 4, 0.0), torch.zeros(len(uv), dtype=torch.long), uv)
    torch.testing.assert_close(rows.T.reshape(2, 12, 16), whole[0])
