"""Found objects take the nearest true ones that are left, best scores first, of all frames and classes at once.

One after another, each found object takes the nearest true object of its frame and class that no better one has
taken, if it is nearer than a limit. Objects that do not compete need not wait for each other: in each round every found
object is served whose nearest true object no better one, still waiting, could take. A few rounds serve all.

Letters: K true, D found objects, P pairs of one frame and class within the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from engine.detection.pairs import pairs_where

NONE = -1


@dataclass(frozen=True, kw_only=True)
class Near:
    """Pairs that may match, by the turn of the found object, then by distance, then by the row of the true one.

    Attributes:
        true: row of the true object.
        found: row of the found object.
        distance_m: between their centres, on the ground.
        turn: place of the found object in the order of scores.
    """

    true: Int64[np.ndarray, " P"]
    found: Int64[np.ndarray, " P"]
    distance_m: Float64[np.ndarray, " P"]
    turn: Int64[np.ndarray, " P"]

    def where(self, keep: Bool[np.ndarray, " P"]) -> Near:
        """Some of the pairs."""
        return Near(
            true=self.true[keep], found=self.found[keep], distance_m=self.distance_m[keep], turn=self.turn[keep]
        )


def near_pairs(
    true_group: Int64[np.ndarray, " K"],
    true_xy: Float64[np.ndarray, "K 2"],
    found_group: Int64[np.ndarray, " D"],
    found_xy: Float64[np.ndarray, "D 2"],
    turn: Int64[np.ndarray, " D"],
    limit_m: float,
) -> Near:
    """Pairs of one group (frame and class) that are nearer than a limit.

    Args:
        true_group: of each true object, in any order.
        true_xy: centres on the ground, metres.
        found_group: of each found object.
        found_xy: centres on the ground, metres.
        turn: place of each found object in the order of scores.
        limit_m: exclusive.
    """
    by_true, by_found = np.argsort(true_group, kind="stable"), np.argsort(found_group, kind="stable")
    sorted_true, sorted_found = true_xy[by_true], found_xy[by_found]

    def near(true: Int64[np.ndarray, " P"], found: Int64[np.ndarray, " P"]) -> Bool[np.ndarray, " P"]:
        return np.asarray(_distance_m(sorted_true[true], sorted_found[found]) < limit_m)

    rows = pairs_where(true_group[by_true], found_group[by_found], near)
    true, found = by_true[rows[0]], by_found[rows[1]]
    distance_m = _distance_m(true_xy[true], found_xy[found])
    order = np.lexsort((true, distance_m, turn[found]))
    true, found = true[order], found[order]
    return Near(true=true, found=found, distance_m=distance_m[order], turn=turn[found])


def _distance_m(a: Float64[np.ndarray, "P 2"], b: Float64[np.ndarray, "P 2"]) -> Float64[np.ndarray, " P"]:
    apart = b - a
    return np.asarray(np.sqrt(apart[:, 0] ** 2 + apart[:, 1] ** 2))


def greedy(near: Near, num_true: int, num_found: int) -> Int64[np.ndarray, " D"]:
    """Row of the true object that each found one takes; `NONE` where it takes none.

    Args:
        near: pairs nearer than the limit.
        num_true: K.
        num_found: D.
    """
    taken_by = np.full(num_found, NONE)
    is_taken = np.zeros(num_true, dtype=np.bool_)
    true, found = near.true, near.found
    while len(true):
        first_choice = np.ones(len(found), dtype=np.bool_)
        first_choice[1:] = found[1:] != found[:-1]
        # Row of the first pair of each true object: written backwards, the first one is written last.
        first_suitor = np.zeros(num_true, dtype=np.int64)
        first_suitor[true[::-1]] = np.arange(len(true))[::-1]
        now = first_choice & (first_suitor[true] == np.arange(len(true)))
        taken_by[found[now]] = true[now]
        is_taken[true[now]] = True
        left = ~is_taken[true] & (taken_by[found] == NONE)
        true, found = true[left], found[left]
    return taken_by
