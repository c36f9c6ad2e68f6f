"""Module trees of other projects, rebuilt from the documented names and shapes: what their state dicts have to hold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn


class SparseKernel(nn.Module):
    """A sparse convolution's tensors as spconv 2 has them: [C_out, k0, k1, k2, C_in]."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], *, bias: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, *kernel, in_channels))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))


def conv_norm(in_channels: int, out_channels: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        SparseKernel(in_channels, out_channels, kernel),
        nn.BatchNorm1d(out_channels, eps=1e-3, momentum=0.01),
        nn.ReLU(),
    )


class Block(nn.Module):
    """A residual block, with or without biases."""

    def __init__(self, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.conv1 = SparseKernel(channels, channels, (3, 3, 3), bias=bias)
        self.bn1 = nn.BatchNorm1d(channels)
        self.conv2 = SparseKernel(channels, channels, (3, 3, 3), bias=bias)
        self.bn2 = nn.BatchNorm1d(channels)


def voxel_backbone(channels: Sequence[int], out: int, *, residual: bool) -> nn.Module:
    """OpenPCDet's VoxelBackBone8x, or VoxelResBackBone8x."""
    first, *others = channels

    def stage(before: int | None, width: int) -> nn.Sequential:
        start = [] if before is None else [conv_norm(before, width)]
        number = 2 if residual or before is not None else 1
        rest = [Block(width, bias=True) if residual else conv_norm(width, width) for _ in range(number)]
        return nn.Sequential(*start, *rest)

    tree = nn.Module()
    tree.conv_input = conv_norm(4, first)
    tree.conv1 = stage(None, first)
    for number, (before, width) in enumerate(zip(channels, others, strict=False), start=2):
        tree.add_module(f"conv{number}", stage(before, width))
    tree.conv_out = conv_norm(channels[-1], out, (3, 1, 1))
    return tree


def sparse_encoder(channels: Sequence[int], out: int, *, residual: bool) -> nn.Module:
    """mmdetection3d's SparseEncoder of convolutions, or of residual blocks."""
    tree = nn.Module()
    tree.conv_input = conv_norm(4, channels[0])
    layers = nn.Sequential()
    for number, width in enumerate(channels):
        if residual:
            parts: list[nn.Module] = [Block(width, bias=False), Block(width, bias=False)]
            if number + 1 < len(channels):
                parts.append(conv_norm(width, channels[number + 1]))
        elif number == 0:
            parts = [conv_norm(width, width)]
        else:
            parts = [conv_norm(channels[number - 1], width), conv_norm(width, width), conv_norm(width, width)]
        layers.add_module(f"encoder_layer{number + 1}", nn.Sequential(*parts))
    tree.encoder_layers = layers
    tree.conv_out = conv_norm(channels[-1], out, (3, 1, 1))
    return tree


def bev_backbone(
    in_channels: int,
    layers: Sequence[int],
    filters: Sequence[int],
    up_strides: Sequence[float],
    up_filters: Sequence[int],
    *,
    padded: bool,
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Blocks and deblocks; `padded`: a layer of zeros stands before each block's first convolution (OpenPCDet)."""
    blocks, deblocks = nn.ModuleList(), nn.ModuleList()
    widths = [in_channels, *filters]
    for number, (depth, up_stride, up) in enumerate(zip(layers, up_strides, up_filters, strict=True)):
        parts: list[nn.Module] = [nn.ZeroPad2d(1)] if padded else []
        for layer in range(depth + 1):
            before = widths[number] if layer == 0 else widths[number + 1]
            parts += [
                nn.Conv2d(before, widths[number + 1], 3, bias=False),
                nn.BatchNorm2d(widths[number + 1]),
                nn.ReLU(),
            ]
        blocks.append(nn.Sequential(*parts))
        width, size = widths[number + 1], round(max(up_stride, 1 / up_stride))
        raised = nn.ConvTranspose2d(width, up, size, size, bias=False)
        conv = raised if up_stride >= 1 else nn.Conv2d(width, up, size, size, bias=False)
        deblocks.append(nn.Sequential(conv, nn.BatchNorm2d(up), nn.ReLU()))
    return blocks, deblocks


def pillar_layers(in_features: int, widths: Sequence[int], *, named: bool) -> nn.ModuleList:
    """Layers on points; `named`: their parts are called linear and norm (OpenPCDet), else 0 and 1."""
    layers = nn.ModuleList()
    for width in widths:
        linear, norm = nn.Linear(in_features, width, bias=False), nn.BatchNorm1d(width)
        layers.append(nn.ModuleDict({"linear": linear, "norm": norm}) if named else nn.Sequential(linear, norm))
        in_features = 2 * width
    return layers


def point_layers(widths: Sequence[int]) -> nn.Sequential:
    """Convolution of 1 x 1, BatchNorm, ReLU, one after another."""
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*parts)


def point_rcnn_backbone() -> nn.Module:
    """OpenPCDet's PointNet2MSG as PointRCNN's config sizes it, of points with intensity."""
    scales = (
        ((16, 16, 32), (32, 32, 64)),
        ((64, 64, 128), (64, 96, 128)),
        ((128, 196, 256), (128, 196, 256)),
        ((256, 256, 512), (256, 384, 512)),
    )
    ups = ((128, 128), (256, 256), (512, 512), (512, 512))
    tree = nn.Module()
    tree.SA_modules, skips = nn.ModuleList(), [1]
    for level in scales:
        module = nn.Module()
        module.mlps = nn.ModuleList(point_layers((skips[-1] + 3, *widths)) for widths in level)
        tree.SA_modules.append(module)
        skips.append(sum(widths[-1] for widths in level))
    tree.FP_modules = nn.ModuleList()
    for level, widths in enumerate(ups):
        below = ups[level + 1][-1] if level + 1 < len(ups) else skips[-1]
        module = nn.Module()
        module.mlp = point_layers((below + skips[level], *widths))
        tree.FP_modules.append(module)
    return tree


def tree_of(**parts: nn.Module) -> nn.Module:
    """A detector with these parts."""
    tree = nn.Module()
    for name, part in parts.items():
        tree.add_module(name, part)
    return tree


def listed(**lists: nn.ModuleList) -> nn.Module:
    """A module that holds lists of layers by these names."""
    return tree_of(**lists)
