"""The bird's-eye view of detectors: from sparse rows to a dense map, a 2D network on it, and back to points.

Maps are [samples, channels, y, x]. A map cell of stride s lies with its centre on the centre of the finest cell s * i
(that is where convolutions of kernel 3 and padding 1 put it).

Cost: the dense map; 128 x 128 cells of 256 channels are 16 MB a sample, 512 x 512 of 64 channels 64 MB.

Source: Yan, Mao, Li, "SECOND: sparsely embedded convolutional detection", Sensors 2018, section 3.2; Lang et al.,
"PointPillars", CVPR 2019, section 2.2 (the 2D backbone); OpenPCDet's and CenterPoint's layouts of it.

Letters: B samples, M rows, C channels, X Y D cells along x, y, z.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.lidar.layers import norm_act
from models.pairing import full_precision

BN_EPS = 1e-3
"""Of BatchNorm in SECOND and its descendants."""


@dataclass(frozen=True, kw_only=True)
class BevLayout:
    """Shape of a 2D backbone; one entry a block."""

    convolutions: tuple[int, ...]  # of stride 1 after the block's first, which has the block's stride
    strides: tuple[int, ...]  # of each block's first convolution
    channels: tuple[int, ...]  # of each block
    up_channels: tuple[int, ...]  # of each block's output after it was brought to `out_stride`
    out_stride: int  # of the result against the input map

    @property
    def total_stride(self) -> int:
        """Of the coarsest block; maps must have a multiple of it along both axes."""
        return list(itertools.accumulate(self.strides, int.__mul__))[-1]

    @property
    def num_features(self) -> int:
        """Channels of the result."""
        return sum(self.up_channels)


class BevBackbone(nn.Module):
    """Blocks of 3 x 3 convolutions one after another; their outputs, brought to one stride, are concatenated."""

    def __init__(self, in_channels: int, layout: BevLayout, *, bn_momentum: float) -> None:
        super().__init__()
        self.blocks, self.ups = nn.ModuleList(), nn.ModuleList()
        width, stride = in_channels, 1
        for number, channels in enumerate(layout.channels):
            stride *= layout.strides[number]
            first = nn.Conv2d(width, channels, 3, layout.strides[number], padding=1, bias=False)
            others = [
                nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(layout.convolutions[number])
            ]
            self.blocks.append(nn.Sequential(*(ConvNormReLU(conv, bn_momentum) for conv in (first, *others))))
            self.ups.append(
                ConvNormReLU(_to_stride(channels, layout.up_channels[number], stride, layout.out_stride), bn_momentum)
            )
            width = channels

    def forward(self, bev: Float[Tensor, "B C_in Y X"]) -> Float[Tensor, "B C_out Y_out X_out"]:
        """Features of the map's cells at the layout's stride."""
        ups = []
        for block, up in zip(self.blocks, self.ups, strict=True):
            bev = block(bev)
            ups.append(up(bev))
        return torch.cat(ups, dim=1)


class ConvNormReLU(nn.Module):
    """A 2D convolution, BatchNorm, ReLU."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, bn_momentum: float) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels, eps=BN_EPS, momentum=bn_momentum)

    def forward(self, bev: Float[Tensor, "B C_in Y X"]) -> Float[Tensor, "B C_out Y_out X_out"]:
        """Convolve; a map of a single cell (or of no sample) is normalised with the running statistics."""
        return norm_act(self.norm, self.conv(bev))


def _to_stride(in_channels: int, out_channels: int, stride: int, out_stride: int) -> nn.Conv2d | nn.ConvTranspose2d:
    if stride >= out_stride:
        factor = stride // out_stride
        return nn.ConvTranspose2d(in_channels, out_channels, factor, factor, bias=False)
    factor = out_stride // stride
    return nn.Conv2d(in_channels, out_channels, factor, factor, bias=False)


def to_bev(
    features: Float[Tensor, "M C"], cells: Int[Tensor, "M 4"], num_samples: int, size: tuple[int, int, int]
) -> Float[Tensor, "B C_times_D Y X"]:
    """Rows at their cells, zeros elsewhere; the layers of a column one after another in the channels (c * D + z).

    `cells` are (sample, x, y, z), unique, all of them inside the map of `size` X, Y, D.
    """
    x_size, y_size, depth = size
    sample, x, y, z = cells.long().unbind(1)
    # Channels last: rows are stored as they come, `read_bev` takes them back without a copy, convolutions like it.
    grid = features.new_zeros(num_samples, y_size, x_size, features.shape[1], depth)
    grid[sample, y, x, :, z] = features
    return grid.flatten(3).permute(0, 3, 1, 2)


def read_bev(
    bev: Float[Tensor, "B C Y X"], sample: Int[Tensor, " M"], xy: Float[Tensor, "M 2"]
) -> Float[Tensor, "M C"]:
    """Features at places of the map, bilinear between cell centres, constant beyond the outermost ones.

    `xy` counts in map cells, cell 0 at 0.
    """
    y_size, x_size = bev.shape[2:]
    rows = full_precision(bev.permute(0, 2, 3, 1).reshape(-1, bev.shape[1]))
    if len(sample) == 0:
        return rows[sample.long()]  # no row, but part of the graph
    last = torch.tensor([x_size - 1, y_size - 1], device=xy.device)
    place = xy.clamp(min=torch.zeros_like(last), max=last)
    low = place.floor()
    part = place - low
    corners, weights = [], []
    for dy, dx in itertools.product((0, 1), repeat=2):
        x, y = (low.long() + torch.tensor([dx, dy], device=xy.device)).minimum(last).unbind(1)
        corners.append((sample.long() * y_size + y) * x_size + x)
        weights.append((part[:, 0] if dx else 1 - part[:, 0]) * (part[:, 1] if dy else 1 - part[:, 1]))
    weight = torch.stack(weights, dim=1).to(rows.dtype)
    return F.embedding_bag(torch.stack(corners, dim=1), rows, mode="sum", per_sample_weights=weight)
