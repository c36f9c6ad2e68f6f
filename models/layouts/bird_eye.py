"""Networks with a bird's-eye view in a project's names: the encoder of voxels, or pillars, and the 2D backbone.

Projects differ in names alone: the encoder's layers run in one order in all of them (`encoder_steps`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from models.layouts.base import Place
from models.layouts.pillar_parts import PillarNames, pillar_places, read_pillars
from models.layouts.second_parts import BevNames, Step, StepKind, bev_places, bev_sizes, encoded, layer_places, read_bev
from models.layouts.spconv_reader import State
from models.lidar.pillars import Pillars
from models.lidar.voxelnet import VoxelNet

BirdEyeNetwork = VoxelNet | Pillars
Named = Sequence[tuple[str, tuple[str, nn.Module]]]
"""A project's name of each layer of an encoder, and the layer with its name here; in the order of computation."""


@dataclass(frozen=True, kw_only=True)
class BirdEyeNames:
    """How a project calls the parts.

    Attributes:
        named: the layers of an encoder.
        steps: the same as the project documents them, from a state dict alone.
        pillars: the layers on points; None where it has none.
        bev: the 2D backbone.
    """

    named: Callable[[VoxelNet], Named]
    steps: Callable[[State], list[Step]]
    pillars: PillarNames | None
    bev: BevNames


def bird_eye_places(network: BirdEyeNetwork, names: BirdEyeNames) -> dict[str, Place]:
    """Places of all tensors."""
    found: dict[str, Place] = {}
    if isinstance(network, VoxelNet):
        for theirs, ours in names.named(network):
            found |= layer_places(ours, theirs, "zyx")
    else:
        assert names.pillars is not None
        found = pillar_places(network.pillar_encoder, "pillar_encoder", names.pillars)
    if network.bev_backbone is not None:
        found |= bev_places(network.bev_backbone, "bev_backbone", names.bev)
    return found


def read_bird_eye(
    state: State,
    network: BirdEyeNetwork,
    names: BirdEyeNames,
    inputs: tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int],
    *,
    eps: float,
) -> Float[Tensor, "B C Y X"]:
    """The map of a network that is built of a state dict; of ours, the grid and the 2D backbone's numbers are read."""
    if isinstance(network, VoxelNet):
        bev = encoded(state, network, names.steps(state), inputs, eps=eps)
    else:
        assert names.pillars is not None
        bev = read_pillars(state, network, names.pillars, inputs, eps=eps)
    if network.bev_backbone is None:
        return bev
    return read_bev(state, bev, bev_sizes(network.bev_backbone), names.bev, eps=eps)


def encoder_steps(names: Iterable[str], *, residual: bool) -> list[Step]:
    """The layers of SECOND's encoder, or of CenterPoint's of residual blocks, under these names, in their order."""
    name = iter(names)
    kind: StepKind = "block" if residual else "submanifold"
    steps = [Step("submanifold", next(name), "subm1")]
    steps += [Step(kind, next(name), "subm1") for _ in range(2 if residual else 1)]
    for stage, padding in ((2, (1, 1, 1)), (3, (1, 1, 1)), (4, (0, 1, 1))):
        steps.append(Step("strided", next(name), f"spconv{stage}", (2, 2, 2), padding))
        steps += [Step(kind, next(name), f"subm{stage}") for _ in range(2)]
    return [*steps, Step("strided", next(name), "spconv_down2", (2, 1, 1), (0, 0, 0))]
