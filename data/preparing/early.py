"""Ends a preparation early that cannot succeed: frames that all fail alike, points that meet no image.

Counts are those of all processes; what is judged is what this process saw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Any

from common.printable import listed
from data.calibration.conventions import explain, points_meet_images, stands_upright
from data.calibration.heading import Heading, troubles
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
        headings: directions of travel, by log.
        notes: what looks odd, by log.
    """

    def __init__(self, tally: Tally, *, drives_forward: bool) -> None:
        """For a task; `drives_forward`: poses by which a vehicle does not are refused."""
        self.headings: dict[str, Heading] = {}
        self.notes: dict[str, str] = {}
        self._tally = tally
        self._drives_forward = drives_forward
        self._met = False
        self._judged: set[str] = set()  # logs
        self._first: list[Sample] = []  # of logs that are not judged yet

    def add(self, sample: Sample) -> None:
        """Take a sample; judge the first ones of a log when there are enough.

        Raises:
            StoppedEarlyError: as `judge`.
        """
        self.headings.setdefault(sample.log, Heading()).add(sample)
        if sample.log not in self._judged and sample.cameras:
            self._first.append(sample)  # logs that are shorter are judged together
            if len(self._first) == _JUDGED:
                self._judge_first()

    def judge(self) -> None:
        """Judge what is left at the end of a task.

        Raises:
            StoppedEarlyError: hardly a point of a log's first samples lies in an image, and no log before it had any
                that did; or the vehicle must drive forward, and does not by its poses.
        """
        self._judge_first()
        if self._drives_forward:
            refuse(troubles(self.headings))

    def _judge_first(self) -> None:
        first, self._first = self._first, []
        if not first:
            return
        logs = list(dict.fromkeys(sample.log for sample in first))
        self._judged.update(logs)
        meet = points_meet_images(first) is not False
        if meet and not self._met:
            self._met = True
            self._tally.met()
        if meet and any(stands_upright(view) for sample in first for view in sample.cameras):
            return
        # Once a task: each mistake is tried on each image.
        why = explain(first) if not self.notes else "see the log before it"
        if not meet and self._tally.num_met == 0:
            raise StoppedEarlyError(
                f"log {logs[0]}: hardly a point of the first {len(first)} samples lies in an image "
                f"(from {first[0].key} on), so there is nothing to train on: {why}. For sweeps only: cameras=[none]"
            )
        wrong = "no image is upright in the ego frame (z up)" if meet else "hardly a point lies in an image"
        self.notes |= dict.fromkeys(logs, f"{wrong} in the first samples of {listed(logs)}: {why}")


def refuse(trouble: Sequence[str]) -> None:
    """End a preparation by whose poses a vehicle does not drive forward.

    Raises:
        StoppedEarlyError: there is such trouble.
    """
    if trouble:
        raise StoppedEarlyError(
            f"{'; '.join(trouble)}. Images would be moved the wrong way between their own time and the sweep's: "
            "correct the poses, or set drives_forward=false where a vehicle really drives so"
        )
