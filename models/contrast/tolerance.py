"""Which negatives a contrastive loss should not believe: those that look to a frozen teacher like the anchor itself.

Two patches of road are negatives of each other only because they come from two superpixels. The teacher's features
say so before anything is learnt (ST-SLidR, Mahmoud et al., CVPR 2023).

Deviations from the released code: `docs/methods/slidr.md`.

Cost: N x T similarities of C channels and some matrices of that size, without gradient.

Letters: N rows of this rank, T rows of all ranks, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.ranges import share
from models.contrast.losses import gather_with_grad
from models.heads import unit


@dataclass(frozen=True, kw_only=True)
class SemanticToleranceConfig:
    """How the teacher's similarities soften a contrastive loss; defaults are the released configuration's.

    Attributes:
        weighted: a negative counts 1 - its similarity to the anchor. Off: one that is not removed counts wholly.
        removed: share of each row's negatives, the most similar ones, that do not count at all; rounded down.
        balanced: rows that many others are similar to (road, buildings) count less.
        vote_threshold: of `balanced`: similarity from which another row counts as similar.
    """

    weighted: bool = False
    removed: float = 0.01
    balanced: bool = True
    vote_threshold: float = 0.5

    def __post_init__(self) -> None:
        share(self, "removed", "vote_threshold")


@dataclass(frozen=True)
class Tolerance:
    """Arguments of `models.contrast.losses.info_nce`, None for what is off."""

    excluded: Bool[Tensor, "N T"] | None
    log_weights: Float[Tensor, "N T"] | None
    row_weights: Float[Tensor, " N"] | None


@torch.no_grad()
def semantic_tolerance(
    features: Float[Tensor, "N C"], config: SemanticToleranceConfig, *, gather: bool = False
) -> Tolerance:
    """Weights of a contrastive loss from the teacher's features of its rows.

        s[i, j] = cosine of rows i and j, below 0: 0
        log_weights[i, j] = log(1 - s[i, j])
        votes[i] = sum of s[i, j] over j with s[i, j] >= vote_threshold, itself included
        row_weights[i] = 1 - (votes[i] - least votes) / (most votes - least votes),  all 1 where most = least

    `features` are from before any learnt layer. With `gather` columns are the rows of all ranks; every rank must call.

    Source: ST-SLidR, section 3; thresholds, normalisation of the votes, and that entries are removed *or* weighted (its
    `min_quantile`) from its released code.
    """
    with torch.autocast(features.device.type, enabled=False):
        rows = unit(features)
        everyone, start, total = gather_with_grad(rows) if gather else (rows, 0, len(rows))
        similarity = (rows @ everyone.T).clamp(0, 1)
        row_weights = _row_weights(similarity, config.vote_threshold, gather) if config.balanced else None
        similarity.diagonal(offset=start).fill_(0)  # a row is no negative of itself
        excluded = _most_similar(similarity, int(config.removed * max(total - 1, 0)), start)
        log_weights = torch.log1p(-similarity) if config.weighted else None
    return Tolerance(excluded, log_weights, row_weights)


def _most_similar(similarity: Float[Tensor, "N T"], count: int, start: int) -> Bool[Tensor, "N T"] | None:
    """The `count` most similar entries of each row, never the row itself; None for no entry."""
    if count == 0:
        return None
    mask = torch.zeros_like(similarity, dtype=torch.bool)
    others = similarity.clone()
    others.diagonal(offset=start).fill_(-1)
    return mask.scatter_(1, others.topk(count, dim=1).indices, True)


def _row_weights(similarity: Float[Tensor, "N T"], threshold: float, gather: bool) -> Float[Tensor, " N"]:
    votes = similarity.where(similarity >= threshold, torch.zeros_like(similarity)).sum(dim=1)
    of_all = gather_with_grad(votes.unsqueeze(1))[0] if gather else votes
    if of_all.numel() == 0:
        return votes
    low, high = of_all.min(), of_all.max()
    span = high - low
    # Rows that differ by rounding only are equal.
    return torch.where(span > 1e-6 * high, 1 - (votes - low) / span.clamp(min=1e-12), torch.ones_like(votes))
