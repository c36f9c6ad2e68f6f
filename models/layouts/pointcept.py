"""Pointcept: MinkUNet on MinkowskiEngine, SpUNet-v1m1 on spconv, SPVCNN on torchsparse.

All work on (x, y, z). MinkUNet's stem has 5 cells an edge, our presets' 3: the file's kernel has zeros around ours,
which is the same function, so that Pointcept's class takes it as it is.

Source: Pointcept 1.6, `pointcept/models/sparse_unet/mink_unet.py`, `spconv_unet_v1m1_base.py`,
`spvcnn/ts_spvcnn.py`, `engines/hooks/misc.py` (`CheckpointLoader`).

Letters: C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from models.layouts.base import AnyTensor, Fed, Layout, Place
from models.layouts.minkowski_unet import EPS as MINKOWSKI_EPS
from models.layouts.minkowski_unet import minkowski_features, minkowski_places
from models.layouts.spconv_unet import BySpconv, spconv_kernel
from models.layouts.spunet import EPS as SPUNET_EPS
from models.layouts.spunet import SPUNET_NAMES, spunet_name
from models.layouts.torchsparse import TorchsparseLayout, found_state, input_text
from models.layouts.unet_places import refuse_other_eps, sizes, unet_places
from models.layouts.unet_reader import UNetReader
from models.lidar.minkowski import STEM
from models.lidar.res16unet import Res16UNet
from models.lidar.spvcnn import Spvcnn

Kind = Literal["SpUNet", "MinkUNet", "SPVCNN"]

PREFIX = "module.backbone."
"""Of a segmentor's 3D network, as Pointcept writes it under several processes; its loader takes it under one, too."""

CLASSES: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {
    ((32, 64, 128, 256, 256, 128, 96, 96), (2, 3, 4, 6, 2, 2, 2, 2)): "MinkUNet34C",
    ((32, 64, 128, 256, 256, 128, 96, 96), (2,) * 8): "MinkUNet18",
}
"""Channels and blocks of Pointcept's MinkUNets, which are fixed by the class, to its name."""

STEM_CELLS = 5
"""Edge of their first kernel."""


class PointceptLayout(Layout):
    """See the module."""

    name: ClassVar[str] = "pointcept"
    title: ClassVar[str] = "Pointcept 1.6"

    _torchsparse = TorchsparseLayout()

    def places(self, network: nn.Module) -> Mapping[str, Place]:
        """See `Layout.places`."""
        kind = kind_of(network)
        if kind == "SPVCNN":
            return self._torchsparse.places(network)
        assert isinstance(network, Res16UNet)
        if kind == "SpUNet":
            refuse_other_eps(network, SPUNET_EPS, "Pointcept's SpUNet-v1m1")
            return unet_places(network, spunet_name, spconv_kernel)
        places = minkowski_places(network)
        class_of(network)
        refuse_other_eps(network, MINKOWSKI_EPS, "Pointcept's MinkUNet")
        return {**places, STEM: _padded(places[STEM], network.stem.kernel_size)}

    def wrap(self, state: Mapping[str, AnyTensor], metadata: Mapping[str, str]) -> Any:
        """{"state_dict": under `module.backbone.`, "config": what the run states}."""
        return {"state_dict": {PREFIX + key: value for key, value in state.items()}, "config": dict(metadata)}

    def unwrap(self, content: Mapping[str, object]) -> Mapping[str, AnyTensor]:
        """`state_dict`, whatever stands before the network's names in it."""
        firsts = ("conv_input.0.weight", "conv0p1s1.kernel", "stem.0.kernel")
        return next((state for first in firsts if (state := found_state(content, first))), {})

    def instructions(self, network: nn.Module, fed: Fed) -> str:
        """See `Layout.instructions`."""
        kind, width = kind_of(network), fed.voxels.num_features
        if kind == "SpUNet":
            line = f"""type="SpUNet-v1m1", in_channels={width}, num_classes=CLASSES"""
            report = "final.weight and final.bias, the classifier"
        elif kind == "SPVCNN":
            line = f"""type="SPVCNN", in_channels={width}, out_channels=CLASSES"""
            report = "classifier.0.weight and classifier.0.bias"
        else:
            assert isinstance(network, Res16UNet)
            line = f"""type="{class_of(network)}", in_channels={width}, out_channels=CLASSES"""
            report = "final.kernel and final.bias, the classifier"
        spvcnn = (
            "- Coordinates there must not be negative; shift them by a multiple of 16, and coarse cells stay where "
            "they were.\n"
        )
        stem = (
            "- The first kernel has 5 cells an edge there; the outer ones are 0 in this file, because ours has 3. They "
            "learn in fine-tuning.\n"
        )
        more = {"SpUNet": "", "MinkUNet": stem, "SPVCNN": spvcnn}[kind]
        return f"""# {kind} for Pointcept

```python
weight = "FILE"  # beside `resume = False`; hooks: dict(type="CheckpointLoader")
model = dict(
    type="DefaultSegmentor",
    backbone=dict({line}),
    ...
)
```

CheckpointLoader is to report as missing {report}, and nothing as unexpected.

{input_text(fed)}
- `grid_size` of Pointcept's GridSample is the edge of a voxel; coordinates are cells along x, y, z.
{more}- Momentum of BatchNorm is the class's own there and not in the file.
"""

    def features(
        self, state: Mapping[str, AnyTensor], network: nn.Module, inputs: tuple[AnyTensor, AnyTensor, int]
    ) -> AnyTensor:
        """See `Layout.features`."""
        if "conv_input.0.weight" in state:
            return UNetReader(SPUNET_NAMES, BySpconv(state), SPUNET_EPS).whole(inputs)
        if "stem.0.kernel" in state:
            return self._torchsparse.features(state, network, inputs)
        return minkowski_features(state, inputs)


def kind_of(network: nn.Module) -> Kind:
    """Which of the three.

    Raises:
        ValueError: none.
    """
    if isinstance(network, Spvcnn):
        return "SPVCNN"
    if not isinstance(network, Res16UNet):
        raise ValueError(
            f"Pointcept has no counterpart of a {type(network).__name__}; the nearest presets are spunet34 "
            "(SpUNet-v1m1), res16unet34c (MinkUNet34C) and spvcnn (SPVCNN)"
        )
    size = sizes(network)
    if size.stem == 2:
        near = "res16unet18" if size.blocks == (2,) * 8 else "res16unet34c"
        raise ValueError(
            f"Pointcept's U-Nets have one convolution as stem, this network two; the nearest preset is {near}"
        )
    return "SpUNet" if size.down_widens else "MinkUNet"


def class_of(network: Res16UNet) -> str:
    """Pointcept's class of a MinkUNet.

    Raises:
        ValueError: there is none of its sizes.
    """
    size = sizes(network)
    found = CLASSES.get((size.channels, size.blocks))
    if found is None:
        raise ValueError(
            f"Pointcept has no MinkUNet with channels {size.channels} and blocks {size.blocks}; the nearest preset is "
            "res16unet18"
        )
    return found


def _padded(place: Place, cells: int) -> Place:
    """The first kernel with zeros around it."""
    rim = (STEM_CELLS - cells) // 2

    def out(kernel: AnyTensor) -> AnyTensor:
        cube = kernel.reshape(cells, cells, cells, *kernel.shape[1:])
        return F.pad(cube, (0, 0, 0, 0, rim, rim, rim, rim, rim, rim)).flatten(0, 2)

    def back(kernel: AnyTensor) -> AnyTensor:
        cube = kernel.reshape(STEM_CELLS, STEM_CELLS, STEM_CELLS, *kernel.shape[1:])
        inner = slice(rim, rim + cells)
        kept = cube[inner, inner, inner]
        if int(torch.count_nonzero(cube)) != int(torch.count_nonzero(kept)):
            raise ValueError(
                f"weights: {place.key} has {STEM_CELLS} cells an edge, this network's first kernel {cells}, and what "
                "lies outside is not 0: it was trained there and has no place here"
            )
        return kept.flatten(0, 2).contiguous()

    return replace(place, out=out, back=back)
