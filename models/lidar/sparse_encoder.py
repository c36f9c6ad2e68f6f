"""SECOND's sparse encoder: a Cartesian grid to stride 8 along x and y, 16 along z.

Source: Yan, Mao, Li, "SECOND", Sensors 2018, in OpenPCDet's layout (VoxelBackBone8x, VoxelResBackBone8x).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from models.lidar.bev import BN_EPS
from models.lidar.bounded import BoundedConv3d
from models.lidar.layers import norm_act
from models.lidar.neighbors import Triple
from models.lidar.prepared import LevelPlan
from models.lidar.res16unet import ResidualBlock
from models.lidar.sparse import SparseBackboneConfig, SparseConvolution, SparseTensor, SubmanifoldConv3d


@dataclass(frozen=True, kw_only=True)
class EncoderLayout:
    """Widths of an encoder."""

    channels: tuple[int, int, int, int]  # at strides 1, 2, 4, 8
    out: int  # after z was reduced once more
    residual: bool = False


class SparseEncoder(nn.Module):
    """Stride 8 along x and y, 16 along z; every convolution followed by BatchNorm and ReLU.

    Attributes:
        out_size: X, Y, D of the result.
        num_features: channels of the bird's-eye view made of it: those of a cell times D.
        level_features: channels at strides 1, 2, 4, 8.
        places: of those, the cells of the finest grid from one cell to the next, and the one under cell 0's centre.
    """

    def __init__(self, config: SparseBackboneConfig, layout: EncoderLayout, size: Triple) -> None:
        super().__init__()
        momentum, backend = config.bn_momentum, config.backend
        stages: list[nn.Module] = []
        self.level_features = layout.channels
        self.places: list[tuple[Triple, Triple]] = []
        self._ends: list[int] = []  # one past each level's last layer
        step: Triple = (1, 1, 1)
        start: Triple = (0, 0, 0)
        width = config.in_channels
        for level, channels in enumerate(layout.channels):
            down: SparseConvolution
            if level == 0:
                down = SubmanifoldConv3d(width, channels, backend=backend)
            else:
                # SECOND pads z everywhere but on the way to stride 8.
                padding = (1, 1, 0) if level == 3 else (1, 1, 1)
                down = BoundedConv3d(width, channels, size, padding=padding, backend=backend)
                size = down.out_size
                # A kernel of three cells has its middle one cell after its first.
                start = _triple(s + (1 - p) * cells for s, p, cells in zip(start, padding, step, strict=True))
                step = _triple(2 * cells for cells in step)
            stages.append(ConvNormReLU3d(down, momentum))
            for _ in range(2 if level or layout.residual else 1):
                if layout.residual:
                    block = ResidualBlock(channels, channels, bn_momentum=momentum, backend=backend)
                    block.norm1.eps = block.norm2.eps = BN_EPS
                    stages.append(block)
                else:
                    stages.append(ConvNormReLU3d(SubmanifoldConv3d(channels, channels, backend=backend), momentum))
            width = channels
            self.places.append((step, start))
            self._ends.append(len(stages))
        last = BoundedConv3d(
            width, layout.out, size, kernel_size=(1, 1, 3), stride=(1, 1, 2), padding=(0, 0, 0), backend=backend
        )
        self.layers = nn.Sequential(*stages, ConvNormReLU3d(last, momentum))
        self.out_size = last.out_size
        self.num_features = layout.out * last.out_size[2]

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Encode voxels that all lie in the grid."""
        return self.levels(x)[-1]

    def levels(self, x: SparseTensor) -> list[SparseTensor]:
        """The voxels at strides 1, 2, 4, 8, then what `forward` gives."""
        found = []
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if number in self._ends:
                found.append(x)
        return [*found, x]

    def map_levels(self) -> tuple[LevelPlan, ...]:
        """Neighbour maps that `levels` needs."""
        found: list[LevelPlan] = []
        sizes: set[int] = set()
        for module in self.layers.modules():
            if isinstance(module, SubmanifoldConv3d):
                sizes.add(module.kernel_size)
            elif isinstance(module, BoundedConv3d):
                found.append(LevelPlan(tuple(sorted(sizes)), module.window))
                sizes = set()
        return (*found, LevelPlan(tuple(sorted(sizes)), None))


def _triple(values: Iterable[int]) -> Triple:
    x, y, z = values
    return x, y, z


class ConvNormReLU3d(nn.Module):
    """A sparse convolution, BatchNorm, ReLU."""

    def __init__(self, conv: SparseConvolution, bn_momentum: float) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm1d(conv.out_channels, eps=BN_EPS, momentum=bn_momentum)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """New features, on the voxels that the convolution makes."""
        out: SparseTensor = self.conv(x)
        return out.with_features(norm_act(self.norm, out.features))
