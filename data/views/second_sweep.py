"""Another sweep of the same log, and which points of the two are the same place: `SecondCloud.source` "other"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from data.batch_spec import SecondCloud
from data.geometry import transform
from data.sample import Sample
from data.shared_memory import SharesTables
from data.storage.reader import Reader, SampleError

_TRIES = 4
"""Sweeps that are read and compared before a sample counts as having no partner."""


@dataclass(frozen=True, kw_only=True)
class SweepMatches:
    """Points of two clouds that belong together.

    Attributes:
        first: point of the first cloud; none occurs twice.
        second: its partner in the second cloud.
    """

    first: Int[np.ndarray, " Q"]
    second: Int[np.ndarray, " Q"]

    def keep(self, first: Int[np.ndarray, " N"], second: Int[np.ndarray, " K"]) -> SweepMatches:
        """The matches, renumbered, when only the named points of either cloud are kept."""
        new_first = _new_indices(first, self.first)
        new_second = _new_indices(second, self.second)
        both_kept = (new_first >= 0) & (new_second >= 0)
        return SweepMatches(first=new_first[both_kept], second=new_second[both_kept])


def _new_indices(kept_points: Int[np.ndarray, " N"], points: Int[np.ndarray, " Q"]) -> Int[np.ndarray, " Q"]:
    """The indices of points when only `kept_points` are kept; -1 for those that are dropped."""
    new_index = np.full(max(kept_points.max(initial=-1), points.max(initial=-1)) + 1, -1, dtype=np.int64)
    new_index[kept_points] = np.arange(len(kept_points))
    return np.asarray(new_index[points])


@dataclass(frozen=True, kw_only=True)
class Partner:
    """The other sweep of a sample.

    Attributes:
        sample: without pixels.
        matches: from the points of the first sweep to its points, as recorded.
    """

    sample: Sample
    matches: SweepMatches


def match_sweeps(first: Sample, second: Sample, radius_m: float) -> SweepMatches:
    """Each point of the first sweep with the nearest point of the second one, where that is near enough.

    The sweeps are registered by their poses. Several points of the first may have the same partner.
    """
    from scipy.spatial import cKDTree  # not before it is needed: it takes a third of a second

    T_world_second = second.T_world_ego @ second.T_ego_lidar
    T_first_second = np.linalg.inv(first.T_world_ego @ first.T_ego_lidar) @ T_world_second
    # Cutting at the median point of each cell is slower to build and hardly faster to search.
    tree = cKDTree(transform(T_first_second, second.points_lidar), balanced_tree=False, compact_nodes=False)
    # The bound is exclusive.
    bound = np.nextafter(radius_m, np.inf)
    distance, nearest = tree.query(first.points_lidar.astype(np.float64), distance_upper_bound=bound)
    matched_points = np.flatnonzero(np.isfinite(distance))
    return SweepMatches(first=matched_points, second=np.asarray(nearest, dtype=np.int64)[matched_points])


class PartnerFinder(SharesTables):
    """Finds partners among the samples in use (`indices`, in any order)."""

    def __init__(self, reader: Reader, indices: Int[np.ndarray, " n"], config: SecondCloud) -> None:
        manifest = reader.manifest
        self._reader = reader
        self._config = config
        self._indices = indices[np.argsort(manifest.sample_log[indices], kind="stable")]
        self._logs = manifest.sample_log[self._indices]

    def find(self, index: int, sample: Sample, rng: np.random.Generator, *, shard: str = "") -> Partner:
        """A random other sweep of the log, near enough in time and with enough overlap.

        The first try is a uniform draw within `max_gap_s`, each further one a draw among those no farther in time than
        the try before, the last one the nearest: overlap shrinks with the way driven, so most samples with any
        partner find one, and each sweep that overlaps can be found. A damaged sweep counts as a try without overlap;
        it is counted as damaged when its own turn comes.

        Raises:
            SampleError: none was found; reason "no-partner".
        """
        near, gaps_us = self._within_gap(index)
        best = 0.0
        for number in range(_TRIES):
            if len(near) == 0:
                break
            at = int(np.argmin(gaps_us)) if number == _TRIES - 1 else int(rng.integers(len(near)))
            partner = self._partner(int(near[at]), sample)
            if partner is not None:
                overlap = len(partner.matches.first) / max(len(sample.points_lidar), 1)
                if overlap >= self._config.min_overlap and overlap > 0:
                    return partner
                best = max(best, overlap)
            nearer = (gaps_us <= gaps_us[at]) & (near != near[at])
            near, gaps_us = near[nearer], gaps_us[nearer]
        raise SampleError(
            "no-partner",
            sample.key,
            shard,
            f"no sweep within {self._config.max_gap_s:g} s of which {self._config.min_overlap:.0%} overlap; "
            f"the best tried has {best:.0%}",
        )

    def _within_gap(self, index: int) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """Other samples of the log within the gap, and how far in time each is."""
        manifest = self._reader.manifest
        log = manifest.sample_log[index]
        start, stop = np.searchsorted(self._logs, (log, log + 1))
        same_log = self._indices[start:stop]
        gaps_us = np.abs(manifest.sample_timestamp_us[same_log] - manifest.sample_timestamp_us[index])
        near_enough = (gaps_us <= self._config.max_gap_s * 1e6) & (same_log != index)
        return same_log[near_enough], gaps_us[near_enough]

    def _partner(self, index: int, sample: Sample) -> Partner | None:
        try:
            other = self._reader.read(index, images=False, superpixels=False, labels=False)
        except SampleError:
            return None
        if len(other.points_lidar) == 0:
            return None
        return Partner(sample=other, matches=match_sweeps(sample, other, self._config.match_radius_m))
