"""SLidR's published checkpoints: MinkowskiEngine's names, `model_points`, the linear point head as `final`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from models.layouts.base import AnyTensor, Fed, Layout, Place
from models.layouts.minkowski_unet import EPS, minkowski_features, minkowski_places
from models.layouts.unet_places import refuse_other_eps
from models.lidar.res16unet import Res16UNet
from models.weights import slidr_points


class SlidrLayout(Layout):
    """See the module. The scale of intensity is the launcher's affair: it is folded before a file is written."""

    name: ClassVar[str] = "slidr"
    title: ClassVar[str] = "SLidR and its relatives"

    def places(self, network: nn.Module) -> Mapping[str, Place]:
        """See `Layout.places`."""
        if not isinstance(network, Res16UNet):
            raise ValueError(
                f"the backbone is a {type(network).__name__}; SLidR's layout is for a Res16UNet; use --format tandem"
            )
        places = minkowski_places(network)
        refuse_other_eps(network, EPS, "SLidR")
        return places

    def wrap(self, state: Mapping[str, AnyTensor], metadata: Mapping[str, str]) -> Any:
        """{"model_points": ..., "config": what the run states}."""
        return {"model_points": dict(state), "config": dict(metadata)}

    def unwrap(self, content: Mapping[str, object]) -> Mapping[str, AnyTensor]:
        """`model_points`, or a Lightning file."""
        return slidr_points(content)

    def instructions(self, network: nn.Module, fed: Fed) -> str:
        """See `Layout.instructions`."""
        return f"""# MinkUNet in SLidR's layout

SLidR's own loader takes the file: `--pretraining_path FILE` of `downstream.py`. It drops `final`, the head of
pre-training, and loads all else.

- Input features of a voxel: {fed.points}.
- Voxels: {fed.voxels.kind}, {", ".join(f"{size:g}" for size in fed.voxels.size)}.
"""

    def features(
        self, state: Mapping[str, AnyTensor], network: nn.Module, inputs: tuple[AnyTensor, AnyTensor, int]
    ) -> AnyTensor:
        """See `Layout.features`."""
        return minkowski_features(state, inputs)
