"""The frozen image network that teaches the points.

It never trains: no gradient, BatchNorm on its stored statistics, whatever mode its owner is in. It takes images as
they are stored (uint8 RGB) and knows its own normalisation.

Letters: I images, C channels, H W pixels, h w cells.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from models.image.efficientnet import EfficientNetLite0, imagenet_weights_path
from models.image.resnet import ResNet
from models.weights import IMAGE_FORMATS, MIN_MATCH, LoadReport, load_image_weights, load_state, read_checkpoint

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# (x - 127) / 128 on 0..255, the same for each colour.
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3

_COMPUTATION = 1
"""Raise when the numbers that a teacher gives for the same weights and settings change: old caches become stale."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Which image network, and where its knowledge comes from.

    Attributes:
        name: architecture.
        weights: `imagenet` (installed with the package; efficientnet_lite0 only), `random`, or `<format>:<path>` with
            format torchvision, moco_v1, moco_v2, moco_v3 or dino (ResNets only).
        dilated: ResNets: dilation instead of stride, features at 1/4 of the image. Without effect on
            efficientnet_lite0.
        levels: efficientnet_lite0: strides whose features are concatenated at the finest of them. Without effect on
            ResNets.
        normalise_levels: efficientnet_lite0: bring each level to zero mean, unit variance over channels.
        upscale: enlarge images so many times before the network, for small images; cells lie denser by this factor.
        min_match: share of the network's tensors that the weight file must fill, 0 to 1.
        random_seed: of `weights = random`.
        cache: look at each image once, store the features pooled over superpixels beside the shards, and train on
            those; needs image augmentation off.
    """

    name: Literal["resnet50", "resnet18", "efficientnet_lite0"] = "resnet50"
    weights: str = "random"
    dilated: bool = True
    levels: tuple[int, ...] = (4, 8, 16)
    normalise_levels: bool = True
    upscale: int = 1
    min_match: float = MIN_MATCH
    random_seed: int = 0
    cache: bool = False

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: a field is out of range or does not fit the architecture.
        """
        known = ("resnet50", "resnet18", "efficientnet_lite0")
        if self.name not in known:
            raise ValueError(f"teacher.name = {self.name!r}: expected one of {', '.join(known)}")
        lite = self.name == "efficientnet_lite0"
        wanted = ["random", "imagenet"] if lite else ["random", *(f"{name}:<path>" for name in IMAGE_FORMATS)]
        file_format, _, path = self.weights.partition(":")
        from_file = not lite and file_format in IMAGE_FORMATS and path != ""
        if self.weights not in wanted[: 2 if lite else 1] and not from_file:
            raise ValueError(f"teacher.weights = {self.weights!r}: expected for {self.name} one of {', '.join(wanted)}")
        if (
            not self.levels
            or list(self.levels) != sorted(set(self.levels))
            or not set(self.levels) <= {2, 4, 8, 16, 32}
        ):
            raise ValueError(f"teacher.levels = {self.levels}: expected ascending strides out of 2, 4, 8, 16, 32")
        stride = self.levels[0] if lite else (4 if self.dilated else 32)
        if self.upscale < 1 or stride % self.upscale:
            raise ValueError(f"teacher.upscale = {self.upscale}: expected a divisor of the network's stride {stride}")
        if not 0 <= self.min_match <= 1:
            raise ValueError(f"teacher.min_match = {self.min_match}: expected 0 to 1")


class FrozenTeacher(nn.Module):
    """An image encoder that stays as it is.

    Attributes:
        encoder: the network.
        num_features: channels of its map.
        stride: pixels of the given image from one cell to the next.
        origin_px: pixel of the given image under the centre of cell 0.
        report: what the weight file filled; None for random weights.
    """

    def __init__(self, config: TeacherConfig, encoder: EfficientNetLite0 | ResNet, report: LoadReport | None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder.eval().requires_grad_(False)
        self.report = report
        self.num_features = encoder.num_features
        # Pixel p of the given image has its centre on pixel (p + 1/2) upscale - 1/2 of the enlarged one.
        self.stride = encoder.stride // config.upscale
        self.origin_px = (encoder.origin_px + 0.5) / config.upscale - 0.5
        mean, std = (
            (_LITE_MEAN, _LITE_STD) if isinstance(encoder, EfficientNetLite0) else (_IMAGENET_MEAN, _IMAGENET_STD)
        )
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.training = False
        # Now, while the weights are whole and in full precision: an engine may cast or partition them.
        self._fingerprint = _fingerprint(config, encoder)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in evaluation mode: BatchNorm statistics of another data set must not drift."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "I 3 H W"]) -> Float[Tensor, "I C h w"]:
        """Feature map of images as stored."""
        normal = (images.to(self.mean.dtype) - self.mean) / self.std
        if self.config.upscale > 1:
            normal = F.interpolate(normal, scale_factor=self.config.upscale, mode="bilinear", align_corners=False)
        features: Tensor = self.encoder(normal)
        return features

    def fingerprint(self) -> str:
        """Hash of weights and settings: equal fingerprints give equal features of equal images."""
        return self._fingerprint


def _fingerprint(config: TeacherConfig, encoder: nn.Module) -> str:
    settings = dataclasses.asdict(config)
    # The tensors tell what they are; where they lay and how strictly they were matched does not matter.
    for name in ("weights", "min_match", "random_seed", "cache"):
        del settings[name]
    digest = hashlib.sha256(json.dumps([_COMPUTATION, settings], sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def build_teacher(config: TeacherConfig) -> FrozenTeacher:
    """Build the network and fill it; the global random state stays untouched.

    Raises:
        ValueError: the weight file is missing, unreadable or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.random_seed)
        encoder: EfficientNetLite0 | ResNet
        if config.name == "efficientnet_lite0":
            encoder = EfficientNetLite0(levels=config.levels, normalise_levels=config.normalise_levels)
        else:
            encoder = ResNet(config.name, dilated=config.dilated)
    return FrozenTeacher(config, encoder, _fill(encoder, config))


def _fill(encoder: EfficientNetLite0 | ResNet, config: TeacherConfig) -> LoadReport | None:
    if config.weights == "random":
        return None
    if config.weights == "imagenet":
        return load_lite0_weights(encoder, min_match=config.min_match)
    file_format, _, path = config.weights.partition(":")
    return load_image_weights(encoder, file_format, path, min_match=config.min_match)


def load_lite0_weights(encoder: nn.Module, *, min_match: float = MIN_MATCH) -> LoadReport:
    """Fill EfficientNet-Lite0 from the installed package; classifier and blocks that it does not have are dropped."""
    path = imagenet_weights_path()
    own = {name.split(".")[1] for name in encoder.state_dict() if name.startswith("blocks.")}
    state: dict[str, Tensor] = {}
    dropped: list[str] = []
    for key, value in read_checkpoint(path).items():
        block = re.match(r"_blocks\.(\d+)\.", key)
        absent = block is not None and block.group(1) not in own
        if absent or re.match(r"_(conv_head|bn1|fc)\.", key) or not isinstance(value, Tensor):
            dropped.append(key)
        else:
            # Its names begin with underscores.
            state[re.sub(r"(^|\.)_", r"\1", key)] = value
    return load_state(encoder, state, source=path.name, min_match=min_match, dropped=tuple(dropped))
