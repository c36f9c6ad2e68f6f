"""The frozen image network that teaches the points.

It never trains: no gradient, BatchNorm on its stored statistics, whatever mode its owner is in. It takes images as
they are stored (uint8 RGB) and applies its own normalisation. Each family's settings stand beside its network;
`models.image.teachers.TEACHERS` lists all.

Letters: I images, C channels, H W pixels, h w cells.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from common.ranges import expect, one_of, share
from models.image.base import IMAGENET_MEAN, IMAGENET_STD, DenseNetwork, ImageEncoder
from models.image.frozen import Frozen
from models.pairing import FeatureMap
from models.weights import MIN_MATCH, LoadReport

_COMPUTATION = 1
"""Raise when the numbers that a teacher gives for the same weights and settings change: old caches become stale."""

_ONCE_OF_ALL = {"dilated": True, "levels": (4, 8, 16), "normalise_levels": True}
"""Settings that counted into every fingerprint when all families shared one dataclass, with their defaults then."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(ABC):
    """Which image network, and where its weights come from: what all families have in common.

    Attributes:
        name: architecture, one of the family's.
        weights: `random`, or `<format>:<path>` with one of the family's formats.
        upscale: factor by which images are enlarged before the network, for small images; cells lie denser by it.
        min_match: share of the network's tensors that a public weight file must fill, 0 to 1; our own must fit wholly.
        random_seed: of `weights = random`.
        cache: look at each image once, store the features pooled over superpixels beside the shards, and train on
            those; needs image augmentation off.
    """

    NAMES: ClassVar[tuple[str, ...]]
    """Networks of the family."""
    SOURCES: ClassVar[tuple[str, ...]] = ()
    """What `weights` may be besides `random`: words, and formats that a path follows."""
    MEAN_STD: ClassVar[tuple[Sequence[float], Sequence[float]]] = (IMAGENET_MEAN, IMAGENET_STD)
    """Of RGB from 0 to 1, that images are brought to before the network."""

    name: str
    weights: str = "random"
    upscale: int = 1
    min_match: float = MIN_MATCH
    random_seed: int = 0
    cache: bool = False

    def __post_init__(self) -> None:
        one_of(self, name=self.NAMES)
        file_format, colon, path = self.weights.partition(":")
        needs_path = file_format not in ("random", "imagenet")
        fits = file_format in ("random", *self.SOURCES) and bool(path) == bool(colon) == needs_path
        files = (word if word == "imagenet" else f"{word}:<path>" for word in self.SOURCES)
        expect(self, "weights", fits, f"for {self.name} one of {', '.join(('random', *files))}")
        divides = self.upscale >= 1 and self.stride % self.upscale == 0
        expect(self, "upscale", divides, f"a divisor of the network's stride {self.stride}")
        share(self, "min_match")

    @property
    def architecture(self) -> str:
        """Name for tables."""
        return self.name

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels from one cell of the network's map to the next, before `upscale`."""

    @abstractmethod
    def network(self) -> DenseNetwork:
        """The network with random weights."""

    @abstractmethod
    def fill(self, network: nn.Module, file_format: str, path: str) -> LoadReport:
        """Read weights other than `random` into the network.

        Args:
            network: as `network` built it.
            file_format: one of `SOURCES`.
            path: the file or folder; empty after `imagenet`.

        Raises:
            ValueError: the weight file is missing, unreadable or does not fit.
        """

    def build(self) -> FrozenTeacher:
        """Build the network and `fill` it; the global random state stays untouched."""
        with torch.random.fork_rng(devices=[]):  # networks are built on the CPU: no GPU's generator is drawn from
            torch.manual_seed(self.random_seed)
            network = self.network()
        file_format, _, path = self.weights.partition(":")
        report = None if self.weights == "random" else self.fill(network, file_format, path)
        return FrozenTeacher(self, network, report)


@dataclass(frozen=True, kw_only=True)
class LevelsTeacherConfig(TeacherConfig):
    """A network whose features of several strides are brought to the finest of them and concatenated.

    Attributes:
        levels: the strides, ascending.
        normalise_levels: bring each level to zero mean, unit variance over channels.
    """

    LEVELS: ClassVar[tuple[int, ...]]
    """Strides that the network has."""

    levels: tuple[int, ...] = (4, 8, 16)
    normalise_levels: bool = True

    def __post_init__(self) -> None:
        check_levels(self.levels, self.LEVELS)
        super().__post_init__()

    @property
    def stride(self) -> int:
        """Of the finest level."""
        return self.levels[0]


def check_levels(levels: tuple[int, ...], known: Sequence[int]) -> None:
    """Refuse levels that are not ascending strides out of the known ones.

    Raises:
        ValueError: says which are known.
    """
    if not levels or list(levels) != sorted(set(levels)) or not set(levels) <= set(known):
        raise ValueError(
            f"teacher.levels: got {levels}, expected ascending strides out of {', '.join(map(str, known))}"
        )


def joined_levels(levels: Sequence[FeatureMap], *, normalise: bool) -> Float[Tensor, "I C h w"]:
    """Maps of several strides, finest first, read where the finest one's cells lie and concatenated.

    With `normalise` each cell of each map first gets zero mean and unit variance over its channels.
    """
    finest, parts = levels[0], []
    for level in levels:
        if normalise:
            values = level.values.movedim(1, -1)
            level = dataclasses.replace(level, values=F.layer_norm(values, values.shape[-1:]).movedim(-1, 1))
        parts.append(level.read_at(finest.size, stride=finest.stride, origin_px=finest.origin_px))
    return torch.cat(parts, dim=1)


class FrozenTeacher(Frozen):
    """An image network that stays as it is, as a `TeacherConfig` describes it.

    Attributes:
        stride: pixels of the given image from one cell to the next.
        origin_px: pixel of the given image under the centre of cell 0.
        report: what the weight file filled; None for random weights.
    """

    def __init__(self, config: TeacherConfig, encoder: DenseNetwork, report: LoadReport | None) -> None:
        super().__init__(encoder)
        self.config = config
        self.report = report
        self.num_features = encoder.num_features
        # Pixel p of the given image has its centre on pixel (p + 1/2) upscale - 1/2 of the enlarged one.
        self.stride = encoder.stride // config.upscale
        self.origin_px = (encoder.origin_px + 0.5) / config.upscale - 0.5
        mean, std = config.MEAN_STD  # buffers, not persistent: constants of the code
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        self.mean: Tensor
        self.std: Tensor
        # Now, while the weights are whole and in full precision: an engine may cast or partition them.
        self._fingerprint = _fingerprint(config, encoder)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "I 3 H W"] | Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C h w"]:
        """Feature map of images as stored."""
        pixels = images.to(self.mean.dtype)
        if not isinstance(self.encoder, ImageEncoder):  # those apply their own normalisation
            pixels = (pixels - self.mean) / self.std
        if self.config.upscale > 1:
            pixels = F.interpolate(pixels, scale_factor=self.config.upscale, mode="bilinear", align_corners=False)
        # Convolutions are up to 1.6 times faster on it (CPU), and heads read a cell's channels side by side.
        features: Tensor = self.encoder(pixels.contiguous(memory_format=torch.channels_last))
        return features

    def fingerprint(self) -> str:
        """Hash of weights and settings: equal fingerprints give equal features of equal images."""
        return self._fingerprint


def _fingerprint(config: TeacherConfig, encoder: nn.Module) -> str:
    settings = _ONCE_OF_ALL | dataclasses.asdict(config)
    # The tensors tell what they are; where they lay and how strictly they were matched does not matter.
    for name in ("weights", "min_match", "random_seed", "cache"):
        del settings[name]
    digest = hashlib.sha256(json.dumps([_COMPUTATION, settings], sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
