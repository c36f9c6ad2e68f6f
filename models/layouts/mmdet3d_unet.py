"""mmdetection3d's MinkUNetBackbone on spconv and its SPVCNNBackbone on torchsparse.

Both work on (x, y, z). On spconv, kernels are [C_out, k0, k1, k2, C_in], see `mmdet3d_parts` for how they lie in a file
and `spconv_unet` for those of one cell; SPVCNNBackbone runs on torchsparse 1.4 alone, and has its kernels.

Source: mmdetection3d 1.4, `mmdet3d/models/backbones/minkunet_backbone.py`, `spvcnn_backone.py`,
`layers/sparse_block.py`, `layers/torchsparse_block.py` (names, sizes, order of computation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from models.layouts.base import AnyTensor, Fed, Place
from models.layouts.mmdet3d_text import refuse_without_places
from models.layouts.spconv_unet import BySpconv, spconv_kernel
from models.layouts.torchsparse import (
    EPS,
    input_text,
    spvcnn_features,
    torchsparse_kernel,
    torchsparse_offsets,
    torchsparse_unet,
)
from models.layouts.unet_places import Unit, sizes, spvcnn_places, unet_places
from models.layouts.unet_reader import ByDictionary, Layer, Stage, UNetNames, UNetReader
from models.lidar.spvcnn import Spvcnn

TITLE = "mmdetection3d 1.4"

PREFIX = "backbone."
"""Of a segmentor's 3D network."""

_SPCONV_PARTS = {"conv1": ("conv1.weight", "bn1"), "conv2": ("conv2.weight", "bn2")}
_TORCHSPARSE_PARTS = {"conv1": ("net.0.kernel", "net.1"), "conv2": ("net.3.kernel", "net.4")}


def mmdet3d_unet_places(network: nn.Module) -> dict[str, Place]:
    """Places of a `Res16UNet` or a `Spvcnn`.

    Raises:
        ValueError: there is no equal network there.
    """
    unet = torchsparse_unet(network, TITLE)
    if isinstance(network, Spvcnn):
        places = spvcnn_places(network, _torchsparse_name, torchsparse_kernel)
    else:
        places = unet_places(unet, _spconv_name, spconv_kernel)
    return {ours: replace(place, key=PREFIX + place.key) for ours, place in places.items()}


def mmdet3d_unet_features(state: Mapping[str, AnyTensor], inputs: tuple[AnyTensor, AnyTensor, int]) -> AnyTensor:
    """Features of each voxel, computed from a file's tensors."""
    own = {key.removeprefix(PREFIX): value for key, value in state.items()}
    if "point_transforms.0.0.weight" in own:
        return spvcnn_features(UNetReader(TORCHSPARSE_NAMES, ByDictionary(own, torchsparse_offsets), EPS), inputs)
    return UNetReader(SPCONV_NAMES, BySpconv(own), EPS).whole(inputs)


def mmdet3d_unet_text(network: nn.Module, fed: Fed) -> str:
    """The text beside a file.

    Raises:
        ValueError: mmdetection3d cannot feed what the network was fed.
    """
    size, spvcnn = sizes(torchsparse_unet(network, TITLE)), isinstance(network, Spvcnn)
    refuse_without_places(fed)
    edges = ", ".join(f"{edge:g}" for edge in fed.voxels.size)
    if spvcnn:
        library = (
            "- torchsparse 1.4 alone: mmdetection3d hands its layers' arguments over by place, and 2.1 has another "
            "order of them.\n"
        )
    else:
        library = (
            "- The grid there ends at the last voxel, and spconv drops coarse cells that are not whole: voxels in "
            "the last cells of an odd number get no coarse features. They are the far rim of a sweep.\n"
        )
    return f"""# {"SPVCNNBackbone" if spvcnn else "MinkUNetBackbone"} for mmdetection3d

```python
load_from = "FILE"
model = dict(
    data_preprocessor=dict(
        voxel=True,
        voxel_type="minkunet",
        batch_first={not spvcnn},
        voxel_layer=dict(voxel_size=[{edges}]),
    ),
    backbone=dict(
        type="{"SPVCNNBackbone" if spvcnn else "MinkUNetBackbone"}",
        in_channels={fed.voxels.num_features},
        base_channels={size.base},
        encoder_channels={list(size.channels[:4])},
        encoder_blocks={list(size.blocks[:4])},
        decoder_channels={list(size.channels[4:])},
        decoder_blocks={list(size.blocks[4:])},
        sparseconv_backend="{"torchsparse" if spvcnn else "spconv"}",
    ),
)
```

The loader is to report no unexpected key, and as missing the decode head's alone. `load_from` and `init_cfg` with
prefix="backbone" both turn the kernels of this file to what spconv 2 wants.

{input_text(fed)}
- Cells there are rounded, not cut down, and counted from the lowest; a voxel has the features of one of its points.
{library}- Momentum of BatchNorm is the config's own there and not in the file.
"""


def _names(unit: Unit, parts: Mapping[str, tuple[str, str]], conv: str, shortcut: str) -> tuple[str, str]:
    first, norm = f"{conv}0.{shortcut}", f"{conv}1"
    if unit.part == "stem":
        return f"conv_input.{unit.stage}.{first}", f"conv_input.{unit.stage}.{norm}"
    stage = f"{'decoder' if unit.decoder else 'encoder'}.{unit.stage}"
    if unit.part in ("down", "up"):
        return f"{stage}.0.{first}", f"{stage}.0.{norm}"
    block = f"{stage}.1.{unit.block}" if unit.decoder else f"{stage}.{unit.block + 1}"
    kernel, name = {**parts, "shortcut": (f"downsample.0.{shortcut}", "downsample.1")}[unit.part]
    return f"{block}.{kernel}", f"{block}.{name}"


def _spconv_name(unit: Unit) -> tuple[str, str]:
    return _names(unit, _SPCONV_PARTS, "", "weight")


def _torchsparse_name(unit: Unit) -> tuple[str, str]:
    return _names(unit, _TORCHSPARSE_PARTS, "net.", "kernel")


# ---- the reader


def _read(resample: Layer, conv1: Layer, conv2: Layer, shortcut: Layer) -> UNetNames:
    return UNetNames(
        stem=[resample.within("conv_input.0"), resample.within("conv_input.1")],
        encoder=[
            Stage(resample=resample.within(f"{name}.0"), blocks=f"{name}.", first=1)
            for name in ("encoder.0", "encoder.1", "encoder.2", "encoder.3")
        ],
        decoder=[
            Stage(resample=resample.within(f"{name}.0"), blocks=f"{name}.1.")
            for name in ("decoder.0", "decoder.1", "decoder.2", "decoder.3")
        ],
        conv1=conv1,
        conv2=conv2,
        shortcut=shortcut,
    )


SPCONV_NAMES = _read(
    Layer(kernel="0.weight", norm="1"),
    Layer(kernel="conv1.weight", norm="bn1"),
    Layer(kernel="conv2.weight", norm="bn2"),
    Layer(kernel="downsample.0.weight", norm="downsample.1"),
)
TORCHSPARSE_NAMES = _read(
    Layer(kernel="net.0.kernel", norm="net.1"),
    Layer(kernel="net.0.kernel", norm="net.1"),
    Layer(kernel="net.3.kernel", norm="net.4"),
    Layer(kernel="downsample.0.kernel", norm="downsample.1"),
)
