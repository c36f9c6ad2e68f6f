"""Pointcept's SpUNet-v1m1 on spconv 2, our preset `spunet34`: names, kernels, and a reader on spconv.

It works on (x, y, z), so k0 k1 k2 run along x, y, z. Its stem has 5 cells an edge, its strided convolutions change the
channels, and every first block of the decoder has a 1x1 projection.

Source: Pointcept 1.6, `pointcept/models/sparse_unet/spconv_unet_v1m1_base.py` (names, sizes, order of computation).

Letters: C channels, k0 k1 k2 cells of a kernel.
"""

from __future__ import annotations

from models.layouts.unet_places import Unit
from models.layouts.unet_reader import Layer, Stage, UNetNames

EPS = 1e-3
"""Of its BatchNorms."""

_BLOCK_PARTS = {"conv1": ("conv1", "bn1"), "conv2": ("conv2", "bn2"), "shortcut": ("proj.0", "proj.1")}


def spunet_name(unit: Unit) -> tuple[str, str]:
    """Kernel and BatchNorm as they are called there. Its decoder is numbered from the finest stage."""
    stage = 3 - unit.stage if unit.decoder else unit.stage
    if unit.part == "stem":
        return "conv_input.0.weight", "conv_input.1"
    if unit.part in ("down", "up"):
        return f"{unit.part}.{stage}.0.weight", f"{unit.part}.{stage}.1"
    block = f"{'dec' if unit.decoder else 'enc'}.{stage}.block{unit.block}"
    kernel, norm = _BLOCK_PARTS[unit.part]
    return f"{block}.{kernel}.weight", f"{block}.{norm}"


SPUNET_NAMES = UNetNames(
    stem=[Layer(kernel="conv_input.0.weight", norm="conv_input.1")],
    encoder=[
        Stage(resample=Layer(kernel="0.weight", norm="1").within(f"down.{number}"), blocks=f"enc.{number}.block")
        for number in (0, 1, 2, 3)
    ],
    decoder=[
        Stage(resample=Layer(kernel="0.weight", norm="1").within(f"up.{number}"), blocks=f"dec.{number}.block")
        for number in (3, 2, 1, 0)
    ],
    conv1=Layer(kernel="conv1.weight", norm="bn1"),
    conv2=Layer(kernel="conv2.weight", norm="bn2"),
    shortcut=Layer(kernel="proj.0.weight", norm="proj.1"),
)
