"""Weights as mmdetection3d has them: sparse encoders, pillars, the 2D backbone of detectors; U-Nets by `mmdet3d_unet`.

Kernels have axes z, y, x, and lie in a file as `models.layouts.mmdet3d_parts` says. Parts have the names that they have
in VoxelNet (`voxel_encoder`, `middle_encoder`, `backbone`, `neck`); CenterPoint's begin with `pts_` there.

Its residual encoder puts a stage's strided convolution last where Tandem (and OpenPCDet) begins the next stage with it:
the same layers in the same order, under other names.

Source: mmdetection3d 1.4, names and shapes of SparseEncoder, DynamicPillarFeatureNet, SECOND, SECONDFPN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from models.layouts.base import AnyTensor, Fed, Layout, Place
from models.layouts.bird_eye import BirdEyeNames, bird_eye_places, encoder_steps, read_bird_eye
from models.layouts.mmdet3d_parts import from_file, to_file
from models.layouts.mmdet3d_text import mmdet3d_text
from models.layouts.mmdet3d_unet import mmdet3d_unet_features, mmdet3d_unet_places, mmdet3d_unet_text
from models.layouts.pillar_parts import PillarNames, without_z_offset
from models.layouts.second_parts import BevNames, Step, stages_of
from models.layouts.spconv_reader import State
from models.layouts.unet_places import refuse_other_eps
from models.lidar.pillars import Pillars
from models.lidar.res16unet import Res16UNet, ResidualBlock
from models.lidar.spvcnn import Spvcnn
from models.lidar.voxelnet import VoxelNet

_EPS = 1e-3
_BEV = BevNames(blocks="backbone.blocks.", deblocks="neck.deblocks.", first=0)
_PILLARS = PillarNames(layers="voxel_encoder.pfn_layers.", linear="0", norm="1")


class Mmdet3d(Layout):
    """See the module."""

    name = "mmdet3d"
    title = "mmdetection3d 1.4"

    def places(self, network: nn.Module) -> Mapping[str, Place]:
        """See `Layout.places`."""
        if isinstance(network, Res16UNet | Spvcnn):
            return mmdet3d_unet_places(network)
        if not isinstance(network, VoxelNet | Pillars):
            raise ValueError(
                f"mmdetection3d has no counterpart of a {type(network).__name__}; it has those of voxelnet, "
                "pillars, res16unet (minkunet34, minkunet18) and spvcnn"
            )
        refuse_other_eps(network, _EPS, self.title)
        return bird_eye_places(network, _NAMES)

    def settled(self, state: Mapping[str, AnyTensor], network: nn.Module) -> Mapping[str, AnyTensor]:
        """Of pillars without the offset of z."""
        return without_z_offset(state, network, _PILLARS) if isinstance(network, Pillars) else state

    def wrap(self, state: Mapping[str, AnyTensor], metadata: Mapping[str, str]) -> Any:
        """What `load_from` and `init_cfg` take."""
        return {"state_dict": to_file(state), "meta": {"tandem": dict(metadata)}}

    def unwrap(self, content: Mapping[str, object]) -> Mapping[str, AnyTensor]:
        """See `Layout.unwrap`; names without `pts_`, which CenterPoint's parts begin with."""
        state = content.get("state_dict")
        return {k.removeprefix("pts_"): v for k, v in from_file(state).items()} if isinstance(state, Mapping) else {}

    def instructions(self, network: nn.Module, fed: Fed) -> str:
        """See `Layout.instructions`."""
        if isinstance(network, Res16UNet | Spvcnn):
            return mmdet3d_unet_text(network, fed)
        return mmdet3d_text(network, fed, len(self.places(network)))

    def features(
        self, state: Mapping[str, AnyTensor], network: nn.Module, inputs: tuple[AnyTensor, AnyTensor, int]
    ) -> AnyTensor:
        """See `Layout.features`."""
        if isinstance(network, Res16UNet | Spvcnn):
            return mmdet3d_unet_features(state, inputs)
        assert isinstance(network, VoxelNet | Pillars)
        return read_bird_eye(state, network, _NAMES, inputs, eps=_EPS)


_AT = "middle_encoder."


def _named(network: VoxelNet) -> list[tuple[str, tuple[str, nn.Module]]]:
    """Their name of each of our layers."""
    stages = stages_of(network.encoder, "encoder")
    residual = any(isinstance(layer, ResidualBlock) for _, layer in stages.stages[0])
    named = [(f"{_AT}conv_input", stages.first)]
    for number, stage in enumerate(stages.stages, start=1):
        layers = list(stage)
        if residual:
            if number > 1:
                layers = layers[1:]
            if number < len(stages.stages):
                layers.append(stages.stages[number][0])
        named += [(f"{_AT}encoder_layers.encoder_layer{number}.{place}", layer) for place, layer in enumerate(layers)]
    return [*named, (f"{_AT}conv_out", stages.last)]


def _steps(state: State) -> list[Step]:
    """The layers of a SparseEncoder in their order.

    `block_type` conv_module: a stage begins with its strided convolution; basicblock, as CenterPoint's configs have it:
    the stage before ends with it.
    """
    residual = f"{_AT}encoder_layers.encoder_layer1.0.conv1.weight" in state
    counts = (3, 3, 3, 2) if residual else (1, 3, 3, 3)
    stages = (f"{_AT}encoder_layers.encoder_layer{stage}" for stage in (1, 2, 3, 4))
    middle = [f"{at}.{number}" for at, count in zip(stages, counts, strict=True) for number in range(count)]
    return encoder_steps([f"{_AT}conv_input", *middle, f"{_AT}conv_out"], residual=residual)


_NAMES = BirdEyeNames(named=_named, steps=_steps, pillars=_PILLARS, bev=_BEV)
