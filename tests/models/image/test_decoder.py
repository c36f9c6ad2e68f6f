from __future__ import annotations

import pytest
import torch

from models.image.decoder import UNetDecoder
from models.pairing import FeatureMap


def pyramid(size: tuple[int, int], strides: tuple[int, ...], widths: tuple[int, ...]) -> tuple[FeatureMap, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        FeatureMap(torch.randn(2, w, -(-size[0] // s), -(-size[1] // s), generator=generator), s, 0.0)
        for s, w in zip(strides, widths, strict=True)
    )


@pytest.mark.parametrize("size", [(32, 64), (33, 47), (96, 192)])
@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (4, 4, 4, 4), (8,), (1, 2), (2, 4)])
def test_any_pyramid_becomes_channels_of_every_pixel(size: tuple[int, int], strides: tuple[int, ...]) -> None:
    widths = (8, 16, 24, 32)[: len(strides)]
    decoder = UNetDecoder(widths, 3, width=8)
    maps = pyramid(size, strides, widths)
    out = decoder(maps, size)
    assert out.shape == (2, 3, *size)
    out.square().mean().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in decoder.parameters())
    assert all(bool(p.grad.any()) for p in decoder.lateral.parameters() if p.grad is not None and p.ndim > 1)


def test_features_stay_in_their_place() -> None:
    # A decoder that looks at one cell of the finest map must show it where that cell lies.
    torch.manual_seed(0)
    decoder = UNetDecoder((4, 4), 1, width=8).eval().requires_grad_(False)
    maps = pyramid((64, 64), (4, 8), (4, 4))
    plain = decoder(maps, (64, 64))
    for row, column in ((4, 4), (10, 6)):
        values = maps[0].values.clone()
        values[:, :, row, column] += 20.0
        changed = decoder((FeatureMap(values, 4, 0.0), maps[1]), (64, 64))
        # GroupNorm sees the whole map, so everything moves a little; the centre of the change is what counts.
        weight = (changed - plain).abs()[0, 0]
        weight = torch.where(weight > weight.max() / 3, weight, 0.0)
        v = (weight.sum(1) * torch.arange(64.0)).sum() / weight.sum()
        u = (weight.sum(0) * torch.arange(64.0)).sum() / weight.sum()
        assert abs(float(v) - 4 * row) < 3
        assert abs(float(u) - 4 * column) < 3


def test_refused_settings() -> None:
    with pytest.raises(ValueError, match="width = 12"):
        UNetDecoder((4,), 1, width=12)
    with pytest.raises(ValueError, match="0 maps"):
        UNetDecoder((), 1)
