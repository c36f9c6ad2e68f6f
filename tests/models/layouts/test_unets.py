"""U-Nets in other projects' layouts: names and shapes there, equal features by readers of their own, faults caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.layouts.base import Layout, from_theirs, to_theirs
from models.layouts.slidr import SlidrLayout
from models.layouts.torchsparse import TorchsparseLayout
from models.lidar import res16unet
from models.lidar.base import Backbone, BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.spvcnn import SpvcnnConfig
from tests.helpers import documented_unets as documented
from tests.helpers.documented_unets import DEEP, TWO, Shapes, Tree

CORNER = SpvcnnConfig(in_channels=4, backend="torch", coarse_cells="corner")


def unet(preset: res16unet.Preset, in_channels: int = 4) -> Res16UNetConfig:
    return Res16UNetConfig(preset=preset, in_channels=in_channels, backend="torch")


NAMES = [
    pytest.param(TorchsparseLayout(), unet("minkunet34"), documented.torchsparse_unet(4, DEEP), id="torchsparse-34"),
    pytest.param(TorchsparseLayout(), unet("minkunet18"), documented.torchsparse_unet(4, TWO), id="torchsparse-18"),
    pytest.param(TorchsparseLayout(), CORNER, documented.torchsparse_spvcnn(4), id="torchsparse-spvcnn"),
    pytest.param(SlidrLayout(), unet("res16unet34c", 1), documented.minkowski_unet(1, DEEP, 3), id="slidr-34c"),
]

FEATURES = [
    pytest.param(TorchsparseLayout(), unet("minkunet18"), id="torchsparse"),
    pytest.param(TorchsparseLayout(), CORNER, id="torchsparse-spvcnn"),
    pytest.param(SlidrLayout(), unet("res16unet18"), id="slidr"),
]
"""With narrow networks, see `narrow`."""


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets with few channels, all of different numbers where the network allows it."""
    for preset, sizes in list(res16unet._LAYOUTS.items()):
        small = dataclasses.replace(sizes, stem=5, channels=(6, 7, 8, 9, 10, 11, 12, 13), blocks=(1, 2) * 4)
        monkeypatch.setitem(res16unet._LAYOUTS, preset, small)


def trained(config: BackboneConfig) -> Backbone:
    """A network whose BatchNorms are far from neutral."""
    torch.manual_seed(5)
    network = config.build().eval()
    assert isinstance(network, Backbone)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return network


def voxels(features: int = 4) -> tuple[Tensor, Tensor, int]:
    """Two samples, negative coordinates among them, in no order."""
    generator = torch.Generator().manual_seed(2)
    cells = torch.randint(-5, 6, (150, 3), generator=generator)
    sample = torch.randint(0, 2, (150, 1), generator=generator)
    coords = torch.unique(torch.cat([sample, cells], dim=1), dim=0).int()
    coords = coords[torch.randperm(len(coords), generator=generator)]
    return coords, torch.rand(len(coords), features, generator=generator), 2


def difference(layout: Layout, network: Backbone, state: dict[str, Tensor]) -> float:
    """Largest difference of the features, over the largest feature."""
    inputs = voxels()
    with torch.no_grad():
        ours = network(*inputs)
        return float((layout.features(state, network, inputs) - ours).abs().max() / ours.abs().max())


@pytest.mark.parametrize(("layout", "config", "shapes"), NAMES)
def test_names_and_shapes_are_the_documented_ones(layout: Layout, config: BackboneConfig, shapes: Shapes) -> None:
    with torch.device("meta"):
        network = config.build()
    places = layout.places(network)
    tensors = {places[key].key: places[key].out(value) for key, value in network.state_dict().items()}
    with torch.device("meta"):
        tree = Tree(shapes)
    result = tree.load_state_dict(tensors, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert {key: tuple(value.shape) for key, value in tensors.items()} == shapes


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("layout", "config"), FEATURES)
def test_features_are_equal_there_and_tensors_come_back(layout: Layout, config: BackboneConfig) -> None:
    network = trained(config)
    state = to_theirs(layout, network)
    assert difference(layout, network, state) < 1e-5
    content = layout.wrap(state, {"step": "3"})
    unwrapped = layout.unwrap(content)
    assert unwrapped.keys() == state.keys()
    back, unknown = from_theirs(layout, unwrapped, network)
    assert unknown == ()
    assert back.keys() == network.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in network.state_dict().items())
    assert not layout.unwrap({"model": {"something.else": torch.zeros(1)}})


def reversed_offsets(kernel: Tensor) -> Tensor:
    return kernel.flip(0)


def other_axis_fastest(kernel: Tensor) -> Tensor:
    size = round(len(kernel) ** (1 / 3))
    return kernel.reshape(size, size, size, *kernel.shape[1:]).transpose(0, 2).reshape(kernel.shape)


OFFSET_FAULTS = {"reversed": reversed_offsets, "other axis fastest": other_axis_fastest}


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("fault", OFFSET_FAULTS)
@pytest.mark.parametrize(
    ("layout", "config", "keys"),
    [
        pytest.param(
            TorchsparseLayout(),
            unet("minkunet18"),
            ["stem.3.kernel", "stage3.0.net.0.kernel", "stage2.1.net.3.kernel", "up1.0.net.0.kernel"],
            id="torchsparse",
        ),
        pytest.param(
            SlidrLayout(),
            unet("res16unet18"),
            ["conv0p1s1.kernel", "conv3p4s2.kernel", "block2.0.conv2.kernel", "convtr4p16s2.kernel"],
            id="slidr",
        ),
    ],
)
def test_a_turned_kernel_is_caught(layout: Layout, config: BackboneConfig, keys: list[str], fault: str) -> None:
    network = trained(config)
    state = to_theirs(layout, network)
    turn: Callable[[Tensor], Tensor] = OFFSET_FAULTS[fault]
    for key in keys:
        assert difference(layout, network, {**state, key: turn(state[key])}) > 1e-3, key


@pytest.mark.usefixtures("narrow")
def test_swapped_convolutions_a_wrong_eps_and_wrong_cells_are_caught() -> None:
    layout, network = TorchsparseLayout(), trained(unet("minkunet18"))
    state = to_theirs(layout, network)
    one, two = "stage4.2.net.0.kernel", "stage4.2.net.3.kernel"
    assert difference(layout, network, {**state, one: state[two], two: state[one]}) > 1e-3
    network.get_submodule("stem_norm").eps = 0.1  # type: ignore[assignment]
    assert difference(layout, network, state) > 1e-3
    with pytest.raises(ValueError, match=r"stem_norm has eps 0\.1, and torchsparse .* builds it with 1e-05"):
        to_theirs(layout, network)

    spvcnn = trained(CORNER)
    state = to_theirs(layout, spvcnn)
    spvcnn.coarse_cells = "centre"  # type: ignore[assignment]
    assert difference(layout, spvcnn, state) > 1e-3


@pytest.mark.parametrize(
    ("layout", "config", "message"),
    [
        (TorchsparseLayout(), unet("res16unet34c"), r"stem has two convolutions.* nearest preset is minkunet34"),
        (TorchsparseLayout(), unet("res16unet_tiny"), r"stem has two convolutions.* nearest preset is minkunet18"),
        (TorchsparseLayout(), SpvcnnConfig(preset="spvcnn_tiny"), r"nearest preset is spvcnn"),
        (TorchsparseLayout(), SpvcnnConfig(), r"method\.backbone\.coarse_cells=corner"),
        (SlidrLayout(), unet("minkunet18"), r"SLidR's layout has one convolution as stem, this network two"),
        (SlidrLayout(), SpvcnnConfig(), r"the backbone is a Spvcnn; SLidR's layout is for a Res16UNet"),
    ],
    ids=str,
)
def test_what_has_no_counterpart_is_refused(layout: Layout, config: BackboneConfig, message: str) -> None:
    with torch.device("meta"):
        network = config.build()
    with pytest.raises(ValueError, match=message):
        layout.places(network)
