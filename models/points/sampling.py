"""A few points that stand for many: farthest point sampling and random sampling, sample by sample.

Farthest point sampling in three spaces is one function on other rows: `farthest_points(points, ...)` in 3D,
`farthest_points(points[:, :2], ...)` in the bird's-eye view, `farthest_points(joint_space(points, features), ...)` in
feature space.

On CPU the library fpsample does it (16,384 points to 1,024 in a few milliseconds), on other devices a batched loop
in torch. Both choose greedily and without approximation; they can differ where two points are equally far.
No gradient: the result is row numbers. Figures: `python -m benchmarks.points`.

Letters: B samples, N points of all samples, D columns, R chosen points of all samples.
"""

from __future__ import annotations

import math

import fpsample
import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from models.points.ragged import bounds, pad

MAX_TREE_DIMS = 8
"""fpsample is compiled for bucket trees of up to this many columns."""
POINTS_PER_BUCKET = 512
MIN_TREE_POINTS = 256
"""Below, a tree costs more than it saves."""


def farthest_points(
    rows: Float[Tensor, "N D"], counts: Int[Tensor, " B"], num: int, *, start: Int[Tensor, " B"] | None = None
) -> tuple[Int64[Tensor, " R"], Int64[Tensor, " B"]]:
    """Farthest point sampling: each choice is a point whose nearest chosen point is farthest away.

        chosen = [start]
        repeat: chosen.append(argmax_i min_{j in chosen} |x_i - x_j|)

    Source: Eldar et al., "The farthest point strategy for progressive image sampling" (IEEE TIP 1997); PointNet++
    (Qi et al., NeurIPS 2017, section 3.2). CPU trees: Han et al., "QuickFPS" (IEEE TCAD 2023).

    Distances are Euclidean in the columns of `rows`, converted to float32. A sample with fewer points than `num` gives
    all of its points. `start` is the first choice of each sample, counted from the sample's first point; None for its
    first point. Points with the same place as a chosen one come last, never twice.

    Returns:
        Rows chosen, sample by sample in the order of choice, and their number in each sample.

    Raises:
        ValueError: num is negative, a coordinate is not finite, counts do not fit, or a start is no point.
    """
    _check_num(num)
    spans = bounds(counts, rows.shape[0])
    rows = rows.detach().float()
    if not bool(torch.isfinite(rows).all()):
        bad = int((~torch.isfinite(rows).all(dim=1)).nonzero()[0])
        raise ValueError(f"row {bad} has a coordinate that is not finite: farthest points are not defined; drop it")
    starts = _check_starts(start, spans)
    sizes = counts.clamp(max=num).long()
    if num == 0 or rows.shape[0] == 0:
        return torch.zeros(0, dtype=torch.int64, device=rows.device), sizes
    if rows.device.type == "cpu":
        parts = [
            first + _farthest_library(rows[first:end].numpy(), min(num, end - first), begin)
            for (first, end), begin in zip(spans, starts, strict=True)
            if end > first
        ]
        return torch.from_numpy(np.concatenate(parts)), sizes
    return _farthest_torch(rows, counts, num, torch.tensor(starts, device=rows.device)), sizes


def joint_space(
    points: Float[Tensor, "N 3"], features: Float[Tensor, "N C"], *, point_weight: float = 1.0
) -> Float[Tensor, "N D"]:
    """Rows whose squared distance is |f_i - f_j|^2 + point_weight |x_i - x_j|^2: the space of F-FPS.

    Source: Yang et al., 3DSSD (CVPR 2020), section 3.2, whose equation 1 adds plain distances with weight 1; squared
    ones are added here, as in its released code, so that Euclidean sampling applies.

    Raises:
        ValueError: the weight is negative.
    """
    if point_weight < 0:
        raise ValueError(f"point_weight = {point_weight}: expected 0 or more")
    return torch.cat([math.sqrt(point_weight) * points, features.to(points.dtype)], dim=1)


def random_points(
    counts: Int[Tensor, " B"], num: int, *, generator: torch.Generator | None = None
) -> tuple[Int64[Tensor, " R"], Int64[Tensor, " B"]]:
    """Points of each sample without replacement, all subsets equally likely, in random order.

    A sample with fewer points than `num` gives all of its points; `generator` is on the device of `counts`.

    Returns:
        Rows chosen, sample by sample, and their number in each sample.

    Raises:
        ValueError: num or a count is negative.
    """
    _check_num(num)
    total = int(counts.sum())
    bounds(counts, total)
    sample = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts.long())
    order = torch.randperm(total, generator=generator, device=counts.device)
    order = order[torch.argsort(sample[order], stable=True)]
    ends = counts.long().cumsum(0)
    rank = torch.arange(total, device=counts.device) - (ends - counts)[sample]
    return order[rank < num], counts.clamp(max=num).long()


def _check_num(num: int) -> None:
    if num < 0:
        raise ValueError(f"num = {num} points to choose: expected 0 or more")


def _check_starts(start: Int[Tensor, " B"] | None, spans: list[tuple[int, int]]) -> list[int]:
    if start is None:
        return [0] * len(spans)
    starts = [int(s) for s in start.tolist()]
    for sample, ((first, end), begin) in enumerate(zip(spans, starts, strict=True)):
        if end > first and not 0 <= begin < end - first:
            raise ValueError(f"start {begin} of sample {sample} is none of its {end - first} points (0 is the first)")
    return starts


def _farthest_library(rows: Float32[np.ndarray, "N D"], num: int, start: int) -> Int64[np.ndarray, " R"]:
    """One sample, by fpsample."""
    height = min(7, round(math.log2(max(len(rows) / POINTS_PER_BUCKET, 2))))
    chosen = None
    if rows.shape[1] <= MAX_TREE_DIMS and len(rows) >= MIN_TREE_POINTS:
        order = _start_keeps_place(rows, height, start)
        place = int(np.flatnonzero(order == start)[0])
        chosen = order[
            fpsample.bucket_fps_kdline_sampling(rows[order], num, h=height, start_idx=place).astype(np.int64)
        ]
    if chosen is None or chosen[0] != start:  # too few points, too many columns, or a rounding moved the start
        chosen = fpsample.fps_sampling(rows, num, start_idx=start).astype(np.int64)
    return _without_repeats(chosen, len(rows))


def _start_keeps_place(rows: Float32[np.ndarray, "N D"], height: int, start: int) -> Int64[np.ndarray, " N"]:
    """An order of the rows that the library's tree leaves alone at least around `start`.

    fpsample 1.0.2 looks `start_idx` up after building its tree, which has moved the points by then: the first choice
    is another point than asked for. The tree splits the widest axis at the mean and swaps what lies on the wrong side;
    where each side already stands together there is nothing to swap. The caller checks that it worked.
    """
    order = np.arange(len(rows))
    columns, here, low = np.ascontiguousarray(rows.T), order.copy(), 0
    for _ in range(height):
        axis = int(np.argmax(columns.max(axis=1) - columns.min(axis=1)))
        below = columns[axis] < columns[axis].mean()
        if below.all() or not below.any():
            break
        split, high = low + int(np.count_nonzero(below)), low + len(here)
        order[low:split], order[split:high] = here[below], here[~below]
        side = below if below[np.flatnonzero(here == start)[0]] else ~below
        low = low if side is below else split
        columns, here = columns[:, side], here[side]
    return order


def _without_repeats(chosen: Int64[np.ndarray, " R"], num_rows: int) -> Int64[np.ndarray, " R"]:
    """Replace second occurrences, which the library gives once only copies of chosen points remain, by unused rows."""
    _, first = np.unique(chosen, return_index=True)
    if len(first) == len(chosen):
        return chosen
    distinct = chosen[np.sort(first)]
    unused = np.setdiff1d(np.arange(num_rows), distinct)
    return np.concatenate([distinct, unused[: len(chosen) - len(distinct)]])


def _farthest_torch(
    rows: Float32[Tensor, "N D"], counts: Int[Tensor, " B"], num: int, starts: Int[Tensor, " B"]
) -> Int64[Tensor, " R"]:
    """All samples at once, on any device: `num` rounds of a distance, a minimum and an argmax over all points."""
    values, real, index = pad(rows, counts)
    samples = torch.arange(len(counts), device=rows.device)
    rounds = min(num, values.shape[1])
    nearest = torch.where(real, torch.inf, -torch.inf)
    chosen = torch.empty(len(counts), rounds, dtype=torch.int64, device=rows.device)
    current = starts.long()
    for i in range(rounds):
        chosen[:, i] = current
        nearest = torch.minimum(nearest, (values - values[samples, current][:, None]).square().sum(dim=2))
        nearest[samples, current] = -1.0  # a copy of a chosen point has 0: it comes before this one
        current = nearest.argmax(dim=1)
    places = torch.arange(rounds, device=rows.device)
    return index.gather(1, chosen)[places[None, :] < counts[:, None]]
