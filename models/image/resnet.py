"""ResNets without classifier, with torchvision's parameter names, optionally at output stride 4.

With `dilated`, every stride after the first convolution and the max-pool becomes dilation: the same weights, read four
cells apart, give features at 1/4 of the image instead of 1/32. At the cells that both have in common the two networks
give the same numbers. Costs, multiply-adds for a 224x416 image: ResNet-50 7.6 G, dilated 137 G.
`resnet10_tiny` (0.3 M parameters, a quarter of ResNet-18's widths, one block a stage) is for CPUs and tests.

Letters: I images, C channels, H W pixels.

Source: He et al., CVPR 2016 (stride on the 3x3 convolution, as in torchvision); dilation as in SLidR, section 3.1.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.image.base import DenseNetwork
from models.image.teacher import TeacherConfig
from models.weights import (
    IMAGE_FORMATS,
    OWN_FORMAT,
    OWN_IMAGE_PREFIX,
    LoadReport,
    load_image_weights,
    load_state,
    read_own_weights,
)

ResNetName = Literal["resnet10_tiny", "resnet18", "resnet50"]

NETWORK_PREFIX = "network."
"""What the names of the ResNet begin with inside an image network of ours."""


@dataclass(frozen=True, kw_only=True)
class ResNetTeacherConfig(TeacherConfig):
    """A ResNet's last stage as a teacher; see `TeacherConfig` for the rest.

    Weights: files of format torchvision, moco_v1, moco_v2, moco_v3 or dino, or `tandem:<path>`, the image network
    of one of our own runs (its folder, one of its checkpoints, or a file of weights).

    Attributes:
        dilated: dilation in place of the last three strides: features at 1/4 of the image.
    """

    NAMES = get_args(ResNetName)
    SOURCES = (*IMAGE_FORMATS, OWN_FORMAT)

    name: ResNetName = "resnet50"
    dilated: bool = True

    @property
    def stride(self) -> int:
        """Of the last stage."""
        return 4 if self.dilated else 32

    def network(self) -> ResNet:
        """The ResNet."""
        return ResNet(self.name, dilated=self.dilated)

    def fill(self, network: nn.Module, file_format: str, path: str) -> LoadReport:
        """Read a public file, or the ResNet of one of our own image networks."""
        return fill_resnet(network, file_format, path, min_match=self.min_match)


def fill_resnet(network: nn.Module, file_format: str, path: str, *, min_match: float) -> LoadReport:
    """Read a public file, or the ResNet of one of our own image networks.

    Raises:
        ValueError: the weight file is missing, unreadable or does not fit.
    """
    if file_format == OWN_FORMAT:
        state = read_own_weights(path, OWN_IMAGE_PREFIX + NETWORK_PREFIX)
        return load_state(network, state, source=path, min_match=1.0)
    return load_image_weights(network, file_format, path, min_match=min_match)


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, *, stride: int, dilations: tuple[int, int], shortcut: bool
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride, dilations[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, 1, dilations[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride) if shortcut else None

    def forward(self, x: Float[Tensor, "I Cin h w"]) -> Float[Tensor, "I Cout h2 w2"]:
        """Residual of two convolutions."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        out: Tensor = self.relu(x + identity)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50)."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, *, stride: int, dilations: tuple[int, int], shortcut: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride, dilations[0])
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width * self.expansion, stride) if shortcut else None

    def forward(self, x: Float[Tensor, "I Cin h w"]) -> Float[Tensor, "I Cout h2 w2"]:
        """Residual of three convolutions."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        out: Tensor = self.relu(x + identity)
        return out


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


@dataclass(frozen=True)
class _Layout:
    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]  # blocks of each stage
    stem: int = 64  # channels after the first convolution, and inner width of the first stage; each stage doubles it


_LAYOUTS: dict[ResNetName, _Layout] = {
    "resnet10_tiny": _Layout(BasicBlock, (1, 1, 1, 1), stem=16),
    "resnet18": _Layout(BasicBlock, (2, 2, 2, 2)),
    "resnet50": _Layout(Bottleneck, (3, 4, 6, 3)),
}


class ResNet(DenseNetwork):
    """Feature map of the last stage.

    Attributes:
        map_features: channels of what `maps` gives.
        map_strides: pixels from one cell to the next of each of them.
    """

    def __init__(self, name: ResNetName, *, dilated: bool = False, checkpoint_activations: bool = False) -> None:
        """Random weights (He initialisation).

        `dilated` puts dilation in place of the last three strides. With `checkpoint_activations` training computes each
        block's inside again in the backward pass instead of storing it; pointless for a frozen tower.
        """
        super().__init__()
        layout = _LAYOUTS[name]
        block, channels = layout.block, layout.stem
        self.checkpoint_activations = checkpoint_activations
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        stride, dilation = 4, 1
        features, strides = [channels], [2]
        for stage, depth in enumerate(layout.depths, start=1):
            width = layout.stem * 2 ** (stage - 1)
            step = 1 if stage == 1 else 2
            blocks: list[nn.Module] = []
            for index in range(depth):
                first = index == 0
                # The first convolution of a stage still reads the previous stage's grid; all that follow read the
                # grid that the stride would have left, hence the doubled dilation.
                before = dilation
                if first and dilated:
                    dilation *= step
                blocks.append(
                    block(
                        channels,
                        width,
                        stride=step if first and not dilated else 1,
                        dilations=(before, dilation),
                        shortcut=first and (step != 1 or channels != width * block.expansion),
                    )
                )
                channels = width * block.expansion
            if not dilated:
                stride *= step
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            features.append(channels)
            strides.append(stride)

        self.map_features, self.map_strides = tuple(features), tuple(strides)
        self.num_features = channels
        self.stride = stride
        # Symmetric padding puts cell 0 on pixel 0, not on the middle of the first `stride` pixels.
        self.origin_px = 0.0
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def num_layers(self) -> int:
        """The stem and four stages, for rates that fall from layer to layer."""
        return len(self.map_features)

    def layer_of(self, name: str) -> int:
        """0 for the stem, then the number of the stage."""
        stage = name.split(".")[0]
        return int(stage.removeprefix("layer")) if stage.startswith("layer") else 0

    def forward(self, images: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C h w"]:
        """Features of normalised images; h = ceil(H / stride), w = ceil(W / stride)."""
        return self.maps(images)[-1]

    def maps(self, images: Float[Tensor, "I 3 H W"], *, stages: int = 4) -> tuple[Float[Tensor, "I _ _ _"], ...]:
        """The map before the max-pool and those of the first `stages` stages; all have cell 0 on pixel 0."""
        x: Tensor = self.relu(self.bn1(self.conv1(images)))
        maps = [x]
        x = self.maxpool(x)
        recompute = self.checkpoint_activations and self.training
        for stage in range(1, stages + 1):
            for block in getattr(self, f"layer{stage}"):
                x = checkpointed(block, x) if recompute else block(x)
            maps.append(x)
        return tuple(maps)


# ---- activation checkpointing


def checkpointed(block: nn.Module, x: Float[Tensor, "I Cin h w"]) -> Float[Tensor, "I Cout h2 w2"]:
    """`block(x)` whose inner activations are computed again in the backward pass.

    The second computation must not move BatchNorm's running statistics a second time (it would double the momentum),
    so they are held still during it.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _still_statistics(block)

    out: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    return out


@contextmanager
def _still_statistics(block: nn.Module) -> Generator[None, None, None]:
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    counts = [m.num_batches_tracked.clone() if m.num_batches_tracked is not None else None for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
