"""Ends a preparation early that cannot succeed: frames that all fail alike, points that meet no image.

Counts are those of all processes; what is judged is what this process saw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Any

from data.calibration.conventions import explain, points_meet_images, stands_upright
from data.calibration.heading import Heading
from data.convert.base import Skipped
from data.sample import Sample
from data.storage.encode import REASONS
from data.storage.shard import ShardError

_STREAK = 20
"""Frames that fail one after another by the same reason before a preparation that must fail is ended."""
_JUDGED = 3
"""Samples of a task whose points are looked for in the images."""
_SHOWN = 5
_FRAMES, _MET = 0, 1


class StoppedEarlyError(ShardError):
    """A preparation was ended before its end because it could only fail."""


class Tally:
    """Frames done, skipped by reason, and tasks whose points meet images; the counts may be shared by processes."""

    SIZE = 2 + len(REASONS)
    """Numbers that are counted."""

    def __init__(self, shared: SynchronizedArray[int] | None = None) -> None:
        self._counts: Any = [0] * self.SIZE if shared is None else shared
        self._lock: AbstractContextManager[object] = contextlib.nullcontext() if shared is None else shared.get_lock()
        self._streak: list[Skipped] = []

    def _add(self, *which: int) -> None:
        with self._lock:
            for number in which:
                self._counts[number] += 1

    def frame(self, skipped: Skipped | None = None) -> None:
        """Count a source frame."""
        if skipped is None:
            self._add(_FRAMES)
            self._streak = []
            return
        self._add(_FRAMES, 2 + REASONS.index(skipped.reason))
        alike = not self._streak or self._streak[-1].reason == skipped.reason
        self._streak = [*(self._streak if alike else ()), skipped][-_STREAK:]

    def met(self) -> None:
        """Count a task whose points meet images."""
        self._add(_MET)

    @property
    def num_met(self) -> int:
        """Tasks whose points meet images."""
        return int(self._counts[_MET])

    @property
    def num_frames(self) -> int:
        """Source frames so far."""
        return int(self._counts[_FRAMES])

    @property
    def skipped(self) -> dict[str, int]:
        """Frames that were left out so far, by reason."""
        counts = dict(zip(REASONS, self._counts[2:], strict=True))
        return {reason: int(count) for reason, count in counts.items() if count}

    def check(self, allowed: int) -> None:
        """End what must fail: more frames than allowed are skipped, and the last ones failed all alike.

        Raises:
            StoppedEarlyError: says by what, and where.
        """
        num_skipped = sum(self.skipped.values())
        if len(self._streak) == _STREAK and num_skipped > allowed:
            raise StoppedEarlyError(
                f"stopped after {self.num_frames} frames: {num_skipped} cannot be used, {allowed} are allowed, and the "
                f"last {_STREAK} failed alike. {'; '.join(grouped(self._streak))}. Repair the source and run the same "
                "command again, or allow more (--max-skip-share)"
            )


def grouped(skipped: Iterable[Skipped], shown: int = _SHOWN) -> list[str]:
    """What was skipped, one line for each reason and log, the largest groups first; the rest is counted."""
    groups: dict[tuple[str, str], list[Skipped]] = {}
    for skip in skipped:
        log = "" if skip.log == skip.key else skip.log  # where each frame is a log of its own, they are one group
        groups.setdefault((skip.reason, log), []).append(skip)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = []
    for (reason, log), members in ordered[:shown]:
        frames = f"{len(members)} frames" if len(members) > 1 else "1 frame"
        of_log = f" of {log}" if log else ""
        lines.append(f"{reason}: {frames}{of_log}, e.g. {members[0].key} ({members[0].detail})")
    if ordered[shown:]:
        rest = sum(len(members) for _, members in ordered[shown:])
        lines.append(f"and {rest} frames in {len(ordered) - shown} more groups of log and reason")
    return lines


def skip_text(skipped: Mapping[str, int]) -> str:
    """How many frames were left out, for a progress bar."""
    listed = ", ".join(f"{reason} {count}" for reason, count in skipped.items())
    return f"{sum(skipped.values())} skipped ({listed})" if skipped else ""


class SampleLooks:
    """What is asked of the samples of a task together: do their points meet the images, does the vehicle drive forward?

    Attributes:
        heading: directions of travel.
        notes: what looks odd.
    """

    def __init__(self, tally: Tally, *, first_task: bool) -> None:
        """For a task; one that is the first of its set also says whether images stand upright."""
        self.heading = Heading()
        self.notes: tuple[str, ...] = ()
        self._tally = tally
        self._first_task = first_task
        self._first: list[Sample] | None = []  # None: judged

    def add(self, sample: Sample) -> None:
        """Take a sample; judge the first ones when there are enough.

        Raises:
            ShardError: as `judge`.
        """
        self.heading.add(sample)
        if self._first is not None and sample.cameras:
            self._first.append(sample)
            if len(self._first) == _JUDGED:
                self.judge()

    def judge(self) -> None:
        """Judge what there is of the first samples, once.

        Raises:
            ShardError: hardly a point of them lies in an image, and no task before this one had any that did.
        """
        first, self._first = self._first, None
        if not first:
            return
        if points_meet_images(first) is not False:
            self._tally.met()
            if self._first_task and not any(stands_upright(view) for view in first[0].cameras):
                self.notes = (f"no image of {first[0].log} is upright in the ego frame (z up): {explain(first)}",)
        elif self._tally.num_met == 0:
            raise ShardError(
                f"log {first[0].log}: hardly a point of the first {len(first)} samples lies in an image "
                f"(from {first[0].key} on), so there is nothing to train on: {explain(first)}. For sweeps only: "
                "cameras=[none]"
            )
