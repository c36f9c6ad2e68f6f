"""mmdetection3d's layout: documented names and shapes, kernels as its loader takes them, the network's features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.errors import CheckpointError
from launchers.exporting.formats import save
from launchers.exporting.layouts import prove, random_inputs
from launchers.exporting.proof import TOLERANCE
from models.layouts.base import to_theirs
from models.layouts.mmdet3d import Mmdet3d
from models.lidar.pillars import Pillars, PillarsConfig
from models.lidar.voxelnet import VoxelNet, VoxelNetConfig
from tests.helpers.weight_layouts import fed, small_pillars, small_voxelnet, stirred
from tests.models.layouts.skeletons import bev_backbone, listed, pillar_layers, sparse_encoder, tree_of

pytest.importorskip("spconv")

LAYOUT = Mmdet3d()


def networks() -> dict[str, VoxelNetConfig | PillarsConfig]:
    return {
        "voxelbackbone8x": small_voxelnet("voxelbackbone8x"),
        "second_tiny": small_voxelnet("second_tiny"),
        "centerpoint": small_voxelnet("centerpoint"),
        "centerpoint_pillars": small_pillars("centerpoint"),
        "pillars_tiny": small_pillars("pillars_tiny"),
    }


@pytest.mark.parametrize("name", networks())
def test_a_network_rebuilt_from_its_file_gives_its_features(name: str, tmp_path: Path) -> None:
    network: VoxelNet | Pillars = stirred(networks()[name].build())
    path = tmp_path / "x.pth"
    save(path, LAYOUT.wrap(to_theirs(LAYOUT, network), {"run": "r"}))
    assert prove(path, LAYOUT, network, random_inputs(network, fed())) < TOLERANCE


def skeleton(name: str) -> nn.Module:
    """The parts of a detector, from the documented names and shapes."""
    if name == "centerpoint":
        blocks, ups = bev_backbone(256, (5, 5), (128, 256), (1, 2), (256, 256), padded=False)
        encoder = sparse_encoder((16, 32, 64, 128), 128, residual=True)
        return tree_of(middle_encoder=encoder, backbone=listed(blocks=blocks), neck=listed(deblocks=ups))
    if name == "voxelbackbone8x":
        return tree_of(middle_encoder=sparse_encoder((16, 32, 64, 64), 128, residual=False))
    if name == "second_tiny":
        blocks, ups = bev_backbone(64, (1, 1), (48, 64), (1, 2), (48, 48), padded=False)
        encoder = sparse_encoder((16, 16, 32, 32), 32, residual=False)
        return tree_of(middle_encoder=encoder, backbone=listed(blocks=blocks), neck=listed(deblocks=ups))
    strides, widths, sizes = (
        ((0.5, 1, 2), (32, 64), ((3, 5, 5), (64, 128, 256), (128, 128, 128)))
        if name == "centerpoint_pillars"
        else ((1, 2, 4), (32,), ((1, 1, 1), (32, 48, 64), (32, 32, 32)))
    )
    layers, filters, up_filters = sizes
    blocks, ups = bev_backbone(widths[-1], layers, filters, strides, up_filters, padded=False)
    points = listed(pfn_layers=pillar_layers(10, widths, named=False))
    return tree_of(voxel_encoder=points, backbone=listed(blocks=blocks), neck=listed(deblocks=ups))


def as_their_loader(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Its rule with spconv 2: a kernel is turned, last axis to the front, unless the record says version 2."""
    metadata: Mapping[str, Mapping[str, int]] = getattr(state, "_metadata", {})
    return {
        key: value.permute(4, 0, 1, 2, 3)
        if value.ndim == 5 and metadata.get(key.removesuffix(".weight"), {}).get("version") != 2
        else value
        for key, value in state.items()
    }


@pytest.mark.parametrize("cut", [False, True], ids=["load_from", "init_cfg"])
@pytest.mark.parametrize("name", networks())
def test_their_loader_finds_each_tensor_in_a_tree_of_the_documented_names(name: str, cut: bool, tmp_path: Path) -> None:
    network = stirred(networks()[name].build())
    wanted = to_theirs(LAYOUT, network)
    save(tmp_path / "x.pth", LAYOUT.wrap(wanted, {}))
    state = torch.load(tmp_path / "x.pth", weights_only=True)["state_dict"]
    tree = skeleton(name)
    for part, module in tree.named_children() if cut else [("", tree)]:
        prefix = f"{part}." if cut else ""
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        module.load_state_dict(as_their_loader(own), strict=True)  # else: missing, unexpected, or of another shape
    loaded = tree.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in wanted.items())


def test_a_file_that_their_loader_would_turn_is_not_written_so(tmp_path: Path) -> None:
    network = stirred(small_voxelnet("second_tiny").build())
    wanted = to_theirs(LAYOUT, network)
    square = "middle_encoder.encoder_layers.encoder_layer1.0.0.weight"
    assert wanted[square].shape == (16, 3, 3, 3, 16)
    turned = as_their_loader(wanted)  # spconv 2's own order, in a plain dict
    assert turned[square].shape == (16, 16, 3, 3, 3)
    content = LAYOUT.wrap(wanted, {})
    content["state_dict"][square] = content["state_dict"][square].transpose(3, 4).contiguous()
    save(tmp_path / "x.pth", content)
    with pytest.raises(CheckpointError, match="1 tensors are not the run's"):
        prove(tmp_path / "x.pth", LAYOUT, network, random_inputs(network, fed()))


def test_a_file_of_their_own_under_spconv_2_is_read_as_it_is() -> None:
    wanted = to_theirs(LAYOUT, small_voxelnet("second_tiny").build())
    names = {f"pts_{key}": value for key, value in wanted.items()}
    read = LAYOUT.unwrap({"state_dict": {**names, "pts_bbox_head.x": torch.zeros(1), "epoch": 3}, "meta": {}})
    assert all(torch.equal(read[key], value) for key, value in wanted.items())
    assert set(read) - set(wanted) == {"bbox_head.x"}


@pytest.mark.parametrize("key", ["conv_input.0.weight", "encoder_layers.encoder_layer2.0.0.weight"])
def test_axes_and_offsets_matter(key: str) -> None:
    network = stirred(small_voxelnet("second_tiny").build())
    inputs = random_inputs(network, fed())
    state = to_theirs(LAYOUT, network)
    expected, kernel = LAYOUT.features(state, network, inputs), state[f"middle_encoder.{key}"]
    for wrong in (kernel.permute(0, 3, 2, 1, 4), kernel.permute(0, 1, 3, 2, 4), kernel.flip(1), kernel.flip(3)):
        found = LAYOUT.features({**state, f"middle_encoder.{key}": wrong.contiguous()}, network, inputs)
        assert (expected - found).abs().max() > 1e-3 * expected.abs().max()


def test_what_cannot_be_fed_there_is_refused() -> None:
    network = small_voxelnet("second_tiny").build()
    plain = fed(features="intensity")
    with pytest.raises(ValueError, match=r"feeds x, y, z of a point first, and this network was fed intensity"):
        LAYOUT.instructions(network, plain)


def test_the_text_has_the_lines_to_paste() -> None:
    text = LAYOUT.instructions(small_voxelnet("centerpoint").build(), fed(reduce="mean"))
    for line in (
        "    sparse_shape=[41, 64, 48],",
        "    encoder_channels=((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),",
        "    block_type='basicblock'),",
        "    point_cloud_range=[0, -1.6, -2, 2.4, 1.6, 2],",
        "    max_num_points=5,",
        "    upsample_strides=[1, 2],",
    ):
        assert line in text.splitlines()
    assert "all(\n" not in text
    pillars = LAYOUT.instructions(small_pillars("pillars_tiny").build(), fed())
    assert "    type='DynamicPillarFeatureNet'," in pillars.splitlines()
    assert "`legacy=False`" in pillars
