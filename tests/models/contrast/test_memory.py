"""The key queue and the contrast with it: against lists and loops, wrap-around, degenerate rows, one and two ranks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.contrast.memory import KeyQueue, contrast_with_queue, queue_watch, rows_of_all_ranks
from tests.helpers.distributed import run_distributed
from tests.reference.memory import queue_contrast_loop, queue_loop

DIM = 6


def rows(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, DIM, generator=generator, dtype=dtype), dim=1)


def in_any_order(keys: Tensor) -> Tensor:
    return keys[torch.argsort(keys[:, 0])]


@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize("counts", [(3, 3, 3, 3), (1, 0, 4, 7, 2), (20, 1), (8, 8)], ids=str)
def test_it_holds_the_last_keys(size: int, counts: tuple[int, ...]) -> None:
    """Sizes that are no multiple of the batch, batches larger than the queue, batches without keys."""
    queue, batches = KeyQueue(size, DIM).double(), [rows(count, seed) for seed, count in enumerate(counts)]
    for number, batch in enumerate(batches, start=1):
        queue.enter(batch)
        expected = queue_loop(batches[:number], size)
        assert queue.filled == len(expected)
        if expected:
            torch.testing.assert_close(in_any_order(queue.negatives()), in_any_order(torch.stack(expected)))
    assert int(queue.seen) == sum(counts)


def test_the_oldest_key_leaves_first() -> None:
    queue = KeyQueue(3, DIM).double()
    first, second = rows(3, 0), rows(1, 1)
    queue.enter(first)
    queue.enter(second)
    assert torch.equal(queue.keys, torch.stack([second[0], first[1], first[2]]))


def test_newer_keys_do_not_change_the_gradient() -> None:
    """They enter before the backward pass, into the memory that the forward pass read."""
    queue = KeyQueue(4, DIM).double()
    queue.enter(rows(4, 0))
    queries = rows(2, 1).requires_grad_()
    loss = contrast_with_queue(queries, rows(2, 2), queue.negatives(), temperature=0.1)
    wanted = torch.autograd.grad(queue_contrast_loop(queries, rows(2, 2), rows(4, 0), 0.1), queries)[0]
    queue.enter(rows(3, 3))
    torch.testing.assert_close(torch.autograd.grad(loss, queries)[0], wanted)


def test_a_state_dict_continues_it() -> None:
    whole, cut = KeyQueue(5, DIM), KeyQueue(5, DIM)
    whole.enter(rows(7, 0, torch.float32))
    cut.load_state_dict(whole.state_dict())
    for queue in (whole, cut):
        queue.enter(rows(4, 1, torch.float32))
    assert torch.equal(whole.keys, cut.keys)
    assert torch.equal(whole.seen, cut.seen)


@pytest.mark.parametrize(("count", "negatives"), [(5, 9), (1, 3), (4, 0), (0, 4), (0, 0), (600, 2)])
def test_loss_and_gradient_against_loops_and_cross_entropy(count: int, negatives: int) -> None:
    queries, keys, others = rows(count, 0).requires_grad_(), rows(count, 1), rows(negatives, 2)
    loss = contrast_with_queue(queries, keys, others, temperature=0.2)
    wanted = queue_contrast_loop(queries, keys, others, 0.2)
    torch.testing.assert_close(loss, wanted)
    (mine,), (theirs,) = torch.autograd.grad(loss, queries), torch.autograd.grad(wanted, queries)
    torch.testing.assert_close(mine, theirs)
    assert not contrast_with_queue(queries.detach(), keys, others, temperature=0.2).requires_grad
    if count:
        logits = torch.stack([torch.cat([(q * k).sum()[None], others @ q]) for q, k in zip(queries, keys, strict=True)])
        torch.testing.assert_close(loss, F.cross_entropy(logits / 0.2, torch.zeros(count, dtype=torch.int64)))


def test_identical_features_give_the_log_of_the_rows() -> None:
    same = rows(1, 0).expand(4, DIM)
    assert contrast_with_queue(same, same, same[:3], temperature=0.1).item() == pytest.approx(math.log(4))
    watch = queue_watch(same, same, same)
    assert watch["contrastive_accuracy"] == 0
    assert watch["alignment"].item() == pytest.approx(1.0)
    assert watch["uniformity"].item() == pytest.approx(0.0, abs=1e-6)
    assert watch["effective_rank"].item() == pytest.approx(1.0, abs=1e-3)


def test_under_autocast_it_stays_exact() -> None:
    queries, keys, others = (rows(6, n, torch.float32) for n in range(3))
    plain = contrast_with_queue(queries, keys, others, temperature=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrast_with_queue(queries, keys, others, temperature=0.1), plain)
    half = contrast_with_queue(queries.bfloat16(), keys, others, temperature=0.1)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(plain.item(), rel=0.02)


@pytest.mark.parametrize(("count", "negatives"), [(0, 0), (1, 0), (0, 3), (1, 1), (700, 900)])
def test_the_watch_is_finite(count: int, negatives: int) -> None:
    watch = queue_watch(rows(count, 0), rows(count, 1), rows(negatives, 2), max_rows=50)
    assert set(watch) == {"contrastive_accuracy", "alignment", "uniformity", "effective_rank"}
    assert all(bool(value.isfinite()) for value in watch.values())


def test_the_watchs_accuracy_is_over_the_queue() -> None:
    keys = torch.eye(DIM)
    assert queue_watch(keys[:2], keys[:2], keys[2:])["contrastive_accuracy"] == 1.0
    assert queue_watch(keys[:2], keys[:2], keys[1:])["contrastive_accuracy"] == 0.5  # a tie for the second one


def test_refused() -> None:
    with pytest.raises(ValueError, match="queue size = 0"):
        KeyQueue(0, 4)
    with pytest.raises(ValueError, match=r"temperature = 0.0: expected > 0"):
        contrast_with_queue(rows(2, 0), rows(2, 0), rows(1, 0), temperature=0.0)


# ---- two processes
STEPS = ((3, 1), (0, 4), (5, 2), (0, 0), (2, 3))
"""Rows of each of two ranks, step by step."""


def _on_ranks(rank: int, world_size: int) -> tuple[list[Tensor], list[Tensor], Tensor, list[int]]:
    queue, losses, grads, totals = KeyQueue(7, DIM).double(), [], [], []
    for step, counts in enumerate(STEPS):
        first = sum(counts[:rank])
        own = slice(first, first + counts[rank])
        queries, keys = rows(sum(counts), step)[own].requires_grad_(), rows(sum(counts), 50 + step)[own]
        totals.append(rows_of_all_ranks(queries))
        loss = contrast_with_queue(queries, keys, queue.negatives(), temperature=0.1)
        losses.append(loss.detach())
        grads.append(torch.autograd.grad(loss, queries)[0])
        queue.enter(keys)
    return losses, grads, queue.keys, totals


def test_two_ranks_with_unequal_rows_equal_one_process() -> None:
    ranks = run_distributed(_on_ranks, 2)
    queue = KeyQueue(7, DIM).double()
    for step, counts in enumerate(STEPS):
        queries, keys = rows(sum(counts), step).requires_grad_(), rows(sum(counts), 50 + step)
        loss = contrast_with_queue(queries, keys, queue.negatives(), temperature=0.1)
        torch.testing.assert_close(sum(r[0][step] for r in ranks) / 2, loss.detach())
        (wanted,) = torch.autograd.grad(loss, queries)
        torch.testing.assert_close(torch.cat([r[1][step] for r in ranks]) / 2, wanted)
        queue.enter(keys)
        assert [r[3][step] for r in ranks] == [sum(counts)] * 2
    for r in ranks:
        assert torch.equal(r[2], queue.keys)
