"""Files of other projects: which network they hold, kernels of every spconv, and what has no place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.layouts.back_in import Taken, fits, stated, taken, unwrapped
from models.layouts.base import to_theirs
from models.layouts.known import LAYOUTS
from models.layouts.old_kernels import order_of
from models.lidar.base import BackboneConfig
from models.lidar.pillars import PillarsConfig
from models.lidar.spvcnn import SpvcnnConfig
from models.lidar.voxelnet import VoxelNetConfig
from models.weights import compare
from tests.helpers.weight_layouts import CELL_M, GRID_MAX, GRID_MIN, stirred

OPENPCDET = LAYOUTS["openpcdet"]
VOXELNET = VoxelNetConfig(
    preset="second_tiny", in_channels=5, grid_min=GRID_MIN, grid_max=GRID_MAX, voxel_size_m=CELL_M
)


def theirs_of(config: BackboneConfig) -> tuple[nn.Module, dict[str, Tensor]]:
    network = stirred(config.build())
    return network, to_theirs(OPENPCDET, network)


def same(took: Taken, network: nn.Module) -> bool:
    ours = network.state_dict()
    return took.state.keys() == ours.keys() and all(torch.equal(took.state[key], ours[key]) for key in ours)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ((0, 1, 2, 3, 4), ""),
        ((1, 2, 3, 4, 0), "kernels turned from the order of spconv 1.x or mmcv"),
        ((1, 2, 3, 0, 4), "kernels turned from the order of spconv 2.0 or 2.1"),
    ],
    ids=["2.2", "1.x", "2.0"],
)
def test_kernels_of_every_spconv_are_told_apart(axes: tuple[int, ...], said: str) -> None:
    """Most have as many channels in as out; the first and the strided ones decide for them."""
    network, theirs = theirs_of(VOXELNET)
    turned = {key: value.permute(axes).contiguous() if value.ndim == 5 else value for key, value in theirs.items()}
    took = taken(OPENPCDET, turned, network)
    assert same(took, network)
    assert str(took) == said


def test_an_order_that_shapes_do_not_tell_is_refused() -> None:
    square = {"a.weight": torch.zeros(3, 3, 3, 16, 16)}
    with pytest.raises(ValueError, match=r"in spconv 1\.x or mmcv or in spconv 2\.0 or 2\.1.*a\.weight"):
        order_of(square, {"a.weight": (16, 3, 3, 3, 16)})
    decided = {**square, "b.weight": torch.zeros(3, 3, 3, 4, 16)}
    expected = {"a.weight": (16, 3, 3, 3, 16), "b.weight": (16, 3, 3, 3, 4)}
    assert order_of(decided, expected) == "spconv 1.x or mmcv"
    assert order_of({"a.weight": torch.zeros(16, 3, 3, 3, 16)}, expected) == "spconv 2.2 or later"


def test_other_parts_are_left_out_and_strangers_stay() -> None:
    network, theirs = theirs_of(VOXELNET)
    head = {"dense_head.conv_cls.weight": torch.zeros(2, 96, 1, 1), "roi_head.fc.weight": torch.zeros(1)}
    stranger = {"backbone_3d.conv9.0.weight": torch.zeros(2, 3, 3, 3, 2)}
    wrong = {"backbone_2d.blocks.0.1.weight": torch.zeros(48, 3, 3, 3)}
    took = taken(OPENPCDET, {**theirs, **head, **stranger, **wrong}, network)
    assert took.left_out == tuple(head)
    assert str(took) == "left out: dense_head, roi_head"
    report = compare(network, took.state, source="a test")
    assert report.unused == tuple(stranger)
    assert [row[0] for row in report.mismatched] == ["bev_backbone.blocks.0.0.conv.weight"]
    with pytest.raises(ValueError, match=r"x\.pth is not in the layout of OpenPCDet.*it has: state_dict"):
        unwrapped(OPENPCDET, {"state_dict": theirs}, "x.pth")


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_what_an_export_states_is_found_in_every_layout(name: str) -> None:
    said = {"tandem_version": "1", "voxel": "{}"}
    assert stated(LAYOUTS[name].wrap({"a": torch.zeros(1)}, said)) == said
    assert stated({"state_dict": {"a": torch.zeros(1)}, "meta": {"epoch": 3}}) == {}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (VOXELNET, ("voxelnet", "second_tiny", 5)),
        (PillarsConfig(preset="pillars_tiny"), ("pillars", "pillars_tiny", 4)),
    ],
    ids=["voxelnet", "pillars"],
)
def test_the_network_in_a_file_is_recognised(config: BackboneConfig, expected: tuple[str, str, int]) -> None:
    _, theirs = theirs_of(config)
    found = fits({"model_state": theirs, "epoch": 80})
    assert [(fit.layout, fit.family, fit.preset, fit.in_channels) for fit in found] == [("openpcdet", *expected)]
    del theirs["backbone_2d.blocks.1.1.weight"]
    assert fits({"model_state": theirs}) == []


def test_an_spvcnn_is_recognised_and_so_is_the_unet_in_it() -> None:
    network = SpvcnnConfig(in_channels=4, coarse_cells="corner").build()
    found = fits(LAYOUTS["torchsparse"].wrap(to_theirs(LAYOUTS["torchsparse"], network), {}))
    assert [(fit.layout, fit.preset, fit.in_channels, str(fit.taken)) for fit in found] == [
        ("pointcept", "spvcnn", 4, ""),
        ("torchsparse", "minkunet18", 4, "left out: point_transforms"),
        ("torchsparse", "spvcnn", 4, ""),
    ]
    assert same(found[2].taken, network)
