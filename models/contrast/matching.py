"""One-to-one matching of rows and columns by cost: Hungarian, or greedy for ablations.

Costs beyond a gate are cut to it before the assignment. That is the same problem as leaving such pairs unmatched at
the price of the gate, and several times faster than with the far pairs in it, because most of the matrix is then a tie.
scipy's solver runs outside of Python's lock, so the samples of a batch run in parallel threads, and can run while a GPU
works. Figures: `python -m benchmarks.points`.

Letters: R rows, C columns, M matched pairs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Rows of one sample's cost matrix, ascending, and the column that each is paired with; none of them twice."""

    rows: Int64[Tensor, " M"]
    columns: Int64[Tensor, " M"]


def hungarian(
    costs: Sequence[Float[Tensor, "_ _"]] | Float[Tensor, "B R C"],
    *,
    gate: float = math.inf,
    threads: int | None = None,
) -> list[Assignment]:
    """The matching of least total cost, where a row or column without partner costs `gate`.

    Source: Kuhn, "The Hungarian method" (1955), as solved by scipy (Crouse 2016). SimIPU (Li et al., AAAI 2022) finds
    its intra-modal pairs so, by distance. For similarities pass their negative.

    Args:
        costs: a matrix R x C for each sample, of any sizes and on any device.
        gate: pairs of this cost or more are never matched. Infinite: every row or every column gets a partner.
        threads: samples solved at a time; None for as many as the process may use processors.

    Returns:
        The pairs of each sample, on the device of its matrix.

    Raises:
        ValueError: a cost is NaN or infinite.
    """
    return _each(costs, partial(_assign, gate=gate), threads)


def greedy(
    costs: Sequence[Float[Tensor, "_ _"]] | Float[Tensor, "B R C"],
    *,
    gate: float = math.inf,
    threads: int | None = None,
) -> list[Assignment]:
    """Cheapest pair first, then the cheapest pair of unmatched row and column, and so on; the first of equals.

    Arguments, result and errors as of `hungarian`.
    """
    return _each(costs, partial(_take_cheapest, gate=gate), threads)


_Pairs = tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]


def _each(
    costs: Sequence[Float[Tensor, "_ _"]] | Float[Tensor, "B R C"],
    solve: Callable[[Float[np.ndarray, "R C"]], _Pairs],
    threads: int | None,
) -> list[Assignment]:
    matrices = [cost.detach().double().cpu().numpy() for cost in costs]
    for sample, matrix in enumerate(matrices):
        if not np.isfinite(matrix).all():
            row, column = np.argwhere(~np.isfinite(matrix))[0]
            raise ValueError(
                f"cost of row {row} and column {column} in sample {sample} is {matrix[row, column]}: expected finite "
                "costs; to forbid a pair give it a cost of at least the gate"
            )
    workers = min(len(matrices), threads or len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        pairs = list(pool.map(solve, matrices))
    return [
        Assignment(rows=torch.from_numpy(rows).to(cost.device), columns=torch.from_numpy(columns).to(cost.device))
        for cost, (rows, columns) in zip(costs, pairs, strict=True)
    ]


def _assign(cost: Float[np.ndarray, "R C"], gate: float) -> _Pairs:
    from scipy.optimize import linear_sum_assignment  # not before it is needed: it takes long

    rows, columns = linear_sum_assignment(np.minimum(cost, gate))
    below_gate = cost[rows, columns] < gate
    return rows[below_gate].astype(np.int64), columns[below_gate].astype(np.int64)


def _take_cheapest(cost: Float[np.ndarray, "R C"], gate: float) -> _Pairs:
    """Pairs that are cheapest in both their row and their column, round by round, until nothing is left.

    Such a pair is taken by the greedy rule whatever happens elsewhere, so that a round takes many at once.
    """
    rows, columns = np.arange(cost.shape[0]), np.arange(cost.shape[1])
    taken: list[np.ndarray] = [np.zeros((0, 2), np.int64)]
    while cost.size:
        best = cost.argmin(axis=1)  # the first of equals in both directions: at least one pair a round agrees
        mutual = cost.argmin(axis=0)[best] == np.arange(len(rows))
        mutual &= cost[np.arange(len(rows)), best] < gate
        if not mutual.any():
            break
        taken.append(np.stack([rows[mutual], columns[best[mutual]]], axis=1))
        free = np.ones(len(columns), bool)
        free[best[mutual]] = False
        cost, rows, columns = cost[~mutual][:, free], rows[~mutual], columns[free]
    pairs = np.concatenate(taken)
    pairs = pairs[np.argsort(pairs[:, 0])]
    return pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
