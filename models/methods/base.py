"""What every pre-training method offers to the engine and to the launchers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from data.sample import Batch


@dataclass(frozen=True)
class LossTerms:
    """What one forward pass gives back.

    Attributes:
        total: scalar to differentiate.
        parts: named scalars that make up the total, detached, for the log.
        watch: named scalars of the collapse watch (contrastive accuracy, alignment, ...), detached.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    watch: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """A method's towers, heads and loss. The engine steps on `forward(batch).total`.

    Attributes:
        backbone: the 3D network that downstream tasks take over.
    """

    backbone: nn.Module

    @abstractmethod
    def forward(self, batch: Batch) -> LossTerms:
        """Loss of one micro-batch."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig(ABC):
    """Settings of one method: the paper's values as defaults, ranges checked in `__post_init__`."""

    @abstractmethod
    def build(self) -> Objective:
        """Assemble the method."""
