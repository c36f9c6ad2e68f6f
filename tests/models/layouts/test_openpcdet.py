"""OpenPCDet's layout: names and shapes as documented, features as of the network, and what would be wrong is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.errors import CheckpointError
from launchers.exporting.formats import save
from launchers.exporting.layouts import prove, random_inputs
from launchers.exporting.proof import TOLERANCE
from models.detection.centerpoint import CenterPointConfig
from models.detection.second import PointPillarsConfig, SecondConfig
from models.layouts.base import from_theirs, to_theirs
from models.layouts.openpcdet import OpenPcdet
from models.lidar.pointnet2 import PointNet2, PointNet2Config
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.voxelnet import VoxelNet
from tests.helpers.weight_layouts import fed, small_pillars, small_voxelnet, stirred
from tests.models.layouts.skeletons import (
    bev_backbone,
    listed,
    pillar_layers,
    point_rcnn_backbone,
    tree_of,
    voxel_backbone,
)

pytest.importorskip("spconv")

LAYOUT = OpenPcdet()


NETWORKS = {
    "voxelbackbone8x": lambda: small_voxelnet("voxelbackbone8x").build(),
    "second": lambda: small_voxelnet("second").build(),
    "centerpoint": lambda: small_voxelnet("centerpoint").build(),
    "second_tiny": lambda: small_voxelnet("second_tiny").build(),
    "without_metres": lambda: replace(small_voxelnet("second_tiny"), voxel_size_m=None).build(),
    "pointpillars": lambda: small_pillars("pointpillars").build(),
    "centerpoint_pillars": lambda: small_pillars("centerpoint").build(),
    "centerpoint_waymo": lambda: small_pillars("centerpoint_waymo").build(),
    "pillars_tiny": lambda: small_pillars("pillars_tiny").build(),
    "pointrcnn": lambda: PointNet2Config().build(),
    "detector_second": lambda: SecondConfig(backbone=small_voxelnet("second_tiny")).build(),
    "detector_pointpillars": lambda: PointPillarsConfig(backbone=small_pillars("pillars_tiny")).build(),
    "detector_centerpoint": lambda: CenterPointConfig(backbone=small_voxelnet("second_tiny")).build(),
}


def proof(network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> float:
    save(path, LAYOUT.wrap(state, {}))
    coords, features, num_samples = random_inputs(network, fed())
    rows = slice(0, None, 4 if isinstance(network, PointNet2) else 1)  # every neighbour is a row of its own there
    return prove(path, LAYOUT, network, (coords[rows], features[rows], num_samples))


def skeleton(name: str) -> nn.Module:
    """The parts of a detector, from the documented names and shapes."""
    if name == "pointrcnn":
        return tree_of(backbone_3d=point_rcnn_backbone())
    if name == "voxelbackbone8x":
        return tree_of(backbone_3d=voxel_backbone((16, 32, 64, 64), 128, residual=False))
    if name in ("second", "centerpoint"):
        widths = (16, 32, 64, 128) if name == "centerpoint" else (16, 32, 64, 64)
        blocks, ups = bev_backbone(256, (5, 5), (128, 256), (1, 2), (256, 256), padded=True)
        encoder = voxel_backbone(widths, 128, residual=name == "centerpoint")
        return tree_of(backbone_3d=encoder, backbone_2d=listed(blocks=blocks, deblocks=ups))
    if name == "detector_second":
        blocks, ups = bev_backbone(64, (1, 1), (48, 64), (1, 2), (48, 48), padded=True)
        encoder = voxel_backbone((16, 16, 32, 32), 32, residual=False)
        head = tree_of(conv_cls=nn.Conv2d(96, 18, 1), conv_box=nn.Conv2d(96, 42, 1), conv_dir_cls=nn.Conv2d(96, 12, 1))
        return tree_of(backbone_3d=encoder, backbone_2d=listed(blocks=blocks, deblocks=ups), dense_head=head)
    strides, points = {
        "pointpillars": ((1, 2, 4), (64,)),
        "centerpoint_pillars": ((0.5, 1, 2), (32, 64)),
        "centerpoint_waymo": ((1, 2, 4), (32, 64)),
    }[name]
    blocks, ups = bev_backbone(64, (3, 5, 5), (64, 128, 256), strides, (128, 128, 128), padded=True)
    vfe = listed(pfn_layers=pillar_layers(10, points, named=True))
    return tree_of(vfe=vfe, backbone_2d=listed(blocks=blocks, deblocks=ups))


SKELETONS = (
    "voxelbackbone8x",
    "second",
    "centerpoint",
    "pointpillars",
    "centerpoint_pillars",
    "centerpoint_waymo",
    "pointrcnn",
    "detector_second",
)


@pytest.mark.parametrize("name", SKELETONS)
def test_each_tensor_has_its_place_in_a_tree_of_the_documented_names(name: str) -> None:
    with torch.device("meta"):
        network, tree = NETWORKS[name](), skeleton(name)
    state = {key: value.shape for key, value in to_theirs(LAYOUT, network.to_empty(device="cpu")).items()}
    assert state == {key: value.shape for key, value in tree.state_dict().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_rebuilt_from_its_file_gives_its_features(name: str, tmp_path: Path) -> None:
    network = stirred(NETWORKS[name]())
    assert proof(network, to_theirs(LAYOUT, network), tmp_path / "x.pth") < TOLERANCE
    assert torch.load(tmp_path / "x.pth", weights_only=True).keys() >= {"model_state", "version", "epoch", "it"}


def turned(state: dict[str, torch.Tensor], key: str, how: str) -> dict[str, torch.Tensor]:
    """A state dict in which one kernel lies otherwise, by a name that says how."""
    kernel = state[key]
    ways = {
        "axes x, y, z": kernel.permute(0, 3, 2, 1, 4),
        "y and x swapped": kernel.permute(0, 1, 3, 2, 4),
        "offsets reversed": kernel.flip(1, 2, 3),
        "channels swapped": kernel.permute(4, 1, 2, 3, 0),
    }
    return {**state, key: ways[how].contiguous()}


@pytest.mark.parametrize("how", ["axes x, y, z", "y and x swapped", "offsets reversed", "channels swapped"])
@pytest.mark.parametrize("key", ["backbone_3d.conv1.0.0.weight", "backbone_3d.conv2.1.0.weight"])
def test_a_kernel_that_lies_otherwise_gives_other_features(key: str, how: str) -> None:
    network = stirred(small_voxelnet("second_tiny").build())
    inputs = random_inputs(network, fed())
    right = to_theirs(LAYOUT, network)
    expected = LAYOUT.features(right, network, inputs)
    found = LAYOUT.features(turned(right, key, how), network, inputs)
    assert (expected - found).abs().max() > 1e-3 * expected.abs().max()


def test_the_proof_refuses_a_file_whose_tensors_were_turned(tmp_path: Path) -> None:
    network = stirred(small_voxelnet("second_tiny").build())
    wrong = turned(to_theirs(LAYOUT, network), "backbone_3d.conv2.1.0.weight", "offsets reversed")
    with pytest.raises(CheckpointError, match="1 tensors are not the run's"):
        proof(network, wrong, tmp_path / "x.pth")


def test_another_eps_is_refused_and_would_be_seen() -> None:
    network = stirred(small_voxelnet("second_tiny").build())
    inputs = random_inputs(network, fed())
    state = to_theirs(LAYOUT, network)
    expected = LAYOUT.features(state, network, inputs)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.eps = 1e-5
    found = network.bird_eye_view(*inputs)
    assert (expected - found).abs().max() > 1e-4 * expected.abs().max()
    with pytest.raises(ValueError, match=r"has eps 1e-05, and OpenPCDet 0\.6 builds it with 0\.001"):
        to_theirs(LAYOUT, network)


def test_what_has_no_counterpart_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no counterpart of a Res16UNet; it has those of voxelnet"):
        to_theirs(LAYOUT, Res16UNetConfig(preset="res16unet_tiny").build())
    with pytest.raises(ValueError, match="of Tandem's presets only pointrcnn"):
        to_theirs(LAYOUT, PointNet2Config(preset="simipu_tiny").build())


def test_biases_of_a_released_residual_network_go_into_the_norms() -> None:
    network = stirred(small_voxelnet("centerpoint").build())
    inputs = random_inputs(network, fed())
    theirs = to_theirs(LAYOUT, network)
    generator = torch.Generator().manual_seed(2)
    biases = {
        k: torch.rand(v.shape, generator=generator)
        for k, v in theirs.items()
        if k.endswith(("conv1.bias", "conv2.bias"))
    }
    assert len(biases) == 16
    expected = LAYOUT.features({**theirs, **biases}, network, inputs)
    found, strangers = from_theirs(LAYOUT, {**theirs, **biases}, network)
    assert strangers == ()
    network.load_state_dict(found)
    assert isinstance(network, VoxelNet)
    with torch.no_grad():
        difference = (network.bird_eye_view(*inputs) - expected).abs().max()
    assert difference < 1e-5 * expected.abs().max()


def test_the_offset_of_z_of_released_pillars_goes_into_the_column_of_z() -> None:
    network = stirred(small_pillars("pillars_tiny").build())
    network.config.__dict__["range_max_m"] = (2.4, 1.6, 2.0)  # whose middle is not 0
    inputs = random_inputs(network, fed())
    theirs = to_theirs(LAYOUT, network)
    key = "vfe.pfn_layers.0.linear.weight"
    assert theirs[key].shape == (32, 10)
    theirs[key][:, 9] = torch.linspace(-1, 1, 32)
    expected = LAYOUT.features(theirs, network, inputs)
    network.load_state_dict(from_theirs(LAYOUT, theirs, network)[0])
    with torch.no_grad():
        torch.testing.assert_close(network.bird_eye_view(*inputs), expected, rtol=1e-4, atol=1e-4)


def test_the_text_has_the_lines_to_paste() -> None:
    text = LAYOUT.instructions(small_voxelnet("second").build(), fed())
    for line in (
        "    POINT_CLOUD_RANGE: [0, -1.6, -2, 2.4, 1.6, 2]",
        "          VOXEL_SIZE: [0.05, 0.05, 0.1]",
        "          MAX_POINTS_PER_VOXEL: 1",
        "        used_feature_list: ['x', 'y', 'z', 'intensity']",
        "        NAME: VoxelBackBone8x",
        "        LAYER_NUMS: [5, 5]",
        "        UPSAMPLE_STRIDES: [1, 2]",
        "        NUM_UPSAMPLE_FILTERS: [256, 256]",
    ):
        assert line in text.splitlines()
    assert "Done (loaded 156/N)" in text
    assert "**Widths.**" not in text
    assert "**Widths.**" in LAYOUT.instructions(small_voxelnet("second_tiny").build(), fed())
    assert "MAX_POINTS_PER_VOXEL: 5" in LAYOUT.instructions(small_voxelnet("second").build(), fed(reduce="mean"))
    assert "NAME: DynPillarVFE" in LAYOUT.instructions(small_pillars("pointpillars").build(), fed())
    assert "NPOINTS: [4096, 1024, 256, 64]" in LAYOUT.instructions(PointNet2Config().build(), fed())


def test_an_input_that_cannot_be_fed_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"was fed intensity: train with data\.voxel\.features=xyz_intensity"):
        LAYOUT.instructions(small_voxelnet("second").build(), fed(features="intensity"))
