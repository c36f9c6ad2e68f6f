"""Kernels as spconv 2 has them under plain names: for networks built of spconv's layers by hand.

A plain state dict; the text beside it lists the layers in the order of computation. Of U-Nets the names are Tandem's
own and the axes x, y, z; what a kernel of one cell is, stands in `spconv_unet`. Of voxelnet: `spconv_voxelnet`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from models.layouts.base import AnyTensor, Fed, Layout, Place
from models.layouts.spconv_unet import BySpconv, spconv_kernel
from models.layouts.spconv_voxelnet import FIRST, voxelnet_features, voxelnet_places, voxelnet_text
from models.layouts.torchsparse import input_text
from models.layouts.unet_places import Unit, unet_places, units
from models.layouts.unet_reader import Layer, Stage, UNetNames, UNetReader
from models.lidar.res16unet import Res16UNet
from models.lidar.voxelnet import VoxelNet


class SpconvPlain(Layout):
    """See the module."""

    name: ClassVar[str] = "spconv"
    title: ClassVar[str] = "spconv 2.2 and later"

    def places(self, network: nn.Module) -> Mapping[str, Place]:
        """See `Layout.places`."""
        if isinstance(network, VoxelNet):
            return voxelnet_places(network)
        return unet_places(_unet(network), lambda unit: (unit.kernel, unit.norm), spconv_kernel)

    def wrap(self, state: Mapping[str, AnyTensor], metadata: Mapping[str, str]) -> Any:
        """{"state_dict": ..., "config": what the run states}."""
        return {"state_dict": dict(state), "config": dict(metadata)}

    def unwrap(self, content: Mapping[str, object]) -> Mapping[str, AnyTensor]:
        """`state_dict`, if its first kernel is one of spconv."""
        state = content.get("state_dict")
        if not isinstance(state, Mapping):
            return {}
        first = state.get("stem.weight", state.get(FIRST))
        if not isinstance(first, Tensor) or first.ndim != 5:
            return {}
        return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}

    def instructions(self, network: nn.Module, fed: Fed) -> str:
        """See `Layout.instructions`."""
        if isinstance(network, VoxelNet):
            return voxelnet_text(network, fed)
        unet = _unet(network)
        lines = "\n".join(_steps(unet))
        return f"""# A sparse U-Net on spconv 2

```python
state = torch.load("FILE", weights_only=True)["state_dict"]
```

{input_text(fed)}
- Voxels are (sample, x, y, z) from 0 on, shifted by a multiple of 16; `spatial_shape` runs along x, y, z and is a
  multiple of 16, else spconv drops what lies in a coarse cell that is not whole.
- A kernel is [C_out, kx, ky, kz, C_in], without bias. spconv reads the memory of a kernel of one cell as [C_in, C_out],
  against its shape; `layer.weight.data.copy_(tensor)` comes out right.
- Every convolution is followed by BatchNorm1d (eps {unet.stem_norm.eps:g}) and ReLU, but for a block's last two: the
  shortcut has no ReLU, and norm2 is added to it (or to the block's input) before the ReLU.
- A transposed convolution is SparseInverseConv3d with the `indice_key` of the strided one of its size. Its result is
  joined with the encoder's of the same voxels, [transposed, encoder's], before the blocks.

{lines}
"""

    def features(
        self, state: Mapping[str, AnyTensor], network: nn.Module, inputs: tuple[AnyTensor, AnyTensor, int]
    ) -> AnyTensor:
        """See `Layout.features`."""
        if isinstance(network, VoxelNet):
            return voxelnet_features(state, network, inputs)
        names = replace(NAMES, stem=[*NAMES.stem, SECOND_STEM]) if SECOND_STEM.kernel in state else NAMES
        return UNetReader(names, BySpconv(state), _unet(network).stem_norm.eps).whole(inputs)


def _unet(network: nn.Module) -> Res16UNet:
    if not isinstance(network, Res16UNet):
        raise ValueError(
            f"there is no sequence of spconv's layers here for a {type(network).__name__}; there is one for res16unet, "
            "any preset, and for voxelnet"
        )
    return network


def _steps(network: Res16UNet) -> Iterator[str]:
    for number, unit in enumerate(units(network), start=1):
        weight = network.get_parameter(unit.kernel)
        channels = f"{weight.shape[1]} to {weight.shape[2]}"
        yield f"{number}. {_layer(unit)}, {channels}: `{unit.kernel}`, then `{unit.norm}`"


def _layer(unit: Unit) -> str:
    kind = {"down": "SparseConv3d, stride 2", "up": "SparseInverseConv3d"}.get(unit.part, "SubMConv3d")
    return f"{kind}, {unit.cells}x{unit.cells}x{unit.cells}"


NAMES = UNetNames(
    stem=[Layer(kernel="stem.weight", norm="stem_norm")],
    encoder=[
        Stage(resample=Layer(kernel="down.weight", norm="norm").within(name), blocks=f"{name}.blocks.")
        for name in ("encoder.0", "encoder.1", "encoder.2", "encoder.3")
    ],
    decoder=[
        Stage(resample=Layer(kernel="up.weight", norm="norm").within(name), blocks=f"{name}.blocks.")
        for name in ("decoder.0", "decoder.1", "decoder.2", "decoder.3")
    ],
    conv1=Layer(kernel="conv1.weight", norm="norm1"),
    conv2=Layer(kernel="conv2.weight", norm="norm2"),
    shortcut=Layer(kernel="shortcut.weight", norm="shortcut_norm"),
)

SECOND_STEM = Layer(kernel="stem2.weight", norm="stem2_norm")
"""Of the presets with two convolutions as stem."""
