"""The toy objective with a momentum copy of its network and a queue of the copy's features: state beyond weights."""

from __future__ import annotations

from typing import Any

from models.contrast.memory import KeyQueue, contrast_with_queue
from models.contrast.momentum import MomentumConfig, MomentumCopy, check_whole_weights
from models.heads import unit
from tests.helpers.toy_objective import ToyBatch, ToyObjective, ToyTerms

QUEUE = 7


class ToyFollower(ToyObjective):
    """Fits, and knows its own features again among those of past batches."""

    def __init__(self, *, width: int = 16, **settings: Any) -> None:
        super().__init__(width=width, **settings)
        self.key_backbone = MomentumCopy(self.backbone, MomentumConfig(start=0.9))
        self.queue = KeyQueue(QUEUE, width)

    def forward(self, batch: ToyBatch) -> ToyTerms:
        terms = super().forward(batch)
        x = batch.x.to(self.head.weight.dtype)
        queries, keys = unit(self.backbone(x)), unit(self.key_backbone(x + 0.1))
        contrast = contrast_with_queue(queries, keys, self.queue.negatives(), temperature=0.5)
        self.queue.enter(keys)
        return ToyTerms(terms.total + 0.1 * contrast, terms.parts, terms.watch)

    def after_update(self, progress: float) -> None:
        """The copy follows."""
        self.key_backbone.follow(self.backbone, progress)

    def check_engine(self, *, zero_stage: int, precision: str) -> None:
        """Refuse what momentum copies cannot work under."""
        check_whole_weights("toy", zero_stage=zero_stage, precision=precision)
