"""The tensors of our U-Nets one convolution at a time, so that a layout only says how it calls and turns each.

Letters: K kernel offsets (ours: x fastest), C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from models.layouts.base import AnyTensor, Place
from models.lidar.res16unet import Res16UNet
from models.lidar.spvcnn import Spvcnn

Part = Literal["stem", "down", "up", "conv1", "conv2", "shortcut"]

NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""Tensors of a BatchNorm."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A convolution of a `Res16UNet` and the BatchNorm behind it.

    Attributes:
        kernel: our name of the convolution's weight.
        norm: our name of the BatchNorm.
        part: what it does.
        decoder: whether it is in the decoder.
        stage: of the encoder or the decoder, from 0 in the order of computation; of the stem, its number there.
        block: its residual block in the stage.
        cells: edge of the kernel.
    """

    kernel: str
    norm: str
    part: Part
    decoder: bool = False
    stage: int = 0
    block: int = 0
    cells: int = 3


def units(network: Res16UNet) -> Iterator[Unit]:
    """All convolutions, in the order of computation."""
    yield Unit(kernel="stem.weight", norm="stem_norm", part="stem", cells=network.stem.kernel_size)
    if network.stem2 is not None:
        yield Unit(kernel="stem2.weight", norm="stem2_norm", part="stem", stage=1)
    for decoder, stages in ((False, network.encoder), (True, network.decoder)):
        for stage, module in enumerate(stages):
            name = f"{'decoder' if decoder else 'encoder'}.{stage}"
            part: Part = "up" if decoder else "down"
            kernel, norm = f"{name}.{part}.weight", f"{name}.norm"
            yield Unit(kernel=kernel, norm=norm, part=part, decoder=decoder, stage=stage, cells=2)
            blocks = module.get_submodule("blocks")
            assert isinstance(blocks, nn.Sequential)
            for number, block in enumerate(blocks):
                yield from _block_units(f"{name}.blocks.{number}", block, decoder, stage, number)


def _block_units(name: str, block: nn.Module, decoder: bool, stage: int, number: int) -> Iterator[Unit]:
    rows: list[tuple[Part, str, int]] = [("conv1", "norm1", 3), ("conv2", "norm2", 3)]
    if getattr(block, "shortcut", None) is not None:
        rows.append(("shortcut", "shortcut_norm", 1))
    for part, norm, cells in rows:
        yield Unit(
            kernel=f"{name}.{part}.weight",
            norm=f"{name}.{norm}",
            part=part,
            decoder=decoder,
            stage=stage,
            block=number,
            cells=cells,
        )


def unet_places(
    network: Res16UNet, name: Callable[[Unit], tuple[str, str]], kernel: Callable[[str, Unit], Place], prefix: str = ""
) -> dict[str, Place]:
    """Places of all tensors of a U-Net.

    Args:
        network: ours.
        name: a unit's kernel and BatchNorm as they are called there, the latter without ".weight".
        kernel: (their key, unit) gives the kernel's place.
        prefix: what our names begin with in the network that holds this one.
    """
    places: dict[str, Place] = {}
    for unit in units(network):
        theirs, norm = name(unit)
        places[prefix + unit.kernel] = kernel(theirs, unit)
        places |= {f"{prefix}{unit.norm}.{part}": Place(key=f"{norm}.{part}") for part in NORM_PARTS}
    return places


def spvcnn_places(
    network: Spvcnn, name: Callable[[Unit], tuple[str, str]], kernel: Callable[[str, Unit], Place]
) -> dict[str, Place]:
    """Places of all tensors of an SPVCNN whose point layers are `point_transforms` there, as in the released code.

    Arguments are those of `unet_places`.
    """
    places = unet_places(network.unet, name, kernel, "unet.")
    for layer in range(len(network.point_layers)):
        for part in ("weight", "bias"):
            places[f"point_layers.{layer}.linear.{part}"] = Place(key=f"point_transforms.{layer}.0.{part}")
        for part in NORM_PARTS:
            places[f"point_layers.{layer}.norm.{part}"] = Place(key=f"point_transforms.{layer}.1.{part}")
    return places


def offsets_kernel(key: str, unit: Unit) -> Place:
    """A kernel that stays [K, C_in, C_out], as in MinkowskiEngine; of one cell [C_in, C_out]."""
    if unit.cells > 1:
        return Place(key=key)

    def out(kernel: AnyTensor) -> AnyTensor:
        return kernel.squeeze(0)

    def back(kernel: AnyTensor) -> AnyTensor:
        return kernel.unsqueeze(0)

    return Place(key=key, out=out, back=back)


# ---- which of the counterparts


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What distinguishes one U-Net from another.

    Attributes:
        stem: convolutions of the stem.
        down_widens: whether strided convolutions, not the blocks behind them, change the channels.
        base: channels after it.
        channels: after each encoder stage and each decoder stage.
        blocks: of each of these.
    """

    stem: int
    down_widens: bool
    base: int
    channels: tuple[int, ...]
    blocks: tuple[int, ...]

    def __str__(self) -> str:
        """For a message."""
        return f"{self.stem} convolution{'s' * (self.stem > 1)} as stem, {self.base} channels, then {self.channels}"


def sizes(network: Res16UNet) -> Sizes:
    """Sizes of a network."""
    stages = (*network.encoder, *network.decoder)
    return Sizes(
        stem=1 if network.stem2 is None else 2,
        down_widens=network.encoder[1].down.in_channels != network.encoder[1].down.out_channels,  # type: ignore[union-attr]
        base=network.level_features[0],
        channels=tuple(network.level_features[1:]),
        blocks=tuple(len(list(stage.get_submodule("blocks").children())) for stage in stages),
    )


def refuse_other_eps(network: nn.Module, eps: float, project: str) -> None:
    """Refuse BatchNorms whose eps is not what the project's are built with: no tensor of a file says it.

    Raises:
        ValueError: names the first.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.eps != eps:
            raise ValueError(f"the BatchNorm {name} has eps {module.eps:g}, and {project} builds it with {eps:g}")
