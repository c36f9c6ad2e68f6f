"""The two-pass matching of KITTI's development kit, which ONCE took over.

The first pass, without a limit of score, finds the scores at which recall changes; the second counts right, wrong and
missed objects at chosen ones of these scores. In both, true objects choose one after another in their frame's order
among the found ones that are not taken yet and overlap by more than a limit:

    first pass: the one of highest score
    second pass: the counted one of largest overlap; if there is none, the first neutral one

A neutral object, true or found, takes its partner out of the count and counts as nothing itself.

Source: Geiger et al., KITTI object development kit, `evaluate_object.cpp`: the loops over true objects, here level by
level: the n-th true objects of all frames, at all thresholds, choose together.

Letters: K true and D found objects of all frames, P pairs that overlap enough, G true objects in such pairs, T
thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from engine.detection.pairs import Overlaps

COUNTED, NEUTRAL, OTHER = 0, 1, -1
"""Whether an object counts, takes its partner out of the count, or is none of this class's business."""


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Who takes part in the count of one class and subset.

    Attributes:
        true: COUNTED, NEUTRAL or OTHER, of each true object.
        found: the same of each found object.
    """

    true: Int64[np.ndarray, " K"]
    found: Int64[np.ndarray, " D"]

    @property
    def num_true(self) -> int:
        """Counted true objects."""
        return int((self.true == COUNTED).sum())


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The second pass's result at each threshold.

    Attributes:
        right: counted true objects with a counted partner.
        missed: counted true objects without any partner.
        wrong: counted found objects that nobody took.
        true: rows of the true objects that could choose.
        partner: row of the found object that each took, -1 for none.
        is_right: which of these pairs count as right.
    """

    right: Int64[np.ndarray, " T"]
    missed: Int64[np.ndarray, " T"]
    wrong: Int64[np.ndarray, " T"]
    true: Int64[np.ndarray, " G"]
    partner: Int64[np.ndarray, "G T"]
    is_right: Bool[np.ndarray, "G T"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Rows of objects by what became of them; neutral ones are in none.

    Attributes:
        missed: true objects.
        false: found objects.
        right: found objects.
    """

    missed: Int64[np.ndarray, " M"]
    false: Int64[np.ndarray, " F"]
    right: Int64[np.ndarray, " R"]


class Matching:
    """Both passes over one class, subset and kind of overlap."""

    def __init__(
        self,
        roles: Roles,
        overlaps: Overlaps,
        min_overlap: float,
        scores: Float64[np.ndarray, " D"],
        true_frame: Int64[np.ndarray, " K"],
    ) -> None:
        """Keep the pairs that can match.

        Args:
            roles: of all objects.
            overlaps: pairs of them.
            min_overlap: a pair must overlap by more.
            scores: of the found objects.
            true_frame: frame of each true object, non-decreasing.
        """
        can = (overlaps.value > min_overlap) & (roles.true[overlaps.true] != OTHER)
        self._pairs = overlaps.where(can & (roles.found[overlaps.found] != OTHER))
        self._roles = roles
        self._scores = scores
        self._frame = true_frame

    def kept_scores(self) -> Float64[np.ndarray, " R"]:
        """First pass: scores of the found objects that counted true ones choose, falling."""
        pairs = self._pairs
        order = np.lexsort((pairs.found, -self._scores[pairs.found], pairs.true))
        true, found = pairs.true[order], pairs.found[order]
        objects, chosen = _choose(true, found, self._frame, np.ones((len(true), 1), np.bool_))
        partner = _partners(found, chosen)[:, 0]
        kept = partner[self._is_right(objects, partner[:, None])[:, 0]]
        return np.sort(self._scores[kept])[::-1]

    def counts(self, thresholds: Float64[np.ndarray, " T"], *, excused: Bool[np.ndarray, " D"] | None = None) -> Counts:
        """Second pass.

        Args:
            thresholds: found objects take part from this score on.
            excused: found objects that are not wrong where nobody took them; None: none.
        """
        pairs, neutral = self._pairs, self._roles.found == NEUTRAL
        preference = np.where(neutral[pairs.found], 0.0, -pairs.value)
        order = np.lexsort((pairs.found, preference, neutral[pairs.found], pairs.true))
        true, found = pairs.true[order], pairs.found[order]
        objects, chosen = _choose(true, found, self._frame, self._scores[found][:, None] >= thresholds)
        partner = _partners(found, chosen)
        is_right = self._is_right(objects, partner)
        some = (partner >= 0) & (self._roles.true[objects] == COUNTED)[:, None]
        return Counts(
            right=is_right.sum(0),
            missed=self._roles.num_true - some.sum(0),
            wrong=self._wrong(thresholds, partner, excused),
            true=objects,
            partner=partner,
            is_right=is_right,
        )

    def outcome(self, threshold: float, excused: Bool[np.ndarray, " D"] | None = None) -> Outcome:
        """Which objects are right, wrong or missed in the second pass at one threshold.

        Args:
            threshold: found objects take part from this score on.
            excused: as in `counts`.
        """
        counts = self.counts(np.array([threshold]))
        partner = counts.partner[:, 0]
        missed = self._roles.true == COUNTED
        missed[counts.true[partner >= 0]] = False
        false = (self._roles.found == COUNTED) & (self._scores >= threshold)
        false[partner[partner >= 0]] = False
        if excused is not None:
            false &= ~excused
        return Outcome(missed=np.flatnonzero(missed), false=np.flatnonzero(false), right=partner[counts.is_right[:, 0]])

    def _wrong(
        self,
        thresholds: Float64[np.ndarray, " T"],
        partner: Int64[np.ndarray, "G T"],
        excused: Bool[np.ndarray, " D"] | None,
    ) -> Int64[np.ndarray, " T"]:
        """Counted found objects from each threshold on, less those taken."""
        blamed = self._roles.found == COUNTED
        if excused is not None:
            blamed &= ~excused
        rising = np.sort(self._scores[blamed])
        taken = (partner >= 0) & blamed[partner]
        return np.asarray(len(rising) - np.searchsorted(rising, thresholds, "left") - taken.sum(0))

    def _is_right(self, objects: Int64[np.ndarray, " G"], partner: Int64[np.ndarray, "G T"]) -> Bool[np.ndarray, "G T"]:
        counted = self._roles.true[objects] == COUNTED
        return np.asarray(counted[:, None] & (partner >= 0) & (self._roles.found[partner] == COUNTED))


def _partners(found: Int64[np.ndarray, " P"], chosen: Int64[np.ndarray, "G T"]) -> Int64[np.ndarray, "G T"]:
    """Row of the found object of each chosen pair; -1 stays."""
    return np.where(chosen >= 0, np.append(found, -1)[chosen], -1)


def _choose(
    true: Int64[np.ndarray, " P"],
    found: Int64[np.ndarray, " P"],
    true_frame: Int64[np.ndarray, " K"],
    allowed: Bool[np.ndarray, "P T"],
) -> tuple[Int64[np.ndarray, " G"], Int64[np.ndarray, "G T"]]:
    """True objects choose in their order, each the first allowed pair whose found object is free.

    Args:
        true: rows of true objects, non-decreasing.
        found: rows of found objects; those of one true object in the order in which it would have them.
        true_frame: frame of each true object.
        allowed: pairs that take part at each threshold.

    Returns:
        Rows of the true objects with pairs; the number of the pair that each has at each threshold, -1 for none.
    """
    num_pairs, num_thresholds = allowed.shape
    objects, begin, count = np.unique(true, return_index=True, return_counts=True)
    chosen = np.full((len(objects), num_thresholds), -1, np.int64)
    frames, first_of_frame = np.unique(true_frame[objects], return_index=True)
    turn = np.arange(len(objects)) - first_of_frame[np.searchsorted(frames, true_frame[objects])]
    names, number = np.unique(found, return_inverse=True)
    taken = np.zeros((len(names), num_thresholds), np.bool_)
    for now in range(int(turn.max(initial=-1)) + 1):
        choosing = np.flatnonzero(turn == now)  # no two of one frame
        counts = count[choosing]
        starts = np.cumsum(counts) - counts
        pairs = np.arange(counts.sum()) + np.repeat(begin[choosing] - starts, counts)
        free = allowed[pairs] & ~taken[number[pairs]]
        best = np.minimum.reduceat(np.where(free, pairs[:, None], num_pairs), starts, axis=0)
        chooser, threshold = np.nonzero(best < num_pairs)
        pair = best[chooser, threshold]
        chosen[choosing[chooser], threshold] = pair
        taken[number[pair], threshold] = True
    return objects, chosen
