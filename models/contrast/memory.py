"""A queue of the keys of past batches, and the contrast of queries with it.

The queue is the same on every rank: each batch's keys of all ranks enter in the order of ranks, however many each has.
It lies in buffers, so it is part of the checkpoint, and an update that is skipped puts it back.

With accumulation the keys of one micro-batch are among the negatives of the next one of the same update: K counts keys,
not updates, and one process with n micro-batches has other negatives than n processes with one.

Deviation: MoCo fills the queue with random unit vectors at the start. They are negatives that any network tells from
real keys, so the first K keys' worth of steps would teach that. Here only rows that hold keys count: the loss starts
at 0 (nothing to tell apart) and rises towards log(rows) while the queue fills, before learning brings it down.

Cost: the engine copies the K x D numbers once a step, to undo a skipped update (65,536 x 128 are 32 MB). The loss takes
two products of queries and queue, and keeps neither of them for the backward pass: the gradient is computed at once.

Letters: N rows of this rank, T rows of all ranks, K size of the queue, R rows of it that hold keys, D embedding.

Source: He et al., "Momentum contrast for unsupervised visual representation learning", CVPR 2020, section 3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn

from models.contrast.collapse_monitor import WATCHED, alignment, effective_rank, uniformity
from models.contrast.losses import gather_with_grad, world_size
from models.pairing import full_precision

CHUNK_ROWS = 256
"""Queries whose similarities to the whole queue are held at once: 64 MB for 65,536 keys."""


class KeyQueue(nn.Module):
    """The last K keys.

    Attributes:
        keys: rows; key number n lies in row n mod K.
        seen: keys that ever entered.
    """

    def __init__(self, size: int, dim: int) -> None:
        """An empty queue of K = `size` keys with D = `dim` numbers each.

        Raises:
            ValueError: no room for a key.
        """
        super().__init__()
        if size < 1:
            raise ValueError(f"queue size = {size}: expected at least 1")
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.keys: Float[Tensor, "K D"]
        self.seen: Int64[Tensor, ""]

    @property
    def filled(self) -> int:
        """R."""
        return min(int(self.seen), self.keys.shape[0])

    def negatives(self) -> Float[Tensor, "R D"]:
        """The keys of past batches. No copy: `enter` overwrites them, so be done with them before."""
        return self.keys[: self.filled]

    @torch.no_grad()
    def enter(self, keys: Float[Tensor, "N D"]) -> None:
        """Put the keys of all ranks into the places of the oldest. Every rank must call it, with any number of rows.

        With more than K of them on all ranks together the last K stay.
        """
        # Every rank writes the same rows, so the queues stay equal without being sent.
        rows, _, count = gather_with_grad(keys.detach().to(self.keys.dtype))
        size = self.keys.shape[0]
        number = int(self.seen) + torch.arange(count, device=rows.device)[-size:]
        self.keys[number % size] = rows[-size:]
        self.seen.add_(count)


def contrast_with_queue(
    queries: Float[Tensor, "N D"], keys: Float[Tensor, "N D"], negatives: Float[Tensor, "R D"], *, temperature: float
) -> Float[Tensor, ""]:
    """Mean over rows of -log of the positive's share.

        positive[i] = queries[i] . keys[i] / temperature
        loss = mean_i( log(exp(positive[i]) + sum_r exp(queries[i] . negatives[r] / temperature)) - positive[i] )

    Keys and negatives get no gradient. Runs in float32 (float64 for float64 input), also under autocast.

    Several ranks: every row of every rank weighs the same. A rank's loss is (ranks / rows of all ranks) * sum over its
    rows, so that the mean over ranks, which data-parallel training takes, is the loss of one process with all rows.
    Every rank must call it, with any number of rows.

    Degenerate input: no rows give 0 with a gradient path, no negatives give 0. None gives NaN.

    Rows have unit length; row i of `keys` belongs to query i, `negatives` are keys of other samples.

    Raises:
        ValueError: shapes differ, or the temperature is not positive.

    Source: MoCo, eq. 1.
    """
    if queries.shape != keys.shape:
        raise ValueError(f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)} must match row by row")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature}: expected > 0")
    with torch.autocast(queries.device.type, enabled=False):
        q = full_precision(queries)
        k, others = keys.detach().to(q.dtype), negatives.detach().to(q.dtype)
        total: Tensor = _ContrastSum.apply(q, k, others, temperature)  # type: ignore[no-untyped-call]
    return total * (world_size() / max(rows_of_all_ranks(q), 1))


class _ContrastSum(torch.autograd.Function):
    """Sum of the rows' losses.

    With s = logsumexp of a row's logits over its key k and all negatives n:
        loss = s - q . k / t,   d loss / d q = ((exp(q . k / t - s) - 1) k + sum_r exp(q . n_r / t - s) n_r) / t

    The gradient is made in the forward pass: the backward pass then needs neither the rows x R probabilities nor the
    negatives, which newer keys may have overwritten by then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Float[Tensor, "N D"],
        keys: Float[Tensor, "N D"],
        negatives: Float[Tensor, "R D"],
        temperature: float,
    ) -> Float[Tensor, ""]:
        loss, gradients = queries.new_zeros(()), []
        for q, k in zip(queries.split(CHUNK_ROWS), keys.split(CHUNK_ROWS), strict=True):
            positive, logits = (q * k).sum(dim=1) / temperature, q @ negatives.T / temperature
            log_sum = torch.logaddexp(positive, logits.logsumexp(dim=1))
            loss = loss + (log_sum - positive).sum()
            if ctx.needs_input_grad[0]:
                shares = logits.sub_(log_sum.unsqueeze(1)).exp_()
                own = torch.expm1(positive - log_sum).unsqueeze(1)
                gradients.append((own * k + shares @ negatives) / temperature)
        ctx.save_for_backward(torch.cat(gradients) if gradients else queries.new_zeros(queries.shape))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Float[Tensor, ""]) -> tuple[Float[Tensor, "N D"], None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None, None, None


def rows_of_all_ranks(rows: Float[Tensor, "N D"]) -> int:
    """T. Every rank must call it."""
    if world_size() == 1:
        return rows.shape[0]
    count = torch.tensor([rows.shape[0]], device=rows.device)
    dist.all_reduce(count)
    return int(count)


@torch.no_grad()
def queue_watch(
    queries: Float[Tensor, "N D"], keys: Float[Tensor, "N D"], negatives: Float[Tensor, "R D"], *, max_rows: int = 512
) -> dict[str, Float[Tensor, ""]]:
    """The collapse watch of a contrast with a queue; numbers that cannot be computed yet are 0.

    Batches can have very few rows (one a sample), so uniformity and effective rank are those of the queries together
    with keys of the queue at an even step. A key that is more similar than every negative counts as accurate, a tie
    does not, so that features that are all the same score 0.

    Arguments as of `contrast_with_queue`; at most `max_rows` rows are looked at.
    """
    with torch.autocast(queries.device.type, enabled=False):
        step = max(1, -(-queries.shape[0] // max_rows))
        q, k = (rows[::step].detach().to(negatives.dtype) for rows in (queries, keys))
        watch = dict.fromkeys(WATCHED, negatives.new_zeros((), dtype=torch.float32))
        if len(q) > 0:
            watch["alignment"] = alignment(q, k)
        if len(q) > 0 and len(negatives) > 0:
            watch["contrastive_accuracy"] = ((q * k).sum(1) > (q @ negatives.T).amax(1)).float().mean()
        room = max(max_rows - len(q), 1)
        rows = torch.cat([q, negatives[:: max(1, -(-negatives.shape[0] // room))]])
        if len(rows) > 1:
            watch |= {"uniformity": uniformity(rows), "effective_rank": effective_rank(rows)}
    return watch
