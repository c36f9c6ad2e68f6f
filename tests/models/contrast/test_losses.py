"""InfoNCE in all its forms against a loop, on one and on two processes."""

import math

import pytest
import torch
from torch.func import grad

from models.contrast.losses import gather_with_grad, info_nce
from tests.helpers.distributed import run_distributed
from tests.reference.contrast import info_nce_loop


def _rows(count: int, seed: int = 0, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    b = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return a, b


def _gradients(loss_of, *inputs):
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    loss = loss_of(*inputs)
    return loss.detach(), torch.autograd.grad(loss, inputs)


def test_equals_loop():
    a, b = _rows(9)
    got = _gradients(lambda x, y: info_nce(x, y, temperature=0.3), a, b)
    wanted = _gradients(lambda x, y: info_nce_loop(x, y, 0.3), a, b)
    torch.testing.assert_close(got, wanted)


def test_symmetric_is_the_mean_of_both_directions():
    a, b = _rows(7)
    got = info_nce(a, b, temperature=0.5, symmetric=True)
    torch.testing.assert_close(got, (info_nce_loop(a, b, 0.5) + info_nce_loop(b, a, 0.5)) / 2)


@pytest.mark.parametrize("symmetric", [False, True])
def test_excluded_entries_leave_the_sum(symmetric: bool):
    a, b = _rows(8)
    excluded = torch.rand(8, 8, generator=torch.Generator().manual_seed(4)) < 0.4
    excluded.fill_diagonal_(False)
    wanted = info_nce_loop(a, b, 0.5, excluded)
    if symmetric:
        wanted = (wanted + info_nce_loop(b, a, 0.5, excluded.T)) / 2
    torch.testing.assert_close(info_nce(a, b, temperature=0.5, symmetric=symmetric, excluded=excluded), wanted)


def _weights(rows: int, seed: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of entries (some 0, positives 1) and of rows (one 0)."""
    generator = torch.Generator().manual_seed(seed)
    entries = torch.rand(rows, rows, generator=generator, dtype=torch.float64)
    entries = entries.where(entries > 0.2, torch.zeros(())).fill_diagonal_(1)
    of_rows = torch.rand(rows, generator=generator, dtype=torch.float64)
    of_rows[0] = 0
    return entries, of_rows


@pytest.mark.parametrize("chunk_rows", [None, 3])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weighted_entries_and_rows_equal_the_loop(symmetric: bool, chunk_rows: int | None):
    a, b = _rows(8)
    entries, of_rows = _weights(8)
    excluded = torch.zeros(8, 8, dtype=torch.bool)
    excluded[1, 4] = True
    settings = {"excluded": excluded, "log_weights": entries.log(), "row_weights": of_rows}

    def loop(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = info_nce_loop(x, y, 0.5, excluded, entries, of_rows)
        return (loss + info_nce_loop(y, x, 0.5, excluded.T, entries.T, of_rows)) / 2 if symmetric else loss

    got = _gradients(
        lambda x, y: info_nce(x, y, temperature=0.5, symmetric=symmetric, chunk_rows=chunk_rows, **settings), a, b
    )
    torch.testing.assert_close(got, _gradients(loop, a, b))


def test_weights_of_one_change_nothing_and_of_nothing_give_zero():
    a, b = _rows(6)
    plain = info_nce(a, b, temperature=0.1)
    ones = {"log_weights": torch.zeros(6, 6).double(), "row_weights": torch.full((6,), 0.3).double()}
    torch.testing.assert_close(info_nce(a, b, temperature=0.1, **ones), plain)
    alone = torch.full((6, 6), -torch.inf).double().fill_diagonal_(0)
    for nothing in ({"row_weights": torch.zeros(6).double()}, {"log_weights": alone}):
        loss, grads = _gradients(lambda x, y, n=nothing: info_nce(x, y, temperature=0.1, **n), a, b)
        assert loss == 0
        assert all((g == 0).all() for g in grads)


def test_an_excluded_negative_gets_no_gradient():
    a, b = _rows(3)
    excluded = torch.zeros(3, 3, dtype=torch.bool)
    excluded[0, 2] = excluded[1, 2] = True

    def loss_without_own(y: torch.Tensor) -> torch.Tensor:
        return info_nce(a[:, :], y, temperature=0.1, excluded=excluded)

    with_mask = grad(loss_without_own)(b)[2]
    own = torch.softmax(a[2] @ b.T / 0.1, dim=0)
    torch.testing.assert_close(with_mask, (own[2] - 1) * a[2] / 0.1 / 3)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_chunks_change_nothing(chunk_rows: int, symmetric: bool):
    a, b = _rows(11)
    excluded = torch.zeros(11, 11, dtype=torch.bool)
    excluded[2, 5] = True
    settings = {"temperature": 0.2, "symmetric": symmetric, "excluded": excluded}
    got = _gradients(lambda x, y: info_nce(x, y, chunk_rows=chunk_rows, **settings), a, b)
    torch.testing.assert_close(got, _gradients(lambda x, y: info_nce(x, y, **settings), a, b))


def test_memory_of_the_chunked_form_is_linear_in_rows():
    def saved(rows: int) -> int:
        a, b = (x.float().requires_grad_() for x in _rows(rows))
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = info_nce(a, b, temperature=0.1, chunk_rows=64)
        loss.backward()
        return sum(sizes.values())

    small, large = saved(512), saved(2048)
    assert large <= 4.5 * small
    assert large < 2048 * 2048  # bytes; the plain form keeps 4 x 2048 x 2048 and more


def test_rotating_all_rows_changes_nothing():
    a, b = _rows(10)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    plain = info_nce(a, b, temperature=0.1)
    torch.testing.assert_close(info_nce(a @ rotation, b @ rotation, temperature=0.1), plain)
    torch.testing.assert_close(info_nce(a[order], b[order], temperature=0.1), plain)


def test_degenerate_batches_are_finite():
    for rows, wanted in ((0, 0.0), (1, 0.0)):
        a, b = _rows(rows)
        loss, grads = _gradients(lambda x, y: info_nce(x, y, temperature=0.07), a, b)
        assert loss.item() == pytest.approx(wanted)
        assert all((g == 0).all() for g in grads)
    same = torch.ones(5, 3)
    loss, grads = _gradients(lambda x, y: info_nce(x, y, temperature=0.07), same, same)
    assert loss.item() == pytest.approx(math.log(5), rel=1e-5)
    assert all(g.isfinite().all() for g in grads)


def test_autocast_does_not_round_the_logits():
    a, b = (torch.nn.functional.normalize(x.float(), dim=1) for x in _rows(64))
    plain = info_nce(a, b, temperature=0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = info_nce(a, b, temperature=0.07)
    assert under.dtype == torch.float32
    assert under == plain


def test_refused_inputs():
    a, b = _rows(4)
    with pytest.raises(ValueError, match="temperature = 0"):
        info_nce(a, b, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_rows = 0"):
        info_nce(a, b, temperature=0.1, chunk_rows=0)
    with pytest.raises(ValueError, match="own positive"):
        info_nce(a, b, temperature=0.1, excluded=torch.eye(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="own positive is not 0"):
        info_nce(a, b, temperature=0.1, log_weights=torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"log_weights is \(4, 3\)"):
        info_nce(a, b, temperature=0.1, log_weights=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="not defined"):
        info_nce(a, b, temperature=0.1, log_weights=torch.zeros(4, 4), gather=True, symmetric=True)
    with pytest.raises(ValueError, match="not defined"):
        info_nce(a, b, temperature=0.1, excluded=~torch.eye(4, dtype=torch.bool), gather=True, symmetric=True)


def test_gather_without_a_process_group_is_the_plain_loss():
    a, b = _rows(6)
    assert info_nce(a, b, temperature=0.1, gather=True) == info_nce(a, b, temperature=0.1)
    rows, start, total = gather_with_grad(a)
    assert rows is a
    assert (start, total) == (0, 6)


# ---- two processes


def _encode(weight: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = _rows(count, seed=7)
    return x @ weight, torch.nn.functional.normalize(y @ weight.T, dim=1)


def _rank_losses(rank: int, world_size: int, cases: list[dict], parts: list[tuple[int, int]]) -> list:
    results = []
    first, last = parts[rank]
    for case in cases:
        weight = torch.eye(6, dtype=torch.float64) + 0.1 * torch.arange(36, dtype=torch.float64).view(6, 6) / 36
        weight.requires_grad_()
        settings = dict(case)
        for name in {"excluded", "log_weights", "row_weights"} & set(settings):
            settings[name] = settings[name][first:last]
        a, b = (rows[first:last] for rows in _encode(weight, parts[-1][1]))
        loss = info_nce(a, b, temperature=0.2, gather=True, **settings)
        loss.backward()
        results.append((loss.detach(), weight.grad))
    return results


@pytest.mark.parametrize("parts", [[(0, 4), (4, 11)], [(0, 0), (0, 5)]], ids=["uneven", "one rank without rows"])
def test_two_processes_equal_one_with_all_rows(parts):
    rows = parts[-1][1]
    mask = torch.rand(rows, rows, generator=torch.Generator().manual_seed(3)) < 0.3
    cases = [{}, {"symmetric": True}, {"chunk_rows": 2}, {"excluded": mask.fill_diagonal_(False)}]
    entries, of_rows = _weights(rows)
    cases += [{"log_weights": entries.log()}, {"row_weights": of_rows}, {"row_weights": of_rows, "symmetric": True}]
    ranks = run_distributed(_rank_losses, 2, cases, parts)
    alone = _rank_losses(0, 1, cases, [(0, rows)])
    for number, (loss, gradient) in enumerate(alone):
        # Data-parallel training takes the mean over ranks of losses and of gradients.
        torch.testing.assert_close((ranks[0][number][0] + ranks[1][number][0]) / 2, loss, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close((ranks[0][number][1] + ranks[1][number][1]) / 2, gradient, rtol=1e-12, atol=1e-12)


def _raise_on_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise KeyError("told you so")


def test_helper_brings_exceptions_back():
    with pytest.raises(RuntimeError, match=r"rank 1 of 2:(.|\n)*told you so"):
        run_distributed(_raise_on_one, 2)
