"""Skipped samples: counted by reason, named in the log, and an error beyond a set share."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable
from dataclasses import dataclass

from data.storage.reader import SampleError
from data.storage.shard import ShardError

logger = logging.getLogger(__name__)

_JUDGED_SAMPLES = 1000
"""The share is judged over at least this many samples (or the whole set), so that a good set may begin badly."""

_SHOWN_EXAMPLES = 3

_UNSUITED = "no-partner"
"""Reason of samples that are whole, but of no use to the method."""

MAX_UNSUITED_SHARE = 0.5
"""A set of which the method cannot use a larger share is the wrong one."""

_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (_UNSUITED,),
        "Whole samples without a partner may be half of the set: look for partners at a larger distance in time or "
        "with less overlap (the method's second_cloud), or take another set.",
    ),
    (
        ("zero-pairs",),
        "The method needs points that a camera sees, and these sweeps have none: look at the calibration with `tandem "
        "inspect {root} --calibration`, widen data.voxel.range_min to range_max, or take a method that needs no images "
        "(docs/methods.md).",
    ),
    (("no-images",), "The method needs images, and these samples have none: choose a set or split with cameras."),
    (("no-points",), "No point lies within data.voxel.range_min to range_max: widen them."),
    (
        ("superpixels-missing",),
        "The method needs superpixels, and the set was prepared without: prepare it into a new folder without "
        "--no-superpixels.",
    ),
    (
        ("no-boxes",),
        "The method learns from labelled boxes, and these samples have none: choose a split of a set whose objects are "
        "labelled (docs/datasets.md).",
    ),
    (
        ("no-labels", "no-instances"),
        "The method learns from labelled points, and these samples have none: choose a split of a set whose points are "
        "labelled (docs/datasets.md).",
    ),
    (("not-cached",), "The teacher cache lacks these samples: delete its folder, and the next run builds it again."),
    (
        (
            *("points-not-finite", "points-range", "intensity-range", "empty-sweep", "too-large", "depth-range"),
            *("calibration-missing", "calibration-singular", "labels-range", "superpixel-ids", "cameras-unknown"),
            *("boxes-broken",),
        ),
        "The set holds values that no sensor gives: `tandem prepare --verify {root}` lists them all. Correct the "
        "source or the settings and prepare into a new folder, or drop the samples with --verify --repair.",
    ),
    (
        ("error",),
        "The traceback of each kind of error is in the log, at its first sample. Where `tandem inspect {root} --sample "
        "KEY` shows a sound sample, the error is a mistake in the code: please report it. A MemoryError means that the "
        "machine has too little memory for num_workers and prefetch.",
    ),
)
"""Reasons of one kind, and what to do about them. All others are damage of the stored files."""
_DAMAGE = "Prepare or copy the named shards again (`tandem prepare` checks what is there and redoes what is damaged)."


@dataclass(frozen=True, kw_only=True)
class Skip:
    """One sample that could not be used.

    Attributes:
        index: row of the manifest.
        reason: see `SampleError`.
        key: of the sample.
        shard: file name of its tar.
        detail: what exactly, "" where the reason says all.
        trace: traceback of an exception that nobody expected, "" of named damage.
    """

    index: int
    reason: str
    key: str
    shard: str
    detail: str
    trace: str = ""

    @classmethod
    def of(cls, index: int, error: SampleError) -> Skip:
        """From the reader's or the loader's error."""
        cause = error.__cause__ if error.reason == "error" else None
        trace = "" if cause is None else "".join(traceback.format_exception(cause))
        return cls(index=index, reason=error.reason, key=error.key, shard=error.shard, detail=error.detail, trace=trace)


class SkipLedger:
    """Counts the different samples that were skipped, and stops beyond a share.

    With d different damaged samples among s samples seen of a set of n, the run stops when

        d > max(max_share * max(min(s, n), min(n, 1000)), 1)

    so the share is that of the set, does not grow with the number of epochs, is not judged before 1000 samples (or
    the set's size), and a single damaged sample never stops a run, unless `max_share` is 0. Damaged is also a sample
    that raised an exception; the first one of each place is logged with its traceback. Samples that are whole but that
    the method cannot use ("no-partner") may be half of the set. Counts are per process and start again when a run is
    resumed.

    Attributes:
        counters: different skipped samples by reason.
    """

    def __init__(self, *, max_share: float, num_samples: int, root: str) -> None:
        self.counters: dict[str, int] = {}
        self._max_share = max_share
        self._num_samples = num_samples
        self._root = root
        self._seen = 0
        self._skips: dict[int, Skip] = {}
        self._traced: set[str] = set()

    def account(self, num_seen: int, skips: Iterable[Skip]) -> None:
        """Add samples that were asked for, and those of them that were skipped.

        Raises:
            ShardError: too many were skipped.
        """
        self._seen += num_seen
        for skip in skips:
            if skip.index not in self._skips:  # the same sample is skipped again in each epoch
                self._skips[skip.index] = skip
                self.counters[skip.reason] = self.counters.get(skip.reason, 0) + 1
                self._log_trace(skip)
                logger.warning(
                    "skipped sample %s in %s: %s (%s)", skip.key, skip.shard, skip.reason, skip.detail or "no detail"
                )
        unsuited = self.counters.get(_UNSUITED, 0)
        damaged = len(self._skips) - unsuited
        if damaged > self._allowed(self._max_share) or unsuited > self._allowed(MAX_UNSUITED_SHARE):
            raise self.error()

    def _log_trace(self, skip: Skip) -> None:
        place = skip.trace.rstrip().rpartition("\n")[0]  # without the message, which may differ from sample to sample
        if skip.trace and place not in self._traced:
            self._traced.add(place)
            logger.error("sample %s in %s raised an exception:\n%s", skip.key, skip.shard, skip.trace.rstrip())

    def error(self) -> ShardError:
        """Counts by reason, examples, and what to do."""
        seen, unsuited = min(self._seen, self._num_samples), self.counters.get(_UNSUITED, 0)
        lines = [
            f"{len(self._skips) - unsuited} of the {seen} samples seen (of {self._num_samples} in {self._root}) cannot "
            f"be used; max_skip_share {self._max_share:g} allows {int(self._allowed(self._max_share))}:"
        ]
        for reason, count in sorted(self.counters.items(), key=lambda item: -item[1]):
            examples = [skip for skip in self._skips.values() if skip.reason == reason][:_SHOWN_EXAMPLES]
            named = "; ".join(
                f"{skip.key} in {skip.shard}" + (f" ({skip.detail})" if skip.detail else "") for skip in examples
            )
            lines.append(f"  {reason}: {count}, e.g. {named}")
        known = {reason for reasons, _ in _REMEDIES for reason in reasons}
        lines += [text.format(root=self._root) for reasons, text in _REMEDIES if set(reasons) & set(self.counters)]
        if set(self.counters) - known:
            lines.append(_DAMAGE)
        lines.append("If the samples are of no use to you, raise max_skip_share.")
        return ShardError("\n".join(lines))

    def _allowed(self, share: float) -> float:
        if share == 0:  # a run that tolerates no damage stops at the first sample
            return 0.0
        judged = max(min(self._seen, self._num_samples), min(self._num_samples, _JUDGED_SAMPLES))
        return max(share * judged, 1.0)
