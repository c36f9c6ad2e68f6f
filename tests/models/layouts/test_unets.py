"""U-Nets in other projects' layouts: names and shapes there, equal features by readers of their own, faults caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from data.batch_spec import VoxelConfig
from models.layouts import pointcept
from models.layouts.base import Fed, Layout, from_theirs, to_theirs
from models.layouts.mmdet3d import Mmdet3d
from models.layouts.pointcept import PointceptLayout
from models.layouts.slidr import SlidrLayout
from models.layouts.spconv_plain import SpconvPlain
from models.layouts.torchsparse import TorchsparseLayout
from models.lidar import res16unet
from models.lidar.base import Backbone, BackboneConfig
from models.lidar.inputs import PointInput
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.spvcnn import SpvcnnConfig
from models.lidar.voxelnet import VoxelNetConfig
from tests.helpers import documented_unets as documented
from tests.helpers.documented_unets import DEEP, TWO, Shapes, Tree

pytest.importorskip("spconv")

CORNER = SpvcnnConfig(in_channels=4, backend="torch", coarse_cells="corner")


def unet(preset: res16unet.Preset, in_channels: int = 4) -> Res16UNetConfig:
    return Res16UNetConfig(preset=preset, in_channels=in_channels, backend="torch")


NAMES = [
    pytest.param(TorchsparseLayout(), unet("minkunet34"), documented.torchsparse_unet(4, DEEP), id="torchsparse-34"),
    pytest.param(TorchsparseLayout(), unet("minkunet18"), documented.torchsparse_unet(4, TWO), id="torchsparse-18"),
    pytest.param(TorchsparseLayout(), CORNER, documented.torchsparse_spvcnn(4), id="torchsparse-spvcnn"),
    pytest.param(SlidrLayout(), unet("res16unet34c", 1), documented.minkowski_unet(1, DEEP, 3), id="slidr-34c"),
    pytest.param(PointceptLayout(), unet("res16unet34c"), documented.minkowski_unet(4, DEEP, 5), id="pointcept-34c"),
    pytest.param(PointceptLayout(), unet("spunet34"), documented.spunet(4), id="pointcept-spunet"),
    pytest.param(PointceptLayout(), CORNER, documented.torchsparse_spvcnn(4), id="pointcept-spvcnn"),
    pytest.param(
        Mmdet3d(),
        unet("minkunet34"),
        documented.prefixed("backbone", documented.mmdet3d_unet(4, DEEP)),
        id="mmdet3d-34",
    ),
    pytest.param(
        Mmdet3d(), unet("minkunet18"), documented.prefixed("backbone", documented.mmdet3d_unet(4, TWO)), id="mmdet3d-18"
    ),
    pytest.param(Mmdet3d(), CORNER, documented.prefixed("backbone", documented.mmdet3d_spvcnn(4)), id="mmdet3d-spvcnn"),
]

FEATURES = [
    pytest.param(TorchsparseLayout(), unet("minkunet18"), id="torchsparse"),
    pytest.param(TorchsparseLayout(), CORNER, id="torchsparse-spvcnn"),
    pytest.param(SlidrLayout(), unet("res16unet18"), id="slidr"),
    pytest.param(PointceptLayout(), unet("res16unet34c"), id="pointcept"),
    pytest.param(PointceptLayout(), unet("spunet34"), id="pointcept-spunet"),
    pytest.param(PointceptLayout(), CORNER, id="pointcept-spvcnn"),
    pytest.param(Mmdet3d(), unet("minkunet34"), id="mmdet3d"),
    pytest.param(Mmdet3d(), CORNER, id="mmdet3d-spvcnn"),
    pytest.param(SpconvPlain(), unet("minkunet34"), id="spconv-two-stems"),
    pytest.param(SpconvPlain(), unet("spunet34"), id="spconv-spunet"),
]
"""With narrow networks, see `narrow`."""


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets with few channels, all of different numbers where the network allows it."""
    for preset, sizes in list(res16unet._LAYOUTS.items()):
        small = dataclasses.replace(sizes, stem=8, channels=(9, 10, 11, 12, 13, 14, 15, 16), blocks=(1, 2) * 4)
        monkeypatch.setitem(res16unet._LAYOUTS, preset, small)
        monkeypatch.setitem(pointcept.CLASSES, (small.channels, small.blocks), "Narrow")


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
    cells = torch.randint(-5, 6, (90, 3), generator=generator)
    sample = torch.randint(0, 2, (90, 1), generator=generator)
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
    return kernel.flip((1, 2, 3) if kernel.ndim == 5 else 0)


def other_axis_fastest(kernel: Tensor) -> Tensor:
    if kernel.ndim == 5:
        return kernel.transpose(1, 3)
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
        pytest.param(
            PointceptLayout(),
            unet("res16unet18"),
            ["conv0p1s1.kernel", "conv2p2s2.kernel", "convtr7p2s2.kernel"],
            id="pointcept",
        ),
        pytest.param(
            PointceptLayout(),
            unet("spunet34"),
            ["conv_input.0.weight", "down.2.0.weight", "dec.1.block0.conv1.weight", "up.3.0.weight"],
            id="pointcept-spunet",
        ),
        pytest.param(
            Mmdet3d(),
            unet("minkunet18"),
            [
                f"backbone.{key}.weight"
                for key in ("conv_input.1.0", "encoder.1.0.0", "encoder.1.1.conv2", "decoder.0.0.0")
            ],
            id="mmdet3d",
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


@pytest.mark.usefixtures("narrow")
def test_spconv_reads_a_kernel_of_one_cell_otherwise_than_its_shape_says() -> None:
    layout, network = Mmdet3d(), trained(unet("minkunet18"))
    state = to_theirs(layout, network)
    key = "backbone.encoder.1.1.downsample.0.weight"
    ours = network.state_dict()["encoder.1.blocks.0.shortcut.weight"]
    as_its_shape_says = ours.permute(2, 0, 1)[:, :, None, None].contiguous()
    assert as_its_shape_says.shape == state[key].shape == (10, 1, 1, 1, 9)
    assert difference(layout, network, {**state, key: as_its_shape_says}) > 1e-3


class Turning(Tree):
    """mmdetection3d's rule of loading: a sparse kernel's last axis to the front, unless the layer is version 2."""

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):  # type: ignore[no-untyped-def]
        key = f"{prefix}weight"
        if key in state_dict and self.weight.ndim == 5 and local_metadata.get("version") != 2:
            state_dict[key] = state_dict[key].permute(4, 0, 1, 2, 3)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def test_mmdetection3d_turns_kernels_back_on_loading(tmp_path: Path) -> None:
    layout = Mmdet3d()
    torch.manual_seed(0)
    network = unet("minkunet18").build()
    state = to_theirs(layout, network)
    torch.save(layout.wrap(state, {}), tmp_path / "file.pth")
    content = torch.load(tmp_path / "file.pth", weights_only=True)
    segmentor = Turning(documented.prefixed("backbone", documented.mmdet3d_unet(4, TWO)))
    segmentor.load_state_dict(content["state_dict"], strict=True)
    loaded = segmentor.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())

    # What mmdetection3d then saves itself is as its layers have it, and is read, too.
    again = layout.unwrap({"meta": {}, "state_dict": loaded})
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())


def test_pointcepts_first_kernel_has_a_rim_that_must_be_zero_on_the_way_back() -> None:
    layout = PointceptLayout()
    network = unet("res16unet34c").build()
    place = layout.places(network)["stem.weight"]
    kernel = place.out(network.stem.weight.detach())
    assert kernel.shape == (125, 4, 32)
    # The middle of 5 x 5 x 5 cells, and the neighbour along x; x runs fastest.
    assert torch.equal(kernel[[62, 63]], network.stem.weight.detach()[[13, 14]])
    assert torch.equal(place.back(kernel), network.stem.weight.detach())
    kernel[0, 0, 0] = 1
    with pytest.raises(ValueError, match=r"conv0p1s1\.kernel has 5 cells an edge, this network's first kernel 3"):
        place.back(kernel)


def _id(value: Layout | BackboneConfig | str | list[str]) -> str:
    """The same in each process: an object's own text has its address."""
    return value.name if isinstance(value, Layout) else str(getattr(value, "preset", ""))


INSTRUCTIONS = [
    (TorchsparseLayout(), unet("minkunet34"), ["(2, 3, 4, 6, 2, 2, 2, 2) residual blocks", "multiple of 16"]),
    (PointceptLayout(), unet("res16unet34c"), ['type="MinkUNet34C", in_channels=4', "outer ones are 0"]),
    (PointceptLayout(), unet("spunet34"), ['type="SpUNet-v1m1", in_channels=4', "final.weight"]),
    (PointceptLayout(), CORNER, ['type="SPVCNN", in_channels=4', "multiple of 16"]),
    (Mmdet3d(), unet("minkunet34"), ["encoder_blocks=[2, 3, 4, 6]", "voxel_size=[0.05, 0.05, 0.05]", '"spconv"']),
    (Mmdet3d(), CORNER, ["SPVCNNBackbone", "torchsparse 1.4 alone", "batch_first=False"]),
    (SlidrLayout(), unet("res16unet34c"), ["--pretraining_path"]),
    (
        SpconvPlain(),
        unet("spunet34"),
        [
            "1. SubMConv3d, 5x5x5, 4 to 32: `stem.weight`, then `stem_norm`",
            "2. SparseConv3d, stride 2, 2x2x2, 32 to 32: `encoder.0.down.weight`",
            "59. SubMConv3d, 3x3x3, 96 to 96: `decoder.3.blocks.1.conv2.weight`, then `decoder.3.blocks.1.norm2`",
            "(eps 0.001)",
        ],
    ),
]


@pytest.mark.parametrize(("layout", "config", "lines"), INSTRUCTIONS, ids=_id)
def test_instructions_say_what_to_paste_and_to_feed(layout: Layout, config: BackboneConfig, lines: list[str]) -> None:
    cells = VoxelConfig(kind="cartesian", size=(0.05, 0.05, 0.05), features="xyz_intensity", reduce="mean")
    with torch.device("meta"):
        network = config.build()
    text = layout.instructions(network, Fed(points=PointInput.of(cells), voxels=cells))
    for line in (*lines, "x, y, z in metres, intensity from 0 to 1, of the mean of the points of a voxel"):
        assert line in text


def test_mmdetection3d_cannot_feed_intensity_alone() -> None:
    cells = VoxelConfig(kind="cartesian", size=(0.05, 0.05, 0.05))
    with torch.device("meta"):
        network = unet("minkunet18", 1).build()
    with pytest.raises(ValueError, match=r"feeds x, y, z of a point first.* data\.voxel\.features=xyz_intensity"):
        Mmdet3d().instructions(network, Fed(points=PointInput.of(cells), voxels=cells))


@pytest.mark.parametrize(
    ("layout", "config", "message"),
    [
        (TorchsparseLayout(), unet("res16unet34c"), r"stem has two convolutions.* nearest preset is minkunet34"),
        (TorchsparseLayout(), unet("res16unet_tiny"), r"stem has two convolutions.* nearest preset is minkunet18"),
        (TorchsparseLayout(), SpvcnnConfig(preset="spvcnn_tiny"), r"nearest preset is spvcnn"),
        (TorchsparseLayout(), SpvcnnConfig(), r"method\.backbone\.coarse_cells=corner"),
        (SlidrLayout(), unet("minkunet18"), r"SLidR's layout has one convolution as stem, this network two"),
        (SlidrLayout(), unet("spunet34"), r"strided convolutions keep the channels.* nearest preset is res16unet34c"),
        (TorchsparseLayout(), unet("spunet34"), r"stem has two convolutions.* nearest preset is minkunet34"),
        (PointceptLayout(), unet("minkunet34"), r"one convolution as stem.* nearest preset is res16unet34c"),
        (PointceptLayout(), unet("minkunet18"), r"one convolution as stem.* nearest preset is res16unet18"),
        (PointceptLayout(), unet("res16unet_tiny"), r"no MinkUNet with channels .* nearest preset is res16unet18"),
        (PointceptLayout(), VoxelNetConfig(), r"no counterpart of a VoxelNet.* spunet34"),
        (Mmdet3d(), unet("res16unet34c"), r"stem has two convolutions.* nearest preset is minkunet34"),
        (Mmdet3d(), SpvcnnConfig(), r"coarse_cells=corner"),
        (SpconvPlain(), SpvcnnConfig(), r"no sequence of spconv's layers here for a Spvcnn"),
        (SlidrLayout(), SpvcnnConfig(), r"the backbone is a Spvcnn; SLidR's layout is for a Res16UNet"),
    ],
    ids=_id,
)
def test_what_has_no_counterpart_is_refused(layout: Layout, config: BackboneConfig, message: str) -> None:
    with torch.device("meta"):
        network = config.build()
    with pytest.raises(ValueError, match=message):
        layout.places(network)
