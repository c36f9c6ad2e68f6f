"""k nearest neighbours: nothing is trained. Do points of one class lie together in feature space?

Cosine similarity to a bank of labelled train voxels; the k nearest vote with weight exp(similarity / temperature), as
in Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, sec. 3.4.

Cost: a matrix product and a selection of queries x bank entries, in chunks that fit a few tens of megabytes.

Letters: C feature width, K classes, M voxels, R rows of the bank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from common.ranges import at_least, at_most, positive
from engine.downstream.common import SegmentationTask, check_seeds
from engine.downstream.features import FeatureBank


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """Settings of the kNN protocol.

    Attributes:
        k: neighbours that vote.
        temperature: of the vote's weights; smaller lets the nearest decide.
        bank_size: labelled voxels to compare with, drawn from the train split at random.
        queries_per_sweep: test voxels of each sweep that are asked about, at random; points of other voxels are left
            out of the count. None asks about all: every point counts, at a cost that grows with the cloud.
        seeds: one bank each. A random network is drawn again for each.
    """

    k: int = 20
    temperature: float = 0.07
    bank_size: int = 10_000
    queries_per_sweep: int | None = None
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        check_seeds(self, "seeds")
        at_least(self, k=1)
        at_most(self, "bank_size", k=self.bank_size)
        positive(self, "temperature")
        at_least(self, "null: all", queries_per_sweep=1)


class KnnClassifier:
    """A bank of unit features and labels.

    Attributes:
        features: one row a bank entry, mean-centred and of unit length.
        labels: class of each.
    """

    features: Float[Tensor, "R C"]
    labels: Int[Tensor, " R"]

    def __init__(
        self,
        bank: FeatureBank,
        task: SegmentationTask,
        config: KnnConfig,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(bank.labels), generator=self.generator)[: config.bank_size]
        features = bank.features[rows].float()
        # Behind a ReLU all features point into one orthant and every cosine is near 1; centring undoes that.
        self.center = features.mean(0).to(device)
        self.features = F.normalize(features.to(device) - self.center, dim=1)
        self.labels = bank.labels[rows].to(device)
        self.task = task
        self.config = config

    def predict(self, features: Float[Tensor, "M C"]) -> Int[Tensor, " M"]:
        """Class of each voxel; -1 for voxels that are not asked about."""
        predicted = torch.full((len(features),), -1, dtype=torch.int64, device=features.device)
        limit = self.config.queries_per_sweep
        asked = torch.arange(len(features))
        if limit is not None and limit < len(features):
            asked = torch.randperm(len(features), generator=self.generator)[:limit]
        asked = asked.to(features.device)
        chunk = max(1, 8_000_000 // len(self.labels))
        for rows in asked.split(chunk):
            predicted[rows] = self._vote(F.normalize(features[rows] - self.center, dim=1))
        return predicted

    def _vote(self, queries: Float[Tensor, "q C"]) -> Int[Tensor, " q"]:
        k = min(self.config.k, len(self.labels))
        similarity, nearest = (queries @ self.features.T).topk(k, dim=1, sorted=False)
        votes = torch.zeros(len(queries), self.task.num_classes, device=queries.device)
        # Similarities are at most 1: subtracting it keeps the exponential finite at any temperature.
        votes.scatter_add_(1, self.labels[nearest], ((similarity - 1.0) / self.config.temperature).exp())
        return votes.argmax(1)
