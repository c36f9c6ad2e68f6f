"""Ends a preparation early that cannot succeed: frames that all fail alike, points that meet no image, no intensity.

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
from data.convert.intensity import DARK, FEW_POINTS
from data.sample import Sample
from data.storage.damage import REASONS
from data.storage.shard import ShardError

_STREAK = 20
"""Frames that fail one after another by the same reason before a preparation that must fail is ended."""
_JUDGED = 3
"""Samples of a task whose points are looked for in the images."""
_SURE_STEPS = 50
"""That one task must see before its poses end the preparation: whoever backs out of a driveway takes fewer, and whole
logs are judged when all are there."""
_SHOWN = 5
_FRAMES, _MET, _LIT = 0, 1, 2


class StoppedEarlyError(ShardError):
    """A preparation was ended before its end because it could only fail."""


class Tally:
    """Frames done, skipped by reason, and tasks that look right; the counts may be shared by processes."""

    SIZE = 3 + len(REASONS)
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
        self._add(_FRAMES, 3 + REASONS.index(skipped.reason))
        alike = not self._streak or self._streak[-1].reason == skipped.reason
        self._streak = [*(self._streak if alike else ()), skipped][-_STREAK:]

    def met(self) -> None:
        """Count a task whose points meet images."""
        self._add(_MET)

    @property
    def num_met(self) -> int:
        """Tasks whose points meet images."""
        return int(self._counts[_MET])

    def lit(self) -> None:
        """Count a task with a sweep whose intensities are not all next to 0."""
        self._add(_LIT)

    @property
    def num_lit(self) -> int:
        """Tasks with a sweep whose intensities are not all next to 0."""
        return int(self._counts[_LIT])

    @property
    def num_frames(self) -> int:
        """Source frames so far."""
        return int(self._counts[_FRAMES])

    @property
    def skipped(self) -> dict[str, int]:
        """Frames that were left out so far, by reason."""
        counts = dict(zip(REASONS, self._counts[3:], strict=True))
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
    """What is asked of the samples of a task together: do points meet images, does the vehicle drive forward?

    Attributes:
        headings: directions of travel, by log.
        brightest: the largest intensity, by log; without those of a handful of points.
        notes: what looks odd, by log.
    """

    def __init__(self, tally: Tally, *, begun: bool, drives_forward: bool, measures_intensity: bool = True) -> None:
        """For a task.

        Args:
            tally: of all tasks.
            begun: shards of the set were there before: what this call sees may not be all that can be seen.
            drives_forward: see `data.convert.base.Converter`.
            measures_intensity: likewise.
        """
        self.headings: dict[str, Heading] = {}
        self.brightest: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        self._tally = tally
        self._begun = begun
        self._drives_forward = drives_forward
        self._measures_intensity = measures_intensity
        self._num_dark = 0
        self._met = self._lit = False
        self._judged: set[str] = set()  # logs
        self._first: list[Sample] = []  # of logs that are not judged yet

    def add(self, sample: Sample) -> None:
        """Take a sample; judge the first ones of a log when there are enough.

        Raises:
            StoppedEarlyError: as `judge`.
        """
        self.headings.setdefault(sample.log, Heading()).add(sample)
        if self._measures_intensity and len(sample.intensity) >= FEW_POINTS:
            self._look_at_intensity(sample.log, float(sample.intensity.max()))
        if sample.log not in self._judged and sample.cameras:
            self._first.append(sample)  # logs that are shorter are judged together
            if len(self._first) == _JUDGED:
                self._judge_first()

    def _look_at_intensity(self, log: str, largest: float) -> None:
        self.brightest[log] = max(self.brightest.get(log, 0.0), largest)
        if largest > DARK and not self._lit:
            self._lit = True
            self._tally.lit()
        self._num_dark += 0 < largest <= DARK
        if self._num_dark == _STREAK and self._tally.num_lit == 0 and not self._begun:
            judge_intensity(self.brightest)

    def judge(self) -> None:
        """Judge what is left at the end of a task.

        Raises:
            StoppedEarlyError: hardly a point of a log's first samples lies in an image, and no log before it had any
                that did; or the vehicle must drive forward, and does not by its poses.
        """
        self._judge_first()
        if self._drives_forward:
            refuse(troubles({log: way for log, way in self.headings.items() if way.steps >= _SURE_STEPS}))

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
        if not meet and self._tally.num_met == 0 and not self._begun:
            raise StoppedEarlyError(
                f"log {logs[0]}: hardly a point of the first {len(first)} samples lies in an image "
                f"(from {first[0].key} on), so there is nothing to train on: {why}. For sweeps only: cameras=[none]"
            )
        wrong = "no image is upright in the ego frame (z up)" if meet else "hardly a point lies in an image"
        self.notes |= dict.fromkeys(logs, f"{wrong} in the first samples of {listed(logs)}: {why}")


def judge_intensity(brightest: Mapping[str, float]) -> tuple[str, ...]:
    """A note about logs whose intensities are all next to 0 (not 0: some sensors measure none), by their largest one.

    Raises:
        StoppedEarlyError: there are no others.
    """
    dark = {log: largest for log, largest in brightest.items() if 0 < largest <= DARK}
    if not dark:
        return ()
    most = max(dark.values())
    what = f"no intensity of {listed(list(dark))} is above {most:.2g} of the value that becomes 1"
    if len(dark) < len([log for log, largest in brightest.items() if largest > 0]):
        return (f"{what}: another scale than in the other logs?",)
    raise StoppedEarlyError(
        f"{what}, so it is of another scale: {most:.2g} times it would fit. Set intensity_max where the set has "
        "that setting, and prepare into a new folder; files that were converted from a published set go in as `custom`"
    )


def refuse(trouble: Sequence[str]) -> None:
    """End a preparation by whose poses a vehicle does not drive forward.

    Raises:
        StoppedEarlyError: there is such trouble.
    """
    if trouble:
        raise StoppedEarlyError(
            f"{'; '.join(trouble)}. Images would be moved the wrong way between their own time and the sweep's: "
            "correct the poses and prepare into a new folder, or set drives_forward=false where it really drives so"
        )
