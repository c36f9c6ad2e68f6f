"""Formats that are Tandem's own, SLidR's and torchvision's: how a file is written and read back."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.files import replace_file
from models.image.resnet import ResNet
from models.image.resnet_encoder import ResNetEncoder
from models.layouts.minkowski_unet import minkowski_features
from models.layouts.slidr import SlidrLayout
from models.lidar.inputs import PointInput
from models.lidar.minkowski import to_minkowski
from models.methods.base import Objective
from models.weight_files import read_checkpoint
from models.weights import (
    LoadReport,
    export_backbone,
    load_backbone,
    load_image_weights,
    load_slidr_backbone,
    slidr_input,
    slidr_points,
)


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        network: the network of a method that the file holds.
        write: (path, objective, metadata) writes the file, whole or not at all.
        read: (path, network) fills a network of the same shape from the file.
        tolerance: how far features read back may be from the run's, over the largest of them: 0 where tensors are
            written as they are, rounding where a scale is folded in and out again.
        rebuild: (path, inputs) gives the features by a reader that knows the other code's layout alone; None: the
            layout is torch's own.
    """

    network: Callable[[Objective], nn.Module]
    write: Callable[[Path, Objective, dict[str, str]], None]
    read: Callable[[Path, nn.Module], LoadReport]
    tolerance: float = 0.0
    rebuild: Callable[[Path, tuple[Any, ...]], Tensor] | None = None


def backbone_of(objective: Objective) -> nn.Module:
    """A run's 3D network.

    Raises:
        ValueError: it has none.
    """
    backbone = objective.part("backbone")
    if backbone is None:
        raise ValueError(f"{type(objective).__name__} has no 3D network; use --format {IMAGES} for its image network")
    return backbone


def resnet_of(objective: Objective) -> ResNet:
    """The ResNet of a run's image network.

    Raises:
        ValueError: it has none.
    """
    encoder = objective.part("image_backbone")
    if encoder is None:
        raise ValueError(
            f"{type(objective).__name__} has no image network that it trains; use --format tandem for its 3D network"
        )
    if not isinstance(encoder, ResNetEncoder):
        raise ValueError(f"the image network is a {type(encoder).__name__}, and torchvision's layout is for a ResNet")
    return encoder.network


def _write_tandem(path: Path, objective: Objective, metadata: dict[str, str]) -> None:
    export_backbone(path, backbone_of(objective), metadata=metadata)


def _read_tandem(path: Path, backbone: nn.Module) -> LoadReport:
    return load_backbone(path, backbone, min_match=1.0)[0]


def _write_slidr(path: Path, objective: Objective, metadata: dict[str, str]) -> None:
    backbone = backbone_of(objective)
    SlidrLayout().places(backbone)  # refuses what has no counterpart
    fed = PointInput.from_text(metadata["input"])
    state = to_minkowski(backbone.state_dict(), _linear_head(objective), fed=fed)
    save(path, {"model_points": finite(state), "config": metadata})


def _read_slidr(path: Path, backbone: nn.Module) -> LoadReport:
    return load_slidr_backbone(path, backbone, min_match=1.0)


def _rebuild_slidr(path: Path, inputs: tuple[Any, ...]) -> Tensor:
    content = read_checkpoint(path)
    coords, features, num_samples = inputs
    return minkowski_features(
        slidr_points(content), (coords, slidr_input(content).scale_features(features), num_samples)
    )


def _write_images(path: Path, objective: Objective, metadata: dict[str, str]) -> None:
    save(path, finite(resnet_of(objective).state_dict()))


def _read_images(path: Path, network: nn.Module) -> LoadReport:
    return load_image_weights(network, "torchvision", str(path), min_match=1.0)


def finite(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU.

    Raises:
        ValueError: one is not finite.
    """
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"not finite: {', '.join(broken[:5])}. The run has diverged; nothing was written")
    return {key: value.detach().cpu().clone() for key, value in state.items()}


def save(path: Path, content: Mapping[str, object]) -> None:
    """Write what `torch.load` reads, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # torch's own writing of files turns every error into "file write failed"
    torch.save(content, buffer)
    replace_file(path, buffer.getvalue(), durable=False)


def _linear_head(objective: Objective) -> tuple[Float[Tensor, "D C"], Float[Tensor, " D"]] | None:
    """Weight and bias of a point head that is one linear layer; None for any other head."""
    head = objective.part("point_head")
    layers = [] if head is None else [part for part in head.modules() if next(part.children(), None) is None]
    if len(layers) == 1 and isinstance(layers[0], nn.Linear) and layers[0].bias is not None:
        return layers[0].weight, layers[0].bias
    return None


IMAGES = "torchvision"
"""The format of image networks."""
SLIDR = "slidr"
"""The layout whose input has another scale."""

FORMATS = {
    "tandem": Format(backbone_of, _write_tandem, _read_tandem),
    SLIDR: Format(backbone_of, _write_slidr, _read_slidr, tolerance=1e-5, rebuild=_rebuild_slidr),
    IMAGES: Format(resnet_of, _write_images, _read_images),
}
