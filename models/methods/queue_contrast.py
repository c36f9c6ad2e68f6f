"""What methods share that contrast rows with a queue of past keys, made by momentum copies of their networks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from common.ranges import at_least, positive
from models.contrast.memory import KeyQueue, contrast_with_queue, queue_watch
from models.contrast.momentum import MomentumConfig, MomentumCopy, check_whole_weights
from models.methods.base import LossTerms, MethodConfig, Objective


@dataclass(frozen=True, kw_only=True)
class QueueContrastConfig(MethodConfig):
    """Settings of a contrast with a queue.

    Attributes:
        momentum: how the key encoders follow.
        queue_size: keys that are kept as negatives, in each queue.
        embedding_dim: D, dimensions that are compared.
        temperature: of the softmax.
        watch_rows: rows that the collapse watch looks at.
    """

    momentum: MomentumConfig = field(default_factory=MomentumConfig)
    queue_size: int = 65_536
    embedding_dim: int = 128
    temperature: float = 0.1
    watch_rows: int = 512

    def __post_init__(self) -> None:
        at_least(self, queue_size=1, embedding_dim=1, watch_rows=2)
        positive(self, "temperature")


class QueueContrast(Objective):
    """Networks with momentum copies and a queue of keys."""

    NAME: ClassVar[str]
    """The method's, for messages."""

    @abstractmethod
    def copies(self) -> Iterable[tuple[MomentumCopy, nn.Module]]:
        """Each momentum copy and the network that it follows."""

    def after_update(self, progress: float) -> None:
        """The copies follow."""
        for copy, network in self.copies():
            copy.follow(network, progress)

    def check_engine(self, *, zero_stage: int, precision: str) -> None:
        """Refuse ZeRO 3 and weights in bfloat16.

        Raises:
            ValueError: see `models.contrast.momentum.check_whole_weights`.
        """
        check_whole_weights(self.NAME, zero_stage=zero_stage, precision=precision)

    def queue_terms(
        self, queue: KeyQueue, queries: Float[Tensor, "N D"], keys: Float[Tensor, "N D"], config: QueueContrastConfig
    ) -> LossTerms:
        """The contrast of queries with their keys and the queue; in training the keys then enter it."""
        negatives = queue.negatives()
        loss = contrast_with_queue(queries, keys, negatives, temperature=config.temperature)
        watch = queue_watch(queries, keys, negatives, max_rows=config.watch_rows)
        if self.training:  # after the loss: `negatives` is no copy
            queue.enter(keys)
        return LossTerms(total=loss, parts={"contrast": loss.detach()}, watch=watch)
