"""Convolution whose taps move and are weighted by what lies there (DCNv2), in plain torch.

    out(p) = bias + sum over taps k of weight_k . m_k(p) . x(p + p_k + d_k(p))

p_k: the tap's place in the kernel; d_k (pixels of the map) and m_k (0 to 1) come from an ordinary convolution of the
input, which begins with zeros: taps where they always are, each with half its weight. Between cells x is bilinear,
outside the map 0.

Source: Zhu et al., "Deformable ConvNets v2", CVPR 2019, equation 1; one group of taps.

Letters: I images, C channels, k taps, h w cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.pairing import full_precision


class DeformableConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 with taps that move; `weight` and `bias` are those of the ordinary one."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.offset = nn.Conv2d(in_channels, 27, 3, padding=1)
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Float[Tensor, "I Cin h w"]) -> Float[Tensor, "I Cout h w"]:
        """The convolution."""
        height, width = x.shape[-2:]
        moves = full_precision(self.offset(x)).view(len(x), 3, 9, height, width)
        read = read_taps(full_precision(x), moves[:, :2]) * moves[:, 2].sigmoid()[:, None]
        columns = read.to(x.dtype).flatten(1, 2)
        return F.conv2d(columns, self.weight.flatten(1)[:, :, None, None], self.bias)


def read_taps(x: Float[Tensor, "I C h w"], moves: Float[Tensor, "I 2 9 h w"]) -> Float[Tensor, "I C 9 h w"]:
    """Values at the nine taps around each cell, moved along x (`moves[:, 0]`) and y by so many cells."""
    images, _, height, width = x.shape
    ys, xs = torch.meshgrid(*(torch.arange(n, device=x.device, dtype=x.dtype) for n in (height, width)), indexing="ij")
    tap = torch.arange(9, device=x.device)
    at_x = xs + (tap % 3 - 1)[:, None, None] + moves[:, 0]
    at_y = ys + (tap // 3 - 1)[:, None, None] + moves[:, 1]
    # -1 and 1 are the outer edges of the outermost cells.
    grid = torch.stack([(2 * at_x + 1) / width - 1, (2 * at_y + 1) / height - 1], dim=-1)
    read = F.grid_sample(x, grid.view(images, 9 * height, width, 2), align_corners=False, padding_mode="zeros")
    return read.view(images, -1, 9, height, width)
