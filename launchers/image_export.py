"""The trained ResNet of a run's image network as a file with torchvision's names, proven by reading it back.

The file holds the ResNet alone, without classifier and without a decoder of ours; it is loaded by
`torchvision.models.resnet50(weights=None).load_state_dict(..., strict=False)`, whose `fc` stays as it was, and by our
own `weights: torchvision:<path>`. Images are RGB from 0 to 1, normalised as torchvision's weights want them.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import CheckpointError
from models.image.resnet import ResNet
from models.image.resnet_encoder import ResNetEncoder
from models.methods.base import Objective
from models.weights import LoadReport, load_image_weights


def resnet_of(objective: Objective) -> ResNet:
    """The ResNet inside a method's image network.

    Raises:
        ValueError: the method has no image network, or another kind.
    """
    encoder = objective.part("image_backbone")
    if encoder is None:
        raise ValueError(
            f"{type(objective).__name__} has no image network that it trains; use --format tandem for its 3D network"
        )
    if not isinstance(encoder, ResNetEncoder):
        raise ValueError(f"the image network is a {type(encoder).__name__}, and torchvision's layout is for a ResNet")
    return encoder.network


def write_torchvision(path: Path, network: ResNet) -> None:
    """Write the file, whole or not at all.

    Raises:
        ValueError: a weight is not finite.
    """
    state: dict[str, Tensor] = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"not finite: {', '.join(broken[:5])}. The run has diverged; nothing was written")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def check_torchvision(path: Path, network: ResNet) -> tuple[LoadReport, float]:
    """Fill a copy with scrambled weights from the file, and compare it with the original on a random image.

    Returns:
        The report of the load, and the largest difference of the features: 0.

    Raises:
        CheckpointError: there is a difference; the file is removed.
    """
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.fill_(1)  # whatever the file does not fill will show
    report = load_image_weights(copied, "torchvision", str(path), min_match=1.0)
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = float((network.eval()(image) - copied.eval()(image)).abs().max())
    if difference != 0.0:  # true of NaN, too
        path.unlink()
        raise CheckpointError(
            f"{path}: read back, its features differ by {difference} from the run's; the file was removed"
        )
    return report, difference
