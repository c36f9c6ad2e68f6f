"""InfoNCE over matched rows, in plain, masked, weighted, symmetric, chunked and gathered form.

Letters: N rows of this rank, T rows of all ranks, D embedding.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.pairing import full_precision


def info_nce(
    anchors: Float[Tensor, "N D"],
    targets: Float[Tensor, "N D"],
    *,
    temperature: float,
    symmetric: bool = False,
    excluded: Bool[Tensor, "N T"] | None = None,
    log_weights: Float[Tensor, "N T"] | None = None,
    row_weights: Float[Tensor, " N"] | None = None,
    gather: bool = False,
    chunk_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Mean over rows i of -log softmax_j(anchors_i . targets_j / temperature)[i].

        logits[i, j] = anchors[i] . targets[j] / temperature + log_weights[i, j],  -inf where excluded[i, j]
        loss = mean_i( logsumexp_j logits[i, j] - logits[i, i] ),  weighted by row_weights[i]

    Runs in float32 (float64 for float64 input), also under autocast: at temperature 0.07 a bfloat16 logit near 14 is
    off by up to 0.03.

    Several ranks. With `gather` the targets of all ranks stand in each row's sum, and gradients flow back to the rank
    that made them. The rank's loss is then
        (number of ranks / rows of all ranks) * sum over its own rows,
    so that the *mean over ranks*, which is what data-parallel training takes of losses and gradients, is exactly the
    loss and gradient of one process that holds all rows, however unevenly they are spread. Without `gather` each rank
    takes the mean over its own rows, and the mean over ranks weighs ranks, not rows. Without a process group (or
    with one rank) there are no rows to gather and both are the same.

    Degenerate input: no rows give 0 with a gradient path (all gradients 0), one row gives 0, identical rows give
    log T. None gives NaN.

    Args:
        anchors: one row a pair, usually of unit length.
        targets: row i belongs to anchor i; all others are its negatives.
        temperature: divides the similarities.
        symmetric: mean of both directions (targets as anchors too).
        excluded: entries that are no negatives: they leave the sum. Columns are the rows of all ranks in rank order
            with `gather`, else of this rank. Not with `symmetric` under `gather`, where the mask of the other
            direction would be held by other ranks.
        log_weights: logarithm of each entry's weight in the sum, no gradient: an entry counts as exp(log weight) of
            itself, -inf not at all. 0 for the row's own positive. Columns and limits as of `excluded`.
        row_weights: weight of each row's loss in the mean, at least 0, no gradient; None: all the same. Where all
            are 0 the loss is 0.
        gather: negatives from all ranks. Every rank must call, with any number of rows.
        chunk_rows: rows computed at a time, gradient included: memory chunk_rows x T instead of some N x T. Once
            differentiable.

    Raises:
        ValueError: shapes differ, a setting is out of range, or a pair's own entry is excluded or weighted.

    Source: van den Oord et al., 2018, eq. 4; SLidR (Sautier et al., CVPR 2022), eq. 3.
    """
    _check(anchors, targets, temperature, chunk_rows)
    if gather and symmetric and (excluded is not None or log_weights is not None):
        raise ValueError("info_nce: `excluded` or `log_weights` with `symmetric` and `gather` together is not defined")
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, targets = full_precision(anchors), full_precision(targets)
        all_targets, start, total = gather_with_grad(targets) if gather else (targets, 0, targets.shape[0])
        for name, entries, problem in (
            ("excluded", excluded, "excluded removes a row's own positive; its loss would be infinite"),
            ("log_weights", log_weights, "log_weights of a row's own positive is not 0"),
        ):
            if entries is not None:
                _check_entries(name, entries, (anchors.shape[0], total), start, problem)
        rows = _Rows(temperature, excluded, log_weights, row_weights, chunk_rows)
        loss = rows.loss_sum(anchors, all_targets, start)
        if symmetric:
            all_anchors = gather_with_grad(anchors)[0] if gather else anchors
            loss = 0.5 * (loss + rows.mirrored().loss_sum(targets, all_anchors, start))
        weight: float | Tensor = max(total, 1)
        if row_weights is not None:
            weight = _sum_of_weights(row_weights, gather)
    return loss * (world_size() if gather else 1) / weight


@dataclass(frozen=True)
class _Rows:
    """How rows become losses; see `info_nce`."""

    temperature: float
    excluded: Bool[Tensor, "N T"] | None
    log_weights: Float[Tensor, "N T"] | None
    row_weights: Float[Tensor, " N"] | None
    chunk_rows: int | None

    def mirrored(self) -> _Rows:
        """For targets as anchors."""
        excluded, log_weights = (None if x is None else x.T for x in (self.excluded, self.log_weights))
        return dataclasses.replace(self, excluded=excluded, log_weights=log_weights)

    def loss_sum(self, anchors: Float[Tensor, "N D"], targets: Float[Tensor, "T D"], start: int) -> Float[Tensor, ""]:
        """Sum of the rows' losses; the positive of row i is column start + i."""
        # Keeps both towers in the graph where there is no row, or no negative: their collectives must still run.
        total = 0.0 * (anchors.sum() + targets.sum())
        if self.chunk_rows is None or self.chunk_rows >= anchors.shape[0]:
            return total + self._of(slice(None), anchors, targets, start)
        chunked: Tensor = _ChunkedLossSum.apply(anchors, targets, start, self)  # type: ignore[no-untyped-call]
        return total + chunked

    def _of(
        self, rows: slice, anchors: Float[Tensor, "n D"], targets: Float[Tensor, "T D"], start: int
    ) -> Float[Tensor, ""]:
        """Sum of the losses of some rows, whose anchors these are."""
        logits = anchors @ targets.T / self.temperature
        if self.log_weights is not None:
            logits = logits + self.log_weights[rows].detach()
        if self.excluded is not None:
            logits = logits.masked_fill(self.excluded[rows], float("-inf"))
        positives = torch.arange(start, start + anchors.shape[0], device=anchors.device)
        if self.row_weights is None:
            return F.cross_entropy(logits, positives, reduction="sum")
        return (F.cross_entropy(logits, positives, reduction="none") * self.row_weights[rows].detach()).sum()

    def softmax(
        self, rows: slice, anchors: Float[Tensor, "n D"], targets: Float[Tensor, "T D"], start: int
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "n T"]]:
        """`_of` and its gradient with respect to the logits, in one matrix of rows x columns, without a graph."""
        # In place from here on: one matrix of this size at a time is the point of chunks.
        logits = (anchors @ targets.T).div_(self.temperature)
        if self.log_weights is not None:
            logits += self.log_weights[rows]
        if self.excluded is not None:
            logits.masked_fill_(self.excluded[rows], float("-inf"))
        highest = logits.amax(dim=1, keepdim=True)  # finite: a row's own positive is never excluded
        positives = logits.diagonal(offset=start).clone()
        exponentials = logits.sub_(highest).exp_()
        sums = exponentials.sum(dim=1, keepdim=True)
        losses = (highest + sums.log()).squeeze(1) - positives
        p = exponentials.div_(sums)
        p.diagonal(offset=start).sub_(1)
        if self.row_weights is not None:
            weights = self.row_weights[rows].to(p.dtype)
            losses, p = losses * weights, p.mul_(weights.unsqueeze(1))
        return losses.sum(), p


class _ChunkedLossSum(torch.autograd.Function):
    """`_Rows.loss_sum` and its gradient, a chunk of rows at a time, both in the forward pass.

    With p the row's softmax, the gradient with respect to its logits is p - (1 at the positive), so nothing of size
    rows x columns has to live until the backward pass: one chunk's logits become its p in place.
    """

    @staticmethod
    def forward(
        ctx: Any, anchors: Float[Tensor, "N D"], targets: Float[Tensor, "T D"], start: int, how: _Rows
    ) -> Float[Tensor, ""]:
        assert how.chunk_rows is not None
        grad_anchors, grad_targets = torch.empty_like(anchors), torch.zeros_like(targets)
        total = anchors.new_zeros(())
        for first in range(0, anchors.shape[0], how.chunk_rows):
            rows = slice(first, first + how.chunk_rows)
            loss, p = how.softmax(rows, anchors[rows], targets, start + first)
            total += loss
            torch.mm(p, targets, out=grad_anchors[rows])
            grad_targets.addmm_(p.T, anchors[rows])
        ctx.save_for_backward(grad_anchors.div_(how.temperature), grad_targets.div_(how.temperature))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Float[Tensor, ""]) -> tuple[Tensor, Tensor, None, None]:
        grad_anchors, grad_targets = ctx.saved_tensors
        return grads[0] * grad_anchors, grads[0] * grad_targets, None, None


def _sum_of_weights(row_weights: Float[Tensor, " N"], gather: bool) -> Float[Tensor, ""]:
    """Of all rows (of all ranks); 1 where it is 0, so that the loss is 0 and not NaN."""
    total = row_weights.detach().sum()
    if gather and world_size() > 1:
        total = total.clone()
        dist.all_reduce(total)
    return torch.where(total > 0, total, torch.ones_like(total))


def _check(
    anchors: Float[Tensor, "N D"], targets: Float[Tensor, "N D"], temperature: float, chunk_rows: int | None
) -> None:
    if anchors.shape != targets.shape:
        raise ValueError(
            f"info_nce: anchors {tuple(anchors.shape)} and targets {tuple(targets.shape)} must match row by row"
        )
    if not temperature > 0:
        raise ValueError(f"info_nce: temperature = {temperature}: expected > 0")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"info_nce: chunk_rows = {chunk_rows}: expected at least 1, or None for no chunks")


def _check_entries(
    name: str, entries: Shaped[Tensor, "N T"], expected: tuple[int, int], start: int, problem: str
) -> None:
    """Refuse another shape, and entries at the rows' own positives."""
    if tuple(entries.shape) != expected:
        raise ValueError(f"info_nce: {name} is {tuple(entries.shape)}: expected {expected}")
    if bool(entries.diagonal(offset=start).any()):
        raise ValueError(f"info_nce: {problem}")


# ---- rows of all ranks


def world_size() -> int:
    """Ranks of the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_with_grad(rows: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "T D"], int, int]:
    """The rows of all ranks one after another; the backward pass sums the gradients of all ranks.

    Ranks may hold different numbers of rows, also none; every rank must call it. Without a process group, or with
    one rank, it gives back what it got.

    Returns:
        The rows, the place of this rank's first one among them, and how many there are.
    """
    if world_size() == 1:
        return rows, 0, rows.shape[0]
    count = torch.tensor([rows.shape[0]], device=rows.device)
    of_ranks = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(of_ranks, count)
    counts = [int(n) for n in torch.cat(of_ranks).tolist()]
    gathered: Tensor = _GatherRows.apply(rows, tuple(counts))  # type: ignore[no-untyped-call]
    return gathered, sum(counts[: dist.get_rank()]), sum(counts)


class _GatherRows(torch.autograd.Function):
    """All-gather of padded blocks; all-reduce of the gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Float[Tensor, "N D"], counts: tuple[int, ...]) -> Float[Tensor, "T D"]:
        rank, longest = dist.get_rank(), max(counts)
        ctx.first, ctx.count = sum(counts[:rank]), counts[rank]
        # Collectives want equal shapes: the padding travels and is cut off.
        padded = rows.new_zeros(longest, rows.shape[1])
        padded[: counts[rank]] = rows
        blocks = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(blocks, padded)
        return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Float[Tensor, "T D"]) -> tuple[Float[Tensor, "N D"], None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad[ctx.first : ctx.first + ctx.count], None
