"""Names and shapes of other projects' U-Nets, written down from their code, and module trees built of nothing else."""

from __future__ import annotations

import functools

import torch
from torch import nn

Shapes = dict[str, tuple[int, ...]]

WIDE = (32, 64, 128, 256, 256, 128, 96, 96)
DEEP = (2, 3, 4, 6, 2, 2, 2, 2)
TWO = (2,) * 8


class Tree(nn.Module):
    """Empty modules down to parameters and buffers of these names and shapes."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        for name in sorted({key.split(".")[0] for key in shapes if "." in key}):
            inner = {key.split(".", 1)[1]: shape for key, shape in shapes.items() if key.startswith(f"{name}.")}
            self.add_module(name, type(self)(inner))
        for name, shape in shapes.items():
            if "." not in name:
                dtype = torch.long if name == "num_batches_tracked" else torch.float32
                self.register_buffer(name, torch.empty(shape, dtype=dtype))


def prefixed(name: str, shapes: Shapes) -> Shapes:
    """The tensors inside a module of this name."""
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def norm(name: str, channels: int) -> Shapes:
    """A BatchNorm."""
    shapes: Shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def torchsparse_unet(inputs: int, blocks: tuple[int, ...], planes: tuple[int, ...] = WIDE, base: int = 32) -> Shapes:
    """MinkUNet of torchsparse's examples, SegContrast, BEVLab, PCSeg, without its classifier."""

    def residual(name: str, width: int, out: int) -> Shapes:
        shapes = {f"{name}.net.0.kernel": (27, width, out), f"{name}.net.3.kernel": (27, out, out)}
        shapes |= norm(f"{name}.net.1", out) | norm(f"{name}.net.4", out)
        if width != out:
            shapes |= {f"{name}.downsample.0.kernel": (width, out)} | norm(f"{name}.downsample.1", out)
        return shapes

    shapes = {"stem.0.kernel": (27, inputs, base), "stem.3.kernel": (27, base, base)}
    shapes |= norm("stem.1", base) | norm("stem.4", base)
    width, skips = base, [base]
    for stage in range(4):
        name = f"stage{stage + 1}"
        shapes |= {f"{name}.0.net.0.kernel": (8, width, width)} | norm(f"{name}.0.net.1", width)
        for block in range(blocks[stage]):
            shapes |= residual(f"{name}.{block + 1}", width, planes[stage])
            width = planes[stage]
        skips.append(width)
    skips.pop()
    for stage in range(4):
        name, out = f"up{stage + 1}", planes[4 + stage]
        shapes |= {f"{name}.0.net.0.kernel": (8, width, out)} | norm(f"{name}.0.net.1", out)
        width = out + skips.pop()
        for block in range(blocks[4 + stage]):
            shapes |= residual(f"{name}.1.{block}", width, out)
            width = out
    return shapes


def torchsparse_spvcnn(inputs: int) -> Shapes:
    """SPVCNN of spvnas and of Pointcept, without its classifier."""
    shapes = torchsparse_unet(inputs, TWO)
    for number, (width, out) in enumerate(((32, 256), (256, 128), (128, 96))):
        name = f"point_transforms.{number}"
        shapes |= {f"{name}.0.weight": (out, width), f"{name}.0.bias": (out,)} | norm(f"{name}.1", out)
    return shapes


def minkowski_unet(inputs: int, blocks: tuple[int, ...], stem: int, planes: tuple[int, ...] = WIDE) -> Shapes:
    """MinkUNet of MinkowskiEngine, without `final`. `stem`: edge of the first kernel."""

    def residual(name: str, width: int, out: int) -> Shapes:
        shapes = {f"{name}.conv1.kernel": (27, width, out), f"{name}.conv2.kernel": (27, out, out)}
        shapes |= norm(f"{name}.norm1.bn", out) | norm(f"{name}.norm2.bn", out)
        if width != out:
            shapes |= {f"{name}.downsample.0.kernel": (width, out)} | norm(f"{name}.downsample.1.bn", out)
        return shapes

    shapes = {"conv0p1s1.kernel": (stem**3, inputs, 32)} | norm("bn0.bn", 32)
    width, skips = 32, [32]
    for stage in range(8):
        stride, up = 2 ** (8 - stage) if stage > 3 else 2**stage, stage > 3
        out = planes[stage] if up else width
        name = f"conv{'tr' if up else ''}{stage if up else stage + 1}p{stride}s2"
        shapes |= {f"{name}.kernel": (8, width, out)}
        shapes |= norm(f"bntr{stage}.bn" if up else f"bn{stage + 1}.bn", out)
        width = out + skips.pop() if up else width
        for block in range(blocks[stage]):
            shapes |= residual(f"block{stage + 1}.{block}", width, planes[stage])
            width = planes[stage]
        if stage < 3:
            skips.append(width)
    return shapes


def spconv_block(name: str, width: int, out: int, *, across: str) -> Shapes:
    """A residual block on spconv. `across`: what leads around it where it changes the width."""
    shapes: Shapes = {f"{name}.conv1.weight": (out, 3, 3, 3, width), f"{name}.conv2.weight": (out, 3, 3, 3, out)}
    shapes |= norm(f"{name}.bn1", out) | norm(f"{name}.bn2", out)
    if width != out:
        shapes |= {f"{name}.{across}.0.weight": (out, 1, 1, 1, width)} | norm(f"{name}.{across}.1", out)
    return shapes


def spunet(inputs: int, blocks: tuple[int, ...] = DEEP, planes: tuple[int, ...] = WIDE, base: int = 32) -> Shapes:
    """Pointcept's SpUNet-v1m1 without `final`."""

    residual = functools.partial(spconv_block, across="proj")
    shapes: Shapes = {"conv_input.0.weight": (base, 5, 5, 5, inputs)} | norm("conv_input.1", base)
    widths = (base, *planes[:4])
    for stage in range(4):
        out, deeper = planes[7 - stage], planes[6 - stage] if stage < 3 else planes[3]
        shapes |= {f"down.{stage}.0.weight": (widths[stage + 1], 2, 2, 2, widths[stage])}
        shapes |= norm(f"down.{stage}.1", widths[stage + 1])
        shapes |= {f"up.{stage}.0.weight": (out, 2, 2, 2, deeper)} | norm(f"up.{stage}.1", out)
        for block in range(blocks[stage]):
            shapes |= residual(f"enc.{stage}.block{block}", widths[stage + 1], widths[stage + 1])
        for block in range(blocks[7 - stage]):
            shapes |= residual(f"dec.{stage}.block{block}", out if block else out + widths[stage], out)
    return shapes


def mmdet3d_unet(inputs: int, blocks: tuple[int, ...], planes: tuple[int, ...] = WIDE, base: int = 32) -> Shapes:
    """mmdetection3d's MinkUNetBackbone on spconv."""

    residual = functools.partial(spconv_block, across="downsample")
    shapes: Shapes = {
        "conv_input.0.0.weight": (base, 3, 3, 3, inputs),
        "conv_input.1.0.weight": (base, 3, 3, 3, base),
    }
    shapes |= norm("conv_input.0.1", base) | norm("conv_input.1.1", base)
    widths = (base, *planes[:4])
    for stage in range(4):
        name, width = f"encoder.{stage}", widths[stage]
        shapes |= {f"{name}.0.0.weight": (width, 2, 2, 2, width)} | norm(f"{name}.0.1", width)
        for block in range(blocks[stage]):
            shapes |= residual(f"{name}.{block + 1}", widths[stage + min(block, 1)], widths[stage + 1])
        name, width, out = f"decoder.{stage}", planes[3 + stage], planes[4 + stage]
        shapes |= {f"{name}.0.0.weight": (out, 2, 2, 2, width)} | norm(f"{name}.0.1", out)
        for block in range(blocks[4 + stage]):
            shapes |= residual(f"{name}.1.{block}", out if block else out + widths[3 - stage], out)
    return shapes


def mmdet3d_spvcnn(inputs: int) -> Shapes:
    """mmdetection3d's SPVCNNBackbone, which is torchsparse's under other names."""
    moved: Shapes = {}
    for key, shape in torchsparse_spvcnn(inputs).items():
        part, rest = key.split(".", 1)
        number = int(part[-1]) - 1 if part[-1].isdigit() else 0
        if part == "stem":
            layer, tensor = rest.split(".", 1)
            name = f"conv_input.{int(layer) // 3}.net.{int(layer) % 3}.{tensor}"
        elif part == "point_transforms":
            name = key
        else:
            name = f"{'encoder' if part.startswith('stage') else 'decoder'}.{number}.{rest}"
        moved[name] = shape
    return moved
