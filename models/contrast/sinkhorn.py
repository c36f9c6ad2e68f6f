"""Soft assignment of rows to prototypes so that every prototype gets an equal share, by Sinkhorn's iterations.

Letters: R rows, K prototypes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from models.contrast.losses import world_size
from models.pairing import full_precision


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "R K"], *, epsilon: float, iterations: int, gather: bool = False
) -> Float[Tensor, "R K"]:
    """Shares of each row over the prototypes, summing to 1; no gradient.

        plan = exp(scores / epsilon)
        repeat: divide each column by its sum over all rows, then each row by its sum

    Equal columns are reached up to what the iterations leave; a single row gives 1/K for every prototype after a column
    step, so that it is assigned to all alike. In logarithms, in float32 (float64 for float64 input), so that a small
    epsilon neither overflows nor loses rows.

    Args:
        scores: similarity of each row to each prototype.
        epsilon: the smaller, the harder the assignment.
        iterations: column and row steps.
        gather: column sums over the rows of all ranks, so that they are assigned as one batch. Every rank must call,
            with any number of rows.

    Raises:
        ValueError: a setting is out of range.

    Source: Cuturi, "Sinkhorn distances" (NeurIPS 2013); as an assignment of features to prototypes: Caron et al., SwAV
    (NeurIPS 2020), section 3.1.
    """
    if not epsilon > 0 or iterations < 1:
        raise ValueError(f"sinkhorn: epsilon = {epsilon}, iterations = {iterations}: expected above 0 and at least 1")
    with torch.autocast(scores.device.type, enabled=False):
        logs = full_precision(scores) / epsilon
        for _ in range(iterations):
            logs = logs - _column_logsumexp(logs, gather=gather and world_size() > 1)
            logs = logs.log_softmax(dim=1)
    return logs.exp()


def _column_logsumexp(logs: Float[Tensor, "R K"], *, gather: bool) -> Float[Tensor, " K"]:
    """Over this rank's rows, or over those of all ranks."""
    if not gather:
        return logs.logsumexp(dim=0) if len(logs) else logs.new_zeros(logs.shape[1])
    # A rank without rows takes part with the least number instead of -inf, whose difference to itself is NaN.
    least = torch.finfo(logs.dtype).min
    largest = logs.amax(dim=0) if len(logs) else logs.new_full((logs.shape[1],), least)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    sums = (logs - largest).exp().sum(dim=0)
    dist.all_reduce(sums)
    return largest + sums.clamp(min=torch.finfo(logs.dtype).tiny).log()
