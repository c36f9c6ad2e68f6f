"""The collapse watch: four numbers that tell whether a contrastive run still learns something.

Cheap by sub-sampling rows at an even step (no random numbers are drawn, so that runs stay repeatable): 512 rows of 64
dimensions take less than 10 ms on one core. Under several ranks each watches its own rows.

Letters: N rows, D embedding.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models.heads import unit
from models.pairing import full_precision

WATCHED = ("contrastive_accuracy", "alignment", "uniformity", "effective_rank")


@torch.no_grad()
def collapse_watch(
    anchors: Float[Tensor, "N D"], targets: Float[Tensor, "N D"], *, max_rows: int = 512
) -> dict[str, Float[Tensor, ""]]:
    """Contrastive accuracy, alignment, uniformity and effective rank; all 0 for fewer than two rows.

    Row i of `targets` is the positive of the student's row i; at most `max_rows` rows are looked at. Rows that are not
    finite give numbers that are not, never an error: what becomes of such an update is decided by its loss.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        step = max(1, -(-anchors.shape[0] // max_rows))
        a, b = anchors[::step].detach(), targets[::step].detach()
        if a.shape[0] < 2:
            return dict.fromkeys(WATCHED, anchors.new_zeros((), dtype=torch.float32))
        return {
            "contrastive_accuracy": contrastive_accuracy(a, b),
            "alignment": alignment(a, b),
            "uniformity": uniformity(a),
            "effective_rank": effective_rank(a),
        }


def contrastive_accuracy(anchors: Float[Tensor, "N D"], targets: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Share of rows whose positive is more similar than every other row's target.

    A tie does not count, so that features that are all the same score 0 and not 1.
    """
    similarity = full_precision(anchors) @ full_precision(targets).T
    positive = similarity.diagonal()
    others = similarity.masked_fill(torch.eye(len(anchors), dtype=torch.bool, device=anchors.device), -torch.inf)
    return (positive > others.amax(dim=1)).float().mean()


def alignment(anchors: Float[Tensor, "N D"], targets: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Mean cosine of positives, -1 to 1."""
    return (unit(anchors) * unit(targets)).sum(dim=1).mean().float()


def uniformity(features: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Log of the mean over pairs of exp(-2 squared distance) of unit rows: 0 when all are the same, down to about -4.

    Source: Wang & Isola, ICML 2020, section 4.1.2.
    """
    rows = unit(features)
    squared = torch.pdist(rows).square()
    return (torch.logsumexp(-2 * squared, dim=0) - torch.log(squared.new_tensor(squared.numel()))).float()


def effective_rank(features: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Exponential of the entropy of the normalised singular values, 1 to D; rows are not centred.

    0 for zero rows, NaN for rows that have no singular values because they are not finite.

    Source: Roy & Vetterli, EUSIPCO 2007.
    """
    nothing = features.new_full((), torch.nan, dtype=torch.float32)
    if not bool(features.isfinite().all()):  # LAPACK would raise or print, by the library behind it
        return nothing
    try:
        singular: Tensor = torch.linalg.svdvals(full_precision(features))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # of rows so large that it does not converge
        return nothing
    if not bool(singular.sum() > 0):
        return singular.new_zeros((), dtype=torch.float32)
    rank: Tensor = torch.special.entr(singular / singular.sum()).sum().exp().float()
    return rank
