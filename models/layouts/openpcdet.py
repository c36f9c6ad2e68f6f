"""Weights as OpenPCDet has them: encoders of voxels and pillars with their 2D backbone, PointNet++, whole detectors.

Its loader takes the entry `model_state` and turns a kernel only where the shape says so, so kernels lie as spconv 2 has
them, with axes z, y, x.

Source: OpenPCDet 0.6, names and shapes of VoxelBackBone8x, VoxelResBackBone8x, DynamicPillarVFE, BaseBEVBackbone,
PointNet2MSG, AnchorHeadSingle, CenterHead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.detection.anchor_head import AnchorHead
from models.detection.bird_eye import BirdEyeDetector
from models.detection.centre_head import CentreHead
from models.layouts.base import AnyTensor, Fed, Layout, Place
from models.layouts.bird_eye import BirdEyeNames, bird_eye_places, encoder_steps, read_bird_eye
from models.layouts.openpcdet_text import openpcdet_text
from models.layouts.pillar_parts import PillarNames, without_z_offset
from models.layouts.pointnet_parts import EPS as POINT_EPS
from models.layouts.pointnet_parts import pointnet_places, read_pointnet
from models.layouts.second_parts import BevNames, Step, stages_of
from models.layouts.spconv_reader import State, batch_norm
from models.layouts.unet_places import refuse_other_eps
from models.lidar.pillars import Pillars
from models.lidar.pointnet2 import PointNet2
from models.lidar.res16unet import ResidualBlock
from models.lidar.voxelnet import VoxelNet
from models.methods.base import Objective

_EPS, _HEAD_EPS = 1e-3, 1e-5
_BEV = BevNames(blocks="backbone_2d.blocks.", deblocks="backbone_2d.deblocks.", first=1)
_PILLARS = PillarNames(layers="vfe.pfn_layers.", linear="linear", norm="norm")
_OURS = "backbone."
"""What a detector's names of its 3D network begin with."""
_BRANCHES = ("hm", "center", "center_z", "dim", "rot", "vel")
"""Of the centre head, in the order of `models.layouts.result`."""


class OpenPcdet(Layout):
    """See the module."""

    name = "openpcdet"
    title = "OpenPCDet 0.6"

    def network(self, objective: Objective) -> nn.Module:
        """The detector, where its head has a counterpart; else the 3D network."""
        return objective if isinstance(objective, BirdEyeDetector) else super().network(objective)

    def places(self, network: nn.Module) -> Mapping[str, Place]:
        """See `Layout.places`."""
        if isinstance(network, BirdEyeDetector):
            refuse_other_eps(network.get_submodule("dense_head"), _HEAD_EPS, self.title)
            inner = {_OURS + key: place for key, place in self.places(network.backbone).items()}
            return {**inner, **{k: Place(key=k) for k in network.state_dict() if k.startswith("dense_head.")}}
        if isinstance(network, PointNet2):
            refuse_other_eps(network, POINT_EPS, self.title)
            return pointnet_places(network)
        if not isinstance(network, VoxelNet | Pillars):
            raise ValueError(
                f"OpenPCDet has no counterpart of a {type(network).__name__}; it has those of voxelnet, pillars and "
                "pointnet2 (preset pointrcnn). U-Nets go to pointcept, mmdet3d and torchsparse"
            )
        refuse_other_eps(network, _EPS, self.title)
        return bird_eye_places(network, _NAMES)

    def added(self, network: nn.Module) -> Mapping[str, AnyTensor]:
        """Residual blocks have biases there in front of their BatchNorm, 0 here."""
        inner = network.backbone if isinstance(network, BirdEyeDetector) else network
        if not isinstance(inner, VoxelNet):
            return {}
        return {
            f"{theirs}.conv{number}.bias": torch.zeros(block.conv1.out_channels)
            for theirs, (_, block) in _named(inner)
            if isinstance(block, ResidualBlock)
            for number in (1, 2)
        }

    def settled(self, state: Mapping[str, AnyTensor], network: nn.Module) -> Mapping[str, AnyTensor]:
        """Of pillars without the offset of z, of residual blocks without the biases."""
        inner = network.backbone if isinstance(network, BirdEyeDetector) else network
        if isinstance(inner, Pillars):
            return without_z_offset(state, inner, _PILLARS)
        folded = dict(state)
        for key in self.added(network):
            block, conv, _ = key.rsplit(".", 2)
            mean = f"{block}.{conv.replace('conv', 'bn')}.running_mean"
            if key in state and mean in state:
                folded[mean] = state[mean] - state[key]
                folded[key] = torch.zeros_like(state[key])
        return folded

    def wrap(self, state: Mapping[str, AnyTensor], metadata: Mapping[str, str]) -> Any:
        """What `--pretrained_model` and `--ckpt` take."""
        return {"model_state": dict(state), "epoch": 0, "it": 0, "version": "tandem", "tandem": dict(metadata)}

    def unwrap(self, content: Mapping[str, object]) -> Mapping[str, AnyTensor]:
        """See `Layout.unwrap`."""
        state = content.get("model_state")
        return {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}

    def instructions(self, network: nn.Module, fed: Fed) -> str:
        """See `Layout.instructions`."""
        return openpcdet_text(network, fed, len(self.places(network)) + len(self.added(network)))

    def features(
        self, state: Mapping[str, AnyTensor], network: nn.Module, inputs: tuple[AnyTensor, AnyTensor, int]
    ) -> AnyTensor:
        """See `Layout.features`."""
        if isinstance(network, BirdEyeDetector):
            head = network.get_submodule("dense_head")
            assert isinstance(head, AnchorHead | CentreHead)
            return _head(state, head, self.features(state, network.backbone, inputs))
        if isinstance(network, PointNet2):
            return read_pointnet(state, network, inputs)
        assert isinstance(network, VoxelNet | Pillars)
        return read_bird_eye(state, network, _NAMES, inputs, eps=_EPS)


def _named(network: VoxelNet) -> list[tuple[str, tuple[str, nn.Module]]]:
    """Their name of each of our layers."""
    stages = stages_of(network.encoder, "encoder")
    named = [("backbone_3d.conv_input", stages.first)]
    for stage, layers in enumerate(stages.stages, start=1):
        named += [(f"backbone_3d.conv{stage}.{number}", layer) for number, layer in enumerate(layers)]
    return [*named, ("backbone_3d.conv_out", stages.last)]


def _steps(state: State) -> list[Step]:
    """The layers of VoxelBackBone8x, or VoxelResBackBone8x, in their order."""
    at, residual = "backbone_3d.", "backbone_3d.conv1.0.conv1.weight" in state
    numbers = [range(2 if residual else 1), range(3), range(3), range(3)]
    middle = [f"{at}conv{stage}.{number}" for stage, found in enumerate(numbers, start=1) for number in found]
    return encoder_steps([f"{at}conv_input", *middle, f"{at}conv_out"], residual=residual)


_NAMES = BirdEyeNames(named=_named, steps=_steps, pillars=_PILLARS, bev=_BEV)


def _head(state: State, head: AnchorHead | CentreHead, bev: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B numbers"]:
    """What the head says, in the order of `models.layouts.result`."""

    def conv(name: str, features: Tensor) -> Tensor:
        kernel = state[f"dense_head.{name}.weight"]
        return F.conv2d(features, kernel, state[f"dense_head.{name}.bias"], padding=kernel.shape[2] // 2)

    def conv_norm_relu(name: str, features: Tensor) -> Tensor:
        return F.relu(batch_norm(conv(f"{name}.0", features), state, f"dense_head.{name}.1", eps=_HEAD_EPS))

    if isinstance(head, AnchorHead):
        maps = [conv(name, bev).permute(0, 2, 3, 1) for name in ("conv_cls", "conv_box", "conv_dir_cls")]
    else:
        shared = conv_norm_relu("shared_conv", bev)
        branches = [
            f"heads_list.{group}.{name}"
            for group in range(len(head.groups))
            for name in _BRANCHES
            if f"dense_head.heads_list.{group}.{name}.1.weight" in state
        ]
        maps = [conv(f"{branch}.1", conv_norm_relu(f"{branch}.0", shared)) for branch in branches]
    return torch.cat([part.flatten(1) for part in maps], dim=1)
