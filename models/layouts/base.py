"""Weights in the layouts of other projects: how each tensor of ours is called, turned and wrapped there, and back.

A layout is a table of places, from our key to theirs, with what is done to the tensor on the way; the same table is
read backwards for files that come from there. Kernels of sparse convolutions are the trap: each project feeds its own
order of axes, and a kernel that is only renamed loads without complaint and is wrong. So every export is proven by a
reader that is written from the other project's documented layout alone, never by this table run backwards.

Letters: K kernel offsets (ours: x fastest), k0 k1 k2 cells of a kernel along the other project's axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Shaped
from torch import Tensor, nn

from data.batch_spec import VoxelConfig
from models.lidar.inputs import PointInput
from models.lidar.neighbors import Triple
from models.methods.base import Objective

AnyTensor = Shaped[Tensor, "..."]
Axes = Literal["xyz", "zyx"]
"""The order in which a project names the axes of its grids, slowest first."""


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor of ours lies in another project's state dict.

    Attributes:
        key: theirs, without the prefix that a file's wrapping adds.
        out: our tensor as theirs.
        back: their tensor as ours.
    """

    key: str
    out: Callable[[AnyTensor], AnyTensor] = _same
    back: Callable[[AnyTensor], AnyTensor] = _same


def sparse_kernel(key: str, size: Triple, axes: Axes) -> Place:
    """A kernel [K, C_in, C_out] of ours as spconv 2's [C_out, k0, k1, k2, C_in].

    Args:
        key: theirs.
        size: cells along x, y, z.
        axes: that k0, k1, k2 run along.
    """
    x, y, z = size
    order = (4, 0, 1, 2, 3) if axes == "zyx" else (4, 2, 1, 0, 3)

    def out(kernel: AnyTensor) -> AnyTensor:
        return kernel.reshape(z, y, x, *kernel.shape[1:]).permute(order).contiguous()

    def back(kernel: AnyTensor) -> AnyTensor:
        ours = [order.index(axis) for axis in range(5)]
        return kernel.permute(ours).reshape(x * y * z, kernel.shape[4], kernel.shape[0]).contiguous()

    return Place(key=key, out=out, back=back)


@dataclass(frozen=True, kw_only=True)
class Fed:
    """What the network of an exported file is fed here, for the text beside the file and for the proof.

    Attributes:
        points: what a voxel's features mean.
        voxels: size, range and limits of the run.
    """

    points: PointInput
    voxels: VoxelConfig


class Layout(ABC):
    """One project's layout. Each is an object without state, in a dictionary by name.

    Attributes:
        name: of `--format`, e.g. "openpcdet".
        title: the project and the version whose layout was read, for messages.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    def network(self, objective: Objective) -> nn.Module:
        """The part of a run that a file of this layout holds: the 3D network, or more where the project has it, too.

        Raises:
            ValueError: the run has none.
        """
        backbone = objective.part("backbone")
        if backbone is None:
            raise ValueError(
                f"{type(objective).__name__} has no 3D network, and {self.name} is a layout of those; use --format "
                "torchvision for its image network"
            )
        return backbone

    @abstractmethod
    def places(self, network: nn.Module) -> Mapping[str, Place]:
        """Our key -> place, of each tensor of the network.

        Raises:
            ValueError: the project has no counterpart; says why, and the nearest preset that has one.
        """

    def added(self, network: nn.Module) -> Mapping[str, AnyTensor]:
        """Tensors of theirs that ours does without, e.g. biases in front of a BatchNorm, which are 0. By their keys."""
        return {}

    def settled(self, state: Mapping[str, AnyTensor], network: nn.Module) -> Mapping[str, AnyTensor]:
        """A state dict from there that gives the same features and has nothing that has no place here.

        For tensors that one place cannot turn alone, e.g. a bias that goes into a BatchNorm's mean. By their keys, as
        it comes from `unwrap`; a file that was exported from here stays as it is.
        """
        return state

    @abstractmethod
    def wrap(self, state: Mapping[str, AnyTensor], metadata: Mapping[str, str]) -> Any:
        """A state dict by their keys as the file's content, which the project's own loader takes."""

    @abstractmethod
    def unwrap(self, content: Mapping[str, object]) -> Mapping[str, AnyTensor]:
        """The reverse: a file's state dict by their keys; {} where it is in another layout."""

    @abstractmethod
    def instructions(self, network: nn.Module, fed: Fed) -> str:
        """The text beside the file, in Markdown.

        The config lines to paste there, input features and their scale, voxel size and range, and what the project's
        loader should report as matched.
        """

    @abstractmethod
    def features(
        self, state: Mapping[str, AnyTensor], network: nn.Module, inputs: tuple[AnyTensor, AnyTensor, int]
    ) -> AnyTensor:
        """What a network built there of a file's state dict gives for voxels; compared with ours on every export.

        It is compared by `models.layouts.result`: of a network with a bird's-eye view that is the map.

        Written from the project's documented layout alone. `network` may tell sizes (channels, cells, blocks), and
        nothing of order, axes or scale.

        Args:
            state: by their keys.
            network: ours.
            inputs: voxel coordinates [M, 4], features [M, F], number of samples, as our network takes them.

        Returns:
            As `models.layouts.result.result` of our network: a map, or rows in the order of the inputs.
        """


def norm_places(ours: str, theirs: str) -> dict[str, Place]:
    """The five tensors of a BatchNorm, which is called `ours` here and `theirs` there."""
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{ours}.{part}": Place(key=f"{theirs}.{part}") for part in parts}


def to_theirs(layout: Layout, network: nn.Module) -> dict[str, AnyTensor]:
    """A network's state dict by their keys.

    Raises:
        ValueError: as `Layout.places`.
    """
    places = layout.places(network)
    state = {places[key].key: places[key].out(value.detach().cpu()) for key, value in network.state_dict().items()}
    return {**state, **layout.added(network)}


def from_theirs(
    layout: Layout, theirs: Mapping[str, AnyTensor], network: nn.Module
) -> tuple[dict[str, AnyTensor], tuple[str, ...]]:
    """Their state dict as tensors by our keys, those that were found; and their keys without a place here.

    Raises:
        ValueError: as `Layout.places`.
    """
    places = layout.places(network)
    theirs = layout.settled(theirs, network)
    found = {ours: place.back(theirs[place.key]) for ours, place in places.items() if place.key in theirs}
    known = {place.key for place in places.values()} | set(layout.added(network))
    return found, tuple(key for key in theirs if key not in known)
