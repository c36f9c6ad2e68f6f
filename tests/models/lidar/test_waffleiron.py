"""WaffleIron: its parts against slow references, where points lie in its planes, and what drop path skips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.interfaces import HasLayers
from models.lidar.waffleiron import (
    ChannelMix,
    Embedding,
    FlatGrid,
    SpatialMix,
    WaffleIron,
    WaffleIronConfig,
    nearest_others,
)
from tests.reference import waffleiron as reference

WIDTH = 5
CELLS = [(0, 0, 0), (0, 0, 0), (0, 2, 3), (1, 1, 1), (1, 1, 2), (1, 0, 3), (1, 1, 1)]
SHAPE = (2, 3, 4)


def norm_of(kind: str) -> nn.BatchNorm1d | nn.LayerNorm:
    norm = nn.LayerNorm(WIDTH) if kind == "layer" else nn.BatchNorm1d(WIDTH)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def grid_of(cells: list[tuple[int, int, int]]) -> FlatGrid:
    sample = torch.tensor([cell[0] for cell in cells])
    flat = torch.tensor([(s * SHAPE[1] + y) * SHAPE[2] + x for s, y, x in cells])
    return FlatGrid.of(flat, sample, SHAPE)


def same_with_gradients(module: nn.Module, got: Tensor, expected: Tensor, tokens: Tensor) -> None:
    """Values, and the gradients of all parameters and the tokens."""
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(got)
    wanted = [tokens, *module.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), wanted),
        torch.autograd.grad((expected * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("kind", [SpatialMix, ChannelMix])
def test_mixing_equals_the_slow_reference(kind: type[SpatialMix] | type[ChannelMix], norm: str) -> None:
    torch.manual_seed(0)
    mix = kind(WIDTH, norm_of(norm), drop_path=0.0).double()
    tokens = torch.randn(len(CELLS), WIDTH, dtype=torch.float64, requires_grad=True)
    got = mix(tokens, grid_of(CELLS))
    if kind is SpatialMix:
        expected = reference.spatial_mix(mix, tokens, CELLS, SHAPE[1:])
    else:
        expected = reference.channel_mix(mix, tokens)
    same_with_gradients(mix, got, expected, tokens)


def test_the_embedding_equals_the_slow_reference() -> None:
    torch.manual_seed(1)
    embed = Embedding(4, WIDTH, 3, bn_momentum=0.1).double()
    inputs = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    places = torch.randn(12, 3, dtype=torch.float64)
    sample = [0] * 5 + [1] * 7
    got = embed(inputs, places, torch.tensor([5, 7]))
    same_with_gradients(embed, got, reference.embedding(embed, inputs, places, sample), inputs)


def test_neighbours_of_small_samples() -> None:
    places = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [5.0, 0, 0], [9.0, 9, 9]])
    found = nearest_others(places, torch.tensor([3, 0, 1]), 4)
    assert found.tolist() == [[1, 2, 1, 1], [0, 2, 0, 0], [1, 0, 1, 1], [3, 3, 3, 3]]


def test_cells_of_the_planes() -> None:
    net = WaffleIronConfig(
        preset="waffleiron_tiny", cell_m=1.0, range_min_m=(0.0, -2.0, -1.0), range_max_m=(4.0, 2.0, 1.0)
    ).build()
    places = torch.tensor([[0.0, -2.0, -1.0], [3.9, 1.9, 0.9], [1.5, 0.2, -0.1], [9.0, -9.0, 9.0]])
    sample = torch.tensor([0, 0, 1, 1])
    above, side, front = (net._grid(plane, places, sample, 2) for plane in net.planes)
    assert (above.shape, side.shape, front.shape) == ((2, 4, 4), (2, 4, 2), (2, 4, 2))
    assert above.cell.tolist() == [0, 15, 16 + 1 * 4 + 2, 16 + 3 * 4 + 0]
    assert side.cell.tolist() == [0, 7, 8 + 1 * 2 + 0, 8 + 3 * 2 + 1]  # beyond the range: the rim
    assert front.cell.tolist() == [0, 7, 8 + 2 * 2 + 0, 8 + 0 * 2 + 1]


@pytest.mark.parametrize(
    ("config", "cells", "millions"),
    [
        (WaffleIronConfig(), (256, 256, 32), 59.44),
        (WaffleIronConfig(preset="waffleiron_48_384", cell_m=0.6, range_min_m=(-50.0, -50.0, -5.0),
                          range_max_m=(50.0, 50.0, 5.0)), (166, 166, 16), 15.1),
        (WaffleIronConfig(preset="waffleiron_48_256", cell_m=0.4), (320, 320, 40), 6.8),
        (WaffleIronConfig(preset="waffleiron_tiny"), (256, 256, 32), 0.04),
    ],
    ids=lambda value: value.preset if isinstance(value, WaffleIronConfig) else None,
)  # fmt: skip
def test_sizes(config: WaffleIronConfig, cells: tuple[int, int, int], millions: float) -> None:
    """Cells and parameters."""
    assert config.num_cells == cells
    with torch.device("meta"):
        net = config.build()
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def toy(**settings: object) -> tuple[WaffleIron, tuple[Tensor, Tensor, int]]:
    torch.manual_seed(2)
    settings = {"preset": "waffleiron_tiny", "range_min_m": (-4.0,) * 3, "range_max_m": (4.0,) * 3} | settings
    net = WaffleIronConfig(**settings).build()  # type: ignore[arg-type]
    coords = torch.unique(torch.randint(-8, 8, (60, 3)), dim=0)
    coords = torch.cat([(torch.arange(len(coords)) % 3).unsqueeze(1), coords], dim=1).int()
    return net, (coords, torch.cat([0.5 * coords[:, 1:], torch.rand(len(coords), 1)], dim=1), 3)


def test_drop_path_skips_whole_samples_in_training_alone() -> None:
    net, _ = toy()
    mix = ChannelMix(48, nn.LayerNorm(48), drop_path=0.5)
    cells = [(s, 0, 0) for s in range(200) for _ in range(2)]
    sample = torch.tensor([cell[0] for cell in cells])
    grid = FlatGrid.of(sample, sample, (200, 1, 1))
    tokens = torch.randn(400, 48)
    with torch.no_grad():
        change = mix(tokens, grid) - tokens
        whole = mix.eval()(tokens, grid) - tokens
    skipped = (change == 0).all(dim=1).view(200, 2)
    assert torch.equal(skipped[:, 0], skipped[:, 1])
    assert 60 < int(skipped[:, 0].sum()) < 140
    kept = ~skipped.flatten()
    torch.testing.assert_close(change[kept], 2 * whole[kept], rtol=1e-4, atol=1e-4)
    assert net.training


@pytest.mark.parametrize("drop_path", [0.0, 0.3])
def test_the_same_seed_gives_the_same_features(drop_path: float) -> None:
    net, batch = toy(drop_path=drop_path)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(net(*batch))
    assert torch.equal(*found)


def test_each_layer_has_its_number() -> None:
    net, _ = toy()
    assert isinstance(net, HasLayers)
    numbers = {net.layer_of(name) for name, _ in net.named_parameters()}
    assert numbers == set(range(net.num_layers)) == set(range(7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell_m": 0.0}, "cell_m: got 0.0"),
        ({"num_neighbors": 0}, "num_neighbors: got 0, expected at least 1"),
        ({"drop_path": 1.0}, "drop_path: got 1.0, expected below 1"),
        ({"in_channels": 2}, "in_channels: got 2, expected at least 3"),
        ({"range_max_m": (64.0, 64.0, -7.9)}, "at least a cell of 0.5 m below range_max_m"),
    ],
)
def test_refused_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaffleIronConfig(**settings)  # type: ignore[arg-type]


def test_coordinates_that_are_not_finite_are_refused() -> None:
    net, (coords, features, num) = toy()
    features[3, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        net(coords, features, num)
