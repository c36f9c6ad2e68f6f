from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models.image.decoder import DenseDepthDecoder, UNetDecoder
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


@pytest.mark.parametrize("size", [(32, 64), (33, 47)])
@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (4, 4, 4, 4), (8,)])
def test_the_literatures_decoder_takes_any_pyramid(size: tuple[int, int], strides: tuple[int, ...]) -> None:
    widths = (8, 16, 24, 32)[: len(strides)]
    decoder = DenseDepthDecoder(widths, 3, width=4)
    out = decoder(pyramid(size, strides, widths), size)
    assert out.shape == (2, 3, *size)
    out.square().mean().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in decoder.parameters())
    assert all(bool(p.grad.any()) for p in decoder.parameters() if p.grad is not None and p.ndim > 1)


def test_the_literatures_decoder_is_its_formula_written_out() -> None:
    torch.manual_seed(0)
    decoder = DenseDepthDecoder((8, 16, 32), 1, width=4).eval().requires_grad_(False)
    for norm in (m for m in decoder.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    maps = pyramid((32, 64), (4, 8, 16), (8, 16, 32))
    state = decoder.state_dict()

    def block(x: torch.Tensor, step: int) -> torch.Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            name = f"steps.{step}.{{}}."
            x = F.conv2d(x, state[name.format(conv) + "weight"], state[name.format(conv) + "bias"], padding=1)
            own = {key: state[name.format(norm) + key][:, None, None] for key in ("running_mean", "running_var")}
            x = (x - own["running_mean"]) / (own["running_var"] + 1e-5).sqrt()
            x = torch.where(x > 0, x, 0.01 * x)
        return x

    def enlarged(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:  # corners on corners, cell by cell
        rows, columns = (torch.linspace(0, old - 1, new) for old, new in zip(x.shape[-2:], size, strict=True))
        r, c = rows.floor().long(), columns.floor().long()
        r1, c1 = (r + 1).clamp(max=x.shape[-2] - 1), (c + 1).clamp(max=x.shape[-1] - 1)
        down, right = (rows - r)[:, None], columns - c
        top = x[:, :, r][..., c] * (1 - right) + x[:, :, r][..., c1] * right
        bottom = x[:, :, r1][..., c] * (1 - right) + x[:, :, r1][..., c1] * right
        return top * (1 - down) + bottom * down

    x = F.conv2d(maps[2].values, state["bottleneck.weight"], state["bottleneck.bias"])
    assert x.shape[1] == 4 * 2**3
    x = block(torch.cat((enlarged(x, (4, 8)), maps[1].values), 1), 0)
    x = block(torch.cat((enlarged(x, (8, 16)), maps[0].values), 1), 1)
    x = block(enlarged(x, (16, 32)), 2)
    x = enlarged(F.conv2d(x, state["last.weight"], state["last.bias"], padding=1), (32, 64))
    torch.testing.assert_close(decoder(maps, (32, 64)), x, rtol=1e-4, atol=1e-5)


def test_refused_settings() -> None:
    with pytest.raises(ValueError, match="width = 12"):
        UNetDecoder((4,), 1, width=12)
    with pytest.raises(ValueError, match="0 maps"):
        UNetDecoder((), 1)
    with pytest.raises(ValueError, match="width = 0"):
        DenseDepthDecoder((4,), 1, width=0)
