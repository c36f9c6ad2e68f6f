"""What a network and its rebuilt counterpart are compared by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.detection.anchor_head import AnchorHead, AnchorOutputs
from models.detection.bird_eye import BirdEyeDetector
from models.detection.centre_head import CentreHead, CentreOutputs
from models.layouts.base import AnyTensor
from models.lidar.pillars import Pillars
from models.lidar.voxelnet import VoxelNet


def result(network: nn.Module, inputs: tuple[AnyTensor, AnyTensor, int]) -> AnyTensor:
    """Of a detector what its head says, of a network with a bird's-eye view the map, else the features of each row.

    Args:
        network: in evaluation mode.
        inputs: voxel coordinates [M, 4], features [M, F], number of samples.
    """
    with torch.no_grad():
        if isinstance(network, BirdEyeDetector):
            assert isinstance(network.backbone, VoxelNet | Pillars)
            head = network.get_submodule("dense_head")
            assert isinstance(head, AnchorHead | CentreHead)
            return _said(head.forward(network.backbone.bird_eye_view(*inputs)))
        if isinstance(network, VoxelNet | Pillars):  # GivesBirdEyeView would ask for the grid, which may be unknown
            return network.bird_eye_view(*inputs)
        out: Tensor = network(*inputs)
        return out


def _said(outputs: AnchorOutputs | Sequence[CentreOutputs]) -> Float[Tensor, "B numbers"]:
    if isinstance(outputs, AnchorOutputs):
        parts = [outputs.logits, outputs.codes, outputs.directions]
    else:
        parts = [part for group in outputs for part in (group.heat, group.codes)]
    return torch.cat([part.flatten(1) for part in parts], dim=1)
