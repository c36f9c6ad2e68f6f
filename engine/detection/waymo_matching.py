"""Matches of found and true objects that maximise the sum of overlaps, at each of Waymo's score cutoffs.

Most true objects compete with no other for what is found: each matches the best found object that is left at a cutoff.
Only where several meet an assignment is solved, and it changes only where a found object drops out: once for each score
in the group, in place of once for each cutoff and frame.

Letters: K true, D found objects of all frames, P pairs that may match, M matches, C score cutoffs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from engine.detection.pairs import Overlaps

CUTOFFS = (np.arange(101) * 0.01).astype(np.float32)
"""0, .01, ..., 1 in single precision, as scores are compared."""

_QUANTA = 1e6
"""Overlaps are rounded to so many parts of 1, so that sums are exact."""


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Pairs that match at the cutoffs from `start` up to, not including, `stop`.

    Attributes:
        true: rows of the true objects.
        found: rows of the found objects.
        start: number of the first cutoff.
        stop: one past the last cutoff.
    """

    true: Int64[np.ndarray, " M"]
    found: Int64[np.ndarray, " M"]
    start: Int64[np.ndarray, " M"]
    stop: Int64[np.ndarray, " M"]

    def sums(self, weights: Float64[np.ndarray, " M"]) -> Float64[np.ndarray, " C"]:
        """Sum of the weights of all matches at each cutoff."""
        size = len(CUTOFFS) + 1
        begun = np.bincount(self.start, weights, minlength=size)
        ended = np.bincount(self.stop, weights, minlength=size)
        return np.asarray(np.cumsum(begun - ended, dtype=np.float64)[:-1])

    def counts(self, kept: Bool[np.ndarray, " M"]) -> Int64[np.ndarray, " C"]:
        """Number of some of the matches at each cutoff."""
        return np.asarray(np.rint(self.sums(kept.astype(np.float64))), dtype=np.int64)

    def at(self, cutoff: int) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """Rows of the true and of the found objects that match at a cutoff."""
        on = (self.start <= cutoff) & (cutoff < self.stop)
        return self.true[on], self.found[on]


def reached_cutoffs(scores: Float64[np.ndarray, " D"]) -> Int64[np.ndarray, " D"]:
    """How many cutoffs each score reaches; a score equal to a cutoff reaches it."""
    reached: Int64[np.ndarray, " D"] = np.searchsorted(CUTOFFS, scores.astype(np.float32), side="right")
    return reached


def match_at_cutoffs(pairs: Overlaps, reached: Int64[np.ndarray, " D"], num_true: int) -> Matches:
    """The matching of every cutoff.

    Args:
        pairs: that may match.
        reached: of each found object, see `reached_cutoffs`.
        num_true: K.
    """
    weights: Int64[np.ndarray, " P"] = np.rint(pairs.value.astype(np.float32).astype(np.float64) * _QUANTA).astype(
        np.int64
    )
    group = _groups(pairs, num_true, len(reached))
    # By group, within it by falling weight.
    order = np.lexsort((-weights, group))
    true, found, group, weights = pairs.true[order], pairs.found[order], group[order], weights[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(np.append(starts, len(group)))
    single = np.ones(0, dtype=np.bool_)
    if len(starts):
        single = np.minimum.reduceat(true, starts) == np.maximum.reduceat(true, starts)
    rows = np.repeat(single, sizes)
    parts = [_match_single(true[rows], found[rows], np.repeat(np.arange(len(starts)), sizes)[rows], reached)]
    for start, size in zip(starts[~single], sizes[~single], strict=True):
        some = slice(start, start + size)
        parts.append(_match_group(true[some], found[some], weights[some], reached))
    columns = np.concatenate(parts).T
    return Matches(true=columns[0], found=columns[1], start=columns[2], stop=columns[3])


def _match_single(
    true: Int64[np.ndarray, " P"],
    found: Int64[np.ndarray, " P"],
    group: Int64[np.ndarray, " P"],
    reached: Int64[np.ndarray, " D"],
) -> Int64[np.ndarray, "M 4"]:
    """Rows true, found, start, stop of groups of one true object each, pairs by group and falling weight.

    The object matches the heaviest found one that reaches the cutoff: each from where all heavier ones dropped out.
    """
    stop = reached[found]
    # The largest stop so far in the group: groups are kept apart by an offset.
    offset = group * (len(CUTOFFS) + 1)
    before = np.append(0, np.maximum.accumulate(offset + stop)[:-1])
    start = np.maximum(before - offset, 0)
    lasting = start < stop
    return np.asarray(np.stack([true, found, start, stop], axis=1)[lasting])


def _groups(pairs: Overlaps, num_true: int, num_found: int) -> Int64[np.ndarray, " P"]:
    """Number of the connected part of the graph that each pair is in."""
    nodes = num_true + num_found
    edges = coo_array((np.ones(len(pairs.true)), (pairs.true, pairs.found + num_true)), shape=(nodes, nodes))
    _, part = connected_components(edges, directed=False)
    return np.asarray(part[pairs.true], dtype=np.int64)


def _match_group(
    true: Int64[np.ndarray, " P"],
    found: Int64[np.ndarray, " P"],
    weight: Int64[np.ndarray, " P"],
    reached: Int64[np.ndarray, " D"],
) -> Int64[np.ndarray, "M 4"]:
    """Rows true, found, start, stop of a few objects that meet."""
    true_rows, i = np.unique(true, return_inverse=True)
    found_rows, j = np.unique(found, return_inverse=True)
    weights = np.zeros((len(true_rows), len(found_rows)), dtype=np.int64)
    weights[i, j] = weight
    stops = reached[found_rows]
    matches, start = [], 0
    for stop in np.unique(stops[stops > 0]).tolist():
        active = np.flatnonzero(stops >= stop)
        of_true, of_found = linear_sum_assignment(weights[:, active], maximize=True)
        for row, column in zip(of_true, active[of_found], strict=True):
            if weights[row, column]:
                matches.append((true_rows[row], found_rows[column], start, stop))
        start = stop
    return np.array(matches, dtype=np.int64).reshape(-1, 4)
