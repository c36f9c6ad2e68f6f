"""Res16UNet: the sparse residual U-Net of SLidR and its relatives ("Minkowski SR-UNet").

Stem at stride 1, four encoder stages to stride 16, four decoder stages back. The name "MinkUNet" stands for several
networks in the literature, which are NOT interchangeable: the `res16unet` presets have one 3³ convolution as stem, the
`minkunet` presets two (those of SegContrast, TARL, BEVContrast, NCLR and mmdetection3d). In all of them a stage's
strided convolution keeps the channels and its first block changes them; `spunet34`, Pointcept's SpUNet, does it the
other way, has a 5³ stem and another eps.

There is no last layer: heads live in `models/heads.py`. A linear head with bias from 96 to 64 channels completes the
published network of 37.85 M parameters.

Source: Choy, Gwak, Savarese, "4D spatio-temporal ConvNets", CVPR 2019 (U-Net with residual blocks); Xie et al.,
"PointContrast", ECCV 2020 (Res16UNet34C; its stem is 5³, SLidR's 3³ is used here); Tang et al., "Searching efficient
3D architectures with sparse point-voxel convolution", ECCV 2020 (its baseline MinkowskiNet: the two-convolution stem).

Letters: M voxels, F input channels, C channels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.ranges import one_of
from models.lidar.base import Backbone
from models.lidar.layers import leave_to_torch, norm_act
from models.lidar.prepared import MapPlan
from models.lidar.sparse import (
    BackendName,
    InverseConv3d,
    SparseBackboneConfig,
    SparseTensor,
    StridedConv3d,
    SubmanifoldConv3d,
    sparse_tensor,
)

Preset = Literal["res16unet34c", "res16unet18", "res16unet_tiny", "minkunet34", "minkunet18", "spunet34"]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    stem: int
    channels: tuple[int, ...]  # encoder stages 1-4, decoder stages 1-4
    blocks: tuple[int, ...]
    stem_convolutions: int = 1
    stem_size: int = 3
    down_widens: bool = False  # a stage's strided convolution, not its first block, changes the channels
    bn_eps: float = 1e-5


_WIDE = (32, 64, 128, 256, 256, 128, 96, 96)

_LAYOUTS: dict[str, _Layout] = {
    "res16unet34c": _Layout(stem=32, channels=_WIDE, blocks=(2, 3, 4, 6, 2, 2, 2, 2)),
    "res16unet18": _Layout(stem=32, channels=_WIDE, blocks=(2,) * 8),
    # For the CPU: most time goes into the finest stages, so these are narrow and everything has one block.
    "res16unet_tiny": _Layout(stem=16, channels=(32, 48, 64, 80, 64, 48, 48, 48), blocks=(1,) * 8),
    "minkunet34": _Layout(stem=32, channels=_WIDE, blocks=(2, 3, 4, 6, 2, 2, 2, 2), stem_convolutions=2),
    "minkunet18": _Layout(stem=32, channels=_WIDE, blocks=(2,) * 8, stem_convolutions=2),
    "spunet34": _Layout(
        stem=32, channels=_WIDE, blocks=(2, 3, 4, 6, 2, 2, 2, 2), stem_size=5, down_widens=True, bn_eps=1e-3
    ),
}


@dataclass(frozen=True, kw_only=True)
class Res16UNetConfig(SparseBackboneConfig):
    """Which Res16UNet.

    Attributes:
        preset: "res16unet34c": blocks 2, 3, 4, 6, the published size; "res16unet18": two blocks a stage;
            "res16unet_tiny": one block a stage, narrow, 1.7 M parameters, for the CPU; "minkunet34", "minkunet18":
            blocks as in the first two, a second convolution in the stem; "spunet34": Pointcept's SpUNet-v1m1.
        bn_momentum: see `BackboneConfig` (SLidR: 0.05 in pre-training, 0.02 in fine-tuning; SpUNet: 0.01).
    """

    preset: Preset = "res16unet34c"
    bn_momentum: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, preset=Preset)

    def toy(self) -> Res16UNetConfig:
        """See `BackboneConfig.toy`."""
        return replace(self, preset="res16unet_tiny", backend="auto")

    def build(self) -> Res16UNet:
        """Assemble the network with fresh weights."""
        return Res16UNet(self)

    def norm(self, channels: int) -> nn.BatchNorm1d:
        """A BatchNorm of this network."""
        return nn.BatchNorm1d(channels, eps=_LAYOUTS[self.preset].bn_eps, momentum=self.bn_momentum)


class ResidualBlock(nn.Module):
    """Two 3³ submanifold convolutions with a shortcut (1 x 1 where the number of channels changes)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, bn_momentum: float, bn_eps: float = 1e-5, backend: BackendName
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm1d, out_channels, eps=bn_eps, momentum=bn_momentum)
        self.conv1 = SubmanifoldConv3d(in_channels, out_channels, backend=backend)
        self.norm1 = norm()
        self.conv2 = SubmanifoldConv3d(out_channels, out_channels, backend=backend)
        self.norm2 = norm()
        self.shortcut: SubmanifoldConv3d | None = None
        self.shortcut_norm: nn.BatchNorm1d | None = None
        if in_channels != out_channels:
            self.shortcut = SubmanifoldConv3d(in_channels, out_channels, 1, backend=backend)
            self.shortcut_norm = norm()

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Same voxels, new features."""
        out: SparseTensor = self.conv1(x)
        out = self.conv2(out.with_features(norm_act(self.norm1, out.features)))
        residual: Tensor = x.features
        if self.shortcut is not None and self.shortcut_norm is not None:
            residual = norm_act(self.shortcut_norm, self.shortcut(x).features, relu=False)
        return out.with_features(norm_act(self.norm2, out.features, residual=residual))


def _blocks(in_channels: int, out_channels: int, count: int, config: Res16UNetConfig) -> nn.Sequential:
    widths = itertools.pairwise([in_channels] + [out_channels] * count)
    eps, momentum, backend = _LAYOUTS[config.preset].bn_eps, config.bn_momentum, config.backend
    return nn.Sequential(*(ResidualBlock(a, b, bn_momentum=momentum, bn_eps=eps, backend=backend) for a, b in widths))


class EncoderStage(nn.Module):
    """Strided convolution that keeps the channels (SpUNet: changes them), BatchNorm, ReLU, residual blocks."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, config: Res16UNetConfig) -> None:
        super().__init__()
        width = out_channels if _LAYOUTS[config.preset].down_widens else in_channels
        self.down = StridedConv3d(in_channels, width, 2, backend=config.backend)
        self.norm = config.norm(width)
        self.blocks = _blocks(width, out_channels, num_blocks, config)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """To twice the stride."""
        out = self.down(x)
        result: SparseTensor = self.blocks(out.with_features(norm_act(self.norm, out.features)))
        return result


class DecoderStage(nn.Module):
    """Inverse convolution to the skip connection's voxels, BatchNorm, ReLU, concatenation [up, skip], blocks."""

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, num_blocks: int, config: Res16UNetConfig
    ) -> None:
        super().__init__()
        self.up = InverseConv3d(in_channels, out_channels, 2, backend=config.backend)
        self.norm = config.norm(out_channels)
        self.blocks = _blocks(out_channels + skip_channels, out_channels, num_blocks, config)

    def forward(self, x: SparseTensor, skip: SparseTensor) -> SparseTensor:
        """To half the stride."""
        up = self.up(x, skip)
        activated = norm_act(self.norm, up.features)
        # Under autocast a residual sum may be wider than the convolution's type.
        joined = torch.cat([activated, skip.features.to(activated.dtype)], dim=1)
        result: SparseTensor = self.blocks(up.with_features(joined))
        return result


class Res16UNet(Backbone):
    """Features of each voxel, at the input's resolution.

    Attributes:
        level_features: channels after the stem, after each encoder stage and after each decoder stage.
    """

    def __init__(self, config: Res16UNetConfig) -> None:
        super().__init__()
        layout = _LAYOUTS[config.preset]
        self.stem = SubmanifoldConv3d(config.in_channels, layout.stem, layout.stem_size, backend=config.backend)
        self.stem_norm = config.norm(layout.stem)
        self.stem2: SubmanifoldConv3d | None = None
        self.stem2_norm: nn.BatchNorm1d | None = None
        if layout.stem_convolutions == 2:
            self.stem2 = SubmanifoldConv3d(layout.stem, layout.stem, 3, backend=config.backend)
            self.stem2_norm = config.norm(layout.stem)
        levels = (layout.stem, *layout.channels[:4])
        self.encoder = nn.ModuleList(EncoderStage(levels[i], levels[i + 1], layout.blocks[i], config) for i in range(4))
        ups = (levels[-1], *layout.channels[4:])
        self.decoder = nn.ModuleList(
            DecoderStage(ups[i], levels[3 - i], ups[i + 1], layout.blocks[4 + i], config) for i in range(4)
        )
        self.num_features = layout.channels[-1]
        self.level_features = (*levels, *layout.channels[4:])
        if config.backend == "torch":
            leave_to_torch(self)

    def forward(
        self, voxel_coords: Int[Tensor, "M 4"], voxel_features: Float[Tensor, "M F"], num_samples: int
    ) -> Float[Tensor, "M C"]:
        """See `Backbone.forward`.

        Raises:
            ValueError: a voxel comes twice, or coordinates are out of range.
        """
        x, rows = sparse_tensor(voxel_coords, voxel_features, num_samples)
        x = self.stem_stage(x)
        skips = []
        for stage in self.encoder:
            skips.append(x)
            x = stage(x)
        for stage in self.decoder:
            x = stage(x, skips.pop())
        out: Tensor = x.features
        return out if rows is None else out[rows]

    def map_plan(self) -> MapPlan:
        """See `Backbone.map_plan`."""
        plan = MapPlan.halving(1 + len(self.encoder), sizes=(1, 3))
        if self.stem.kernel_size == 3:
            return plan
        finest = replace(plan.levels[0], sizes=(1, 3, self.stem.kernel_size))
        return replace(plan, levels=(finest, *plan.levels[1:]))

    @property
    def num_layers(self) -> int:
        """The stem, the encoder's stages and the decoder's, for rates that fall from layer to layer."""
        return 1 + len(self.encoder) + len(self.decoder)

    def layer_of(self, name: str) -> int:
        """0 for the stem, then stage by stage in the order of computation."""
        part, stage, *_ = name.split(".")
        first = {"encoder": 1, "decoder": 1 + len(self.encoder)}
        return first[part] + int(stage) if part in first else 0

    def stem_stage(self, x: SparseTensor) -> SparseTensor:
        """One or two convolutions at full resolution, each with BatchNorm and ReLU."""
        out: SparseTensor = self.stem(x)
        out = out.with_features(norm_act(self.stem_norm, out.features))
        if self.stem2 is not None and self.stem2_norm is not None:
            out = self.stem2(out)
            out = out.with_features(norm_act(self.stem2_norm, out.features))
        return out
