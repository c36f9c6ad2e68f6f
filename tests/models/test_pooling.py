"""Means over superpixels without pixels, against means of pixels."""

import pytest
import torch
from torch import Tensor

from models.heads import PixelHead
from models.pairing import FeatureMap
from models.pooling import segment_mean_of_map, segment_mean_of_unit_pixels
from tests.reference.contrast import segment_mean_loop, upsample_loop
from tests.reference.pooling import mean_of_interpolated, mean_of_pixels

GRIDS = {
    "cells in the middle": (4, 1.5, (3, 4), (12, 16)),
    "padded network, sizes not multiples": (4, 0.0, (4, 4), (13, 15)),
    "first cell inside": (4, 3.0, (7, 9), (30, 37)),
    "every second pixel": (2, -0.5, (5, 5), (10, 9)),
    "a cell a pixel": (1, 0.0, (6, 6), (6, 6)),
    "one cell": (8, 3.5, (1, 1), (5, 6)),
    "one row": (4, 1.5, (1, 5), (4, 20)),
}


def _case(name: str, channels: int = 6, dtype: torch.dtype = torch.float64) -> tuple[FeatureMap, Tensor]:
    """Two images of random cells; superpixels of one to many pixels, some empty, some pixels in none."""
    stride, origin, cells, size = GRIDS[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    values = torch.randn(2, channels, *cells, generator=generator, dtype=dtype).requires_grad_()
    ids = torch.randint(-1, 9, (2, *size), generator=generator).clamp(max=6)
    ids[ids == 3] = -1  # nobody's; 3 and 11 stay empty
    ids[0, 0, 0] = 2
    ids[0, 1:][ids[0, 1:] == 2] = -1
    ids[1] = torch.where(ids[1] < 0, -1, ids[1] + 8)
    return FeatureMap(values, stride, origin), ids


def _difference(got: Tensor, wanted: Tensor) -> float:
    """Largest, over the largest value."""
    return float((got.detach().double() - wanted.detach().double()).abs().max() / wanted.detach().double().abs().max())


@pytest.mark.parametrize("name", GRIDS)
def test_unit_means_and_gradient_equal_those_of_pixels(name: str):
    maps, ids = _case(name)
    got, wanted = segment_mean_of_unit_pixels(maps, ids, 16), mean_of_pixels(maps, ids, 16, unit=True)
    assert _difference(got, wanted) < 1e-13
    assert (got[[3, 7, 11, 15]] == 0).all()
    direction = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad(mean, maps.values, direction)[0] for mean in (got, wanted)]
    assert _difference(*gradients) < 1e-13


@pytest.mark.parametrize(
    ("dtype", "value", "gradient"), [(torch.float32, 1e-6, 1e-6), (torch.bfloat16, 1e-6, 5e-3)], ids=["fp32", "bf16"]
)
def test_rounding(dtype: torch.dtype, value: float, gradient: float):
    """Against double precision. Of bfloat16 cells only the gradient that goes back to them is rounded."""
    maps, ids = _case("first cell inside", channels=64, dtype=dtype)
    got = segment_mean_of_unit_pixels(maps, ids, 16)
    assert got.dtype is torch.float32
    exact = FeatureMap(maps.values.detach().double().requires_grad_(), maps.stride, maps.origin_px)
    wanted = mean_of_pixels(exact, ids, 16, unit=True)
    assert _difference(got, wanted) < value
    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    (of_cells,) = torch.autograd.grad(got, maps.values, direction)
    assert of_cells.dtype is dtype
    assert _difference(of_cells, torch.autograd.grad(wanted, exact.values, direction.double())[0]) < gradient


def test_unit_means_gradient_by_finite_differences():
    maps, ids = _case("padded network, sizes not multiples", channels=3)
    stride, origin = maps.stride, maps.origin_px
    assert torch.autograd.gradcheck(
        lambda cells: segment_mean_of_unit_pixels(FeatureMap(cells, stride, origin), ids, 16), (maps.values,)
    )


@pytest.mark.parametrize("align_corners", [False, True])
def test_unit_means_equal_those_of_torchs_interpolation(align_corners: bool):
    """Corners not aligned: cells in the middle of their pixels; aligned: 5 cells on pixels 0, 3, 6, 9, 12."""
    cells = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    size, maps = (13, FeatureMap(cells, 3, 0.0)) if align_corners else (15, FeatureMap(cells, 3, 1.0))
    ids = torch.randint(-1, 7, (2, size, size))
    ids[1] += 7 * (ids[1] >= 0)
    wanted = mean_of_interpolated(cells, ids, 14, align_corners=align_corners)
    torch.testing.assert_close(segment_mean_of_unit_pixels(maps, ids, 14), wanted)


def test_layout_of_memory_changes_nothing():
    maps, ids = _case("cells in the middle", dtype=torch.float32)
    other = FeatureMap(maps.values.to(memory_format=torch.channels_last), maps.stride, maps.origin_px)
    assert segment_mean_of_unit_pixels(maps, ids, 16).equal(segment_mean_of_unit_pixels(other, ids, 16))


def test_zero_cells_stay_zero_with_finite_gradient():
    maps, ids = FeatureMap(torch.zeros(1, 3, 2, 2, requires_grad=True), 4, 1.5), torch.zeros(1, 8, 8, dtype=torch.long)
    mean = segment_mean_of_unit_pixels(maps, ids, 1)
    (gradient,) = torch.autograd.grad(mean.sum(), maps.values)
    assert (mean == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("nudge", [0.0, 1e-7, 1e-4])
def test_cells_that_cancel_do_not_explode(nudge: float):
    """Halfway between opposite cells rounding is all that is left: no pixel counts with more than its length."""
    cells = torch.tensor([[[[1.0, -1.0 + nudge]], [[0.5, -0.5]]]], requires_grad=True)
    ids = torch.arange(3)[None, None]
    means = segment_mean_of_unit_pixels(FeatureMap(cells, 2, 0.0), ids, 3)
    assert (means.norm(dim=1) < 1.1).all()
    torch.testing.assert_close(means[0], means[0] / means[0].norm())
    (gradient,) = torch.autograd.grad(means.sum(), cells)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e4


@pytest.mark.parametrize(("images", "segments"), [(0, 3), (2, 0), (2, 4)])
def test_no_images_no_segments_or_no_pixel_in_any(images: int, segments: int):
    cells = torch.randn(images, 3, 2, 2, requires_grad=True)
    ids = torch.full((images, 8, 8), -1)
    means = segment_mean_of_unit_pixels(FeatureMap(cells, 4, 1.5), ids, segments)
    assert means.shape == (segments, 3)
    (gradient,) = torch.autograd.grad(means.sum(), cells)
    assert gradient.shape == cells.shape
    assert (gradient == 0).all()


def test_float32_under_autocast_in_both_passes():
    maps, ids = _case("first cell inside", channels=16, dtype=torch.float32)
    plain = segment_mean_of_unit_pixels(maps, ids, 16)
    (plain_gradient,) = torch.autograd.grad(plain.square().sum(), maps.values)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = segment_mean_of_unit_pixels(maps, ids, 16)
        (mixed_gradient,) = torch.autograd.grad(mixed.square().sum(), maps.values)
    assert mixed.equal(plain)
    assert mixed_gradient.equal(plain_gradient)


def test_head_equals_the_mean_of_its_pixels():
    torch.manual_seed(0)
    head = PixelHead(6, 5).double()
    maps, ids = _case("padded network, sizes not multiples")
    got = head.segment_mean(maps, ids, 16)
    pixels = head(maps, (13, 15)).movedim(1, -1).reshape(-1, 5)
    wanted, _ = segment_mean_loop(pixels, ids.flatten(), 16)
    torch.testing.assert_close(got, wanted)
    parameters = list(head.parameters())
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), parameters),
        torch.autograd.grad(wanted.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pairs", [5, 100], ids=["fewer pairs than cells", "more"])
def test_head_reads_pixels_in_either_order(pairs: int):
    torch.manual_seed(0)
    head = PixelHead(6, 5).double()
    cells = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    image, v, u = (torch.randint(0, end, (pairs,)) for end in (2, 12, 16))
    got = head.read(FeatureMap(cells, 4, 1.5), image, torch.stack([u, v], dim=1).double())
    linear = torch.einsum("ichw,dc->idhw", cells, head.linear.weight) + head.linear.bias[:, None, None]
    pixels = torch.stack([upsample_loop(one, (12, 16), 4, 1.5) for one in linear])
    wanted = pixels[image, :, v, u]
    torch.testing.assert_close(got, wanted / wanted.norm(dim=1, keepdim=True))


def test_peak_is_far_less_than_pixels_times_channels():
    """What lives until the backward pass: the cells, and two numbers and an id a pixel."""
    cells = torch.randn(1, 64, 40, 80, requires_grad=True)
    ids = (torch.arange(160)[:, None] // 16 * 10 + torch.arange(320) // 32)[None]
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        segment_mean_of_unit_pixels(FeatureMap(cells, 4, 1.5), ids, 100).sum()
    assert saved <= cells.numel() + 4 * ids.numel()


def test_results_are_bit_equal_from_run_to_run():
    maps, ids = _case("first cell inside", channels=64, dtype=torch.float32)
    found = []
    for _ in range(2):
        means = segment_mean_of_unit_pixels(maps, ids, 16)
        found.append((means, torch.autograd.grad(means.square().sum(), maps.values)[0]))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# ---- without unit length


def test_pooling_a_map_equals_pooling_its_pixels():
    torch.manual_seed(3)
    cells = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    first = torch.randint(-1, 6, (1, 12, 16))
    second = torch.where(first < 0, -1, first + 6)
    segments = torch.cat([first, second])
    got, counts = segment_mean_of_map(FeatureMap(cells, 4, 1.5), segments, 13)
    pixels = torch.stack([upsample_loop(one, (12, 16), 4, 1.5) for one in cells]).movedim(1, -1).reshape(-1, 5)
    wanted, wanted_counts = segment_mean_loop(pixels, segments.flatten(), 13)
    torch.testing.assert_close(got, wanted)
    assert counts.tolist() == wanted_counts.tolist()


def test_pooling_a_map_gradient():
    segments = torch.tensor([[[0, 0, 1, 1], [0, 2, 2, -1], [0, 2, 1, 1], [0, 0, 0, 1]]])
    cells = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: segment_mean_of_map(FeatureMap(x, 2, 0.5), segments, 3)[0], (cells,))


def test_pooling_a_map_keeps_far_less_than_segments_times_pixels():
    cells = torch.randn(1, 8, 40, 80, requires_grad=True)
    segments = torch.arange(150).repeat_interleave(160 * 320 // 150 + 1)[: 160 * 320].view(1, 160, 320)
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        segment_mean_of_map(FeatureMap(cells, 4, 1.5), segments, 150)[0].sum()
    assert saved < 150 * 160 * 320 / 8
