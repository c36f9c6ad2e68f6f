"""A U-Net computed from a file's tensors by the names of another project: the reader's half of a layout's proof.

Nothing here comes from our networks or from the tables that wrote the file. Names are stated a second time on purpose,
each by who reads them: two convolutions of equal shape that a table swaps come out here.

Letters: M voxels, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from models.layouts import dictionary_reader
from models.layouts.dictionary_reader import Voxels
from models.lidar.neighbors import Offset

State = Mapping[str, Shaped[Tensor, "..."]]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Names of a kernel and of the BatchNorm behind it, the latter without ".weight"."""

    kernel: str
    norm: str

    def within(self, name: str) -> Layer:
        """The layer of this name inside a module."""
        return Layer(kernel=f"{name}.{self.kernel}", norm=f"{name}.{self.norm}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A strided or transposed convolution and the residual blocks behind it.

    `blocks` is what their names begin with, `first` the number of the first.
    """

    resample: Layer
    blocks: str
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class UNetNames:
    """A U-Net's names; those of the layers of a block are relative to it. Stages in the order of computation."""

    stem: Sequence[Layer]
    encoder: Sequence[Stage]
    decoder: Sequence[Stage]
    conv1: Layer
    conv2: Layer
    shortcut: Layer


class Convolutions(ABC):
    """One library's convolutions by a file's tensors. What a tensor of voxels is, is the library's affair."""

    def __init__(self, state: State) -> None:
        self.state = state

    @abstractmethod
    def voxels(self, coords: Int[Tensor, "M 4"], features: Float[Tensor, "M C"], num_samples: int) -> Any:
        """The input, rows in this order."""

    @abstractmethod
    def same(self, x: Any, kernel: str) -> Any:
        """A convolution on the same voxels."""

    @abstractmethod
    def down(self, x: Any, kernel: str, level: int) -> Any:
        """To cells of twice the edge; `level` numbers the grids, 0 the finest, and names the one left."""

    @abstractmethod
    def up(self, x: Any, kernel: str, level: int, finer: Any) -> Any:
        """Back to the voxels of `finer`, rows in their order, which lie on grid `level`."""

    @abstractmethod
    def features(self, x: Any) -> Tensor:
        """Its features."""

    @abstractmethod
    def replaced(self, x: Any, features: Tensor) -> Any:
        """Other features on the same voxels."""


class ByDictionary(Convolutions):
    """MinkowskiEngine's or torchsparse's, which differ in the order of offsets."""

    def __init__(self, state: State, offsets: Callable[[int], list[Offset]]) -> None:
        super().__init__(state)
        self.offsets = offsets

    def voxels(self, coords: Int[Tensor, "M 4"], features: Float[Tensor, "M C"], num_samples: int) -> Voxels:
        """See `Convolutions`."""
        return Voxels(coords.long(), features)

    def same(self, x: Voxels, kernel: str) -> Voxels:
        """See `Convolutions`."""
        weight = self.state[kernel]
        size = 1 if weight.ndim == 2 else round(len(weight) ** (1 / 3))
        return dictionary_reader.submanifold(x, weight, self.offsets(size))

    def down(self, x: Voxels, kernel: str, level: int) -> Voxels:
        """See `Convolutions`."""
        return dictionary_reader.halved(x, self.state[kernel], self.offsets(2))

    def up(self, x: Voxels, kernel: str, level: int, finer: Voxels) -> Voxels:
        """See `Convolutions`."""
        return dictionary_reader.doubled(x, self.state[kernel], self.offsets(2), finer)

    def features(self, x: Voxels) -> Tensor:
        """See `Convolutions`."""
        return x.features

    def replaced(self, x: Voxels, features: Tensor) -> Voxels:
        """See `Convolutions`."""
        return x.with_features(features)


class UNetReader:
    """A U-Net of residual blocks, stage by stage.

    Args:
        names: theirs.
        by: the convolutions.
        eps: of every BatchNorm.
    """

    def __init__(self, names: UNetNames, by: Convolutions, eps: float) -> None:
        self.names, self.by, self.eps = names, by, eps

    def stem(self, x: Any) -> Any:
        """Convolutions at full resolution, each with BatchNorm and ReLU."""
        for layer in self.names.stem:
            x = self._normalised(self.by.same(x, layer.kernel), layer.norm)
        return x

    def encode(self, x: Any, stage: int) -> Any:
        """One stage down."""
        layer = self.names.encoder[stage].resample
        x = self._normalised(self.by.down(x, layer.kernel, stage), layer.norm)
        return self._blocks(x, self.names.encoder[stage])

    def decode(self, x: Any, skip: Any, stage: int) -> Any:
        """One stage up: [upsampled, skip] go into the blocks."""
        layer, level = self.names.decoder[stage].resample, len(self.names.encoder) - 1 - stage
        x = self._normalised(self.by.up(x, layer.kernel, level, skip), layer.norm)
        joined = torch.cat([self.by.features(x), self.by.features(skip)], dim=1)
        return self._blocks(self.by.replaced(x, joined), self.names.decoder[stage])

    def whole(self, inputs: tuple[Tensor, Tensor, int]) -> Tensor:
        """Features of each voxel of (coordinates [M, 4], features [M, F], number of samples), in their order."""
        x = self.stem(self.by.voxels(*inputs))
        skips = []
        for stage in range(len(self.names.encoder)):
            skips.append(x)
            x = self.encode(x, stage)
        for stage in range(len(self.names.decoder)):
            x = self.decode(x, skips.pop(), stage)
        return self.by.features(x)

    def norm(self, features: Float[Tensor, "M C"], name: str) -> Float[Tensor, "M C"]:
        """BatchNorm by running statistics."""
        weight, bias, mean, var = (
            self.by.state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (features - mean) / (var + self.eps).sqrt() * weight + bias

    def _normalised(self, x: Any, norm: str) -> Any:
        return self.by.replaced(x, F.relu(self.norm(self.by.features(x), norm)))

    def _blocks(self, x: Any, stage: Stage) -> Any:
        number = stage.first
        while (name := f"{stage.blocks}{number}") and self.names.conv1.within(name).kernel in self.by.state:
            x = self._block(x, name)
            number += 1
        return x

    def _block(self, x: Any, name: str) -> Any:
        one, two, shortcut = (layer.within(name) for layer in (self.names.conv1, self.names.conv2, self.names.shortcut))
        out = self.by.same(self._normalised(self.by.same(x, one.kernel), one.norm), two.kernel)
        identity = self.by.features(x)
        if shortcut.kernel in self.by.state:
            identity = self.norm(self.by.features(self.by.same(x, shortcut.kernel)), shortcut.norm)
        return self.by.replaced(out, F.relu(self.norm(self.by.features(out), two.norm) + identity))
